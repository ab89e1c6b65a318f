"""The connections of one worker: start them on schedule, follow them to their end, count them.

The loop calls ``_run_once`` when sockets have events, or when the timer expires: for the next arrival, the
next deadline or the end of an interval. It handles the events, starts the connections that are due and
sets the timer.

Invariants:

- Events are timestamped when poll() returns, and starts just before connect(2), not when they are processed.
  So time spent in our own batch never counts as server latency.
- Response times count from the intended start, so a late start does not hide latency.
- There is no task, callback or timer for each connection.
- The work of one wake-up is bounded, so that other tasks of the loop can run.
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
from greeter.loadtest.metrics.greetings import HEAD_BYTES
from greeter.loadtest.metrics.run_metrics import RunMetrics
from greeter.loadtest.metrics.timeline import Interval, Timeline, interval_span
from greeter.loadtest.plan.outcome import ANSWERED, GREETED
from greeter.loadtest.plan.pacer import LATE_TOLERANCE

if TYPE_CHECKING:
    from greeter.loadtest.generator.target import Target
    from greeter.loadtest.metrics.timeline import OnInterval
    from greeter.loadtest.plan.pacer import Pacer
    from greeter.loadtest.plan.plan import LoadPlan

# A wake-up polls again after _MANY_EVENTS events or more, but _MAX_POLLS times at most: other tasks must run.
_MANY_EVENTS = 64
_MAX_POLLS = 4
# The delay between connects to a Unix socket whose queue is full.
_RETRY_SECONDS = 0.005
# The delay of a closed loop that ran out of ports or descriptors, which would fail at full speed.
_PAUSE_SECONDS = 0.01


class Engine:
    """Runs the share of one worker in a plan. Can be used once.

    Args:
        plan: the plan of all workers.
        target: its resolved target.
        index: the number of this worker, from 0.
        on_interval: called with each Interval as it ends, and ``index``. It delays the engine, so it must be
            fast.
    """

    def __init__(
        self, plan: LoadPlan, target: Target, index: int = 0, on_interval: OnInterval | None = None
    ) -> None:
        self.metrics = RunMetrics(timeline=Timeline(plan.bucket))
        self._plan, self._index, self._on_interval = plan, index, on_interval
        self._open_loop = plan.mode == "open"
        self._schedules: list[tuple[Pacer, float]] = [(plan.pacer(index), 0.0)]
        if plan.warmup:
            self._schedules.insert(0, (plan.warmup_pacer(index), -plan.warmup))
        self._spec = ConnectionSpec(plan, target)
        self._timeout, self._connect_timeout, self._hold = plan.timeout, plan.connect_timeout, plan.hold
        # Connections by descriptor, in the order of their starts and so of their deadlines: those without a
        # complete greeting, and the subset that is not connected yet.
        self._waiting: dict[int, LoadConnection] = {}
        self._connecting: dict[int, LoadConnection] = {}
        self._held: dict[int, LoadConnection] = {}
        self._held_until: Deadlines[LoadConnection] = Deadlines()
        self._hold_deadline = inf  # when the duration of the run is over, no connection is held
        self._connect_retries: list[LoadConnection] = []  # to a full Unix socket; retried at _retry_at
        self._retry_at = inf
        self._slots = self._free_slots = plan.share(index)
        self._slot_freed_at = -inf  # when a slot last became free after all were in use
        self._span = interval_span(plan.bucket)
        self._interval, self._interval_end = Interval(span=self._span), inf
        self._check_at = -inf  # no deadline is earlier
        self._uncounted, self._schedule_done = 0, False

    async def run(self, begin: float | None = None) -> RunMetrics:
        """Run the plan.

        Resource handling: cancelling it closes all connections. ``metrics`` then has the figures so far.

        Args:
            begin: when to begin, as a time of ``time.monotonic()``. Default: now.

        Returns:
            The figures of this worker.
        """
        loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = loop.create_future()
        self._poller = new_poller(loop, self._on_wakeup)
        self._timer = PreciseTimer(loop, self._on_wakeup)
        try:
            self._start_time = (monotonic() if begin is None else begin) + self._plan.warmup
            self._last_end = self._interval_end = self._start_time
            if self._plan.duration is not None:  # an open loop starts what was due
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
        """End the run now. The figures are those of the connections that have ended so far."""
        if not self._done.done():
            self.metrics.interrupted = True
            self._done.set_result(None)

    # -- a wake-up

    def _on_wakeup(self) -> None:
        if self._done.done():
            return
        try:
            self._run_once()
        except Exception as error:  # the loop would log it, and the run would never end
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
                self._expire(now)  # before the starts, because it frees slots
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
        """End the current interval, and begin the one that contains ``now``."""
        interval = self._interval
        if self._start_time < self._interval_end:
            self.metrics.add_interval(interval)
            if self._on_interval is not None:
                self._on_interval(interval, self._index)
        number, span = int((now - self._start_time) / self._span), self._span
        self._interval = Interval(number * span, open=self._slots - self._free_slots, span=span)
        self._interval_end = self._start_time + (number + 1) * span

    # -- starts

    def _begin_due(self) -> float:
        """Start the connections that are due, as far as there are slots. Returns when to call it again."""
        if self._schedule_done:
            return inf
        spec, pace, register = self._spec, self._pacer.pace, self._poller.register
        for _ in range(BATCH):
            now = monotonic()
            wait, stop = pace(now - self._origin, self._started)
            if stop:
                return self._next_schedule(now)
            if wait > 0:
                return now + wait
            if not self._free_slots:
                return self._origin + (self._pacer.end or inf)
            if now >= self._interval_end:  # count the start, and remove it if cut off, in its own interval
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
                    register(fd)
            else:
                self._end(connection, outcome, now)
                if outcome == "local_exhausted" and not self._open_loop:
                    return now + _PAUSE_SECONDS
        return now

    def _schedule_retry(self, connection: LoadConnection, now: float) -> None:
        """Connect again later, to a Unix socket whose queue is full."""
        self._connect_retries.append(connection)
        self._retry_at = min(self._retry_at, now + _RETRY_SECONDS)
        self._check_at = min(self._check_at, self._retry_at)

    def _retry_connects(self, now: float) -> None:
        """Connect again, in the order of the first attempts."""
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
        """Handle the deadlines that have passed, and compute the next one."""
        if now >= self._retry_at:
            self._retry_connects(now)
        for time, waiting in ((self._connect_timeout, self._connecting), (self._timeout, self._waiting)):
            for connection in started_by(now - time, waiting):
                self._end(connection, connection.classify_timeout(), now)
        for connection in self._held_until.expire(now):
            self._release(connection, now)
        # A connection that starts later has a deadline after the shorter timeout from now.
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
            return  # the end of the stream may be reported twice, and does not end the hold
        if connection.ended or connection.drain():
            self.metrics.closed_while_held += connection.measured
            self._release(connection, now)

    def _release(self, connection: LoadConnection, now: float) -> None:
        """Close a held connection."""
        del self._held[connection.fd]
        self._held_until.discard(connection)
        self._close(connection, now)

    # -- ends

    def _end(self, connection: LoadConnection, outcome: str, now: float) -> None:
        """Count a connection that has ended in class ``outcome``, and hold or close it."""
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
        if connection.data:
            metrics.greetings.count(connection.data[:HEAD_BYTES])
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
            interval.errors[outcome] = interval.errors.get(outcome, 0) + 1
            metrics.failed.record(now - start)
            if connection.error_text:
                metrics.count_reason(outcome, connection.error_text)
        self._last_end = now
        self._uncounted += 1

    def _close(self, connection: LoadConnection, now: float) -> None:
        """Close a connection and free its slot."""
        if not self._free_slots:
            self._slot_freed_at = now
        self._free_slots += 1
        self._poller.unregister(connection.fd)
        connection.close()

    # -- the end of the run

    def _next_schedule(self, now: float) -> float:
        """Go from the warm-up to the run, or from the run to its end. Returns when the schedule begins."""
        if not self._schedules:
            self._end_schedule(now)
            return inf
        self._pacer, begin = self._schedules.pop(0)
        self._origin, self._started = self._start_time + begin, 0
        self._measuring = not self._schedules
        self._cpu = thread_time()
        return self._origin

    def _end_schedule(self, now: float) -> None:
        """Start no more connections: the schedule is over, or the run was interrupted."""
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
        """Compute the share of a core, to the end of the schedule or (closed loop) the last connection."""
        elapsed = monotonic() - self._start_time
        self.metrics.cpu_percent = [100 * (thread_time() - self._cpu) / elapsed if elapsed > 0 else 0.0]

    def _finish(self) -> None:
        """Complete the figures and close all connections."""
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
