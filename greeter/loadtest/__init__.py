"""The load tester: how many new connections a second, and what the slowest client saw.

The story, from the top: ``load()`` (run.py) takes a LoadPlan and puts the parts in order. ``plan`` says
what is to be measured and when each connection is due, ``generator`` makes the connections, ``metrics``
counts them and adds up over processes, ``report`` says what the figures mean and shows them.
``distributed`` is one run made by many machines, with Locust (locust.py).

Entry points: ``load``, ``LoadPlan``, ``LoadReport``, ``Threshold``; ``greeter.loadtest.locust``.

Must not import: the server, the client, and all that runs a process.

Example::

    report = await load(LoadPlan("127.0.0.1:9999", rate=1000, duration=10))
"""

from greeter.loadtest.metrics.run_snapshot import Snapshot
from greeter.loadtest.plan.pacer import Stage
from greeter.loadtest.plan.plan import LoadPlan, parse_stage
from greeter.loadtest.plan.threshold import Threshold
from greeter.loadtest.report.report import LoadReport
from greeter.loadtest.run import load

__all__ = ["LoadPlan", "LoadReport", "Snapshot", "Stage", "Threshold", "load", "parse_stage"]
