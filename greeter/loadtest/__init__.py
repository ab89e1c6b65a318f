"""The load tester: measures the rate of new connections and their latencies.

From the top, ``load()`` (run.py) takes a LoadPlan and runs the parts in order:

- ``plan``: what to measure, and when each connection is due.
- ``generator``: makes the connections.
- ``metrics``: counts them, and adds up the figures of several workers.
- ``report``: evaluates the figures and presents them.
- ``distributed``: one run on several machines, with Locust (locust.py).

Entry points: ``load``, ``LoadPlan``, ``LoadReport``, ``Threshold``; ``greeter.loadtest.locust``.

Must not import: the server, the client, or a room above.

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
