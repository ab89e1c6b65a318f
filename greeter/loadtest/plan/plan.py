"""The plan of a load test: one immutable value with all of its options.

Invariants:

- Every LoadPlan is valid, as far as that can be checked without opening a socket.
- Every option has a value: the defaults are filled in.
- ``to_dict`` and ``from_dict`` are inverse. Plans are sent to worker processes and stored in reports as JSON.
"""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass, fields
from ipaddress import ip_address
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, cast

from greeter.core.datagram_sizes import DATAGRAM_MAX
from greeter.core.durations import parse_duration
from greeter.core.endpoint import DEFAULT_ENDPOINT, Endpoint, host_name
from greeter.core.escapes import escape, unescape
from greeter.core.replies import Until
from greeter.errors import ConfigError
from greeter.loadtest.plan.pacer import ClosedLoop, OpenLoop, Pacer, Stage
from greeter.loadtest.plan.threshold import Threshold
from greeter.loadtest.plan.units import MAX_QUANTITY, parse_quantity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greeter.core.proxy_protocol import ProxyVersion

DEFAULT_DURATION = 10.0
MAX_LAG = 0.01  # seconds
MIN_BUCKET = 0.05  # seconds; a run of 1 s has 20 of them
DEFAULT_CONNECTIONS = {"closed": 50, "open": 1000}


class PlanError(ConfigError):
    """A plan is invalid. ``text`` is the message with the names of LoadPlan's fields in braces."""

    def __init__(self, text: str) -> None:
        super().__init__(_fill_field_names(text, _plain_name))
        self.text = text

    def with_field_names(self, spell: Callable[[str], str]) -> ConfigError:
        """Return the same error with the names under which the user gave the fields.

        Args:
            spell: maps the name of a field to its name in the message, as in ``tls_ca`` to ``--tls-ca``.
        """
        return ConfigError(_fill_field_names(self.text, spell))


