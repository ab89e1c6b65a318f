"""A report as one HTML file: to look at, and to send to a colleague.

The law: the file is all there is. It opens from a disk without a network, and its content security policy
forbids it to ask for anything and to run any script but the two that are written here. Whatever came
from outside is text, escaped by the template engine, also within the data of the charts.
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

# What an exit code is called, and the kind of news that it is.
_RESULTS = {
    0: ("✓ Passed", "good"),
    1: ("✗ Failed", "bad"),
    98: ("✗ Not valid", "bad"),
    99: ("✗ Failed", "bad"),
    130: ("– Not complete", "odd"),
}

# So many figures that got worse are in the verdict on top; the comparison has all of them.
_MOVES = 3


def packages() -> tuple[Any, Any]:
    """The modules ``jinja2`` and ``plotly.offline``, imported when they are needed.

    Raises MissingExtra without them: to be called before a long run whose report is to be a page.
    """
    try:
        import jinja2
        import plotly.offline  # type: ignore[import-untyped]  # the package has no types
    except ImportError:
        raise MissingExtra("--html", "report") from None
    return jinja2, plotly.offline


def page(report: LoadReport, baseline: LoadReport | None = None) -> str:
    """The page on ``report``; with ``baseline``, the older run is drawn beside it.

    The comparison in figures is the report's own (``report.against(baseline)``). Raises MissingExtra
    without the packages of the extra ``report``, and ConfigError for a report whose histograms are none.
    """
    jinja2, offline = packages()
    place = files("greeter.loadtest") / "page"
    script = (place / "report.js").read_text(encoding="utf-8")
    plotly = offline.get_plotlyjs()
    try:
        drawn = list(charts(report, baseline))
    except ConfigError:  # which is a ValueError too
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
        verdict=verdict.sentence(report.to_dict(), most=_MOVES),
        remarks=verdict.remarks(report.to_dict()),
        figure=verdict.figure,
        actual=verdict.actual,
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
    """A content security policy (CSP level 3) that lets these scripts run, by their hash, and no other."""
    hashes = " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in scripts)
    # plotly.js sets styles, and draws a heat map into a picture of its own.
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "form-action 'none'; base-uri 'none'"
    )


def _result(report: LoadReport) -> tuple[str, str]:
    """The word for the run and the kind of news that it is."""
    if report.exit_code == 0 and not report.thresholds and report.baseline is None:
        return ("✗ Errors", "odd") if report.connections["failed"] else ("✓ Done", "good")
    return _RESULTS[report.exit_code]


def _plan(plan: dict[str, Any]) -> dict[str, str]:
    """The plan in words: what was chosen, without what was left alone."""
    open_loop = plan["mode"] == "open"
    found = {
        "loop": "open: clients come on a schedule"
        if open_loop
        else "closed: the next client waits for one before it",
        "rate": None if plan["rate"] is None else f"{number(plan['rate'])}/s",
        "stages": ", ".join(f"{seconds(s['duration_s'])} to {number(s['rate'])}/s" for s in plan["stages"]),
        "open at once": f"at most {number(plan['connections'])}",
        "count": None if plan["count"] is None else number(plan["count"]),
        "duration": None if plan["duration_s"] is None else seconds(plan["duration_s"]),
        "warm-up": seconds(plan["warmup_s"]) if plan["warmup_s"] else None,
        "held open for": seconds(plan["hold_s"]) if plan["hold_s"] else None,
        "deadlines": f"{seconds(plan['connect_timeout_s'])} to connect, {seconds(plan['timeout_s'])} in all",
        "the greeting ends with": {"eof": "the stream", "line": "its first line"}.get(plan["until"]),
        "expected text": plan["expect"],
        "workers": number(plan["workers"]),
        "from": ", ".join(map(str, plan["source_ips"])),
        "TLS": "yes" if plan["tls"] else None,
    }
    return {name: value for name, value in found.items() if value}


def _flat(environment: dict[str, Any]) -> dict[str, str]:
    """The environment as names and text; sysctls by their own names."""
    found: dict[str, str] = {}
    for name, value in environment.items():
        if isinstance(value, dict):
            found.update((str(key), str(inner)) for key, inner in value.items())
        else:
            found[name.replace("_", " ")] = "not used" if value is None else str(value)
    return found


def _moment(stamp: str) -> str:
    """A moment for people, when it is one."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T([\d:]+)(?:\.\d+)?Z$", r"\1 \2 UTC", stamp)


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + "."
