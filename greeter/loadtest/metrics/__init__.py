"""What a run counts: histograms, a timeline, outcomes, and how those of several processes add up.

Entry point: ``RunMetrics`` (run_metrics.py).

Must not import: the generator, and what is above it.
"""
