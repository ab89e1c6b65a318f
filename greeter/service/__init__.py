"""A process that serves: signals, reloads, workers, logging, metrics, systemd.

The story, from the top: ``run_service`` (startup.py) decides which kind of process to be. One that serves
by itself is in service.py; a parent of workers in parent.py, with its supervisor (workers.py), its children
(child.py) and the channel between them (channel.py). Counters travel as snapshots (snapshot.py) to the
metrics (metrics.py, httpd.py), lines to the log (logs.py), states to systemd (systemd.py).

Entry point: ``run_service`` (startup.py).

Must not import: ``cli``.
"""
