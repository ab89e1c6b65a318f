"""The headline of a report and its notes: text that is derived from the report's JSON.

Invariants:

- The first sentence says how many clients were greeted, how many failed and in which classes, whatever the
  exit code is. A service that sent different greetings is named as such.
- A figure that describes the generator rather than the server is marked as such.
"""

from __future__ import annotations

from contextlib import suppress
from math import ceil, inf
from typing import Any

from greeter.errors import ConfigError
from greeter.loadtest.generator.kernel import COUNTERS, UDP_COUNTERS
from greeter.loadtest.plan.threshold import Threshold
from greeter.loadtest.plan.units import latency, number, seconds
from greeter.loadtest.report.comparison import change_text
from greeter.loadtest.report.exit_code import BUSY_PERCENT, in_doubt, missed, worse

# OpenSSL's reasons for bytes that are not a TLS record. And the text in the table of greetings of a TLS alert
# (RFC 8446 6), which a server sends if it received something else than a handshake.
_NOT_TLS = frozenset(
    {"wrong version number", "record layer failure", "http request", "packet length too long"}
)
_TLS_ALERT = "\\x15"
# How many greetings the headline quotes, and how long a quotation is.
_MAX_QUOTES, _MAX_QUOTED = 3, 60
# The server is said to have stalled if no connection ended for this many times the median latency, and for
# this many seconds.
_STALL_FACTOR, _STALL_SECONDS = 5, 0.25


def headline(report: dict[str, Any], max_changes: int | None = None) -> str:
    """Return the verdict in a few sentences.

    Args:
        report: the JSON values of a report.
        max_changes: how many worse figures of a comparison to name; the others are counted. None names all.
    """
    sentences = [_counts(report), _greetings(report)]
    if report["interrupted"]:
        sentences.append(f"Interrupted after {seconds(report['duration_s'])}; {_still_open(report)}.")
    parts = report["generator"].get("parts", ())
    if lost := sum(bool(part.get("lost")) for part in parts):
        verb = "was" if lost == 1 else "were"
        sentences.append(f"Part of the load is missing: {lost} of {len(parts)} workers {verb} lost.")
    if not report["passed"]:
        sentences.append("Not passed: " + "; ".join(_missed_limits(report, max_changes)) + ".")
    sentences += [_generator(report), _hint(report)]
    return " ".join(filter(None, sentences))


def _counts(report: dict[str, Any]) -> str:
    """Return the first sentence."""
    connections = report["connections"]
    attempted, greeted = connections["attempted"], connections["greeted"]
    slowest = latency(report["latency_us"]["response"]["max"]).replace(">", "more than")
    if not attempted:
        return "Nothing was attempted."
    if greeted == attempted == 1:
        return f"The only client was greeted, in {slowest}."
    if greeted == attempted:
        return f"All {number(attempted)} clients were greeted, the slowest in {slowest}."
    if not greeted:
        text = "Nothing was greeted"
    else:
        text = f"{number(greeted)} of {number(attempted)} clients were greeted, the slowest in {slowest}"
    errors = dict(report["errors"])
    local = errors.pop("local_exhausted", 0)
    if failed := attempted - greeted - local:
        text += f"; {number(failed)} failed: {_classes(report, errors)}"
    if local:
        text += f"; {number(local)} could not be made: {_classes(report, {'local_exhausted': local})}"
    return text + "."


def _classes(report: dict[str, Any], errors: dict[str, int]) -> str:
    """Return the counts of classes, the most frequent first, each with its most frequent reason."""
    found = sorted(((name, count) for name, count in errors.items() if count), key=lambda item: -item[1])
    texts = []
    for name, count in found:
        reasons = report["error_reasons"].get(name, {})
        why = max(reasons, key=lambda reason: reasons[reason], default="")
        counted = f"{number(count)} " if len(found) > 1 else ""
        texts.append(f"{counted}{name}" + f" ({why})" * bool(why))
    return ", ".join(texts)


def _greetings(report: dict[str, Any]) -> str:
    """Name the greetings if there were several, or if one was not what was expected."""
    texts, others = report["greetings"]["texts"], report["greetings"]["others"]
    distinct = len(texts) + bool(others)
    if distinct < 2 and not (texts and report["errors"]["unexpected_greeting"]):
        return ""
    quoted = [f"{number(row['count'])} × {quote(row['text'])}" for row in texts[:_MAX_QUOTES]]
    rest = others + sum(row["count"] for row in texts[_MAX_QUOTES:])
    quoted += [f"{number(rest)} others"] * bool(rest)
    what = "There were different greetings" if distinct > 1 else "The greeting was"
    return f"{what}: {', '.join(quoted)}." if distinct > 1 else f"{what} {quote(texts[0]['text'])}."


def quote(text: str, length: int = _MAX_QUOTED) -> str:
    """Return the text of a greeting in quotation marks, shortened to ``length``; without one, "(no text)"."""
    if not text.strip():
        return "(no text)"
    return f'"{text if len(text) <= length else text[: length - 1] + "…"}"'


