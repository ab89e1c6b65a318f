"""The plan of a load test: what to measure, the schedule of connections, thresholds, and their units.

Entry points: ``LoadPlan`` (plan.py), ``Threshold`` (threshold.py).

Must not import: any other part of the load tester.
"""
