"""The report, its verdict, the comparison with a baseline, and the output formats.

Entry points: ``LoadReport`` (report.py), ``write_outputs`` (outputs.py).

Must not import: the distributed run; never the server.
"""
