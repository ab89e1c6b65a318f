"""Values and rules without I/O.

Endpoints, greetings, replies, admission, the grammar of the PROXY protocol, a TLS session over memory
buffers, deadlines, counters. Everything here is tested with tables and properties, without an event loop.

Entry points: ``Endpoint`` (endpoint.py), ``Greeting`` and ``Peer`` (greeting.py), ``Limits`` (admission.py).

Must not import: anything of greeter but ``errors``; no socket, no event loop, no clock.
"""
