"""Render a report as text: the summary. It works for a saved report as well.

Invariants:

- Without a width, as for a pipe or a file, nothing is left out and no line is broken.
- With the width of a terminal, no line is longer, and the table of latencies has as many columns as fit. It
  always has the maximum.
- Colour adds nothing that the text does not say.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from greeter.loadtest.plan.outcome import FAILURE_CLASSES
from greeter.loadtest.plan.threshold import STATS
from greeter.loadtest.plan.units import latency, number, seconds
from greeter.loadtest.report import verdict
from greeter.loadtest.report.comparison import change_text, value_text, worst_first

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from greeter.loadtest.report.report import LoadReport

_COLUMN = 9
_LABEL = 11  # "  first_byte" has one more; a value leaves room for it
# The columns that a narrow table of latencies does without, the first first.
_DISPENSABLE = ("p99.99", "mean", "p99.9", "p90", "min")
_MIN_WIDTH, _USUAL_WIDTH = 50, 80
_MAX_CHANGES = 3  # how many worse figures the verdict names on a terminal, below the table that lists all
_MEANING = 35  # where the meaning of an error begins, if there is room
_VALUE = re.compile(r"(\d) ([a-zµ%×])")
_CODES = {"bold": "1", "dim": "2", "bad": "1;31", "good": "1;32", "odd": "1;33"}
_VERDICT_STYLES = {0: "good", 130: "odd"}


@dataclass(frozen=True)
class Style:
    """How a text is laid out: ``width`` in columns (None: unlimited), and whether it has colours."""

    width: int | None = None
    color: bool = False

    @classmethod
    def of(cls, stream: TextIO | None = None) -> Style:
        """Return the style for a stream: that of a terminal, if it is one.

        NO_COLOR (no-color.org) and TERM=dumb turn colours off.

        Args:
            stream: by default, standard output.
        """
        stream = sys.stdout if stream is None else stream
        if not stream.isatty():
            return cls()
        return cls(
            max(_MIN_WIDTH, _columns(stream)),
            not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
        )

    def paint(self, text: str, look: str) -> str:
        """Return a text in a colour: ``bold``, ``dim``, ``good``, ``bad`` or ``odd``."""
        return f"\x1b[{_CODES[look]}m{text}\x1b[0m" if self.color and text else text

    def wrap(self, text: str, indent: str = "") -> list[str]:
        """Return a text as lines; those after the first begin with ``indent``. A value keeps its unit."""
        if self.width is None:
            return [text]
        kept = _VALUE.sub("\\1\N{NO-BREAK SPACE}\\2", text)
        lines = wrap(kept, self.width, subsequent_indent=indent, break_on_hyphens=False)
        return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _columns(stream: TextIO) -> int:
    """Return the width of a terminal: COLUMNS, as in other programs, or what the terminal says."""
    if (columns := os.environ.get("COLUMNS", "")).isdecimal():
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or _USUAL_WIDTH
    except OSError:
        return _USUAL_WIDTH


def summary(report: LoadReport, style: Style | None = None) -> str:
    """Return the summary of a run; the verdict is the last line.

    Args:
        report: the report.
        style: how to lay it out; by default, without a width and without colours.
    """
    values, style = report.to_dict(), style or Style()
    said = verdict.headline(values, max_changes=None if style.width is None else _MAX_CHANGES)
    parts = [
        [style.paint(line, "bold") for line in style.wrap(_title(values), "  ")],
        _totals(values, style),
        _latencies(values, style),
        _errors(values, style),
        _greetings(values, style),
        _thresholds(values, style),
        _comparison(values, style),
        _generator(values, style),
        [line for note in verdict.notes(values) for line in style.wrap(f"  - {note}", "    ")],
        [style.paint(line, _verdict_look(report)) for line in style.wrap(said)],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _verdict_look(report: LoadReport) -> str:
    if report.exit_code == 0 and report.connections["failed"] and not report.thresholds:
        return "odd"
    return _VERDICT_STYLES.get(report.exit_code, "bad")


def _title(values: dict[str, Any]) -> str:
    plan = values["plan"]
    if plan["mode"] == "closed":
        loop = f"closed loop, {number(plan['connections'])} at a time"
    else:
        loop = f"open loop, {number(values['rate']['target'])}/s, at most {number(plan['connections'])} open"
    workers = f", {plan['workers']} workers" if plan["workers"] > 1 else ""
    hold = f", each held for {seconds(plan['hold_s'])}" if plan["hold_s"] else ""
    address = values["address"]
    at = f" at {address}" if address and address != values["target"] else ""
    return f"Load test of {values['target']}{at}: {loop}{workers}{hold}, {seconds(values['duration_s'])}"


def _totals(values: dict[str, Any], style: Style) -> list[str]:
    connections, rate = values["connections"], values["rate"]
    rates = [f"{number(rate['achieved'])}/s achieved", f"{number(rate['greeted'])}/s greeted"]
    if rate["target"] is not None:
        rates.insert(0, f"{number(rate['target'])}/s target")
    if rate.get("lost") is not None:
        rates.append(f"{number(rate['lost'])}/s lost{verdict.lost_percent(values)}")
    names = ("attempted", "greeted", "failed", "unstarted")
    counts = ", ".join(f"{number(connections[name])} {name}" for name in names)
    lines = [
        *style.wrap(f"  rate         {', '.join(rates)}", " " * 15),
        *style.wrap(f"  connections  {counts}; {number(connections['peak_open'])} open at most", " " * 15),
    ]
    failed = f"{number(connections['failed'])} failed"
    if connections["failed"]:
        lines = [line.replace(failed, style.paint(failed, "bad")) for line in lines]
    return lines


def _latencies(values: dict[str, Any], style: Style) -> list[str]:
    table = values["latency_us"]
    rows = ["connect", "first_byte", "service"]
    if "lost" in values["rate"]:  # datagrams have no connect, and all of their bytes at once
        rows = ["service"]
    if values["plan"]["mode"] == "open":  # in a closed loop, it equals service
        rows.append("response")
    if table["failed"]["count"]:
        rows.append("failed")
    stats = _fitting(style.width)
    lines = [style.paint(" " * _LABEL + "".join(f"{stat:>{_COLUMN}}" for stat in stats), "dim")]
    for name in rows:
        first, *others = (f"{latency(table[name][stat]):>{_COLUMN}}" for stat in stats)
        label = f"  {name}"
        lines.append(label + first.strip().rjust(_LABEL + _COLUMN - len(label)) + "".join(others))
    return lines


def _fitting(width: int | None) -> Sequence[str]:
    """Return the columns of the table of latencies that fit into ``width`` columns."""
    stats = list(STATS)
    for name in _DISPENSABLE:
        if width is None or _LABEL + _COLUMN * len(stats) <= width:
            break
        stats.remove(name)
    return stats


def _errors(values: dict[str, Any], style: Style) -> list[str]:
    lines = []
    for name, count in values["errors"].items():
        if count:
            reasons = ", ".join(values["error_reasons"].get(name, ()))
            meaning = FAILURE_CLASSES.get(name, "") + f" ({reasons})" * bool(reasons)
            shown = f"{number(count):>9}"
            head = f"  {shown} {name:<22} "
            if style.width is None or style.width > 2 * _MEANING:
                found = style.wrap(head + meaning, " " * _MEANING)
            else:
                found = [head.rstrip(), *style.wrap(" " * 12 + meaning, " " * 12)]
            found[0] = found[0].replace(shown, style.paint(shown, "bad"), 1)
            lines += found
    return lines


def _greetings(values: dict[str, Any], style: Style) -> list[str]:
    greetings = values["greetings"]
    rows = [(row["count"], row["text"].strip() or "(no text)") for row in greetings["texts"]]
    if greetings["others"]:
        rows.append((greetings["others"], "other greetings"))
    return [line for count, text in rows for line in style.wrap(f"  {number(count):>9} × {text}", " " * 14)]


def _thresholds(values: dict[str, Any], style: Style) -> list[str]:
    lines = []
    for threshold in values["thresholds"]:
        mark, look = ("passed", "good") if threshold["passed"] else ("MISSED", "bad")
        text = f"  {mark}  {threshold['expr']:<28} {verdict.format_actual(threshold)}"
        first, *others = style.wrap(text, " " * 10)
        lines += [first.replace(mark, style.paint(mark, look), 1), *others]
    return lines


def _comparison(values: dict[str, Any], style: Style) -> list[str]:
    baseline = values["baseline"]
    if baseline is None:
        return []
    name, tolerance = baseline["name"], f"{baseline['tolerance_percent']:g} %"
    lines = style.wrap(f"  compared with {name}, tolerance {tolerance}:", "  ")
    for difference in baseline["differences"]:
        lines += style.wrap(f"  different plan: {difference}", "    ")
    lines.append(style.paint(" " * 24 + _cells("before", "now", "change"), "dim"))
    for change in worst_first(baseline["figures"]):
        mark, look = ("WORSE", "bad") if change["worse"] else ("kept ", "good")
        unit = change["unit"]
        cells = _cells(value_text(change["old"], unit), value_text(change["new"], unit), change_text(change))
        lines.append(f"  {style.paint(mark, look)} {change['figure']:<16}{cells}")
    return lines


def _cells(before: str, now: str, change: str) -> str:
    return f"{before:>{_COLUMN}}{now:>{_COLUMN}}{change:>{_COLUMN - 1}}"


def _generator(values: dict[str, Any], style: Style) -> list[str]:
    generator = values["generator"]
    cpu = ", ".join(f"{percent:.0f} %" for percent in generator["cpu_percent"])
    text = f"  generator    {cpu} of a core"
    if generator["lag_p99_us"] is not None:
        text += (
            f"; late by {latency(generator['lag_p99_us'])} at p99, {latency(generator['lag_max_us'])} at most"
        )
    return style.wrap(text, " " * 15)
