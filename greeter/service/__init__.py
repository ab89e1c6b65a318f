"""A process that serves: signals, reloads, workers, logging, metrics, systemd.

``run_service`` (startup.py) chooses the kind of process. service.py has what all kinds share.
single_process.py serves alone. multi_process.py is the parent of workers, supervisor.py keeps them running,
worker_process.py is one worker as its parent sees it, serving_worker.py is what a worker does, channel.py
carries messages between the two, and health.py asks the workers whether they respond. ``--metrics`` is
httpd.py with the pages of prometheus.py and status.py; counters travel as snapshots (snapshot.py). Log lines
go through logs.py and log_format.py, and systemd.py talks to systemd.

Entry point: ``run_service`` (startup.py).

Must not import: ``cli``.
"""
