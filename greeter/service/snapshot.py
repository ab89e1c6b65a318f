"""What a process has counted, as one value that adds up, travels between processes and can be shown.

The law: a counter never goes back, whatever becomes of the process that counted. So what a process had
counted when it ended stays in the sum; what it had open does not. What a killed process counted after its
last report is lost.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from greeter.core.stats import BOUNDS, LatencyHistogram

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The counters of one process or of several, all plain integers.

    ``accepted``, ``greeted``, ``bytes_sent``, ``linger_timeouts``, ``accept_errors``, ``failed``,
    ``rejected``, ``open`` and ``lingering`` are those of ServerStats. ``greeting_time``: from accept until
    the kernel had the whole greeting. ``drains``: times that a server closed its door and finished with
    everybody inside. ``reloads``: by result. ``worker_restarts``: workers that died and were replaced.
    ``certificate_expiry``: seconds since the epoch, None without TLS; of several, the earliest.
    """

    accepted: int = 0
    greeted: int = 0
    bytes_sent: int = 0
    linger_timeouts: int = 0
    accept_errors: int = 0
    drains: int = 0
    worker_restarts: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    reloads: dict[str, int] = field(default_factory=dict)
    greeting_time: LatencyHistogram = field(default_factory=LatencyHistogram)
    # how it is now
    open: int = 0
    lingering: int = 0
    certificate_expiry: float | None = None

    @classmethod
    def of(cls, stats: object, **more: Any) -> Snapshot:
        """A copy of what ``stats`` counts under the names of our fields, and ``more`` of them."""
        names = (each.name for each in fields(cls) if each.name not in more and hasattr(stats, each.name))
        return cls(**more, **{name: _copy(getattr(stats, name)) for name in names})

    def __add__(self, other: Snapshot) -> Snapshot:
        names = {each.name for each in fields(self)} - {"certificate_expiry"}
        expiries = [e for e in (self.certificate_expiry, other.certificate_expiry) if e is not None]
        return Snapshot(
            **{name: _sum(getattr(self, name), getattr(other, name)) for name in names},
            certificate_expiry=min(expiries, default=None),
        )

    def to_json(self) -> dict[str, Any]:
        """What ``from_json`` takes: numbers, lists and dictionaries."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Snapshot:
        """Read what another process sent.

        It may be of another version, after an upgrade and a reload: names that we do not know are left
        out, and so are times in other buckets than ours.
        """
        known = {each.name: found[each.name] for each in fields(cls) if each.name in found}
        if times := known.pop("greeting_time", None):
            buckets = LatencyHistogram(**times)
            if len(buckets.counts) == len(BOUNDS) + 1:
                known["greeting_time"] = buckets
        return cls(**known)


class Totals:
    """The sum over processes that come and go; no counter of it ever goes back."""

    def __init__(self) -> None:
        self._left = Snapshot()
        self._here: dict[object, Snapshot] = {}

    def update(self, process: object, snapshot: Snapshot) -> None:
        """The latest from ``process``; it takes the place of what that process said before."""
        self._here[process] = snapshot

    def retire(self, process: object) -> None:
        """``process`` has ended: its counters stay, its gauges go."""
        if (last := self._here.pop(process, None)) is not None:
            self._left += replace(last, open=0, lingering=0, certificate_expiry=None)

    def total(self) -> Snapshot:
        """Everybody who is here, and everybody who was."""
        return sum(self._here.values(), start=self._left)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return dict(value)
    return value + LatencyHistogram() if isinstance(value, LatencyHistogram) else value


def _sum(mine: Any, theirs: Any) -> Any:
    if isinstance(mine, dict):
        return {name: mine.get(name, 0) + theirs.get(name, 0) for name in {**mine, **theirs}}
    return mine + theirs
