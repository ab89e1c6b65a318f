"""Worker processes over shared listening sockets: kept alive, replaced one by one, and retired.

The law: the parent opens the listening sockets, keeps them open and never accepts; so a client in a
listen queue does not notice that a worker died, left or took another's place. The workers are its direct
children, and no worker has children of its own. Nothing polls: a death is a readable pidfd.

All workers accept from the same sockets. The other scheme, a SO_REUSEPORT socket for each worker, was
measured beside it: 2 workers and the load on 2 cores, 60 clients in a closed loop, rounds of 10,000,
interleaved, Linux 6.18. Of two figures, the first is for greetings sent at accept time, the second for
greetings sent through a transport of the event loop; each is the worse of asyncio and uvloop.

=====================================  ===============  ======================
..                                     one socket       one socket per worker
=====================================  ===============  ======================
largest share of a worker (even: 50%)  53 %, 60 %       51 %, 51 %
CPU per greeting, one / per worker     0.95 - 1.09      1
p99 latency, one / per worker          0.80 - 0.92      1
one worker stalled: greeted in 0.5 s   60 of 60         21 - 38 of 60
one worker killed: greeted in 0.5 s    60 of 60         23 - 39 of 60
=====================================  ===============  ======================

The kernel spreads clients over SO_REUSEPORT sockets as they come, and a client stays with the worker that
it fell to: behind one that is slow, or dead until its replacement has inherited that very socket, it
waits, where a shared queue is emptied by the worker that has time. That is worth more than an even share;
and a socket from systemd, or a Unix socket, can only be shared.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import TYPE_CHECKING, Any

from greeter.errors import reason
from greeter.service.worker_process import Child, WorkerFailed
from greeter.system.listeners import HANDSHAKE_GRACE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greeter.system.listeners import Listener

logger = logging.getLogger("greeter")

READY_TIMEOUT = 10.0
RETIRE_TIMEOUT = 15.0  # above the drain deadline of the worker itself, which says what it cut off
ANSWER_SECONDS = 1.0  # for stats
# A worker that served this long was healthy: its death begins a new series.
HEALTHY_SECONDS = 10.0
# fork(2), socketpair(2), open(2): the system may be able to do it in a moment.
BUSY = frozenset((errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE))


class Backoff:
    """How long to wait before the next try: 0.1 s, then twice as long each time, up to 5 s."""

    FIRST = 0.1
    MOST = 5.0

    def __init__(self) -> None:
        self._next = self.FIRST

    def next(self) -> float:
        """The wait, in seconds."""
        delay, self._next = self._next, min(self._next * 2, self.MOST)
        return delay

    def reset(self) -> None:
        """Begin anew."""
        self._next = self.FIRST


class Place:
    """One of the places that have a worker each; its keeper sees to that."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.keeper: asyncio.Task[None] | None = None


