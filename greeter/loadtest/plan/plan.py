"""What to do: one frozen value that holds every choice of a load test.

The law: a plan that exists can be carried out as far as anybody can tell without opening a socket, says
everything (what was left open has its default filled in), and travels as JSON: to worker processes, and
into the report.
"""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass, fields
from ipaddress import ip_address
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, cast

from greeter.core.endpoint import DEFAULT_ENDPOINT, Endpoint, host_name
from greeter.errors import ConfigError
from greeter.loadtest.plan.pacer import ClosedLoop, OpenLoop, Pacer, Stage
from greeter.loadtest.plan.threshold import Threshold
from greeter.loadtest.plan.units import MAX_QUANTITY, parse_duration, parse_quantity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEFAULT_DURATION = 10.0
DEFAULT_CONNECTIONS = {"closed": 50, "open": 1000}


class PlanError(ConfigError):
    """A plan that cannot be. ``text`` is the line with the names of LoadPlan's fields in braces."""

    def __init__(self, text: str) -> None:
        super().__init__(_fill_field_names(text, _plain_name))
        self.text = text

    def with_field_names(self, spell: Callable[[str], str]) -> ConfigError:
        """The same error with each field as ``spell`` writes it, which is how it was given."""
        return ConfigError(_fill_field_names(self.text, spell))


