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
- In a closed loop, a slot whose connection was refused rests, so that a target that is down is not flooded.
"""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic, thread_time
from typing import TYPE_CHECKING

from greeter.core.deadlines import Deadlines
from greeter.loadtest.generator.connection_class import connection_class
from greeter.loadtest.generator.event_poller import BATCH, FAILED, new_poller
from greeter.loadtest.generator.load_connection import (
    ConnectionSpec,
    LoadConnection,
    earliest_start,
    started_by,
)
from greeter.loadtest.generator.record import record
from greeter.loadtest.generator.resting_slots import RestingSlots
from greeter.loadtest.generator.timer import PreciseTimer
from greeter.loadtest.metrics.run_metrics import RunMetrics
from greeter.loadtest.metrics.timeline import Interval, Timeline, interval_span
from greeter.loadtest.plan.outcome import GREETED, NOT_CONNECTED
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
# The end of an interval that is noticed so late was not delayed by work: a wake-up is shorter.
_STOPPED_SECONDS = 0.2


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
        self._connection_class = connection_class(plan)
        self._timeout, self._connect_timeout, self._hold = plan.timeout, plan.connect_timeout, plan.hold
        # Connections by descriptor, in the order of their starts and so of their deadlines: those without a
        # complete greeting, and the subset that is not connected yet.
        self._waiting: dict[int, LoadConnection] = {}
        self._connecting: dict[int, LoadConnection] = {}
        self._held: dict[int, LoadConnection] = {}
        self._held_until: Deadlines[LoadConnection] = Deadlines()
        self._hold_deadline = inf  # when the duration of the run is over, no connection is held
        self._retries: Deadlines[LoadConnection] = Deadlines()  # of connects to a full Unix socket
        self._slots = self._free_slots = plan.share(index)
        self._resting = RestingSlots()
        self._idle = self._spec.until.idle  # seconds
        self._idle_until: Deadlines[LoadConnection] = Deadlines()
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
                elif self._idle and connection.received:
                    self._wait_for_idle(connection)
            if now >= self._check_at:
                self._expire(now)  # before the starts, because it frees slots
            due = self._begin_due()
            if len(events) < _MANY_EVENTS:
                break
        if (most := self._open()) > self._interval.open:
            self._interval.open = most
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
            if now - self._interval_end > _STOPPED_SECONDS:
                self.metrics.stopped += now - self._interval_end
            self.metrics.add_interval(interval)
            if self._on_interval is not None:
                self._on_interval(interval, self._index)
        number, span = int((now - self._start_time) / self._span), self._span
        self._interval = Interval(number * span, open=self._open(), span=span)
        self._interval_end = self._start_time + (number + 1) * span

    def _open(self) -> int:
        """Return the number of open connections."""
        return self._slots - self._free_slots - self._resting.count

    # -- starts

    def _begin_due(self) -> float:
        """Start the connections that are due, as far as there are slots. Returns when to call it again."""
        if self._schedule_done:
            return inf
        spec, pace, register = self._spec, self._pacer.pace, self._poller.register
        rested, new_connection = self._resting.rested, self._connection_class
        for _ in range(BATCH):
            now = monotonic()
            wait, stop = pace(now - self._origin, self._started)
            if stop:
                return self._next_schedule(now)
            if wait > 0:
                return now + wait
            if now >= self._last_start and not self._in_overtime():
                return self._next_schedule(now)
            if not self._free_slots:
                return self._last_start
            if now >= self._interval_end:  # count the start, and remove it if cut off, in its own interval
                self._rotate_interval(now)
            self._started += 1
            self._free_slots -= 1
            connection = new_connection(spec, now + wait, now, self._measuring)
            if rested:
                connection.refusals = rested.pop()
            if self._measuring:
                self._interval.attempted += 1
                if self._open_loop:
                    self.metrics.lag.record(now - max(now + wait, self._slot_freed_at))
            outcome = connection.open()
            if outcome is None:
                fd = connection.fd
                self._waiting[fd] = self._connecting[fd] = connection
                if connection.queue_full:
                    self._connect_later(connection, now)
                else:
                    register(fd)
            else:
                self._end(connection, outcome, now)
        return now

    def _in_overtime(self) -> bool:
        """Return whether overdue arrivals are started after the end: slots have been free since it."""
        freed_before = self._slot_freed_at < self._last_start - LATE_TOLERANCE
        return self._measuring and self._free_slots > 0 and freed_before

    def _connect_later(self, connection: LoadConnection, now: float) -> None:
        """Connect again later, to a Unix socket whose queue is full. The order of the attempts is kept."""
        self._retries.add(connection, now + _RETRY_SECONDS)
        self._check_at = min(self._check_at, now + _RETRY_SECONDS)

    def _retry_connect(self, connection: LoadConnection, now: float) -> None:
        if self._waiting.get(connection.fd) is not connection:
            return  # its deadline has passed
        outcome = connection.connect()
        if outcome is not None:
            self._end(connection, outcome, now)
        elif connection.queue_full:
            self._connect_later(connection, now)
        else:
            self._poller.register(connection.fd)

    # -- deadlines

    def _expire(self, now: float) -> None:
        """Handle deadlines that have passed, BATCH of each kind at most, and compute the next one."""
        for connection in self._retries.expire(now, BATCH):
            self._retry_connect(connection, now)
        for time, waiting in ((self._connect_timeout, self._connecting), (self._timeout, self._waiting)):
            for connection in started_by(now - time, waiting, BATCH):
                self._end(connection, connection.classify_timeout(), now)
        for connection in self._held_until.expire(now, BATCH):
            self._release(connection, now)
        for connection in self._idle_until.expire(now, BATCH):
            self._end(connection, connection.classify(complete=True), now, connection.last_byte)
        self._free_slots += self._resting.wake(now)
        # A connection that starts later has a deadline after the shorter timeout from now.
        self._check_at = min(
            now + min(self._connect_timeout, self._timeout),
            earliest_start(self._connecting) + self._connect_timeout,
            earliest_start(self._waiting) + self._timeout,
            self._held_until.first() or inf,
            self._idle_until.first() or inf,
            self._resting.first(),
            self._retries.first() or inf,
        )

    def _wait_for_idle(self, connection: LoadConnection) -> None:
        """The greeting ends if nothing else arrives for the time that the plan says."""
        until = connection.last_byte + self._idle
        self._idle_until.add(connection, until)
        self._check_at = min(self._check_at, until)

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

    def _end(self, connection: LoadConnection, outcome: str, now: float, ended: float | None = None) -> None:
        """Count a connection in class ``outcome``, and hold or close it.

        Args:
            connection: the connection.
            outcome: its class.
            now: the current time.
            ended: when it ended. Default: now.
        """
        fd = connection.fd
        if self._idle:
            self._idle_until.discard(connection)
        self._waiting.pop(fd, None)
        self._connecting.pop(fd, None)
        if connection.measured:
            ended = ended or now
            record(self.metrics, self._interval, connection, outcome, ended, self._open_loop)
            self._last_end = max(self._last_end, ended)
            self._uncounted += 1
        if self._hold and outcome == GREETED and now < self._hold_deadline:
            until = min(now + self._hold, self._hold_deadline)
            self._held[fd] = connection
            self._held_until.add(connection, until)
            self._check_at = min(self._check_at, until)
            if connection.ended and not connection.error:
                self._poller.unregister(fd)
            else:  # an end or a reset that came with the end of the greeting causes no other event
                self._on_held_event(fd, FAILED, now)
        else:
            self._close(connection, now)
            if outcome in NOT_CONNECTED and not (self._open_loop or self._schedule_done):
                self._free_slots -= 1
                self._resting.add(connection.refusals, now)
                self._check_at = min(self._check_at, self._resting.first())

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
        # Except in overtime, no connection is started later than this.
        length = self._pacer.length
        self._last_start = self._origin + (inf if length is None else length + LATE_TOLERANCE)
        self._cpu = thread_time()
        return self._origin

    def _end_schedule(self, now: float) -> None:
        """Start no more connections: the schedule is over, or the run was interrupted."""
        self._schedule_done = True
        self._free_slots += self._resting.wake(inf)
        metrics, pacer, begin = self.metrics, self._pacer, self._start_time
        metrics.scheduled = elapsed = max(0.0, now - begin)
        if self._open_loop and self._measuring:
            self._record_cpu()
            metrics.unstarted = max(0, pacer.due(elapsed) - self._started)
            if self._free_slots and now - self._slot_freed_at > LATE_TOLERANCE:
                metrics.unstarted_with_free_slots = metrics.unstarted
            if self._started + metrics.unstarted == pacer.total and elapsed <= self._last_start - begin:
                metrics.scheduled = pacer.length or 0.0

    def _record_cpu(self) -> None:
        """Compute the share of a core, to the end of the schedule or (closed loop) the last connection."""
        used, elapsed = thread_time() - self._cpu, monotonic() - self._start_time
        self.metrics.cpu_percent = [min(100.0, 100 * used / elapsed) if elapsed > 0 else 0.0]  # two clocks

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