class Supervisor:
    """Keeps ``count`` workers over ``listeners``, from ``start`` to ``stop``.

    ``command`` starts one; it finds a WorkerChannel in its environment, with ``task`` (anything that JSON
    can say) and the listening sockets, which stay the caller's to close. ``on_stats`` gets the pid of a
    worker and each of its reports; ``on_left`` the pid of one that is gone, after its last report.

    ``ready_timeout``: seconds for a worker to become ready; ``retire_timeout``: seconds for one that is
    replaced to be gone, before it is killed. ``restarts`` counts workers that died, or did not become
    ready, and were replaced. Failures are logged, each in one line.
    """

    def __init__(
        self,
        command: Sequence[str],
        listeners: Sequence[Listener],
        count: int,
        *,
        task: object = None,
        on_stats: Callable[[int, dict[str, Any]], None] | None = None,
        on_left: Callable[[int], None] | None = None,
        ready_timeout: float = READY_TIMEOUT,
        retire_timeout: float = RETIRE_TIMEOUT,
    ) -> None:
        self.restarts = 0
        self._command = command
        self._listeners = listeners
        self._count = count
        self._task = task
        self._on_stats = on_stats
        self._on_left = on_left
        self._ready_timeout = ready_timeout
        self._retire_timeout = retire_timeout
        self._places: list[Place] = []
        self._children: list[Child] = []  # all that are alive: new, serving, leaving
        self._stopping = False

    @property
    def pids(self) -> tuple[int, ...]:
        """The workers that serve; one that died stays here until it is replaced."""
        return tuple(place.child.pid for place in self._places)

    async def start(self) -> None:
        """Start all workers and wait until they serve. Raises WorkerFailed; none is left then."""
        starting = [asyncio.ensure_future(self._launch(self._task, Backoff())) for _ in range(self._count)]
        try:
            children = await asyncio.gather(*starting)
        except BaseException:
            for each in starting:
                each.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            await self.stop(self._retire_timeout)
            raise
        for child in children:
            self._places.append(Place(child))
            self._keep(self._places[-1])

    async def replace_all(self, task: object = None) -> None:
        """Replace the workers one by one: start a new one, wait until it serves, retire the old one.

        A ``task`` that is not None is that of the new ones, and of all who come later. Raises WorkerFailed
        when one does not become ready: it is killed, the old ones serve on in its place and those after, and
        those before it get workers with the old task again.
        """
        before = self._task
        replaced: list[Place] = []
        try:
            for place in self._places:
                await self._replace(place, before if task is None else task)
                replaced.append(place)
        except WorkerFailed:
            self._task = before
            await self._take_back(replaced)
            raise

    async def _replace(self, place: Place, task: object) -> None:
        """Put a new worker with ``task`` into ``place``; from now on it is everybody's who starts."""
        old = place.child
        known = old.gone.done()  # its keeper has said so then
        await _cancel(place.keeper)  # nobody else puts a worker here meanwhile
        try:
            place.child = await self._launch(task, Backoff())
            self._task = task
            if old.gone.done() and not known:
                self.restarts += 1
                logger.error(
                    "%s: another has taken its place",
                    old.obituary(old.gone.result()),
                    extra={"event": "worker"},
                )
            old.retire(self._retire_timeout)
        finally:
            if not self._stopping:
                self._keep(place)

    async def _take_back(self, places: Sequence[Place]) -> None:
        """Give ``places`` their old task again: half of a new configuration is not in force."""
        for place in places:
            try:
                await self._replace(place, self._task)
            except WorkerFailed as error:
                if not self._stopping:
                    logger.error(
                        "worker %d keeps the new configuration: %s",
                        place.child.pid,
                        error,
                        extra={"event": "worker"},
                    )

    async def stats(self, timeout: float = ANSWER_SECONDS) -> list[dict[str, Any]]:
        """Ask every worker for a report; returns the latest of each after ``timeout`` seconds at the most."""
        asked = [child.report() for child in self._children if child.serves]
        if asked:
            await asyncio.wait(asked, timeout=timeout)
        return [child.stats for child in self._children if child.stats is not None]

    def end_silence(self) -> None:
        """Kill the workers that have not reported since the last call, and ask the others to."""
        for child in self._children:
            child.end_silence()

    async def stop(self, timeout: float = RETIRE_TIMEOUT) -> bool:
        """Close the door in order, retire all workers at once and wait until they are gone.

        On listening sockets that are ours no new handshake begins, and those under way are still greeted, as
        is everybody in the queues.
        Workers that are not gone after ``timeout`` seconds are killed; returns False then.
        """
        self._stopping = True
        for place in self._places:
            await _cancel(place.keeper)
        refused = [listener.reject_new_handshakes() for listener in self._listeners]
        if self._children and any(refused):
            await asyncio.sleep(HANDSHAKE_GRACE)
        children = list(self._children)
        for child in children:
            # A socket that is not ours, as systemd's, others may serve after us.
            child.retire(timeout, last=all(refused))
        if children:
            await asyncio.wait([child.gone for child in children])
        return not any(child.overdue for child in children)

    def kill(self) -> None:
        """End every worker at once, also those on their way in or out: the parent leaves this instant."""
        for child in self._children:
            child.kill()

    def _keep(self, place: Place) -> None:
        place.keeper = asyncio.get_running_loop().create_task(self._keeper(place))

    async def _keeper(self, place: Place) -> None:
        """When the worker in ``place`` dies, put another one there."""
        backoff = Backoff()
        while True:
            child = place.child
            status = await asyncio.shield(child.gone)
            if asyncio.get_running_loop().time() - child.ready_at >= HEALTHY_SECONDS:
                backoff.reset()
            why = child.obituary(status)
            while place.child is child:
                self.restarts += 1
                delay = backoff.next()
                logger.error("%s: starting another in %g s", why, delay, extra={"event": "worker"})
                await asyncio.sleep(delay)
                try:
                    place.child = await self._launch(self._task, backoff)
                except WorkerFailed as error:
                    why = str(error)

    async def _launch(self, task: object, backoff: Backoff) -> Child:
        """A worker that serves. Raises WorkerFailed; it is killed then."""
        child: Child | None = None
        try:
            async with asyncio.timeout(self._ready_timeout):
                child = await self._spawn(task, backoff)
                await child.ready
        except BaseException as error:
            if child is not None:
                child.kill()
            if not isinstance(error, TimeoutError):
                raise
            who = f"worker {child.pid} was not ready" if child is not None else "no worker could be started"
            raise WorkerFailed(f"{who} within {self._ready_timeout:g} s") from None
        return child

    async def _spawn(self, task: object, backoff: Backoff) -> Child:
        """A worker that begins; the system may be too busy for one at first."""
        fds = [listener.sock.fileno() for listener in self._listeners]
        while not self._stopping:
            try:
                child = Child(self._command, fds, task, self._reported, self._left)
            except OSError as error:
                if error.errno not in BUSY:
                    raise WorkerFailed(f"cannot start {self._command[0]!r}: {reason(error)}") from error
                delay = backoff.next()
                logger.error(
                    "cannot start a worker (%s): trying again in %g s",
                    reason(error),
                    delay,
                    extra={"event": "worker"},
                )
                await asyncio.sleep(delay)
            else:
                self._children.append(child)
                return child
        raise WorkerFailed("no worker is started while they are being stopped")

    def _reported(self, child: Child) -> None:
        if self._on_stats is not None and child.stats is not None:
            self._on_stats(child.pid, child.stats)

    def _left(self, child: Child) -> None:
        self._children.remove(child)
        if self._on_left is not None:
            self._on_left(child.pid)


async def _cancel(keeper: asyncio.Task[None] | None) -> None:
    if keeper is not None:
        keeper.cancel()
        await asyncio.wait([keeper])
