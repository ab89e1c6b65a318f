"""Random services, clients and faults, each drawn from a seed, against what greeter promises.

``python -m tests.torture --seeds 1-20`` plays seeds. The modules, from the bottom up:

- ``schedule``: a service and what happens to it, as values that can be written down and read again.
- ``drawing``: a schedule from a seed. ``shrinking``: simpler ones of a schedule that fails.
- ``visits``: a client's connection, from its connect to its verdict.
- ``service``: the process under test, what /proc tells about it, and its limits.
- ``playing``: a schedule played to its end, with its ``evidence``.
- ``excuses``: which fault may cost which client. ``invariants``: what is wrong with the evidence.
- ``campaign``: many seeds side by side, and the report of a failure.
"""