def lost_percent(report: dict[str, Any]) -> str:
    """Return the share of datagrams without a reply, in parentheses; empty if nothing was lost."""
    lost, attempted = report["errors"].get("no_reply", 0), report["connections"]["attempted"]
    return f" ({format_value(100 * lost / attempted, '%')})" if lost else ""


def _still_open(report: dict[str, Any]) -> str:
    count = report["connections"]["cut_off"]
    if count > 1:
        return f"{number(count)} connections were still open"
    return f"{'1' if count else 'no'} connection was still open"


def _generator(report: dict[str, Any]) -> str:
    """Return what the generator did wrong and what to do about it, if it could have changed the verdict."""
    generator, connections = report["generator"], report["connections"]
    if generator["saturated"]:
        busiest = max(generator["cpu_percent"], default=0)
        if report["errors"]["local_exhausted"]:
            return f"The generator was saturated: this machine ran out of {_exhausted(report)}."
        what = [f"{busiest:.0f} % of a core used"]
        if generator["lag_p99_us"] is not None:
            what.insert(0, f"{latency(generator['lag_p99_us'])} late at p99")
        if connections["unstarted"]:
            due = connections["attempted"] + connections["cut_off"] + connections["unstarted"]
            what.insert(0, f"{number(connections['unstarted'])} of {number(due)} connections not started")
        return (
            f"The generator was saturated: {', '.join(what)}. Latencies and rates describe the generator, "
            f"not the server. {_advice(report, busiest)}"
        )
    if in_doubt(report):
        return (
            f"The machine of the generator was busy: {_disturbance(report)}. What was missed may be due to "
            "that. Repeat the run on an idle machine."
        )
    return ""


def _exhausted(report: dict[str, Any]) -> str:
    """Return what ran out, and what to do about it."""
    reasons = " ".join(report["error_reasons"].get("local_exhausted", {})).lower()
    if "open files" in reasons:
        return "descriptors. Raise the limit of open files (ulimit -n) or ask for less"
    if "address" in reasons:
        return "ports. Add source addresses (--source-ip) or ask for less"
    return "memory or ports. Ask for less"


def _advice(report: dict[str, Any], busiest: float) -> str:
    if busiest < BUSY_PERCENT:
        return "It had CPU to spare, so the machine was busy: ask for less, or use an idle machine."
    if report["generator"]["workers"] < report["environment"]["cpus"]:
        return "Give it more workers or ask for less."
    return "All cores of the machine are in use: ask for less, or use more machines."


def _disturbance(report: dict[str, Any]) -> str:
    generator = report["generator"]
    if generator.get("stopped_s"):
        return f"the generator did not run for {seconds(generator['stopped_s'])}"
    busiest = max(generator["cpu_percent"], default=0)
    return f"starts were {latency(generator['lag_p99_us'])} late at p99, with {busiest:.0f} % of a core used"


def _hint(report: dict[str, Any]) -> str:
    """Return how to measure a service that stays connected after its greeting, or that differs in TLS."""
    if report["errors"]["greeting_timeout"] and report["plan"]["until"] == "eof":
        return "The service stays connected after its greeting: --until line ends it there."
    if report["plan"]["tls"]:
        reasons = report["error_reasons"].get("tls_error", ())
        return "The service does not speak TLS." if _NOT_TLS & set(reasons) else ""
    texts = {row["text"] for row in report["greetings"]["texts"]}
    return "The service speaks TLS, which --tls uses." if _TLS_ALERT in texts else ""


def notes(report: dict[str, Any]) -> list[str]:
    """Return what is needed to interpret the figures, one sentence per item, without capital and full stop.

    Args:
        report: the JSON values of a report.
    """
    generator, connections = report["generator"], report["connections"]
    found = list(report["notes"])
    if report["plan"]["mode"] == "closed":
        does = "asks" if "lost" in report["rate"] else "connects"
        found.append(f"closed loop: a client {does} only after an earlier one is done, which hides stalls")
        busiest = max(generator["cpu_percent"], default=0)
        if busiest >= BUSY_PERCENT:
            found.append(f"a worker used {busiest:.0f} % of a core: the generator may have been the limit")
    elif connections["unstarted"] and not generator["saturated"]:
        limit = report["plan"]["connections"]
        reason = (
            f"the limit of {number(limit)} open connections was reached"
            if connections["peak_open"] >= limit
            else "the generator was late when the schedule ended"
        )
        found.append(f"{number(connections['unstarted'])} connections were due but not started: {reason}")
    if generator.get("stopped_s"):
        found.append(
            f"the generator stood still for {seconds(generator['stopped_s'])}: it was stopped, or its "
            "machine was paused; latencies include that time"
        )
    elif generator.get("disturbed"):
        found.append(f"{_disturbance(report)}: the machine was busy; response times include that")
    found += _stalls(report)
    found += [
        f"{count} connects took {band.removesuffix('s')} s or slightly more, as after a SYN retransmission"
        for band, count in report["syn_retransmits"].items()
        if count
    ]
    counters = COUNTERS | UDP_COUNTERS
    found += [
        f"{name} +{number(count)} on this machine: {counters.get(name, 'counted by the kernel')}"
        for name, count in report["kernel"].items()
        if count
    ]
    if connections["reset_after_greeting"]:
        found.append(
            f"{number(connections['reset_after_greeting'])} connections were reset after the greeting"
        )
    if connections.get("truncated"):
        found.append(
            f"{number(connections['truncated'])} TLS streams ended without close_notify: bytes may be missing"
        )
    if connections["closed_while_held"]:
        found.append(
            f"{number(connections['closed_while_held'])} connections were closed by the server while held"
        )
    if generator["latencies_over_60_s"]:
        found.append(f"{number(generator['latencies_over_60_s'])} latencies over 60 s are counted as 60 s")
    return found + _baseline_notes(report["baseline"] or {})


