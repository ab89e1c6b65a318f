"""A process that serves: signals, reloads, workers, logging, metrics, systemd.

``run_service`` (startup.py) chooses the kind of process. service.py has what all kinds share, and the process
that serves alone. multi_process.py has the parent of workers, supervisor.py keeps the workers running,
worker_process.py is one worker as its parent sees it, channel.py carries messages between the two, and
health.py asks the workers whether they respond. ``--metrics`` is httpd.py with the pages of prometheus.py and
status.py; counters travel there as snapshots (snapshot.py). Log lines go through logs.py, and systemd.py
talks to systemd.

Entry point: ``run_service`` (startup.py).

Must not import: ``cli``.
"""