@dataclass(frozen=True)
class LoadPlan:
    """All options of a load test.

    With ``rate`` or ``stages``, the loop is open: connections start on schedule, whether or not earlier ones
    have ended. Without, it is closed: a connection starts when a slot is free.

    Args:
        target: an Endpoint or its text, as in ``127.0.0.1:9999``, ``unix:/run/x.sock`` or ``udp:[::1]:17``. A
            connection of an endpoint for datagrams is one datagram, with a socket of its own, and its reply.
        connections: the maximum of open connections. Default: 50, in an open loop 1,000.
        count: the number of connections after which the run ends.
        duration: the time in seconds after which the run ends. Default: 10, unless ``count`` is given. With
            both, the run ends at whichever comes first.
        rate: arrivals per second, of all workers.
        stages: how the rate changes: linearly to the rate of each stage within its duration, from ``rate``
            (default: 0). The stages set the duration.
        hold: how long to keep a connection open after its greeting, in seconds. Held connections are closed
            when the duration is over.
        timeout: seconds from the start of a connection to the end of its greeting.
        connect_timeout: seconds from the start of a connection until it is connected; for datagrams, it is
            ``timeout``.
        until: what ends a greeting: an Until or its text. The end of the stream (``eof``), of the first line
            (``line``) or of an SMTP or FTP reply (``reply``), the first occurrence of a text (``text:TEXT``),
            the N-th byte (``bytes:N``), or the last byte before a pause (``idle:DURATION``).
        send: bytes to send first, or their text with escapes, as in ``HELO me\\r\\n``; the payload of a
            datagram, which else has 171 bytes.
        expect: text that a greeting must contain.
        proxy_protocol: the version of the PROXY header to send before anything else, ``v1`` or ``v2``.
        max_bytes: the maximum size of a greeting; a larger one is ``too_large``.
        workers: processes that share rate, count and connections.
        warmup: how long the load runs before the measurement begins, in seconds: at ``rate``, or at the rate
            of the first stage.
        source_ips: local addresses to connect from, in turn. Each adds a range of ports.
        tls: use TLS and verify the certificate of the server.
        tls_ca: path of a PEM file with the certificates to trust instead of those of the system.
        tls_cert: path of a PEM file with the certificate of the client.
        tls_key: path of a PEM file with its key, if ``tls_cert`` does not contain it.
        server_name: the name to request and to verify. Default: the host of the target.
        thresholds: limits that the figures must keep.
        max_lag: how late starts may be at the 99th percentile, in seconds, before the report says that the
            generator was slowed down.

    Raises:
        ConfigError: the plan is invalid. It is a PlanError if the message names fields.

    Example::

        LoadPlan("127.0.0.1:9999", rate=1000, duration=10, thresholds=[Threshold.parse("response:p99<20ms")])
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
    until: Until | str = "eof"
    send: bytes | str = b""
    expect: str | None = None
    proxy_protocol: ProxyVersion | None = None
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
    max_lag: float = MAX_LAG

    def __post_init__(self) -> None:
        self._fill_defaults()
        self._check_numbers()
        self._check_names()
        if self.mode == "open":
            total, _ = self.schedule
            if not total:
                raise ConfigError("the plan makes no connections: rate, stages and count give none")
            if total > MAX_QUANTITY:
                raise ConfigError(f"the plan makes more than {MAX_QUANTITY:,} connections")

    @property
    def mode(self) -> Literal["open", "closed"]:
        """``open`` with a rate or stages, else ``closed``."""
        return "closed" if self.rate is None and not self.stages else "open"

    @property
    def endpoint(self) -> Endpoint:
        """``target`` as an Endpoint."""
        return cast("Endpoint", self.target)

    @property
    def datagrams(self) -> bool:
        """True if the target is an endpoint for datagrams: each connection is one, without a connect."""
        return self.endpoint.kind == "udp"

    @property
    def ending(self) -> Until:
        """``until`` as an Until."""
        return cast("Until", self.until)

    @property
    def slots(self) -> int:
        """``connections`` as an int: the maximum of open connections of all workers."""
        return cast("int", self.connections)

    @property
    def schedule(self) -> tuple[int, float]:
        """The arrivals of all workers in an open loop, and the duration of its schedule in seconds."""
        pacer = self._pacer(0, 1)
        return pacer.total or 0, pacer.length or 0.0

    @property
    def mean_rate(self) -> float | None:
        """The average rate of an open loop, in arrivals per second; None in a closed loop."""
        pacer = self._pacer(0, 1)
        return pacer.mean if isinstance(pacer, OpenLoop) else None

    @property
    def bucket(self) -> float:
        """The width of the timeline's buckets in seconds: a 60th of the run, and 50 ms at least."""
        length = self.duration if self.mode == "closed" and self.count is None else None
        if self.mode == "open":
            length = self.schedule[1]
        return max(MIN_BUCKET, (length or 0.0) / 60)

    def pacer(self, index: int = 0) -> Pacer:
        """Return the schedule of worker ``index`` (from 0), without the warm-up."""
        return self._pacer(index, self.workers)

    def warmup_pacer(self, index: int = 0) -> Pacer:
        """Return the schedule of the warm-up of worker ``index`` (from 0).

        Its rate is ``rate``, or else that of the first stage, because a ramp from 0 begins without load.
        """
        if self.mode == "closed":
            return ClosedLoop(length=self.warmup)
        rate = self.rate if self.rate is not None else self.stages[0].rate
        return OpenLoop([Stage(self.warmup, rate)], rate, index=index, workers=self.workers)

    def share(self, index: int) -> int:
        """Return how many connections worker ``index`` (from 0) may have open at a time."""
        return _share(self.slots, index, self.workers)

    def _pacer(self, index: int, workers: int) -> Pacer:
        if self.mode == "closed":
            count = None if self.count is None else _share(self.count, index, workers)
            return ClosedLoop(count, self.duration)
        stages, rate = self.stages, self.rate or 0.0
        if not stages:
            duration = self.duration
            if duration is None:  # then count is given, and rate is greater than 0
                duration = cast("int", self.count) / rate
            stages = [Stage(duration, rate)]
        return OpenLoop(stages, rate, limit=self.count, index=index, workers=workers)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON. The names of durations end with their unit, ``_s``."""
        plan: dict[str, Any] = {"mode": self.mode}
        for field in fields(self):
            plan[field.name + ("_s" if field.name in _DURATIONS else "")] = getattr(self, field.name)
        plan["target"], plan["until"] = str(self.target), str(self.until)
        plan["send"] = escape(cast("bytes", self.send))
        plan["stages"] = [{"duration_s": stage.duration, "rate": stage.rate} for stage in self.stages]
        plan["source_ips"] = list(self.source_ips)
        plan["thresholds"] = [threshold.expr for threshold in self.thresholds]
        return plan

    @classmethod
    def from_dict(cls, plan: dict[str, Any]) -> LoadPlan:
        """Return the plan that ``to_dict`` made ``plan`` from.

        Raises:
            ConfigError: the plan is invalid.
            KeyError: a field is missing.
        """
        names = {field.name + ("_s" if field.name in _DURATIONS else ""): field.name for field in fields(cls)}
        values = {name: plan[key] for key, name in names.items() if key in plan or name not in _NEW}
        values["stages"] = [Stage(stage["duration_s"], stage["rate"]) for stage in plan["stages"]]
        values["thresholds"] = [Threshold.parse(expr) for expr in plan["thresholds"]]
        if values["stages"]:
            values["duration"] = None  # the stages set it
        return cls(**values)

    def _fill_defaults(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)  # the plan is frozen for its users

        if isinstance(self.target, str):
            put("target", Endpoint.parse(self.target))
        if self.datagrams:
            put("connect_timeout", self.timeout)
        put("until", Until.parse(self.until))
        if isinstance(self.send, str):
            put("send", unescape(self.send))
        for name in ("stages", "source_ips", "thresholds"):
            put(name, tuple(getattr(self, name)))
        if self.stages and self.duration is not None:
            raise PlanError("{duration} cannot be combined with {stages}, which set the duration")
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
        for name in ("rate", "duration", "timeout", "connect_timeout", "max_lag"):
            value = getattr(self, name)
            if value is not None:
                _check_number(f"{{{name}}}", value, isfinite(value) and value > 0, "greater than 0")
        if self.workers > self.slots:
            raise ConfigError(f"{self.workers} workers need at least as many connections, not {self.slots}")

    def _check_names(self) -> None:
        endpoint = self.endpoint
        if endpoint.kind == "fd":
            raise ConfigError(f"target {endpoint} is a listening socket of this process, not an address")
        if self.datagrams:
            self._check_datagrams()
        if self.proxy_protocol not in (None, "v1", "v2"):
            raise PlanError(f"{{proxy_protocol}} must be v1 or v2, not {self.proxy_protocol!r}")
        for address in self.source_ips:
            try:
                ip_address(address)
            except ValueError:
                raise ConfigError(f"source address {address!r} is not an IP address") from None
        if self.source_ips and endpoint.kind == "unix":
            raise ConfigError(f"source addresses require a TCP target, not {endpoint}")
        for name in ("tls_ca", "tls_cert", "tls_key", "server_name"):
            if getattr(self, name) is not None and not self.tls:
                raise PlanError(f"{{{name}}} requires {{tls}}")
        if self.tls_key is not None and self.tls_cert is None:
            raise PlanError("{tls_key} requires {tls_cert}")
        if self.server_name is not None:
            try:
                host_name(self.server_name)
            except ConfigError as error:
                raise PlanError(f"{{server_name}}: {error}") from None

    def _check_datagrams(self) -> None:
        stream = f"a stream, and {self.endpoint} is an endpoint for datagrams"
        for name, unset in (("until", "eof"), ("tls", "False"), ("proxy_protocol", "None"), ("hold", "0.0")):
            if str(getattr(self, name)) not in (unset, unset.removesuffix(".0")):
                raise PlanError(f"{{{name}}} needs {stream}")
        if len(cast("bytes", self.send)) > DATAGRAM_MAX:
            raise PlanError(f"{{send}} has {len(self.send)} bytes, and a datagram {DATAGRAM_MAX} at most")
        for threshold in self.thresholds:
            if threshold.metric == "connect":
                raise ConfigError(f"threshold {threshold.expr!r} needs {stream}")


_DURATIONS = ("duration", "hold", "timeout", "connect_timeout", "warmup", "max_lag")
# Fields that reports of greeter 0.1 do not have.
_NEW = ("max_lag", "send", "proxy_protocol")


def parse_stage(text: str) -> Stage:
    """Parse a stage.

    Args:
        text: ``DURATION:RATE``, as in ``30s:500``.

    Raises:
        ConfigError: ``text`` is not a stage.
    """
    duration, colon, rate = text.partition(":")
    try:
        if not colon:
            raise ConfigError("it has no rate")
        return Stage(parse_duration(duration), parse_quantity(rate))
    except ConfigError as error:
        raise ConfigError(
            f"stage {text!r} is not of the form DURATION:RATE, as in 30s:500: {error}"
        ) from None


def _share(whole: int, index: int, workers: int) -> int:
    """Return the share of worker ``index``. Shares differ by at most one and add up to ``whole``."""
    return whole // workers + (index < whole % workers)


def _check_number(what: str, value: float, valid: bool, bound: str) -> None:
    if not valid:
        raise PlanError(f"{what} must be {bound}, not {value:g}")
    if value > MAX_QUANTITY:
        raise PlanError(f"{what} must be at most {MAX_QUANTITY:,}, not {value:g}")


def _plain_name(name: str) -> str:
    return name.replace("_", " ")


def _fill_field_names(text: str, spell: Callable[[str], str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda field: spell(field[1]), text)
