from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from greeter.errors import ConfigError, MissingExtra
from greeter.loadtest import LoadPlan, Threshold
from greeter.loadtest.report.merge import merge
from greeter.loadtest.report.saved import gather, parse, read
from tests.loadtest.report.test_charts import RUNS, named
from tests.loadtest.report.test_report import metrics, report

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    path.write_text(report().to_json())
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old.json"
    path.write_text(report(metrics(2000, ms=1.0), started_at="2026-11-21T20:00:00Z").to_json())
    return path


def test_one_run(run: Path) -> None:
    assert gather([run]) == (report(), None)


def test_a_run_against_an_older_one(run: Path, old: Path) -> None:
    found, baseline = gather([run, str(old)], tolerance=20)
    assert baseline == read(old)
    assert found.baseline is not None
    assert (found.baseline["name"], found.baseline["tolerance_percent"]) == (str(old), 20)
    assert not found.passed


def test_the_parts_of_one_run(run: Path, old: Path) -> None:
    found, baseline = gather([run, old], merged=True)
    assert found == merge([(str(run), read(run)), (str(old), read(old))])
    assert baseline is None
    assert parse(found.to_json()) == found, "what comes out can be read again"


@pytest.mark.parametrize("name", RUNS)
def test_what_greeter_writes_it_reads(name: str) -> None:
    assert parse(named(name).to_json()) == named(name)


def test_a_report_with_everything() -> None:
    plan = LoadPlan(rate=100, duration=1.0, thresholds=[Threshold.parse("response:p99<20ms")])
    found = report(plan=plan).against(report())
    assert parse(found.to_json()) == found


@pytest.mark.parametrize("count", [0, 3])
def test_how_many_reports(run: Path, count: int) -> None:
    with pytest.raises(ConfigError, match=f"compared with one baseline; {count} were given"):
        gather([run] * count)


def changed(path: str, value: Any) -> str:
    """A report with one value put in or, with ``...``, taken out."""
    values = json.loads(report().to_json())
    inner = values
    *way, last = path.split(".")
    for step in way:
        inner = inner[int(step)] if isinstance(inner, list) else inner[step]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(values)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "run.json is no JSON: "),
        ("<html>", "run.json is no JSON: "),
        ("[" * 100_000, "run.json is no JSON of a report: it is nested too deeply"),
        ("[]", "run.json is no report of a load test: it has no schema"),
        ('{"results": []}', "run.json is no report of a load test: it has no schema"),
        ('{"schema": 2}', "run.json has schema 2; this greeter reads schema 1"),
        (changed("timeline", 5), "run.json is no report of a load test: timeline: 5 is not of type 'array'"),
        (
            changed("timeline.0.open", "many"),
            "run.json is no report of a load test: timeline[0].open: 'many' is not of type 'integer'",
        ),
        (
            changed("histograms.service", ...),
            "run.json is no report of a load test: histograms: 'service' is a required property",
        ),
        (
            changed("latency_us.connect.p99", float("nan")),
            "run.json is no report of a load test: latency_us.connect.p99 is out of range",
        ),
        (
            changed("rate.greeted", float("inf")),
            "run.json is no report of a load test: rate.greeted is out of",
        ),
        (
            changed("connections.greeted", 10**400),
            "run.json is no report of a load test: connections.greeted is",
        ),
        (changed("generator", []), "run.json is no "),
        (
            changed("latency_us.connect.p99", None),
            "run.json is no report of a load test: latency_us.connect.p99: None is not of type 'number'",
        ),
        (
            changed("plan.hold_s", "5s"),
            "run.json is no report of a load test: plan.hold_s: '5s' is not of type 'number'",
        ),
        (
            changed("rate.target", None),
            "run.json is no report of a load test: rate.target: None is not of type 'number'",
        ),
        (
            changed("timeline_width_s", 1e-12),
            "run.json is no report of a load test: timeline_width_s: 1e-12 is less than the minimum of 1",
        ),
        (changed("duration_s", 1e-300), "run.json is no report of a load test: duration_s is out of range"),
        (
            changed("started_at", "yesterdayZ"),
            "run.json is no report of a load test: started_at: 'yesterdayZ' does not match",
        ),
        (changed("plan.mode", "ajar\n" * 500), "run.json is no report of a load test: plan.mode: 'ajar"),
    ],
)
def test_what_is_no_report(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "run.json")
    assert str(caught.value).startswith(complaint)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^cannot read '.*nothing\.json': no such file or directory$"):
        read(tmp_path / "nothing.json")
    (tmp_path / "page.png").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ConfigError, match=r"page\.png is no JSON: it is not UTF-8$"):
        read(tmp_path / "page.png")


def test_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(
        MissingExtra, match=r"^reading a report needs .* pip install '\.\[report\]' in greeter's source tree$"
    ):
        parse("{}")
