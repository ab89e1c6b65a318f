"""The figures of a run: histograms, a timeline and outcomes; those of several workers can be added.

Entry point: ``RunMetrics`` (run_metrics.py).

Must not import: the generator, and what is above it.
"""
