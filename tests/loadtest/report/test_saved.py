from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from greeter.errors import ConfigError, MissingExtra
from greeter.loadtest import LoadPlan, Threshold
from greeter.loadtest.report.merge import merge
from greeter.loadtest.report.saved import parse_report, read_report, read_reports
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
    assert read_reports([run]) == (report(), None)


def test_a_run_and_a_baseline(run: Path, old: Path) -> None:
    found, baseline = read_reports([run, str(old)], tolerance=20)
    assert baseline == read_report(old)
    assert found.baseline is not None
    assert (found.baseline["name"], found.baseline["tolerance_percent"]) == (str(old), 20)
    assert not found.passed


def test_merged_parts(run: Path, old: Path) -> None:
    found, baseline = read_reports([run, old], merged=True)
    assert found == merge([(str(run), read_report(run)), (str(old), read_report(old))])
    assert baseline is None
    assert parse_report(found.to_json()) == found, "the merged report is valid"


@pytest.mark.parametrize("name", RUNS)
def test_a_written_report_can_be_read(name: str) -> None:
    assert parse_report(named(name).to_json()) == named(name)


def test_a_report_with_all_members() -> None:
    plan = LoadPlan(rate=100, duration=1.0, thresholds=[Threshold.parse("response:p99<20ms")])
    found = report(plan=plan).against(report())
    assert parse_report(found.to_json()) == found


@pytest.mark.parametrize("count", [0, 3])
def test_an_unexpected_number_of_reports(run: Path, count: int) -> None:
    with pytest.raises(ConfigError, match=f"expected a report and at most one baseline, got {count} files"):
        read_reports([run] * count)


def changed(path: str, value: Any) -> str:
    """Return a report with one value replaced or, with ``...``, removed."""
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
    ("text", "message"),
    [
        ("", "run.json is not JSON: "),
        ("<html>", "run.json is not JSON: "),
        ("[" * 100_000, "run.json is not a load test report: it is nested too deeply"),
        ("[]", "run.json is not a load test report: it has no schema"),
        ('{"results": []}', "run.json is not a load test report: it has no schema"),
        ('{"schema": 2}', "run.json has schema 2; this greeter reads schema 1"),
        (changed("timeline", 5), "run.json is not a load test report: timeline: 5 is not of type 'array'"),
        (
            changed("timeline.0.open", "many"),
            "run.json is not a load test report: timeline[0].open: 'many' is not of type 'integer'",
        ),
        (
            changed("histograms.service", ...),
            "run.json is not a load test report: histograms: 'service' is a required property",
        ),
        (
            changed("latency_us.connect.p99", float("nan")),
            "run.json is not a load test report: latency_us.connect.p99 is out of range",
        ),
        (
            changed("rate.greeted", float("inf")),
            "run.json is not a load test report: rate.greeted is out of",
        ),
        (
            changed("connections.greeted", 10**400),
            "run.json is not a load test report: connections.greeted is",
        ),
        (changed("generator", []), "run.json is not "),
        (
            changed("latency_us.connect.p99", None),
            "run.json is not a load test report: latency_us.connect.p99: None is not of type 'number'",
        ),
        (
            changed("plan.hold_s", "5s"),
            "run.json is not a load test report: plan.hold_s: '5s' is not of type 'number'",
        ),
        (
            changed("rate.target", None),
            "run.json is not a load test report: rate.target: None is not of type 'number'",
        ),
        (
            changed("bucket_s", 1e-12),
            "run.json is not a load test report: bucket_s: 1e-12 is less than the minimum of 0.001",
        ),
        (changed("duration_s", 1e-300), "run.json is not a load test report: duration_s is out of range"),
        (
            changed("started_at", "yesterdayZ"),
            "run.json is not a load test report: started_at: 'yesterdayZ' does not match",
        ),
        (changed("plan.mode", "ajar\n" * 500), "run.json is not a load test report: plan.mode: 'ajar"),
    ],
)
def test_an_invalid_report_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_report(text, "run.json")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_an_unreadable_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^cannot read '.*nothing\.json': no such file or directory$"):
        read_report(tmp_path / "nothing.json")
    (tmp_path / "page.png").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ConfigError, match=r"page\.png is not JSON: it is not UTF-8$"):
        read_report(tmp_path / "page.png")


def test_a_missing_package_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(
        MissingExtra, match=r"^reading a report needs .* pip install '\.\[report\]' in greeter's source tree$"
    ):
        parse_report("{}")
