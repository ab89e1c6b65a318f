"""Distributed runs: Locust controls generators on several machines, and their results are added up.

Entry points: the classes that ``greeter.loadtest.locust`` exports.

Must not import: the command line; never the server.
"""
