"""One run made by many machines, with Locust.

Entry points: the classes that ``greeter.loadtest.locust`` exports.

Must not import: the command line; never the server.
"""
