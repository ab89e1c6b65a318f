"""Making connections on time: the engine, its clock and its sockets, in this process or in workers.

Entry points: ``Engine`` (engine.py), ``Workers`` (workers.py).

Must not import: the report, and what is above it; never the server.
"""
