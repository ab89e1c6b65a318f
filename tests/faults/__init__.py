"""The fault matrix: every fallible call of a service fails once, with each of its errors.

As curl's torture test does: a run without faults counts the calls of a fixed scenario (runs.py), and then it
is run again for each of them and each error that its manual page has (errors.py), in which this one call
fails. What must hold is the same for all (verdicts.py). services.py has the services that are run.

``python -m tests.faults`` runs the whole matrix, tests/service/test_fault_matrix.py a part of it.
"""