@dataclass(frozen=True)
class LoadPlan:
    """All options of a load test; durations are in seconds. Raises ConfigError for what cannot be.

    - ``target``: an Endpoint, or its text (``127.0.0.1:9999``, ``unix:/run/x.sock``).
    - ``connections``: how many are open at once, at the most (50; in an open loop 1,000).
    - ``count``, ``duration``: what ends the run, whichever comes first (10 s when neither is given).
    - ``rate``: arrivals per second, in all. With it, or with stages, the loop is open: connections
      begin on time, whether or not earlier ones have ended.
    - ``stages``: the rate goes in a straight line to each stage's rate within its duration, beginning at
      ``rate`` (0 when not given). The stages say how long the run is.
    - ``hold``: keep each connection open for so long after its greeting; at the end of the duration, nobody
      is held any longer.
    - ``timeout``, ``connect_timeout``: deadlines of a connection, from its beginning to the end of its
      greeting and to being connected.
    - ``until``: the greeting ends with the stream (``eof``), or with its first line (``line``: SMTP, SSH,
      FTP and others that keep the connection).
    - ``expect``: text that a greeting must contain.
    - ``max_bytes``: a greeting that is longer is ``too_large``.
    - ``workers``: processes that share rate, count and connections.
    - ``warmup``: so long, before the run begins, the load is made and not measured, at ``rate``, or else at
      the rate of the first stage.
    - ``source_ips``: local addresses to connect from, in turn; each adds its own range of ports.
    - ``tls`` and what goes with it: paths of PEM files, and the name to ask for and to check.
    - ``thresholds``: limits that the figures must keep.
    """

    target: Endpoint | str = DEFAULT_ENDPOINT
    _: KW_ONLY
    connections: int | None = None
    count: int | None = None
    duration: float | None = None
    rate: float | None = None
    stages: Sequence[Stage] = ()
    hold: float = 0.0
    timeout: float = 10.0
    connect_timeout: float = 5.0
    until: Literal["eof", "line"] = "eof"
    expect: str | None = None
    max_bytes: int = 65536
    workers: int = 1
    warmup: float = 0.0
    source_ips: Sequence[str] = ()
    tls: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    server_name: str | None = None
    thresholds: Sequence[Threshold] = ()

    def __post_init__(self) -> None:
        self._fill_defaults()
        self._check_numbers()
        self._check_names()
        if self.mode == "open":
            total, _ = self.schedule
            if not total:
                raise ConfigError("the plan has no connection to make: rate, stages and count come to none")
            if total > MAX_QUANTITY:
                raise ConfigError(
                    f"the plan has more than {MAX_QUANTITY:,} connections to make: they never end"
                )

    @property
    def mode(self) -> Literal["open", "closed"]:
        return "closed" if self.rate is None and not self.stages else "open"

    @property
    def endpoint(self) -> Endpoint:
        """The target, read."""
        return cast("Endpoint", self.target)

    @property
    def slots(self) -> int:
        """``connections``, filled in."""
        return cast("int", self.connections)

    @property
    def schedule(self) -> tuple[int, float]:
        """How many arrivals an open loop has in all, and in how many seconds."""
        pacer = self._pacer(0, 1)
        return pacer.total or 0, pacer.length or 0.0

    @property
    def mean_rate(self) -> float | None:
        """The arrivals per second that an open loop asks for, on average; None in a closed loop."""
        pacer = self._pacer(0, 1)
        return pacer.mean if isinstance(pacer, OpenLoop) else None

    def pacer(self, index: int = 0) -> Pacer:
        """The schedule of worker ``index``, without the warm-up."""
        return self._pacer(index, self.workers)

    def warmup_pacer(self, index: int = 0) -> Pacer:
        """The schedule of worker ``index`` before the run: at ``rate``, or at that of the first stage, for a
        ramp from nothing begins with none."""
        if self.mode == "closed":
            return ClosedLoop(length=self.warmup)
        rate = self.rate if self.rate is not None else self.stages[0].rate
        return OpenLoop([Stage(self.warmup, rate)], rate, index=index, workers=self.workers)

    def share(self, index: int) -> int:
        """How many connections worker ``index`` may have open at once."""
        return _share(self.slots, index, self.workers)

    def _pacer(self, index: int, workers: int) -> Pacer:
        if self.mode == "closed":
            count = None if self.count is None else _share(self.count, index, workers)
            return ClosedLoop(count, self.duration)
        stages, rate = self.stages, self.rate or 0.0
        if not stages:
            duration = self.duration
            if duration is None:  # then there is a count, and a rate that is not zero
                duration = cast("int", self.count) / rate
            stages = [Stage(duration, rate)]
        return OpenLoop(stages, rate, limit=self.count, index=index, workers=workers)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON, durations with their unit in the name."""
        plan: dict[str, Any] = {"mode": self.mode}
        for field in fields(self):
            plan[field.name + ("_s" if field.name in _DURATIONS else "")] = getattr(self, field.name)
        plan["target"] = str(self.target)
        plan["stages"] = [{"duration_s": stage.duration, "rate": stage.rate} for stage in self.stages]
        plan["source_ips"] = list(self.source_ips)
        plan["thresholds"] = [threshold.expr for threshold in self.thresholds]
        return plan

    @classmethod
    def from_dict(cls, plan: dict[str, Any]) -> LoadPlan:
        """The plan that ``to_dict`` wrote."""
        values = {
            field.name: plan[field.name + ("_s" if field.name in _DURATIONS else "")] for field in fields(cls)
        }
        values["stages"] = [Stage(stage["duration_s"], stage["rate"]) for stage in plan["stages"]]
        values["thresholds"] = [Threshold.parse(expr) for expr in plan["thresholds"]]
        if values["stages"]:
            values["duration"] = None  # it follows from them
        return cls(**values)

    def _fill_defaults(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)  # the value is frozen once this has run

        if isinstance(self.target, str):
            put("target", Endpoint.parse(self.target))
        for name in ("stages", "source_ips", "thresholds"):
            put(name, tuple(getattr(self, name)))
        if self.stages and self.duration is not None:
            raise PlanError("{duration} is given beside {stages}, which say how long the run is")
        if self.stages:
            put("duration", sum(stage.duration for stage in self.stages))
        elif self.duration is None and self.count is None:
            put("duration", DEFAULT_DURATION)
        if self.connections is None:
            put("connections", DEFAULT_CONNECTIONS[self.mode])

    def _check_numbers(self) -> None:
        for name in ("connections", "count", "workers", "max_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PlanError(f"{{{name}}} must be 1 or more, not {value}")
        for what, value in (
            ("{hold}", self.hold),
            ("{warmup}", self.warmup),
            *(("duration of a stage", stage.duration) for stage in self.stages),
            *(("rate of a stage", stage.rate) for stage in self.stages),
        ):
            _check_number(what, value, isfinite(value) and value >= 0, "0 or more")
        for name in ("rate", "duration", "timeout", "connect_timeout"):
            value = getattr(self, name)
            if value is not None:
                _check_number(f"{{{name}}}", value, isfinite(value) and value > 0, "more than 0")
        if self.workers > self.slots:
            raise ConfigError(f"{self.workers} workers cannot share {self.slots} connections")

    def _check_names(self) -> None:
        endpoint = self.endpoint
        if endpoint.kind == "fd":
            raise ConfigError(f"target {endpoint} is a listening socket of this process; it has no address")
        if self.until not in ("eof", "line"):
            raise ConfigError(f"until is 'eof' or 'line', not {self.until!r}")
        for address in self.source_ips:
            try:
                ip_address(address)
            except ValueError:
                raise ConfigError(f"source address {address!r} is no IP address") from None
        if self.source_ips and endpoint.kind == "unix":
            raise ConfigError(f"target {endpoint} is no TCP endpoint, so that source addresses mean nothing")
        for name in ("tls_ca", "tls_cert", "tls_key", "server_name"):
            if getattr(self, name) is not None and not self.tls:
                raise PlanError(f"{{{name}}} means nothing without {{tls}}")
        if self.tls_key is not None and self.tls_cert is None:
            raise PlanError("{tls_key} means nothing without {tls_cert}")
        if self.server_name is not None:
            try:
                host_name(self.server_name)
            except ConfigError as error:
                raise PlanError(f"{{server_name}}: {error}") from None


_DURATIONS = ("duration", "hold", "timeout", "connect_timeout", "warmup")


def parse_stage(text: str) -> Stage:
    """A stage from ``DURATION:RATE``, as in ``30s:500``. Raises ConfigError."""
    duration, colon, rate = text.partition(":")
    try:
        if not colon:
            raise ConfigError("has no rate")
        return Stage(parse_duration(duration), parse_quantity(rate))
    except ConfigError as error:
        raise ConfigError(f"stage {text!r} does not read DURATION:RATE, as in 30s:500: {error}") from None


def _share(whole: int, index: int, workers: int) -> int:
    """The part of worker ``index``: parts differ by one at the most, and add up to the whole."""
    return whole // workers + (index < whole % workers)


def _check_number(what: str, value: float, right: bool, bound: str) -> None:
    if not right:
        raise PlanError(f"{what} must be {bound}, not {value:g}")
    if value > MAX_QUANTITY:
        raise PlanError(f"{what} must be {MAX_QUANTITY:,} at the most, not {value:g}")


def _plain_name(name: str) -> str:
    return name.replace("_", " ")


def _fill_field_names(text: str, spell: Callable[[str], str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda field: spell(field[1]), text)
