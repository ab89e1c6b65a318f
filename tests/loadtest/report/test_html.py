"""The page as text. test_browser.py checks it in a browser."""

from __future__ import annotations

import dataclasses
import re
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

from greeter.errors import ConfigError, MissingExtra
from greeter.loadtest import LoadPlan, LoadReport, Threshold
from greeter.loadtest.metrics.histogram import Histogram
from greeter.loadtest.metrics.run_metrics import RunMetrics
from greeter.loadtest.plan.outcome import FAILURE_CLASSES
from greeter.loadtest.report.html import packages, page
from tests.loadtest.report.test_charts import PAIRS, long_run, named, with_thresholds
from tests.loadtest.report.test_report import lagging, metrics, report

if TYPE_CHECKING:
    from collections.abc import Iterator

VOID = {"meta", "link", "br"}
HOSTILE = "</script><script>hacked = 1</script>\"'><img src=x onerror=hacked=1>{{ 7 * 7 }}"


class Page(HTMLParser):
    """A parsed page: its elements as (tag, attributes, text). Parsing fails if they are not nested."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[tuple[str, list[str]]] = []
        self.feed(html)
        self.close()
        assert not self._open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        text: list[str] = []
        self.elements.append((tag, {name: value or "" for name, value in attrs}, text))
        if tag not in VOID:
            self._open.append((tag, text))

    def handle_endtag(self, tag: str) -> None:
        opened, _ = self._open.pop()
        assert opened == tag

    def handle_data(self, data: str) -> None:
        for _, text in self._open:
            text.append(data)

    def all(self, tag: str, **attributes: str) -> Iterator[tuple[dict[str, str], str]]:
        """Yield the attributes and the text of every matching element."""
        for name, values, text in self.elements:
            if name == tag and attributes.items() <= values.items():
                yield values, " ".join("".join(text).split())

    def rows(self, label: str) -> list[list[str]]:
        """Return the table in the region with that label, as text."""
        for index, (tag, values, _) in enumerate(self.elements):
            if tag == "div" and values.get("aria-label") == label:
                rows: list[list[str]] = []
                for inner, _, text in self.elements[index + 2 :]:
                    if inner not in ("caption", "thead", "tbody", "tr", "th", "td", "code", "br", "span"):
                        break
                    if inner == "tr":
                        rows.append([])
                    elif inner in ("th", "td"):
                        rows[-1].append(" ".join("".join(text).split()))
                return rows
        raise AssertionError(f"no table {label}")


def opened(run: LoadReport, baseline: LoadReport | None = None, title: str | None = None) -> Page:
    return Page(page(run, baseline, title))


def drawn(of: Page) -> set[str]:
    """Return the ids of the charts that are drawn."""
    return {values["id"] for values, _ in of.all("div") if values.get("class") == "chart"}


def verdict(of: Page) -> tuple[str, str]:
    """Return the CSS class of the result and its label."""
    kind = next(values["class"] for values, _ in of.all("div") if "verdict" in values.get("class", ""))
    return kind.split()[1], next(text for _, text in of.all("strong"))


@PAIRS
def test_a_page_is_well_formed(name: str, baseline: str | None) -> None:
    run, old = named(name), None if baseline is None else named(baseline)
    if old is not None and old.connections["greeted"]:
        run = run.against(old, name="old.json")
    found = opened(run, old)
    ids = [values["id"] for _, values, _ in found.elements if "id" in values]
    assert len(ids) == len(set(ids))
    for values, _ in found.all("a"):
        assert values["href"].removeprefix("#") in ids, "links point into the page"
    for _, values, _ in found.elements:
        assert values.get("aria-labelledby", ids[0]) in ids
    headings = [int(tag[1]) for tag, _, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(deeper - level <= 1 for level, deeper in zip(headings, headings[1:], strict=False))
    ((_, title),) = found.all("title")
    assert title.endswith("load test of 127.0.0.1:9999")
    assert dict(found.elements[0][1]) == {"lang": "en"}


@pytest.mark.parametrize("name", ["a second", "a minute", "all failed"])
def test_a_page_requests_nothing(name: str) -> None:
    found = opened(named(name))
    for tag, values, _ in found.elements:
        assert tag != "script"
        for attribute in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            value = values.get(attribute, "#")
            assert value.startswith("#") or value == "data:,", f"{tag} {attribute}={value}"
        assert not any(attribute.startswith("on") for attribute in values)
        assert not any("url(" in value for value in values.values())
    ((_, css),) = found.all("style")
    assert "url(" not in css
    assert "@import" not in css


def test_the_policy_allows_neither_scripts_nor_requests() -> None:
    ((values, _),) = opened(named("a second")).all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert values["content"].startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")


def test_every_chart_has_a_table_and_a_label() -> None:
    found = opened(named("a minute"))
    assert drawn(found) == {"rates", "open", "failures", "latencies", "heat", "percentiles"}
    for chart in drawn(found):
        ((values, _),) = found.all("div", id=chart)
        assert values["role"] == "img"
        assert len(values["aria-label"]) > 60
    summaries = [text for _, text in found.all("summary")]
    assert len([text for text in summaries if text.endswith("as a table")]) == len(drawn(found))
    regions = [values for values, _ in found.all("div", role="region")]
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in regions), (
        "scrollable with the keyboard"
    )
    assert len(list(found.all("table"))) == len(regions)


def test_answers_come_first() -> None:
    """Facts about the generator and the machine are folded, unless the result depends on them."""
    run = with_thresholds(named("a minute"), "response:p99<20ms").against(named("a second"), name="old.json")
    headings = [text for _, text in opened(run, named("a second")).all("h2")]
    assert headings == [
        "Thresholds",
        "Comparison with old.json",
        "Errors",
        "Latencies",
        "Percentiles",
        "Response times over time",
        "Heat map of response times",
        "Heat map of response times, before",
        "Connections per second",
        "Open connections",
        "Errors over time",
        "Generator",
        "Kernel counters",
        "Plan and environment",
    ]
    for made, is_open in ((report(metrics(3, 0, 0)), False), (report(lagging(20, 99)), True)):
        ((values, _),) = opened(made).all("details", **{"aria-labelledby": "generator"})
        assert ("open" in values) == is_open


def test_empty_charts_are_folded() -> None:
    found = opened(named("all failed"))
    assert drawn(found) == {"percentiles", "rates", "open", "failures"}
    folded = next(text for _, text in found.all("summary") if text.startswith("Nothing to draw"))
    assert folded == "Nothing to draw Response times over time, Heat map of response times"


def test_a_title_is_escaped_and_names_the_target_beside_it() -> None:
    found = opened(named("a second"), title="before & <after>")
    assert [text for _, text in found.all("h1")] == ["before & <after>"]
    assert [text for _, text in found.all("title")] == ["✗ Errors: before & <after>"]
    assert "127.0.0.1:9999, 2026" in next(text for _, text in found.all("header"))


def test_equal_rows_are_shown_once() -> None:
    rows = opened(named("a second")).rows("Latencies")[1:]
    assert [row[0] for row in rows] == ["connect, service, response", "first_byte", "failed"]


def test_the_figures_of_a_run() -> None:
    m = metrics()
    m.count_reason("connect_refused", "Connection refused")
    plan = LoadPlan(
        rate=100,
        duration=1.0,
        expect="Thank you",
        thresholds=[Threshold.parse("response:p99<20ms"), Threshold.parse("errors:rate<1%")],
    )
    found = opened(report(m, plan, kernel={"ListenOverflows": 3}, notes=["one note"]))
    assert verdict(found) == ("bad", "✗ Failed")
    assert found.rows("Thresholds")[1:] == [
        ["response:p99<20ms", "3 ms", "✓ kept"],
        ["errors:rate<1%", "2%", "✗ missed"],
    ]
    latencies = {row[0]: row[1:] for row in found.rows("Latencies")}
    assert list(latencies) == ["Metric", "connect, service, response", "first_byte", "failed"]
    assert latencies["connect, service, response"][:2] == ["99", "3 ms"]
    assert found.rows("Errors")[1:] == [
        ["connect_refused", "1", f"N{FAILURE_CLASSES['connect_refused'][1:]}.1 × Connection refused"],
        ["empty", "1", "Closed by the peer without sending a byte, or an empty datagram."],
    ]
    assert found.rows("Kernel counters")[1:] == [
        ["ListenOverflows", "3", "Connections that found an accept queue full."]
    ]
    assert ["expected text", "Thank you"] in found.rows("Plan")
    assert ["uvloop", "not used"] in found.rows("Environment")
    items = [text for _, text in found.all("li")]
    assert "One note." in items


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (report(metrics(3, 0, 0)), ("good", "✓ Done")),
        (report(), ("odd", "✗ Errors")),
        (
            report(plan=LoadPlan(rate=100, duration=1.0, thresholds=[Threshold.parse("errors:count<5")])),
            ("good", "✓ Passed"),
        ),
        (report(metrics(0, 0, 3)), ("bad", "✗ Failed")),
        (report(lagging(20, 99)), ("bad", "✗ Invalid")),
        (dataclasses.replace(report(), interrupted=True), ("odd", "– Incomplete")),
    ],
)
def test_the_verdict_comes_first(run: LoadReport, expected: tuple[str, str]) -> None:
    found = opened(run)
    assert verdict(found) == expected
    assert run.verdict in next(text for values, text in found.all("div") if "verdict" in values["class"])


def test_a_baseline_is_shown_for_comparison() -> None:
    old = long_run(30, slower=0.4, seed=2)
    run = long_run(60).against(old, name="old.json")
    found = opened(run, old)
    assert "heat-before" in drawn(found)
    moves = found.rows("Comparison")[1:]
    assert moves[0][4] == "✗ worse", "worse figures first"
    assert [move[0] for move in moves][-1].endswith("mean"), "the largest improvement last"
    assert {row[-1] for row in moves} == {"✗ worse", "✓ kept"}
    assert [row[0] for row in found.rows("Latencies")][1:5] == [
        "connect",
        "before",
        "first_byte, service, response",
        "before",
    ]
    assert found.rows("Environment")[0] == ["Setting", "Now", "Before"]
    assert "old.json" in next(text for _, text in found.all("header"))
    again = opened(run)
    assert again.rows("Comparison") == found.rows("Comparison"), "the table is the report's own"
    assert "heat-before" not in drawn(again)


def test_the_plan_lists_the_settings() -> None:
    plan = LoadPlan(
        "unix:/run/x.sock",
        connections=3,
        count=10,
        hold=0.5,
        warmup=2.0,
        until="line",
        tls=True,
        send="HELO\\r\\n",
    )
    shown = dict(opened(report(plan=plan)).rows("Plan"))
    assert shown == {
        "loop": "closed: a client connects only after an earlier one is done",
        "open at once": "at most 3",
        "count": "10",
        "warm-up": "2 s",
        "held open for": "0.5 s",
        "deadlines": "5 s to connect, 10 s in all",
        "sent first": "HELO\\r\\n",
        "greeting ends at": "end of line",
        "workers": "1",
        "TLS": "yes",
    }


def hostile() -> LoadReport:
    """A report in which every text is hostile."""
    m = metrics()
    m.count_reason("connect_refused", HOSTILE)
    environment = {**report().environment, "python": HOSTILE, "sysctl": {HOSTILE: HOSTILE}}
    plan = LoadPlan(rate=100, duration=1.0, expect=HOSTILE)
    run = report(m, plan, notes=[HOSTILE], environment=environment, kernel={HOSTILE: 1})
    generator = {**run.generator, "parts": [{**PART, "name": HOSTILE}]}
    run = dataclasses.replace(run, target=HOSTILE, generator=generator)
    return run.against(dataclasses.replace(run, started_at=HOSTILE), name=HOSTILE)


PART = {
    "name": "a.json",
    "started_at": "2026-11-22T20:00:00Z",
    "attempted": 10,
    "greeted": 9,
    "failed": 1,
    "unstarted": 0,
    "response_p99_us": None,
    "cpu_percent": [97.2, 12.0],
    "saturated": True,
    "interrupted": True,
}


def test_hostile_text_is_escaped() -> None:
    run = hostile()
    found = opened(run, run)
    assert not list(found.all("script"))
    assert not list(found.all("img"))
    flat = " ".join(HOSTILE.split())
    for tag in ("title", "h1", "li", "td", "th"):
        assert any(flat in text for _, text in found.all(tag)), tag


def test_parts_have_rows() -> None:
    run = report()
    run = dataclasses.replace(run, generator={**run.generator, "parts": [PART]})
    assert opened(run).rows("Parts")[1] == [
        "a.json",
        "✗ saturated, interrupted",
        "2026-11-22 20:00:00 UTC",
        "10",
        "9",
        "1",
        "0",
        "-",
        "97 %, 12 %",
    ]


def test_a_lost_part_is_marked() -> None:
    """With the reason and without figures, because they are unknown."""
    good = {**PART, "name": "w0", "saturated": False, "interrupted": False, "lost": None}
    lost = {**good, "name": "w1", "lost": "it sends <no> heartbeat", "attempted": 0}
    run = report(metrics(3, 0, 0))
    run = dataclasses.replace(run, generator={**run.generator, "parts": [good, lost]})
    found = opened(run)
    assert [row[:2] for row in found.rows("Parts")[1:]] == [
        ["w0", "✓ kept up"],
        ["w1", "✗ lost: it sends <no> heartbeat"],
    ]
    assert found.rows("Parts")[2][3:] == ["-"] * 6
    assert "✗ 1 of 2 parts was lost: the figures of this page do not include it." in [
        text for _, text in found.all("p")
    ]
    assert any("No worker that reported was saturated." in text for _, text in found.all("p"))
    assert verdict(found) == ("bad", "✗ Failed")
    run = dataclasses.replace(run, generator={**run.generator, "parts": [lost]})
    assert any(text.startswith("No worker reported.") for _, text in opened(run).all("p"))


def test_the_size_of_a_page_is_bounded() -> None:
    assert len(page(named("ten minutes"))) < 1_000_000
    assert len(page(named("a second"))) < 150_000


def test_missing_packages_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("jinja2", "vl_convert"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, name, None)
            with pytest.raises(
                MissingExtra, match=r"^--html needs .* pip install '\.\[report\]' in greeter's source tree$"
            ):
                packages()
    monkeypatch.setitem(sys.modules, "hdrh", None)
    with pytest.raises(MissingExtra, match="greeter load needs"):
        page(named("a second"))


def test_an_invalid_histogram_is_a_config_error() -> None:
    run = dataclasses.replace(report(), histograms={**report().histograms, "connect": "HISTnonsense"})
    with pytest.raises(ConfigError, match=r"the report on 127\.0\.0\.1:9999 has a histogram"):
        page(run)


def test_a_page_without_data() -> None:
    found = opened(report(RunMetrics()))
    assert drawn(found) == set()
    assert "No connection failed." in [text for _, text in found.all("p")]


def test_greetings_are_listed() -> None:
    m = metrics(3, 0, 0)
    for text in (b"220 ready", b"220 ready", b"421 too many <connections>", b"\r\n"):
        m.greetings.heads[text] += 1
    found = opened(dataclasses.replace(report(m), address="127.0.0.2:9999"))
    assert found.rows("Greetings") == [
        ["Count", "Greeting"],
        ["2", "220 ready"],
        ["1", "(no text)"],
        ["1", "421 too many <connections>"],
    ]
    assert "127.0.0.2:9999, 2026" in next(text for _, text in found.all("header"))


def test_the_command_to_run_it_again_is_shown() -> None:
    plan = LoadPlan(rate=50, duration=1.0, expect="a & b")
    assert "greeter load 127.0.0.1:9999 --duration 1s --rate 50 --expect 'a & b'" in [
        text for _, text in opened(report(plan=plan)).all("code")
    ]


def test_a_page_on_datagrams_has_no_connect() -> None:
    m = metrics()
    m.connect = Histogram()
    text = page(report(m, LoadPlan("udp:h:1", rate=100, duration=1.0)))
    assert "10 s for each reply" in text
    assert "to connect" not in text
