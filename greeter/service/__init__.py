"""A process that serves: signals, reloads, workers, logging, metrics, systemd.

``run_service`` (startup.py) chooses the kind of process. service.py has what all kinds share, and the process
that serves alone. multi_process.py has the parent of workers, supervisor.py keeps the workers running,
worker_process.py is one worker as its parent sees it, and channel.py carries messages between the two.
Counters travel as snapshots (snapshot.py) to the metrics (prometheus.py, httpd.py), log lines go through
logs.py, and systemd.py talks to systemd.

Entry point: ``run_service`` (startup.py).

Must not import: ``cli``.
"""
