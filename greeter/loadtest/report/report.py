"""The result of a load test: an immutable value that is written as JSON (schema version 1) and read back.

Invariants:

- A report holds figures only. The verdict, the exit code, the summary and the charts are functions of the
  report, so they can be derived again from a file.
- Units are in the names: ``_s``, ``_us``, ``_percent``.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from greeter.errors import ConfigError
from greeter.loadtest.metrics.greeting_table import SHOWN
from greeter.loadtest.metrics.histogram import Histogram
from greeter.loadtest.metrics.run_metrics import HISTOGRAMS
from greeter.loadtest.plan.outcome import GREETED
from greeter.loadtest.plan.threshold import PHASES, STATS
from greeter.loadtest.report import exit_code, verdict
from greeter.loadtest.report.baseline import DEFAULT_TOLERANCE, compare

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from greeter.loadtest.metrics.run_metrics import RunMetrics
    from greeter.loadtest.plan.plan import LoadPlan

SCHEMA = 1
# Members of a report that version 0.1 did not write.
_NEW = ("address", "greetings")


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """The result of a load test. The attributes are the members of the JSON (see ``report-schema.json``).

    - ``rate``: ``target`` (open loop only), ``achieved`` (connections started per second of the schedule; in
      a closed loop, ended per second of the run), ``greeted`` (per second of the run) and, of datagrams,
      ``lost``: those without a reply, per second of the run.
    - ``latency_us``: microseconds. ``connect``, ``first_byte``, ``service`` and ``failed`` count from the
      actual connect, ``response`` from the intended start.
    - ``greetings``: the most frequent greetings, as ``texts`` with ``text`` and ``count``, and the number of
      the ``others``.
    - ``address``: the resolved address that was loaded; None if unknown.
    """

    target: str
    started_at: str
    duration_s: float
    plan: dict[str, Any]
    connections: dict[str, int]
    rate: dict[str, float | None]
    latency_us: dict[str, dict[str, float | None]]
    histograms: dict[str, str]
    errors: dict[str, int]
    error_reasons: dict[str, dict[str, int]]
    syn_retransmits: dict[str, int]
    bucket_s: float
    timeline: list[dict[str, Any]]
    generator: dict[str, Any]
    kernel: dict[str, int]
    environment: dict[str, Any]
    interrupted: bool
    notes: list[str]
    thresholds: list[dict[str, Any]] = field(default_factory=list)
    baseline: dict[str, Any] | None = None
    # Reports of greeter 0.1 do not have these.
    address: str | None = None
    greetings: dict[str, Any] = field(default_factory=lambda: {"texts": [], "others": 0})

    @property
    def timeline_width_s(self) -> float:
        """``bucket_s`` under its name in reports of greeter 0.1."""
        return self.bucket_s

    @property
    def passed(self) -> bool:
        """Whether all thresholds were kept and no figure is worse than the baseline."""
        return all(threshold["passed"] for threshold in self.thresholds) and (
            self.baseline is None or self.baseline["passed"]
        )

    @property
    def exit_code(self) -> int:
        """The exit code; see ``exit_code.exit_code``."""
        return exit_code.exit_code(self.to_dict())

    @property
    def verdict(self) -> str:
        """The result in one or two sentences."""
        return verdict.headline(self.to_dict())

    def histogram(self, name: str) -> Histogram:
        """Return the histogram of that name.

        Args:
            name: ``connect``, ``first_byte``, ``service``, ``response``, ``failed`` or ``lag``.
        """
        return Histogram.decode(self.histograms[name])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, without the verdict."""
        values: dict[str, Any] = {"schema": SCHEMA}
        values.update((f.name, getattr(self, f.name)) for f in fields(self))
        values["timeline_width_s"] = self.timeline_width_s
        values["passed"] = self.passed
        return values

    def to_json(self) -> str:
        """Return the report as a JSON text."""
        values = {**self.to_dict(), "verdict": self.verdict}
        return json.dumps(values, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, name: str = "report") -> LoadReport:
        """Parse the output of ``to_json``.

        Args:
            text: the JSON text.
            name: what an error calls the report.

        Raises:
            ConfigError: the text is not a report of this schema version.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{name} is not JSON: {error}") from None
        if not isinstance(values, dict) or "schema" not in values:
            raise ConfigError(f"{name} is not a load test report: it has no schema")
        if values["schema"] != SCHEMA:
            raise ConfigError(f"{name} has schema {values['schema']!r}; this greeter reads schema {SCHEMA}")
        try:
            _upgrade(values)
            missing = _missing(values)
        except (AttributeError, TypeError):  # a number where there should be an object
            raise ConfigError(f"{name} is not a load test report") from None
        if missing:
            raise ConfigError(f"{name} is not a complete report: it has no {', '.join(missing)}")
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    def against(
        self, old: LoadReport, tolerance: float = DEFAULT_TOLERANCE, name: str = "baseline"
    ) -> LoadReport:
        """Return this report with a comparison to an older one.

        A figure that is worse by more than the tolerance counts as a missed threshold.

        Args:
            old: the baseline.
            tolerance: in percent.
            name: what the comparison calls the baseline.

        Raises:
            ConfigError: nothing was greeted in the baseline.
        """
        return replace(self, baseline=compare(self.to_dict(), old.to_dict(), tolerance, name))


def _upgrade(values: dict[str, Any]) -> None:
    """Add what reports of greeter 0.1 do not have: ``bucket_s``, and the p95, which the histograms have."""
    if "timeline_width_s" in values:
        values.setdefault("bucket_s", values["timeline_width_s"])
    for phase, row in values.get("latency_us", {}).items():
        if "p95" not in row:
            with suppress(ValueError, KeyError, TypeError):  # reported when the histogram is read
                row["p95"] = Histogram.decode(values["histograms"][phase]).percentiles(95)[0]


def _missing(values: dict[str, Any]) -> list[str]:
    """Return the members that ``values`` lacks, of those that are read."""
    needed: dict[str, set[str]] = {
        "connections": {"attempted", "greeted", "failed"},
        "rate": {"achieved", "greeted"},
        "latency_us": set(PHASES),
        "generator": {"saturated"},
    }
    missing = [f.name for f in fields(LoadReport) if f.name not in values and f.name not in _NEW]
    for name in needed.keys() - set(missing):
        missing += [f"{name}.{key}" for key in needed[name] - set(values[name])]
    if not missing:
        for phase in PHASES:
            missing += [
                f"latency_us.{phase}.{s}" for s in {"count", *STATS} - set(values["latency_us"][phase])
            ]
    return sorted(missing)


def build(
    plan: LoadPlan,
    target: str,
    metrics: RunMetrics,
    *,
    started_at: str,
    address: str | None = None,
    kernel: dict[str, int],
    environment: dict[str, Any],
    notes: Sequence[str] = (),
) -> LoadReport:
    """Compute the report: percentiles, rates and thresholds.

    Args:
        plan: what was to be measured.
        target: the endpoint's text.
        metrics: what was counted.
        started_at: the start of the measurement, as ``stamp`` writes it.
        address: the resolved address.
        kernel: by how much each kernel counter rose.
        environment: versions and settings of the machine.
        notes: sentences for the reader, without capital and full stop.
    """
    metrics.timeline.coarsen()
    greeted, attempted = metrics.outcomes[GREETED], metrics.attempted
    lag = metrics.lag.summary()
    saturated, disturbed = exit_code.diagnose(plan, metrics)
    report = LoadReport(
        target=target,
        started_at=started_at,
        duration_s=round(metrics.elapsed, 6),
        plan=plan.to_dict(),
        connections={
            "attempted": attempted,
            "greeted": greeted,
            "failed": attempted - greeted,
            "unstarted": metrics.unstarted,
            "peak_open": metrics.peak_open,
            "cut_off": metrics.cut_off,
            "reset_after_greeting": metrics.reset_after_greeting,
            "truncated": metrics.truncated,
            "closed_while_held": metrics.closed_while_held,
        },
        rate=_rates(plan, metrics),
        latency_us={name: getattr(metrics, name).summary() for name in PHASES},
        histograms={name: getattr(metrics, name).encode() for name in HISTOGRAMS},
        errors={outcome: n for outcome, n in metrics.outcomes.items() if outcome != GREETED},
        error_reasons=metrics.reasons,
        syn_retransmits=_syn_retransmits(metrics.connect),
        bucket_s=round(metrics.timeline.width, 6),
        timeline=metrics.timeline.rows(metrics.elapsed),
        generator={
            "lag_p99_us": lag["p99"],
            "lag_max_us": lag["max"],
            "cpu_percent": [round(percent, 1) for percent in metrics.cpu_percent],
            "saturated": saturated,
            "disturbed": disturbed,
            "stopped_s": round(metrics.stopped, 3),
            "unstarted_with_free_slots": metrics.unstarted_with_free_slots,
            "workers": plan.workers,
            "latencies_over_60_s": sum(getattr(metrics, name).over for name in PHASES),
        },
        kernel=kernel,
        environment=environment,
        interrupted=metrics.interrupted,
        notes=list(notes),
        address=address,
        greetings=metrics.greetings.to_json(SHOWN),
    )
    values = report.to_dict()

    def percentile(phase: str, percent: float) -> float | None:
        histogram: Histogram = getattr(metrics, phase)
        return histogram.percentiles(percent)[0]

    checked = [threshold.check(values, percentile) for threshold in plan.thresholds]
    return replace(report, thresholds=checked)


def part_row(name: str, report: LoadReport) -> dict[str, Any]:
    """Return the row of ``generator["parts"]`` for the part of a load test that ``report`` describes."""
    return {
        "name": name,
        "target": report.target,
        "started_at": report.started_at,
        "duration_s": report.duration_s,
        **{key: report.connections[key] for key in ("attempted", "greeted", "failed", "unstarted")},
        "response_p99_us": report.latency_us["response"]["p99"],
        "lag_p99_us": report.generator["lag_p99_us"],
        "cpu_percent": report.generator["cpu_percent"],
        "saturated": report.generator["saturated"],
        "disturbed": report.generator.get("disturbed", False),
        "interrupted": report.interrupted,
        "environment": report.environment,
    }


def join_addresses(addresses: Iterable[str | None]) -> str | None:
    """Return the distinct addresses of several generators as one text; None if none is known."""
    return ", ".join(dict.fromkeys(filter(None, addresses))) or None


def combined_diagnosis(whole: LoadReport, parts: Iterable[Mapping[str, Any]]) -> dict[str, bool]:
    """Return ``saturated`` and ``disturbed`` of a sum: what is true of any part is true of the whole.

    Args:
        whole: the report on the sum.
        parts: the same members of each part.
    """
    generators = [whole.generator, *parts]
    saturated = any(generator["saturated"] for generator in generators)
    disturbed = not saturated and any(generator.get("disturbed") for generator in generators)
    return {"saturated": saturated, "disturbed": disturbed}


def stamp(moment: datetime) -> str:
    """Format a UTC time for ``started_at``."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _rates(plan: LoadPlan, metrics: RunMetrics) -> dict[str, float | None]:
    def per_second(count: int, seconds: float) -> float:
        return round(count / seconds, 3) if seconds > 0 else 0.0

    rates: dict[str, float | None] = {"greeted": per_second(metrics.outcomes[GREETED], metrics.elapsed)}
    if plan.datagrams:
        rates["lost"] = per_second(metrics.outcomes["no_reply"], metrics.elapsed)
    target = plan.mean_rate
    if target is None:
        return {"target": None, "achieved": per_second(metrics.attempted, metrics.elapsed), **rates}
    achieved = per_second(metrics.attempted + metrics.cut_off, metrics.scheduled)
    return {"target": round(target, 3), "achieved": achieved, **rates}


def _syn_retransmits(connect: Histogram) -> dict[str, int]:
    """Count connects by the SYN retransmission they waited for: first (1 s), second (3 s) or third (7 s)."""
    return {
        "1s": connect.between(1, 3),
        "3s": connect.between(3, 7),
        "7s": connect.between(7, float("inf")),
    }
