"""The generator: starts connections on schedule, in this process or in worker processes.

Entry points: ``Engine`` (engine.py), ``WorkerPool`` (worker_pool.py).

Must not import: the report, and what is above it; never the server.
"""
