"""One worker's connections: begun when the pacer says so, followed to their end, counted.

The law: whatever happens is stamped with the moment at which the poll that told of it came back, and a
start with the moment of its connect; so a batch that takes us long is not held against the server. A
connection that is late by our schedule is timed from the moment that it was meant to begin.

The loop wakes ``_turn`` when sockets have something to say or when the alarm rings for the next arrival,
deadline or interval. A turn handles what happened, begins what is due and sets the alarm; it is bounded,
so that other tasks of the loop get theirs. There is no task, no callback and no timer for a connection.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from math import inf
from time import monotonic, thread_time
from typing import TYPE_CHECKING

from greeter.deadlines import Deadlines
from greeter.loadtest.alarm import Alarm
from greeter.loadtest.connection import Connection, Rules
from greeter.loadtest.metrics import Metrics
from greeter.loadtest.outcome import ANSWERED, GREETED
from greeter.loadtest.poller import BATCH, new_poller
from greeter.loadtest.timeline import INTERVAL, Interval

if TYPE_CHECKING:
    from collections.abc import Callable

    from greeter.loadtest.pacer import Pacer
    from greeter.loadtest.plan import LoadPlan
    from greeter.loadtest.target import Target

# So often a turn looks whether more has happened before it gives way to the loop.
_ROUNDS = 4
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
        self,
        plan: LoadPlan,
        target: Target,
        index: int = 0,
        on_interval: Callable[[Interval, int], None] | None = None,
    ) -> None:
        self.metrics = Metrics()
        self._plan, self._index, self._on_interval = plan, index, on_interval
        self._open_loop = plan.mode == "open"
        self._slots = plan.share(index)
        self._schedules: list[tuple[Pacer, float]] = [(plan.pacer(index), 0.0)]
        if plan.warmup:
            self._schedules.insert(0, (plan.warmup_pacer(index), -plan.warmup))
        self._rules = Rules(plan, target)
        self._hold, self._timeout, self._connect_timeout = plan.hold, plan.timeout, plan.connect_timeout
        self._table: dict[int, Connection] = {}
        self._connecting: Deadlines[Connection] = Deadlines()
        self._unanswered: Deadlines[Connection] = Deadlines()
        self._held: Deadlines[Connection] = Deadlines()
        self._queued: list[Connection] = []  # Unix connects to be tried again …
        self._retry_at = inf  # … at this moment
        self._interval, self._interval_end = Interval(), inf
        self._freed = -inf  # when a slot last came free after there had been none
        self._over = False

    async def run(self, begin: float | None = None) -> Metrics:
        """Make the load, from the moment ``begin`` of ``time.monotonic()`` (now) on.

        When it is cancelled, it closes what is open at once, and ``metrics`` has what was measured.
        """
        loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = loop.create_future()
        self._poller = new_poller(loop, self._wake)
        self._alarm = Alarm(loop, self._wake)
        try:
            self._zero = (monotonic() if begin is None else begin) + self._plan.warmup
            self._last_end = self._interval_end = self._zero
            self._alarm.set(self._next_schedule(self._zero))
            await self._done
        finally:
            self._finish()
            self._alarm.close()
            self._poller.close()
        return self.metrics

    def stop(self) -> None:
        """End the run now; the figures are over what has ended so far."""
        if not self._done.done():
            self.metrics.interrupted = True
            self._done.set_result(None)

    # -- a turn

    def _wake(self) -> None:
        if self._done.done():
            return
        try:
            self._turn()
        except Exception as error:  # the loop would log it, and the run would wait for ever
            self._done.set_exception(error)

    def _turn(self) -> None:
        poll, table = self._poller.poll, self._table
        for _ in range(_ROUNDS):
            events = poll()
            now = monotonic()
            if now >= self._interval_end:
                self._turn_interval(now)
            for fd, mask in events:
                connection = table[fd]
                outcome = connection.happened(mask, now)
                if connection.connected == now:
                    self._connecting.discard(connection)
                if outcome is not None:
                    self._end(connection, outcome, now)
            due = self._begin_due()
            if len(table) > self._interval.open:
                self._interval.open = len(table)
            if not events:
                break
        self._expire(now)
        if self._over and not table and not self._queued:
            self._done.set_result(None)
            return
        self._alarm.set(min(due, self._next_deadline(), self._interval_end))

    def _turn_interval(self, now: float) -> None:
        """Close the interval that is over and begin the one that ``now`` is in."""
        interval = self._interval
        if self._zero < self._interval_end:
            self.metrics.response.add(interval.response)
            self.metrics.timeline.add(interval)
            self.metrics.peak_open = max(self.metrics.peak_open, interval.open)
            if self._on_interval is not None:
                self._on_interval(interval, self._index)
        number = int((now - self._zero) / INTERVAL)
        self._interval = Interval(number * INTERVAL, open=len(self._table))
        self._interval_end = self._zero + (number + 1) * INTERVAL

    # -- beginning

    def _begin_due(self) -> float:
        """Begin what is due and has a free slot; returns the moment at which there is more to do."""
        if self._over:
            return inf
        table, slots, pace = self._table, self._slots, self._pacer.pace
        for _ in range(BATCH):
            now = monotonic()
            wait, stop = pace(now - self._origin, self._started)
            if stop:
                return self._next_schedule(now)
            if wait > 0:
                return now + wait
            if len(table) + len(self._queued) >= slots:
                return self._origin + (self._pacer.end or inf)
            outcome = self._begin(now + wait, now)
            if outcome == "local_exhausted" and not self._open_loop:
                return now + _PAUSE_SECONDS
        return now

    def _begin(self, intended: float, now: float) -> str | None:
        """Begin one connection; returns the class in which it has ended already, or None."""
        self._started += 1
        connection = self._rules.connection(self._rules, intended, now, self._measuring)
        if self._measuring:
            self._interval.attempted += 1
            if self._open_loop:
                self.metrics.lag.record(now - max(intended, self._freed))
        outcome = connection.open()
        self._connecting.add(connection, now + self._connect_timeout)
        self._unanswered.add(connection, now + self._timeout)
        if connection.fd < 0:
            self._not_under_way(connection, outcome, now)
        else:
            self._table[connection.fd] = connection
            self._poller.watch(connection.fd)
        return outcome

    def _not_under_way(self, connection: Connection, outcome: str | None, now: float) -> None:
        """Put a connection where it belongs that has ended already, or has to be tried again."""
        if outcome is not None:
            self._end(connection, outcome, now)
        else:
            self._queued.append(connection)
            self._retry_at = min(self._retry_at, now + _RETRY_SECONDS)

    def _retry(self, now: float) -> None:
        """Try the Unix connects again whose queue was full, first come first."""
        queued, self._queued, self._retry_at = self._queued, [], inf
        for connection in queued:
            outcome = connection.connect()
            if connection.fd < 0:
                self._not_under_way(connection, outcome, now)
            else:
                self._table[connection.fd] = connection
                self._poller.watch(connection.fd)

    def _expire(self, now: float) -> None:
        """End, or let go, whatever has waited for as long as it may."""
        if now >= self._retry_at:
            self._retry(now)
        for queue in (self._connecting, self._unanswered):
            for connection in queue.expire(now):
                self._end(connection, connection.overdue(), now)
        for connection in self._held.expire(now):
            self._close(connection, now)

    def _next_deadline(self) -> float:
        queues = (self._connecting, self._unanswered, self._held)
        return min(self._retry_at, *(queue.first() or inf for queue in queues))

    # -- ending

    def _end(self, connection: Connection, outcome: str, now: float) -> None:
        """Count a connection that has ended in ``outcome``; hold it or close it."""
        if not connection.connected:
            self._connecting.discard(connection)
        self._unanswered.discard(connection)
        if connection.held:
            self.metrics.closed_while_held += connection.measured and not connection.ended
        elif connection.measured:
            self._count(connection, outcome, now)
        if self._hold and outcome == GREETED:
            connection.held = True
            self._held.add(connection, now + self._hold)
            if connection.ended:
                self._poller.forget(connection.fd)
        else:
            self._close(connection, now)

    def _count(self, connection: Connection, outcome: str, now: float) -> None:
        metrics, start = self.metrics, connection.start
        metrics.outcomes[outcome] += 1
        if connection.connected:
            metrics.connect.record(connection.connected - start)
        if outcome in ANSWERED:
            if connection.first:
                metrics.first_byte.record(connection.first - start)
            self._interval.response.record(now - connection.intended)
            if self._open_loop:
                metrics.service.record(now - start)
        if outcome == GREETED:
            self._interval.greeted += 1
            metrics.reset_after_greeting += connection.error != 0
        else:
            self._interval.failed += 1
            metrics.failed.record(now - start)
            if connection.why:
                metrics.reason(outcome, connection.why)
        self._last_end = now

    def _close(self, connection: Connection, now: float) -> None:
        """Close a connection, and give its slot free."""
        if len(self._table) + len(self._queued) >= self._slots:
            self._freed = now
        if connection.fd >= 0:
            self._poller.forget(connection.fd)
            del self._table[connection.fd]
        elif connection in self._queued:
            self._queued.remove(connection)
        if connection.held:
            self._held.discard(connection)
        connection.close()

    # -- the end of the run

    def _next_schedule(self, now: float) -> float:
        """Go over from the warm-up to the run, or from the run to its end; returns when that is due."""
        if not self._schedules:
            self._end_schedule(now)
            return inf
        self._pacer, begin = self._schedules.pop(0)
        self._origin, self._started = self._zero + begin, 0
        self._measuring = not self._schedules
        self._cpu = thread_time()
        return self._origin

    def _end_schedule(self, now: float) -> None:
        """No more connections will be begun: the schedule is over, or the run was interrupted."""
        self._over = True
        metrics, pacer = self.metrics, self._pacer
        metrics.scheduled = elapsed = max(0.0, now - self._zero)
        metrics.cpu_percent = [100 * (thread_time() - self._cpu) / elapsed if elapsed else 0.0]
        if self._open_loop and self._measuring:
            total = pacer.total or 0
            due = bisect_right(range(total), elapsed, key=lambda k: pacer.pace(0.0, k)[0])
            metrics.unstarted = max(0, due - self._started)
            if self._started + metrics.unstarted == total:
                metrics.scheduled = pacer.length or 0.0
        if self._plan.duration is not None and elapsed >= self._plan.duration:
            self._hold = 0.0
            for connection in self._held.expire(inf):
                self._close(connection, now)

    def _finish(self) -> None:
        """Close what is open, and the books."""
        now, metrics = monotonic(), self.metrics
        if not self._over:
            self._end_schedule(now)
        self._turn_interval(now)
        cut_off = [c for c in (*self._table.values(), *self._queued) if not c.held]
        for connection in cut_off:
            if connection.measured:
                metrics.cut_off += 1
                metrics.timeline.retract(connection.start - self._zero)
        for connection in (*self._table.values(), *self._queued):
            self._close(connection, now)
        if not self._open_loop:
            metrics.service.add(metrics.response)
        metrics.elapsed = max(metrics.scheduled, self._last_end - self._zero)
