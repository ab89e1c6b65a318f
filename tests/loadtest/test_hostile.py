"""Files that are almost reports: with any value in any place, a file is rendered or rejected in one line."""

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
from greeter.loadtest.report.saved import parse_report
from tests.loadtest.report.test_report import ENVIRONMENT, metrics, report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest.importorskip("vl_convert")

pytestmark = [pytest.mark.one_interpreter, pytest.mark.thorough]

Place = tuple[str | int, ...]

# All variants have the same few histograms, and decoding dominates the run time.
decode = cache(histogram.decode)

VALUES: list[Any] = [None, "5s", -1, 0, 1e-12, 2**62, 10**400, float("nan"), []]


def made(plan: LoadPlan, second: int = 0) -> LoadReport:
    """Return a report in which no member is empty."""
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


def merged_report() -> LoadReport:
    """Return the merged report of an open loop, compared with a baseline."""
    limits = [Threshold.parse("response:p99<1ms")]
    stages, sources = [Stage(0.5, 100), Stage(0.5, 100)], ["127.0.0.2"]
    plan = LoadPlan(stages=stages, count=75, source_ips=sources, thresholds=limits, expect="Thank you")
    found = merge([("a", made(plan, 1)), ("b", made(plan, 2))]).against(made(LoadPlan(rate=50, duration=1.0)))
    assert found.baseline is not None
    del found.baseline["figures"][2:]  # the others have the same shape
    return found


REPORTS = {
    "open": merged_report(),
    "closed": made(LoadPlan(count=100, hold=0.1, tls=True, tls_ca="ca.pem", server_name="a.example")),
}


# Members that merging depends on, apart from counts.
MERGE_INPUTS = {"plan", "generator", "environment", "started_at", "duration_s", "bucket_s"}


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Yield the path of every value in a JSON value; containers come before their members."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*place, key)
        yield from places(one, (*place, key))


def at(values: Any, place: Place) -> Any:
    for step in place:
        values = values[step]
    return values


def put(values: Any, place: Place, value: Any) -> Any:
    """Replace the value at ``place``; return the old one."""
    *way, last = place
    for step in way:
        values = values[step]
    old, values[last] = values[last], value
    return old


def read(values: Any) -> LoadReport | None:
    """Return the report, or None if it is rejected."""
    try:
        return parse_report(json.dumps(values))
    except GreeterError as error:
        assert_one_line(error)
        return None


def add_up(found: LoadReport, other: LoadReport) -> None:
    try:
        summary(merge([("a", found), ("b", other)]))
    except GreeterError as error:
        assert_one_line(error)


def compare(run: LoadReport, old: LoadReport, *show: Callable[[LoadReport, LoadReport], str]) -> None:
    try:
        compared = run.against(old)
    except GreeterError as error:  # nothing was greeted in the baseline
        assert_one_line(error)
        return
    summary(compared)
    for each in show:
        each(compared, old)


def assert_one_line(error: GreeterError) -> None:
    assert str(error).isprintable()


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:10])
@pytest.mark.parametrize("name", REPORTS)
def test_an_almost_valid_report_is_rendered_or_rejected(
    name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = REPORTS[name]
    monkeypatch.setattr(histogram, "decode", decode)
    other = dataclasses.replace(run, started_at="2026-11-22T20:00:03Z")
    values, all_at_once = json.loads(run.to_json()), json.loads(run.to_json())
    shown: set[Place] = set()
    for place in places(json.loads(run.to_json())):
        if isinstance(value, int | float) and isinstance(at(values, place), str | list | dict):
            continue  # of another type; other values cover that
        old = put(values, place, value)
        found = read(values)
        put(values, place, old)
        if found is None:
            continue
        summary(found)
        found.to_json()
        compare(run, found)
        if place[0] in MERGE_INPUTS:
            add_up(found, other)
        if not any(place[:length] in shown for length in range(len(place))):
            put(all_at_once, place, value)
        shown.add(place)
    # These are slow, so they run once, with all values that were accepted.
    strange = read(all_at_once)
    assert strange is not None
    add_up(strange, other)
    page(strange)
    compare(run, strange, page)
