"""Making connections on time: the engine, its clock and its sockets, in this process or in workers.

Entry points: ``Engine`` (engine.py), ``WorkerPool`` (worker_pool.py).

Must not import: the report, and what is above it; never the server.
"""
