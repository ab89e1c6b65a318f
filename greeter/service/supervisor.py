"""Supervise worker processes that share listening sockets: restart, replace and retire them.

Invariants:

- The parent opens the listening sockets, keeps them open until the final stop, and never accepts. A client in
  the accept queue is not affected when a worker exits or is replaced.
- Workers are direct children and have no children of their own.
- Nothing polls: the exit of a worker is a readable pidfd.

All workers accept from the same sockets. The alternative, a SO_REUSEPORT socket for each worker, was
measured too: 2 workers and the load on 2 cores, 60 clients in a closed loop, rounds of 10,000, interleaved,
Linux 6.18. Of two figures, the first is for greetings sent at accept time, the second for greetings sent
through a transport of the event loop; each is the worse of asyncio and uvloop.

=====================================  ===============  ======================
..                                     one socket       one socket per worker
=====================================  ===============  ======================
largest share of a worker (even: 50%)  53 %, 60 %       51 %, 51 %
CPU per greeting, one / per worker     0.95 - 1.09      1
p99 latency, one / per worker          0.80 - 0.92      1
one worker stalled: greeted in 0.5 s   60 of 60         21 - 38 of 60
one worker killed: greeted in 0.5 s    60 of 60         23 - 39 of 60
=====================================  ===============  ======================

The kernel assigns a client to one SO_REUSEPORT socket when it connects. If that worker is slow or dead, the
client waits for it, whereas a shared accept queue is emptied by any worker that is free. That matters more
than an even share. Besides, a Unix socket or a socket from systemd can only be shared.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import TYPE_CHECKING, Any

from greeter.errors import os_error_text
from greeter.server.timeouts import timeout_without_pauses
from greeter.service.backoff import Backoff
from greeter.service.health import WorkerHealth
from greeter.service.worker_process import WorkerFailed, WorkerProcess, WorkerTask
from greeter.system.listeners import HANDSHAKE_GRACE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greeter.system.listeners import Listener

logger = logging.getLogger("greeter")

READY_TIMEOUT = 30.0  # when a machine starts up, many programs start at once
RETIRE_TIMEOUT = 15.0  # above the drain timeout of a worker, so that the worker logs what it aborts
# What is left of it at a stop for which a worker had to be started.
LEAST_RETIRE_TIMEOUT = 1.0
STATS_TIMEOUT = 1.0
# The exit of a worker that served this long resets the backoff.
HEALTHY_SECONDS = 10.0
# Errors of fork(2), socketpair(2), open(2) and epoll_ctl(2) that may pass.
TRANSIENT_SPAWN_ERRORS = frozenset((errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC))


class WorkerSlot:
    """A slot for one worker, and the task that restarts the worker when it exits."""

    def __init__(self, worker: WorkerProcess) -> None:
        self.worker = worker
        self.monitor: asyncio.Task[None] | None = None


class Supervisor:
    """Keeps a number of workers running, from ``start`` to ``stop``. Each failure is logged in one line.

    Args:
        command: The command that starts a worker, which finds a WorkerChannel in its environment.
        listeners: The listening sockets that workers inherit. ``stop`` closes them.
        count: The number of workers.
        task: The task of each worker: a value that JSON can represent.
        files: Descriptors that the task refers to. Workers inherit them; the caller closes them.
        on_stats: Called with the process ID of a worker and each of its reports.
        on_exit: Called with the process ID of a worker that has exited, after its last report.
        ready_timeout: How long a worker may take to become ready, in seconds.
        retire_timeout: How long a replaced worker may take to exit before it is killed, in seconds, besides
            what it takes to abort its connections.

    ``restarts`` counts the workers that exited, or did not become ready, and were replaced. ``health`` tells
    whether the workers serve and respond.
    """

    def __init__(
        self,
        command: Sequence[str],
        listeners: Sequence[Listener],
        count: int,
        *,
        task: object = None,
        files: Sequence[int] = (),
        on_stats: Callable[[int, dict[str, Any]], None] | None = None,
        on_exit: Callable[[int], None] | None = None,
        ready_timeout: float = READY_TIMEOUT,
        retire_timeout: float = RETIRE_TIMEOUT,
    ) -> None:
        self.restarts = 0
        self._command = command
        self._listeners = listeners
        self._count = count
        self._task = WorkerTask(task, tuple(files), retire_timeout)
        self._on_stats = on_stats
        self._on_exit = on_exit
        self._ready_timeout = ready_timeout
        self._slots: list[WorkerSlot] = []
        self._workers: list[WorkerProcess] = []  # all that run: starting, serving, retiring
        self._stopping = False
        self._became_ready = asyncio.Event()  # a worker
        self.health = WorkerHealth(self._workers)

    @property
    def ready_count(self) -> int:
        """How many slots have a worker that serves."""
        return sum(slot.worker.ready_to_serve for slot in self._slots)

    @property
    def running_pids(self) -> tuple[int, ...]:
        """The process IDs of all workers that run: starting, serving and retiring."""
        return tuple(worker.pid for worker in self._workers)

    @property
    def pids(self) -> tuple[int, ...]:
        """The process IDs of the workers in the slots. One that has exited stays until it is replaced."""
        return tuple(slot.worker.pid for slot in self._slots)

    @property
    def max_connections(self) -> int:
        """How many connections the workers in the slots may have open, together."""
        return sum(slot.worker.max_connections for slot in self._slots)

    async def start(self) -> None:
        """Start all workers and wait until they serve.

        Raises:
            WorkerFailed: A worker did not become ready. All workers are stopped then, and the listening
                sockets are closed.
        """
        starting = [asyncio.ensure_future(self._launch(self._task, Backoff())) for _ in range(self._count)]
        try:
            workers = await asyncio.gather(*starting)
        except BaseException:
            for each in starting:
                each.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            for worker in self._workers:
                if not worker.serving:
                    worker.kill()
            await self.stop(self._task.retire_timeout)
            raise
        for worker in workers:
            self._slots.append(WorkerSlot(worker))
            self._start_monitor(self._slots[-1])

    async def replace_all(
        self, task: object = None, *, files: Sequence[int] = (), retire_timeout: float | None = None
    ) -> None:
        """Replace the workers one by one: start a new one, wait until it serves, retire the old one.

        Args:
            task: The task of the new workers and of later replacements; None to keep the current one.
            files: As for the class. Those of the current task are not needed any more when this returns.
            retire_timeout: As for the class, for the new workers; None to keep the current value.

        Raises:
            WorkerFailed: A new worker did not become ready. It is killed, the remaining old workers serve on,
                and the slots that were replaced already get workers with the old task again.
        """
        before = self._task
        new = before
        if task is not None:
            seconds = before.retire_timeout if retire_timeout is None else retire_timeout
            new = WorkerTask(task, tuple(files), seconds)
        replaced: list[WorkerSlot] = []
        try:
            for slot in self._slots:
                await self._replace(slot, new)
                replaced.append(slot)
        except WorkerFailed:
            self._task = before
            await self._roll_back(replaced)
            raise

    async def _replace(self, slot: WorkerSlot, task: WorkerTask) -> None:
        """Put a new worker with ``task`` into ``slot``, and make it the task of later replacements."""
        old = slot.worker
        known = old.exited.done()  # its monitor has counted and logged the exit then
        await _cancel(slot.monitor)  # so that only this call fills the slot
        try:
            slot.worker = await self._launch(task, Backoff())
            self._task = task
            if old.exited.done() and not known:
                self.restarts += 1
                logger.error(
                    "%s: already replaced",
                    old.describe_exit(old.exited.result()),
                    extra={"event": "worker", "worker": old.pid},
                )
            _log_replaced(old, slot.worker)
            old.replace()
        finally:
            if not self._stopping:
                self._start_monitor(slot)

    async def _roll_back(self, slots: Sequence[WorkerSlot]) -> None:
        """Replace the workers in ``slots`` by ones with the old task, so that all have the same task."""
        for slot in slots:
            try:
                await self._replace(slot, self._task)
            except WorkerFailed as error:
                if not self._stopping:
                    logger.error(
                        "worker %d keeps the new configuration: %s",
                        slot.worker.pid,
                        error,
                        extra={"event": "worker", "worker": slot.worker.pid},
                    )

    async def stats(self, timeout: float = STATS_TIMEOUT) -> list[dict[str, Any]]:
        """Request a report from every worker.

        Args:
            timeout: How long to wait for the reports, in seconds.

        Returns:
            The latest report of each worker. If a worker did not respond in time, its counters are up to
            date, and the gauges are those of an older report.
        """
        reports = {worker.report(): worker for worker in self._workers if worker.serving}
        if reports:
            _, late = await asyncio.wait(reports, timeout=timeout)
            for report in late:
                reports[report].read_counters()
        return [worker.stats for worker in self._workers if worker.stats is not None]

    def kill_unresponsive(self) -> None:
        """Kill the workers that have not reported since the last call, and request reports of the others."""
        for worker in self._workers:
            worker.kill_unresponsive()

    async def stop(self, timeout: float = RETIRE_TIMEOUT) -> bool:
        """Retire all workers at once, close the listening sockets and wait until the workers have exited.

        Listening sockets that this process opened take no new handshakes. Pending handshakes complete, and
        every connection in the accept queues is greeted: if no worker serves just now, the next one does it.
        A worker that drains has closed the sockets as soon as their queues are empty, so this process must
        not keep them open until the last client has left.

        Args:
            timeout: How long the workers may take to exit before they are killed, in seconds.

        Returns:
            True if no worker had to be killed.
        """
        refused = [listener.reject_new_handshakes() for listener in self._listeners]
        if self._workers and any(refused):
            await asyncio.sleep(HANDSHAKE_GRACE)
        begun = asyncio.get_running_loop().time()
        try:
            async with timeout_without_pauses(timeout):
                await self._queues_served()
        except TimeoutError:
            text = "no worker became ready within %.3g s: the clients in the accept queue are reset"
            logger.error(text, timeout, extra={"event": "worker"})
        left = max(min(LEAST_RETIRE_TIMEOUT, timeout), timeout - (asyncio.get_running_loop().time() - begun))
        self._stopping = True
        for slot in self._slots:
            await _cancel(slot.monitor)
        for listener in self._listeners:  # before the workers close theirs: the last one closes in order
            listener.close()
        workers = list(self._workers)
        for worker in workers:
            worker.retire(left, last=True)
        if workers:
            await asyncio.wait([worker.exited for worker in workers])
        return not any(worker.retire_timed_out for worker in workers)

    async def _queues_served(self) -> None:
        """Wait until a worker serves, or the accept queues are empty.

        All workers may have been killed just before the stop. Their slots start others (``_monitor``).
        """
        while (
            self._slots
            and not any(worker.ready_to_serve for worker in self._workers)
            and any(listener.has_clients() for listener in self._listeners)
        ):
            self._became_ready.clear()
            await self._became_ready.wait()

    def kill(self) -> None:
        """Kill every worker at once, including those that are starting or retiring."""
        for worker in self._workers:
            worker.kill()

    def _start_monitor(self, slot: WorkerSlot) -> None:
        slot.monitor = asyncio.get_running_loop().create_task(self._monitor(slot))

    async def _monitor(self, slot: WorkerSlot) -> None:
        """Replace the worker in ``slot`` whenever it exits."""
        backoff = Backoff()
        while True:
            worker = slot.worker
            status = await asyncio.shield(worker.exited)
            if asyncio.get_running_loop().time() - worker.ready_at >= HEALTHY_SECONDS:
                backoff.reset()
            why = worker.describe_exit(status)
            while slot.worker is worker:
                self.restarts += 1
                delay = backoff.next()
                extra = {"event": "worker", "worker": worker.pid}
                logger.error("%s: starting another in %g s", why, delay, extra=extra)
                await asyncio.sleep(delay)
                try:
                    slot.worker = await self._launch(self._task, backoff)
                except WorkerFailed as error:
                    why = str(error)
            _log_replaced(worker, slot.worker)

    async def _launch(self, task: WorkerTask, backoff: Backoff) -> WorkerProcess:
        """Start a worker and wait until it serves. Raises WorkerFailed, after killing it.

        When this is cancelled, the worker is retired.
        """
        worker: WorkerProcess | None = None
        try:
            async with timeout_without_pauses(self._ready_timeout, grace=self._ready_timeout):
                worker = await self._spawn(task, backoff)
                await worker.ready
        except asyncio.CancelledError:
            if worker is not None:
                worker.replace()  # it may have accepted clients already
            raise
        except BaseException as error:
            if worker is not None:
                worker.kill()
            if not isinstance(error, TimeoutError):
                raise
            text = (
                f"worker {worker.pid} was not ready" if worker is not None else "no worker could be started"
            )
            raise WorkerFailed(f"{text} within {self._ready_timeout:g} s") from None
        self._became_ready.set()
        return worker

    async def _spawn(self, task: WorkerTask, backoff: Backoff) -> WorkerProcess:
        """Start a worker process. Errors that may pass are retried."""
        while not self._stopping:
            try:
                worker = WorkerProcess(
                    self._command, self._listeners, task, self._forward_stats, self._forward_exit
                )
            except OSError as error:
                if error.errno not in TRANSIENT_SPAWN_ERRORS:
                    raise WorkerFailed(
                        f"cannot start {self._command[0]!r}: {os_error_text(error)}"
                    ) from error
                delay = backoff.next()
                logger.error(
                    "cannot start a worker (%s): trying again in %g s",
                    os_error_text(error),
                    delay,
                    extra={"event": "worker"},
                )
                await asyncio.sleep(delay)
            else:
                self._workers.append(worker)
                return worker
        raise WorkerFailed("no worker is started during a stop")

    def _forward_stats(self, worker: WorkerProcess) -> None:
        if self._on_stats is not None and worker.stats is not None:
            self._on_stats(worker.pid, worker.stats)

    def _forward_exit(self, worker: WorkerProcess) -> None:
        self.health.worker_exited(worker)
        self._workers.remove(worker)
        if self._on_exit is not None:
            self._on_exit(worker.pid)


def _log_replaced(old: WorkerProcess, new: WorkerProcess) -> None:
    logger.info(
        "worker %d serves in place of worker %d",
        new.pid,
        old.pid,
        extra={"event": "worker_ready", "worker": new.pid, "replaces": old.pid},
    )


async def _cancel(monitor: asyncio.Task[None] | None) -> None:
    if monitor is not None:
        monitor.cancel()
        await asyncio.wait([monitor])
