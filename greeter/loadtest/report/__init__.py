"""What the figures say: the report, its verdict and its baseline, and every form in which it is shown.

Entry points: ``LoadReport`` (report.py), ``deliver`` (outputs.py).

Must not import: the distributed run; never the server.
"""
