"""Files that are almost a report: whatever stands in the place of a figure, the file is shown, or it is
refused in one line."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from greeter.errors import GreeterError
from greeter.loadtest import LoadPlan, LoadReport, Stage, Threshold
from greeter.loadtest.metrics import histogram
from greeter.loadtest.report.html import page
from greeter.loadtest.report.merge import merge
from greeter.loadtest.report.render import summary
from greeter.loadtest.report.saved import parse
from tests.loadtest.report.test_report import ENVIRONMENT, metrics, report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest.importorskip("plotly")

pytestmark = pytest.mark.one_interpreter

Place = tuple[str | int, ...]

# The same few histograms in every variant; to decode them is most of the time.
decode = cache(histogram.decode)

VALUES: list[Any] = [None, "5s", -1, 0, 1e-12, 2**62, 10**400, float("nan"), []]


def made(plan: LoadPlan, second: int = 0) -> LoadReport:
    """A report with something everywhere."""
    counted = metrics()
    counted.count_reason("connect_refused", "Connection refused")
    environment = {**ENVIRONMENT, "uvloop": "1", "sysctl": {"somaxconn": "4096"}}
    return report(
        counted,
        plan,
        started_at=f"2026-11-22T20:00:0{second}Z",
        kernel={"ListenDrops": 3},
        environment=environment,
        notes=["a note"],
    )


def added_up() -> LoadReport:
    """An open loop, in two parts, that was compared with an older run."""
    limits = [Threshold.parse("response:p99<1ms")]
    stages, sources = [Stage(0.5, 100), Stage(0.5, 100)], ["127.0.0.2"]
    plan = LoadPlan(stages=stages, count=75, source_ips=sources, thresholds=limits, expect="Thank you")
    found = merge([("a", made(plan, 1)), ("b", made(plan, 2))]).against(made(LoadPlan(rate=50, duration=1.0)))
    assert found.baseline is not None
    del found.baseline["figures"][2:]  # they are all alike
    return found


REPORTS = {
    "open": added_up(),
    "closed": made(LoadPlan(count=100, hold=0.1, tls=True, tls_ca="ca.pem", server_name="a.example")),
}


# What the sum of several reports depends on, but for what is merely counted.
PLANNED = {"plan", "generator", "environment", "started_at", "duration_s", "timeline_width_s"}


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Where there is something in a JSON value: every leaf, and what they are in, which comes before them."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*place, key)
        yield from places(one, (*place, key))


def at(values: Any, place: Place) -> Any:
    for step in place:
        values = values[step]
    return values


def put(values: Any, place: Place, value: Any) -> Any:
    """Put ``value`` in one place; returns what was there."""
    *way, last = place
    for step in way:
        values = values[step]
    old, values[last] = values[last], value
    return old


def read(values: Any) -> LoadReport | None:
    """The report, if it is one."""
    try:
        return parse(json.dumps(values))
    except GreeterError as error:
        refused(error)
        return None


def add_up(found: LoadReport, other: LoadReport) -> None:
    try:
        summary(merge([("a", found), ("b", other)]))
    except GreeterError as error:
        refused(error)


def compare(run: LoadReport, old: LoadReport, *show: Callable[[LoadReport, LoadReport], str]) -> None:
    try:
        compared = run.against(old)
    except GreeterError as error:  # nothing was greeted in it
        refused(error)
        return
    summary(compared)
    for each in show:
        each(compared, old)


def refused(error: GreeterError) -> None:
    assert str(error).isprintable()


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:10])
@pytest.mark.parametrize("name", REPORTS)
def test_what_is_almost_a_report(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = REPORTS[name]
    monkeypatch.setattr(histogram, "decode", decode)
    other = dataclasses.replace(run, started_at="2026-11-22T20:00:03Z")
    values, all_at_once = json.loads(run.to_json()), json.loads(run.to_json())
    shown: set[Place] = set()
    for place in places(json.loads(run.to_json())):
        if isinstance(value, int | float) and isinstance(at(values, place), str | list | dict):
            continue  # of another type, as the other values are
        old = put(values, place, value)
        found = read(values)
        put(values, place, old)
        if found is None:
            continue
        summary(found)
        found.to_json()
        compare(run, found)
        if place[0] in PLANNED:
            add_up(found, other)
        if not any(place[:length] in shown for length in range(len(place))):
            put(all_at_once, place, value)
        shown.add(place)
    # These take their time, so that they are done once, with all that went through.
    strange = read(all_at_once)
    assert strange is not None
    add_up(strange, other)
    monkeypatch.setattr("plotly.offline.get_plotlyjs", str)  # always the same 4 MB
    page(strange)
    compare(run, strange, page)
