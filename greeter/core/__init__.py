"""Values and rules without I/O.

Endpoints, greetings, replies, admission, the grammar of the PROXY protocol, a TLS session over memory
buffers, deadlines, counters, the configuration of a server. Its tests are tables and properties, and need no
event loop.

Entry points: ``Endpoint`` (endpoint.py), ``Greeting`` and ``Peer`` (greeting.py), ``Limits`` (admission.py),
``ServerConfig`` (server_config.py).

Must not import: any greeter module but ``errors``. No socket, no event loop, no clock.
"""
