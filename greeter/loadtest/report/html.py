"""Render a report as a single HTML file.

Invariants:

- The file is self-contained and needs neither network nor scripts. Its content security policy forbids both.
- All external text is escaped: by the template engine, in charts by Vega.
- What a reader asks first comes first: the verdict, the figures, thresholds, errors. Facts about the
  generator and the machine are folded.
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from greeter.errors import ConfigError, MissingExtra
from greeter.loadtest.generator.kernel import COUNTERS, UDP_COUNTERS
from greeter.loadtest.plan.outcome import FAILURE_CLASSES
from greeter.loadtest.plan.threshold import STATS
from greeter.loadtest.plan.units import latency, number, seconds
from greeter.loadtest.report import vega, verdict
from greeter.loadtest.report.charts import charts
from greeter.loadtest.report.command import command
from greeter.loadtest.report.comparison import change_text, value_text, worst_first
from greeter.loadtest.report.percentile_chart import METRICS, equal_metrics
from greeter.loadtest.report.vega import NARROW, WIDE, draw

if TYPE_CHECKING:
    from greeter.loadtest.report.chart_parts import Chart
    from greeter.loadtest.report.report import LoadReport

# The label of each exit code, and its CSS class.
_RESULTS = {
    0: ("✓ Passed", "good"),
    1: ("✗ Failed", "bad"),
    98: ("✗ Invalid", "bad"),
    99: ("✗ Failed", "bad"),
    130: ("– Incomplete", "odd"),
}

_ENDS = {"eof": "end of stream", "line": "end of line", "reply": "end of reply"}

# How many worse figures the verdict at the top names. The comparison lists all.
_MAX_CHANGES = 3


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'"


def packages() -> Any:
    """Import the packages that a page needs, and return the module ``jinja2``.

    Call it before a long run whose report is to be written as HTML.

    Raises:
        MissingExtra: one of them is not installed.
    """
    try:
        import jinja2
    except ImportError:
        raise MissingExtra("--html", "report") from None
    vega.package()
    return jinja2


def drawable(report: LoadReport, baseline: LoadReport | None = None) -> list[Chart]:
    """Return the charts of a page.

    Raises:
        ConfigError: a histogram of a report is invalid.
    """
    try:
        return list(charts(report, baseline))
    except ConfigError:  # a subclass of ValueError
        raise
    except ValueError as error:
        raise ConfigError(
            f"the report on {report.target} has a histogram that cannot be read: {error}"
        ) from None


def page(report: LoadReport, baseline: LoadReport | None = None, title: str | None = None) -> str:
    """Render the page.

    Args:
        report: the report. The table of the comparison is that of ``report.against(baseline)``.
        baseline: an older run, drawn into the same charts.
        title: the title of the page; by default, it names the target.

    Raises:
        MissingExtra: the packages of the extra ``report`` are not installed.
        ConfigError: a histogram of a report is invalid.
    """
    jinja2 = packages()
    place = files("greeter.loadtest") / "page"
    drawn = drawable(report, baseline)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(latency=latency, number=number, seconds=seconds)
    environment.filters.update(moment=_moment, sentence=_sentence)
    template = environment.from_string((place / "report.html.j2").read_text(encoding="utf-8"))
    text: str = template.render(
        r=report.to_dict(),
        old=None if baseline is None else baseline.to_dict(),
        title=title,
        result=_result(report),
        verdict=verdict.headline(report.to_dict(), max_changes=_MAX_CHANGES),
        notes=verdict.notes(report.to_dict()),
        format_value=verdict.format_value,
        format_actual=verdict.format_actual,
        worst_first=worst_first,
        value_text=value_text,
        change_text=change_text,
        metrics=METRICS,
        equal_metrics=equal_metrics(report, baseline),
        stats=STATS,
        failures=FAILURE_CLASSES,
        counters=COUNTERS | UDP_COUNTERS,
        command=command(report.plan),
        plan=_plan(report.plan),
        environment=_flat(report.environment),
        old_environment={} if baseline is None else _flat(baseline.environment),
        charts=drawn,
        drawings={
            chart.id: (draw(chart.figure, WIDE), draw(chart.figure, NARROW, readouts=False))
            for chart in drawn
            if chart.figure is not None
        },
        css=(place / "report.css").read_text(encoding="utf-8"),
        policy=_POLICY,
    )
    return text


def _result(report: LoadReport) -> tuple[str, str]:
    """Return the label of the result and its CSS class."""
    if report.exit_code == 0 and not report.thresholds and report.baseline is None:
        return ("✗ Errors", "odd") if report.connections["failed"] else ("✓ Done", "good")
    return _RESULTS[report.exit_code]


def _plan(plan: dict[str, Any]) -> dict[str, str]:
    """Return the settings of a plan as names and text, without those that are unset."""
    open_loop = plan["mode"] == "open"
    found = {
        "loop": "open: connections start on a schedule"
        if open_loop
        else "closed: a client connects only after an earlier one is done",
        "rate": None if plan["rate"] is None else f"{number(plan['rate'])}/s",
        "stages": ", ".join(f"{seconds(s['duration_s'])} to {number(s['rate'])}/s" for s in plan["stages"]),
        "open at once": f"at most {number(plan['connections'])}",
        "count": None if plan["count"] is None else number(plan["count"]),
        "duration": None if plan["duration_s"] is None else seconds(plan["duration_s"]),
        "warm-up": seconds(plan["warmup_s"]) if plan["warmup_s"] else None,
        "held open for": seconds(plan["hold_s"]) if plan["hold_s"] else None,
        "deadlines": f"{seconds(plan['timeout_s'])} for each reply"
        if str(plan["target"]).startswith("udp:")
        else f"{seconds(plan['connect_timeout_s'])} to connect, {seconds(plan['timeout_s'])} in all",
        "PROXY header": plan.get("proxy_protocol"),
        "sent first": plan.get("send"),
        "greeting ends at": _ENDS.get(plan["until"], plan["until"]),
        "expected text": plan["expect"],
        "workers": number(plan["workers"]),
        "source addresses": ", ".join(map(str, plan["source_ips"])),
        "TLS": "yes" if plan["tls"] else None,
    }
    return {name: value for name, value in found.items() if value}


def _flat(environment: dict[str, Any]) -> dict[str, str]:
    """Return the environment as names and text; sysctls are flattened."""
    found: dict[str, str] = {}
    for name, value in environment.items():
        if isinstance(value, dict):
            found.update((str(key), str(inner)) for key, inner in value.items())
        else:
            found[name.replace("_", " ")] = "not used" if value is None else str(value)
    return found


def _moment(stamp: str) -> str:
    """Format a timestamp for display; other text is returned as it is."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T([\d:]+)(?:\.\d+)?Z$", r"\1 \2 UTC", stamp)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
