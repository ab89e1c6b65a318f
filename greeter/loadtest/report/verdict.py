"""The run in words: one sentence that settles it, and those that must not be missed.

The law: the worst news comes first, in the order of the exit codes. A figure that is not the server's is
never given without saying whose it is.
"""

from __future__ import annotations

from contextlib import suppress
from math import inf
from typing import Any

from greeter.errors import ConfigError
from greeter.loadtest.generator.kernel import COUNTERS
from greeter.loadtest.plan.threshold import Threshold
from greeter.loadtest.plan.units import latency, number, seconds

# Of a core that a worker uses: from here on it may be what limits the load.
BUSY_PERCENT = 90


def sentence(report: dict[str, Any], most: int | None = None) -> str:
    """The verdict on a report's JSON; with ``most``, it names so many figures of a comparison that are worse,
    and counts the others."""
    parts = report["generator"].get("parts", ())
    lost = sum(bool(part.get("lost")) for part in parts)
    missing = f"A part of the load is missing, that of {lost} of {len(parts)} workers. " if lost else ""
    return missing + _judgement(report, most)


def _judgement(report: dict[str, Any], most: int | None) -> str:
    connections, rate = report["connections"], report["rate"]
    attempted, greeted = connections["attempted"], connections["greeted"]
    if report["interrupted"]:
        return (
            f"Interrupted after {seconds(report['duration_s'])}. Until then "
            f"{_decapitalised(_greeted(greeted, attempted))}, and "
            f"{number(connections['cut_off']) if connections['cut_off'] else 'none'} "
            f"{'was' if connections['cut_off'] == 1 else 'were'} still open."
        )
    if report["generator"]["saturated"]:
        return (
            f"The generator was the limit: it began {number(rate['achieved'])} of {number(rate['target'])} "
            f"connections per second, {_lateness(report)}, so these figures are its own and not the "
            "server's. Give it more workers or ask for less."
        )
    if not report["passed"]:
        return "Not passed: " + "; ".join(_missed(report, most)) + "."
    if not greeted:
        return f"Nothing was greeted: {_classes(report) or 'nothing was attempted'}."
    slowest = report["latency_us"]["response"]["max"]
    sentence = f"{_greeted(greeted, attempted)}, {'the slowest ' * (greeted > 1)}in {latency(slowest)}"
    return sentence + (f"; {_classes(report)}." if greeted < attempted else ".")


def remarks(report: dict[str, Any]) -> list[str]:
    """What a reader has to know to read the figures right, a sentence each."""
    generator, connections = report["generator"], report["connections"]
    said = list(report["notes"])
    if report["plan"]["mode"] == "closed":
        said.append("closed loop: the next client waits for one before it, which hides a server's stalls")
        busiest = max(generator["cpu_percent"], default=0)
        if busiest >= BUSY_PERCENT:
            said.append(f"a worker used {busiest:.0f} % of a core: the generator may have been the limit")
    elif connections["unstarted"] and not generator["saturated"]:
        full = connections["peak_open"] >= report["plan"]["connections"]
        said.append(
            f"{number(connections['unstarted'])} connections were due and never began: "
            + f"{number(report['plan']['connections'])} were open, as many as may be" * full
            + "they were late, and the schedule ended first" * (not full)
        )
    said += [
        f"{count} connects took {band.removesuffix('s')} s or a little more, as one whose SYN was sent again"
        for band, count in report["syn_retransmits"].items()
        if count
    ]
    said += [
        f"{name} +{number(count)} on this machine: {COUNTERS.get(name, 'counted by the kernel')}"
        for name, count in report["kernel"].items()
        if count
    ]
    if connections["reset_after_greeting"]:
        said.append(f"{number(connections['reset_after_greeting'])} were reset after the greeting")
    if connections["closed_while_held"]:
        said.append(f"{number(connections['closed_while_held'])} were closed by the server while held open")
    if generator["latencies_over_60_s"]:
        said.append(f"{number(generator['latencies_over_60_s'])} latencies over 60 s are counted as 60 s")
    return said + _of_baseline(report["baseline"] or {})


