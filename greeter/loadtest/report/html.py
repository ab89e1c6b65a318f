"""Render a report as a single HTML file.

Invariants:

- The file is self-contained and needs no network. Its content security policy forbids requests, and scripts
  other than the two in the page.
- All external text is escaped by the template engine, including the data of the charts.
"""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from greeter.errors import ConfigError, MissingExtra
from greeter.loadtest.generator.kernel import COUNTERS
from greeter.loadtest.plan.outcome import FAILURE_CLASSES
from greeter.loadtest.plan.threshold import STATS
from greeter.loadtest.plan.units import latency, number, seconds
from greeter.loadtest.report import verdict
from greeter.loadtest.report.charts import PHASES, charts

if TYPE_CHECKING:
    from greeter.loadtest.report.report import LoadReport

# The label of each exit code, and its CSS class.
_RESULTS = {
    0: ("✓ Passed", "good"),
    1: ("✗ Failed", "bad"),
    98: ("✗ Invalid", "bad"),
    99: ("✗ Failed", "bad"),
    130: ("– Incomplete", "odd"),
}

# How many worse figures the verdict at the top names. The comparison lists all.
_MAX_CHANGES = 3


def packages() -> tuple[Any, Any]:
    """Import and return the modules ``jinja2`` and ``plotly.offline``.

    Call it before a long run whose report is to be written as HTML.

    Raises:
        MissingExtra: one of them is not installed.
    """
    try:
        import jinja2
        import plotly.offline  # type: ignore[import-untyped]  # the package has no types
    except ImportError:
        raise MissingExtra("--html", "report") from None
    return jinja2, plotly.offline


def page(report: LoadReport, baseline: LoadReport | None = None) -> str:
    """Render the page.

    Args:
        report: the report. The table of the comparison is that of ``report.against(baseline)``.
        baseline: an older run, drawn into the same charts.

    Raises:
        MissingExtra: the packages of the extra ``report`` are not installed.
        ConfigError: a histogram of a report is invalid.
    """
    jinja2, offline = packages()
    place = files("greeter.loadtest") / "page"
    script = (place / "report.js").read_text(encoding="utf-8")
    plotly = offline.get_plotlyjs()
    try:
        drawn = list(charts(report, baseline))
    except ConfigError:  # a subclass of ValueError
        raise
    except ValueError as error:
        raise ConfigError(
            f"the report on {report.target} has a histogram that cannot be read: {error}"
        ) from None
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(latency=latency, number=number, seconds=seconds)
    environment.filters.update(moment=_moment, sentence=_sentence)
    template = environment.from_string((place / "report.html.j2").read_text(encoding="utf-8"))
    text: str = template.render(
        r=report.to_dict(),
        old=None if baseline is None else baseline.to_dict(),
        result=_result(report),
        verdict=verdict.headline(report.to_dict(), max_changes=_MAX_CHANGES),
        notes=verdict.notes(report.to_dict()),
        format_value=verdict.format_value,
        format_actual=verdict.format_actual,
        phases=PHASES,
        stats=STATS,
        failures=FAILURE_CLASSES,
        counters=COUNTERS,
        plan=_plan(report.plan),
        environment=_flat(report.environment),
        old_environment={} if baseline is None else _flat(baseline.environment),
        charts=drawn,
        figures={chart.id: chart.figure for chart in drawn if chart.figure},
        css=(place / "report.css").read_text(encoding="utf-8"),
        script=script,
        plotly=plotly,
        policy=_policy(plotly, script),
    )
    return text


def _policy(*scripts: str) -> str:
    """Return a content security policy (CSP level 3) that allows these scripts only, by hash."""
    hashes = " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in scripts)
    # plotly.js sets inline styles, and draws a heat map as an image with a data: or blob: URL.
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "form-action 'none'; base-uri 'none'"
    )


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
        "deadlines": f"{seconds(plan['connect_timeout_s'])} to connect, {seconds(plan['timeout_s'])} in all",
        "greeting ends at": {"eof": "end of stream", "line": "end of line"}.get(plan["until"]),
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
