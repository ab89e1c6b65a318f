"""One worker's connections: begun when the pacer says so, followed to their end, counted.

The law: whatever happens is stamped with the moment at which the poll that told of it came back, and a
start with the moment of its connect; so a batch that takes us long is not held against the server. A
connection that is late by our schedule is timed from the moment that it was meant to begin.

The loop wakes ``_run_once`` when sockets have something to say or when the alarm rings for the next arrival,
deadline or interval. A turn handles what on_event, begins what is due and sets the alarm; it is bounded,
so that other tasks of the loop get theirs. There is no task, no callback and no timer for a connection.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from math import inf
from time import monotonic, thread_time
from typing import TYPE_CHECKING

from greeter.core.deadlines import Deadlines
from greeter.loadtest.generator.event_poller import BATCH, FAILED, new_poller
from greeter.loadtest.generator.load_connection import (
    ConnectionSpec,
    LoadConnection,
    earliest_start,
    started_by,
)
from greeter.loadtest.generator.timer import PreciseTimer
from greeter.loadtest.metrics.run_metrics import RunMetrics
from greeter.loadtest.metrics.timeline import INTERVAL, Interval
from greeter.loadtest.plan.outcome import ANSWERED, GREETED
from greeter.loadtest.plan.pacer import LATE_TOLERANCE

if TYPE_CHECKING:
    from greeter.loadtest.generator.target import Target
    from greeter.loadtest.metrics.timeline import OnInterval
    from greeter.loadtest.plan.pacer import Pacer
    from greeter.loadtest.plan.plan import LoadPlan

# After many events a turn looks whether there are more, but so often at the most: the loop has others.
_MANY_EVENTS = 64
_MAX_POLLS = 4
# So often a Unix socket whose queue is full is tried again.
_RETRY_SECONDS = 0.005
# A closed loop that ran out of ports or descriptors would fail as fast as it can; it waits so long.
_PAUSE_SECONDS = 0.01


class Engine:
    """Carries out worker ``index``'s part of ``plan`` against ``target``.

    ``on_interval`` gets every Interval of a quarter of a second as it ends, and ``index``, in the engine's
    own time: it has to be quick. An Engine is used once.
    """

    def __init__(
        self, plan: LoadPlan, target: Target, index: int = 0, on_interval: OnInterval | None = None
    ) -> None:
        self.metrics = RunMetrics()
        self._plan, self._index, self._on_interval = plan, index, on_interval
        self._open_loop = plan.mode == "open"
        self._schedules: list[tuple[Pacer, float]] = [(plan.pacer(index), 0.0)]
        if plan.warmup:
            self._schedules.insert(0, (plan.warmup_pacer(index), -plan.warmup))
        self._spec = ConnectionSpec(plan, target)
        self._timeout, self._connect_timeout, self._hold = plan.timeout, plan.connect_timeout, plan.hold
        # Who is waited for, by descriptor and in the order of their beginning, which is that of their
        # deadlines too: those without a greeting yet, and of these those without a connection yet.
        self._waiting: dict[int, LoadConnection] = {}
        self._connecting: dict[int, LoadConnection] = {}
        self._held: dict[int, LoadConnection] = {}
        self._held_until: Deadlines[LoadConnection] = Deadlines()
        self._hold_deadline = inf  # nobody is held beyond: the time of the run is over
        self._connect_retries: list[LoadConnection] = []  # Unix connects to be tried again …
        self._retry_at = inf  # … at this moment
        self._slots = self._free_slots = plan.share(index)
        self._slot_freed_at = -inf  # when a slot last came free after there had been none
        self._interval, self._interval_end = Interval(), inf
        self._check_at = -inf  # no deadline passes before
        self._uncounted, self._schedule_done = 0, False

    async def run(self, begin: float | None = None) -> RunMetrics:
        """Make the load, from the moment ``begin`` of ``time.monotonic()`` (now) on.

        When it is cancelled, it closes what is open at once, and ``metrics`` has what was measured.
        """
        loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = loop.create_future()
        self._poller = new_poller(loop, self._on_wakeup)
        self._timer = PreciseTimer(loop, self._on_wakeup)
        try:
            self._start_time = (monotonic() if begin is None else begin) + self._plan.warmup
            self._last_end = self._interval_end = self._start_time
            if self._plan.duration is not None:  # behind which an open loop still begins what was due
                self._hold_deadline = (
                    self._start_time + self._plan.duration + LATE_TOLERANCE * self._open_loop
                )
            self._timer.set(self._next_schedule(self._start_time))
            await self._done
        finally:
            self._finish()
            self._timer.close()
            self._poller.close()
        return self.metrics

    def stop(self) -> None:
        """End the run now; the figures are over what has ended so far."""
        if not self._done.done():
            self.metrics.interrupted = True
            self._done.set_result(None)

    # -- a turn

    def _on_wakeup(self) -> None:
        if self._done.done():
            return
        try:
            self._run_once()
        except Exception as error:  # the loop would log it, and the run would wait for ever
            self._done.set_exception(error)

    def _run_once(self) -> None:
        poll, waiting, connecting = self._poller.poll, self._waiting, self._connecting
        for _ in range(_MAX_POLLS):
            events = poll()
            now = monotonic()
            if now >= self._interval_end:
                self._rotate_interval(now)
            for fd, mask in events:
                connection = waiting.get(fd)
                if connection is None:
                    self._on_held_event(fd, mask, now)
                    continue
                outcome = connection.on_event(mask, now)
                if connection.connected == now:
                    connecting.pop(fd, None)
                if outcome is not None:
                    self._end(connection, outcome, now)
            if now >= self._check_at:
                self._expire(now)  # first, for it gives slots free
            due = self._begin_due()
            if len(events) < _MANY_EVENTS:
                break
        self._interval.open = max(self._interval.open, self._slots - self._free_slots)
        if self._uncounted >= _MANY_EVENTS:
            self._uncounted = 0
            self.metrics.count(self._interval)
        if self._schedule_done and not self._waiting and not self.metrics.cpu_percent:
            self._record_cpu()
        if self._schedule_done and self._free_slots == self._slots:
            self._done.set_result(None)
            return
        self._timer.set(min(due, self._check_at, self._interval_end))

    def _rotate_interval(self, now: float) -> None:
        """Close the interval that is over and begin the one that ``now`` is in."""
        interval = self._interval
        if self._start_time < self._interval_end:
            self.metrics.add_interval(interval)
            if self._on_interval is not None:
                self._on_interval(interval, self._index)
        number = int((now - self._start_time) / INTERVAL)
        self._interval = Interval(number * INTERVAL, open=self._slots - self._free_slots)
        self._interval_end = self._start_time + (number + 1) * INTERVAL

    # -- beginning

    def _begin_due(self) -> float:
        """Begin what is due and has a free slot; returns the moment at which there is more to do."""
        if self._schedule_done:
            return inf
        spec, pace, watch = self._spec, self._pacer.pace, self._poller.register
        for _ in range(BATCH):
            now = monotonic()
            wait, stop = pace(now - self._origin, self._started)
            if stop:
                return self._next_schedule(now)
            if wait > 0:
                return now + wait
            if not self._free_slots:
                return self._origin + (self._pacer.end or inf)
            if now >= self._interval_end:  # it counts where it belongs, and is taken back there
                self._rotate_interval(now)
            self._started += 1
            self._free_slots -= 1
            connection = spec.connection_class(spec, now + wait, now, self._measuring)
            if self._measuring:
                self._interval.attempted += 1
                if self._open_loop:
                    self.metrics.lag.record(now - max(now + wait, self._slot_freed_at))
            outcome = connection.open()
            if outcome is None:
                fd = connection.fd
                self._waiting[fd] = self._connecting[fd] = connection
                if connection.queue_full:
                    self._schedule_retry(connection, now)
                else:
                    watch(fd)
            else:
                self._end(connection, outcome, now)
                if outcome == "local_exhausted" and not self._open_loop:
                    return now + _PAUSE_SECONDS
        return now

    def _schedule_retry(self, connection: LoadConnection, now: float) -> None:
        """Connect again later: a Unix socket whose queue is full."""
        self._connect_retries.append(connection)
        self._retry_at = min(self._retry_at, now + _RETRY_SECONDS)
        self._check_at = min(self._check_at, self._retry_at)

    def _retry_connects(self, now: float) -> None:
        """Connect those again whose queue was full, first come first."""
        queued, self._connect_retries, self._retry_at = self._connect_retries, [], inf
        for connection in queued:
            if self._waiting.get(connection.fd) is not connection:
                continue  # its deadline has passed
            outcome = connection.connect()
            if outcome is not None:
                self._end(connection, outcome, now)
            elif connection.queue_full:
                self._schedule_retry(connection, now)
            else:
                self._poller.register(connection.fd)

    # -- deadlines

    def _expire(self, now: float) -> None:
        """End, or let go, whoever has waited for as long as he may; and know when to look again."""
        if now >= self._retry_at:
            self._retry_connects(now)
        for time, waiting in ((self._connect_timeout, self._connecting), (self._timeout, self._waiting)):
            for connection in started_by(now - time, waiting):
                self._end(connection, connection.classify_timeout(), now)
        for connection in self._held_until.expire(now):
            self._release(connection, now)
        # Whoever comes later has at least the shortest of the times before him.
        self._check_at = min(
            now + min(self._connect_timeout, self._timeout),
            earliest_start(self._connecting) + self._connect_timeout,
            earliest_start(self._waiting) + self._timeout,
            self._held_until.first() or inf,
            self._retry_at,
        )

    def _on_held_event(self, fd: int, mask: int, now: float) -> None:
        connection = self._held.get(fd)
        if connection is None or (connection.ended and not mask & FAILED):
            return  # the end of the stream may be told of twice, and is no reason not to hold
        if connection.ended or connection.drain():
            self.metrics.closed_while_held += connection.measured
            self._release(connection, now)

    def _release(self, connection: LoadConnection, now: float) -> None:
        """Close a connection that was held."""
        del self._held[connection.fd]
        self._held_until.discard(connection)
        self._close(connection, now)

    # -- ending

    def _end(self, connection: LoadConnection, outcome: str, now: float) -> None:
        """Count a connection that has ended in ``outcome``; hold it or close it."""
        fd = connection.fd
        self._waiting.pop(fd, None)
        if not connection.connected:
            self._connecting.pop(fd, None)
        if connection.measured:
            self._count(connection, outcome, now)
        if self._hold and outcome == GREETED and now < self._hold_deadline:
            until = min(now + self._hold, self._hold_deadline)
            self._held[fd] = connection
            self._held_until.add(connection, until)
            self._check_at = min(self._check_at, until)
            if connection.ended:
                self._poller.unregister(fd)
        else:
            self._close(connection, now)

    def _count(self, connection: LoadConnection, outcome: str, now: float) -> None:
        metrics, interval, start = self.metrics, self._interval, connection.start
        metrics.outcomes[outcome] += 1
        if connection.connected:
            metrics.connect.record(connection.connected - start)
        if outcome in ANSWERED:
            if connection.first_byte:
                metrics.first_byte.record(connection.first_byte - start)
            interval.response.record(now - connection.intended)
            if self._open_loop:
                metrics.service.record(now - start)
        if outcome == GREETED:
            interval.greeted += 1
            metrics.reset_after_greeting += bool(connection.error)
        else:
            interval.failed += 1
            metrics.failed.record(now - start)
            if connection.error_text:
                metrics.count_reason(outcome, connection.error_text)
        self._last_end = now
        self._uncounted += 1

    def _close(self, connection: LoadConnection, now: float) -> None:
        """Close a connection, and give its slot free."""
        if not self._free_slots:
            self._slot_freed_at = now
        self._free_slots += 1
        self._poller.unregister(connection.fd)
        connection.close()

    # -- the end of the run

    def _next_schedule(self, now: float) -> float:
        """Go over from the warm-up to the run, or from the run to its end; returns when that is due."""
        if not self._schedules:
            self._end_schedule(now)
            return inf
        self._pacer, begin = self._schedules.pop(0)
        self._origin, self._started = self._start_time + begin, 0
        self._measuring = not self._schedules
        self._cpu = thread_time()
        return self._origin

    def _end_schedule(self, now: float) -> None:
        """No more connections will be begun: the schedule is over, or the run was interrupted."""
        self._schedule_done = True
        metrics, pacer = self.metrics, self._pacer
        metrics.scheduled = elapsed = max(0.0, now - self._start_time)
        if self._open_loop and self._measuring:
            self._record_cpu()
            total = pacer.total or 0
            due = bisect_right(range(total), elapsed, key=lambda k: pacer.pace(0.0, k)[0])
            metrics.unstarted = max(0, due - self._started)
            if self._started + metrics.unstarted == total:
                metrics.scheduled = pacer.length or 0.0

    def _record_cpu(self) -> None:
        """Work out the share of a core, until the end of the schedule, in a closed loop until the last."""
        elapsed = monotonic() - self._start_time
        self.metrics.cpu_percent = [100 * (thread_time() - self._cpu) / elapsed if elapsed > 0 else 0.0]

    def _finish(self) -> None:
        """Close what is open, and the books."""
        now, metrics = monotonic(), self.metrics
        if not self._schedule_done:
            self._end_schedule(now)
        if not metrics.cpu_percent:
            self._record_cpu()
        self._rotate_interval(now)
        for connection in self._waiting.values():
            if connection.measured:
                metrics.cut_off += 1
                metrics.timeline.retract(connection.start - self._start_time)
        for connection in (*self._waiting.values(), *self._held.values()):
            self._close(connection, now)
        if not self._open_loop:
            metrics.service.add(metrics.response)
        metrics.elapsed = max(metrics.scheduled, self._last_end - self._start_time)