def _stalls(report: dict[str, Any]) -> list[str]:
    """Name the longest time in which no connection ended although some waited for their greeting."""
    rows, width = report["timeline"], report["bucket_s"]
    hold = ceil(report["plan"]["hold_s"] / width)  # buckets
    median = report["latency_us"]["service"]["p50"]
    if report["generator"].get("stopped_s") or median is None:
        return []
    longest = (0, 0)  # the indices of its first bucket and of the one after its last
    begin = 0
    for index, row in enumerate(rows):
        held = sum(earlier["greeted"] for earlier in rows[max(0, index - hold) : index]) if hold else 0
        if row["greeted"] + row["failed"] or row["open"] <= held:
            begin = index + 1
        elif index + 1 - begin > longest[1] - longest[0]:
            longest = (begin, index + 1)
    length = (longest[1] - longest[0]) * width
    if length < max(_STALL_SECONDS, _STALL_FACTOR * median / 1e6):
        return []
    first, last = seconds(longest[0] * width), seconds(longest[1] * width)
    return [f"no open connection ended from {first} to {last} of the run: the server stalled"]


def _baseline_notes(baseline: dict[str, Any]) -> list[str]:
    """Return why the figures of the baseline may be unreliable."""
    texts = {
        "interrupted": "the baseline {} was interrupted: its figures cover only part of the run",
        "saturated": "the generator of the baseline {} was saturated: its figures describe the generator",
        "lost": "the baseline {} lacks part of its load",
    }
    return [text.format(baseline["name"]) for fact, text in texts.items() if baseline.get(fact)]


def _missed_limits(report: dict[str, Any], max_changes: int | None) -> list[str]:
    texts = [f"{threshold['expr']} was {format_actual(threshold)}" for threshold in missed(report)]
    changes = worse(report)
    if max_changes is not None and len(changes) > max_changes:
        more = len(changes) - max_changes
        changes = sorted(changes, key=_sort_key)[:max_changes]
        return [*texts, *map(format_change, changes), f"and {more} more figures are worse"]
    return texts + [format_change(change) for change in changes]


def _sort_key(change: dict[str, Any]) -> tuple[bool, float]:
    """Sort response times first, then the largest changes."""
    percent = change["change_percent"]
    return not change["figure"].startswith("response"), -inf if percent is None else -abs(percent)


def format_actual(threshold: dict[str, Any]) -> str:
    """Return the measured value of a threshold, with enough digits to distinguish it from the limit."""
    limit = None
    with suppress(ConfigError):  # an expression from a later version
        limit = Threshold.parse(threshold["expr"]).value
    return format_value(threshold["actual"], threshold["unit"], limit)


def format_value(value: float | None, unit: str, limit: float | None = None) -> str:
    """Return a value with its unit.

    Args:
        value: the value; None reads "not measured".
        unit: its unit, such as ``%``, ``/s`` or ``ms``.
        limit: a limit in the same unit; digits are added until the text lies on the same side as ``value``.
    """
    if value is None:
        return "not measured"
    shown, places = number(value), 0
    while limit is not None and _side(float(shown.replace(",", "")), limit) != _side(value, limit):
        places += 1
        shown = f"{value:,.{places}f}"
    return shown + (unit if unit in ("%", "/s") else " " * bool(unit) + unit)


def _side(value: float, limit: float) -> int:
    return (value > limit) - (value < limit)


def format_change(change: dict[str, Any]) -> str:
    """Return one figure of a comparison, such as ``response p99 went from 3.1 ms to 4.2 ms (+35 %)``."""

    def show(value: float | None) -> str:
        if value is None:
            return "nothing"
        return latency(value) if change["unit"] == "us" else format_value(value, change["unit"])

    factor = "" if change["change_percent"] is None else f" ({change_text(change)})"
    return f"{change['figure']} went from {show(change['old'])} to {show(change['new'])}{factor}"