def _of_baseline(baseline: dict[str, Any]) -> list[str]:
    """Why the figures of the older run may not be what a run like it comes to."""
    said = {
        "interrupted": "the baseline {} was interrupted: its figures are those of a part of its run",
        "saturated": "the generator of the baseline {} was the limit: its figures are its own",
        "lost": "the baseline {} lacks a part of its load",
    }
    return [text.format(baseline["name"]) for fact, text in said.items() if baseline.get(fact)]


def _greeted(greeted: int, attempted: int) -> str:
    if not attempted:
        return "No client was greeted"
    if greeted == attempted == 1:
        return "The only client was greeted"
    if greeted == attempted:
        return f"All {number(attempted)} clients were greeted"
    return f"{number(greeted)} of {number(attempted)} clients were greeted"


def _decapitalised(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _classes(report: dict[str, Any]) -> str:
    """The errors, the most frequent first, with the system's words where it gave them."""
    words = []
    for name, count in sorted(report["errors"].items(), key=lambda item: -item[1]):
        if count:
            reasons = report["error_reasons"].get(name, {})
            why = max(reasons, key=lambda reason: reasons[reason], default="")
            words.append(f"{number(count)} {name}" + f" ({why})" * bool(why))
    return ", ".join(words)


def _lateness(report: dict[str, Any]) -> str:
    generator = report["generator"]
    busiest = max(generator["cpu_percent"], default=0)
    return f"{latency(generator['lag_p99_us'])} late at p99, with {busiest:.0f} % of a core used"


def _missed(report: dict[str, Any], most: int | None) -> list[str]:
    missed = [
        f"{threshold['expr']} was {actual(threshold)}"
        for threshold in report["thresholds"]
        if not threshold["passed"]
    ]
    worse = [move for move in (report["baseline"] or {}).get("figures", ()) if move["worse"]]
    if most is not None and len(worse) > most:
        more = len(worse) - most
        worse = sorted(worse, key=_weight)[:most]
        return [*missed, *map(describe, worse), f"and {more} more figures became worse"]
    return missed + [describe(move) for move in worse]


def _weight(move: dict[str, Any]) -> tuple[bool, float]:
    """What puts those moves first that say most: of the response times, and by much."""
    change = move["change_percent"]
    return not move["figure"].startswith("response"), -inf if change is None else -abs(change)


def actual(threshold: dict[str, Any]) -> str:
    """What a threshold's figure was, with the digits that tell it from the limit."""
    limit = None
    with suppress(ConfigError):  # an expression of a later version, in a file
        limit = Threshold.parse(threshold["expr"]).value
    return figure(threshold["actual"], threshold["unit"], limit)


def figure(value: float | None, unit: str, limit: float | None = None) -> str:
    """A figure with its unit; next to a ``limit``, with so many digits that it is seen on its side of it."""
    if value is None:
        return "not measured"
    shown, places = number(value), 0
    while limit is not None and _side(float(shown.replace(",", "")), limit) != _side(value, limit):
        places += 1
        shown = f"{value:,.{places}f}"
    return shown + (unit if unit in ("%", "/s") else " " * bool(unit) + unit)


def _side(value: float, limit: float) -> int:
    return (value > limit) - (value < limit)


def describe(move: dict[str, Any]) -> str:
    """One figure of a comparison: ``response p99 went from 3.1 ms to 4.2 ms (+35 %)``."""

    def show(value: float | None) -> str:
        if value is None:
            return "nothing"
        return latency(value) if move["unit"] == "us" else figure(value, move["unit"])

    change = "" if move["change_percent"] is None else f" ({move['change_percent']:+.3g} %)"
    return f"{move['figure']} went from {show(move['old'])} to {show(move['new'])}{change}"
