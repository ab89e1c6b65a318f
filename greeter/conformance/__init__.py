"""Conformance: ask a TCP service for one behaviour at a time, and say which clients it loses, and why.

The story, from the top: ``check()`` (check_run.py) learns what the service says (tested_service.py), runs the
checks that apply, each a small function (checks/), with real clients (probe.py), and makes a CheckReport of
what they found (check_report.py). A check is registered with what it asks, why, and its cure (registry.py);
what a client experienced is an Ending, and what a check concludes is a Finding (findings.py).

Must not import: the server, and all that runs a process (service, config, command line).
"""

from greeter.conformance.check_plan import CheckPlan
from greeter.conformance.check_report import CheckReport
from greeter.conformance.check_run import check

__all__ = ["CheckPlan", "CheckReport", "check"]
