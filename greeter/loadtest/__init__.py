"""The load tester: how many new connections per second, and what the slowest client saw.

It is four small parts, each to be used and tested without the others. A *pacer* (``pacer.py``, from a
``plan.py``) says when the next connection is due. One *engine* (``engine.py``; ``connection.py`` is a
single client, ``poller.py`` and ``alarm.py`` its eyes and its clock) makes the connections.
*Metrics* (``metrics.py``: ``histogram.py``, ``timeline.py``, ``outcome.py``) count, and add up over
worker processes. A *report* (``report.py``, ``verdict.py``, ``baseline.py``) is what the figures say, and
``render.py``, ``html.py`` and ``progress.py`` show it, ``outputs.py`` writes it. ``run.py`` puts them in
order.

    report = await load(LoadPlan("127.0.0.1:9999", rate=1000, duration=10))
"""

from greeter.loadtest.metrics.snapshot import Snapshot
from greeter.loadtest.plan.pacer import Stage
from greeter.loadtest.plan.plan import LoadPlan, parse_stage
from greeter.loadtest.plan.threshold import Threshold
from greeter.loadtest.report.report import LoadReport
from greeter.loadtest.run import load

__all__ = ["LoadPlan", "LoadReport", "Snapshot", "Stage", "Threshold", "load", "parse_stage"]
