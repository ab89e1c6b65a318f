"""What is to be measured: the plan of a run, its schedule, its thresholds, and the units of all of them.

Entry points: ``LoadPlan`` (plan.py), ``Threshold`` (threshold.py).

Must not import: any other part of the load tester.
"""
