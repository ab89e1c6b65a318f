"""The counters of a process as one value: it can be added, sent between processes, and rendered.

Invariants:

- A counter in a sum never decreases. The counters of a process that has exited stay in the sum; its gauges
  are removed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from greeter.core.stats import BOUNDS, LatencyHistogram

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Counters:
    """The counters of one process, or the sum over several.

    ``accepted``, ``greeted``, ``bytes_sent``, ``linger_timeouts``, ``accept_errors``, ``paused_micros``,
    ``failed``, ``rejected``, ``datagrams``, ``datagrams_dropped``, ``open``, ``lingering``,
    ``max_connections`` and ``accepting`` are those of ServerStats. Workers leave ``datagrams_dropped`` to
    their parent, whose sockets they share.

    - ``greeting_time``: times from accept until the kernel had the whole greeting.
    - ``drains``: completed drains.
    - ``reloads``: reloads of the configuration, by result.
    - ``worker_restarts``: workers that died and were replaced.
    - ``workers``: processes that are to serve; ``workers_ready``: those that do.
    - ``certificate_expiry``: seconds since the epoch, None without TLS; in a sum, the earliest.
    """

    accepted: int = 0
    greeted: int = 0
    bytes_sent: int = 0
    linger_timeouts: int = 0
    accept_errors: int = 0
    drains: int = 0
    worker_restarts: int = 0
    paused_micros: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    datagrams: dict[str, int] = field(default_factory=dict)
    datagrams_dropped: int = 0
    reloads: dict[str, int] = field(default_factory=dict)
    greeting_time: LatencyHistogram = field(default_factory=LatencyHistogram)
    # Gauges.
    open: int = 0
    lingering: int = 0
    max_connections: int = 0
    accepting: int = 0
    workers: int = 0
    workers_ready: int = 0
    certificate_expiry: float | None = None

    @classmethod
    def of(cls, stats: object, **more: Any) -> Counters:
        """Copy counters.

        Args:
            stats: An object with attributes that are named as fields of Counters. Others are ignored.
            more: Further fields, which take precedence.

        Returns:
            The snapshot, which later changes of ``stats`` do not affect.
        """
        names = (each.name for each in fields(cls) if each.name not in more and hasattr(stats, each.name))
        return cls(**more, **{name: _copy(getattr(stats, name)) for name in names})

    def __add__(self, other: Counters) -> Counters:
        names = {each.name for each in fields(self)} - {"certificate_expiry"}
        expiries = [e for e in (self.certificate_expiry, other.certificate_expiry) if e is not None]
        return Counters(
            **{name: _add(getattr(self, name), getattr(other, name)) for name in names},
            certificate_expiry=min(expiries, default=None),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields as numbers, lists and dictionaries, for ``from_json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Counters:
        """Make a snapshot from what another process has sent.

        After an upgrade and a reload, that process may run another version: unknown names and times in
        other buckets are left out.

        Args:
            found: What ``to_json`` returned there.

        Returns:
            The snapshot.
        """
        known = {each.name: found[each.name] for each in fields(cls) if each.name in found}
        if times := known.pop("greeting_time", None):
            buckets = LatencyHistogram(**times)
            if len(buckets.counts) == len(BOUNDS) + 1:
                known["greeting_time"] = buckets
        return cls(**known)


class AggregateStats:
    """The sum over processes that start and exit. No counter of it decreases."""

    def __init__(self) -> None:
        self._retired = Counters()
        self._current: dict[object, Counters] = {}

    def update(self, process: object, snapshot: Counters) -> None:
        """Set the latest snapshot of a process, identified by ``process``."""
        self._current[process] = snapshot

    def retire(self, process: object) -> None:
        """Keep the counters of a process that has exited, and remove its gauges."""
        if (last := self._current.pop(process, None)) is not None:
            counters = replace(last, open=0, lingering=0, max_connections=0, accepting=0)
            self._retired += replace(counters, certificate_expiry=None)

    def total(self) -> Counters:
        """Return the sum over all processes, running and exited."""
        return sum(self._current.values(), start=self._retired)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return dict(value)
    return value + LatencyHistogram() if isinstance(value, LatencyHistogram) else value


def _add(mine: Any, theirs: Any) -> Any:
    if isinstance(mine, dict):
        return {name: mine.get(name, 0) + theirs.get(name, 0) for name in {**mine, **theirs}}
    return mine + theirs
