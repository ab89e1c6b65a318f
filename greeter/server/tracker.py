"""The open connections of one server: their state, their deadlines, and what is counted and logged of them.

Both accept paths move bytes and decide nothing: neither keeps a counter, a deadline or a log line of its own,
so they cannot drift apart.

The states of a connection are drawn in connection.py. A connection before LINGERING is in ``ungreeted``,
where the greet deadline runs. At that deadline, one of the streams path moves to ``_expiring`` for
LAST_READ_SECONDS. One that lingers is in ``lingering_sockets`` (direct path) or in ``lingering`` (streams
path). One that was told to abort is in ``_aborting`` until its path reports it closed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from greeter.core.stats import ACCEPT_ERRORS, ACCEPTED, LINGER_TIMEOUTS, ServerStats
from greeter.errors import GreetingError, os_error_text
from greeter.server.accept_pause import AcceptPause
from greeter.server.access_log import choose_access_log
from greeter.server.connection import ABORTED, CLOSED, FAILED, GREETING, LINGERING, REJECTED
from greeter.server.connection_log import ConnectionLog
from greeter.server.lingering import LingeringSockets
from greeter.server.timeouts import TimeoutQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from socket import SocketType

    from greeter.core.address import Address
    from greeter.core.admission import Admission
    from greeter.core.server_config import ServerConfig
    from greeter.server.connection import Connection, State

# A connection that waits for its greeting for so long, in seconds, is watched for a reset, and the timer of
# the greet deadline is set. Most are served before, and cost neither a system call nor a timer.
CHECK_SECONDS = 0.02
# What a client sent in time may lie in the kernel when its deadline comes. The event loop gets so long, in
# seconds, to read it where we cannot do so at once.
LAST_READ_SECONDS = 0.01
# Turns of the event loop within which a connection that asyncio has accepted reaches its handler, and a
# callable that does not wait returns.
TURNS = 5


class ConnectionTracker:
    """The shared half of an accept path, for one server.

    Args:
        config: the configuration of the server.
        max_capacity: connections that can be open, whatever the limits in ``config``.
        pause: called when accepting has to pause.
        resume: called when it can go on.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        max_capacity: int = 1_000_000,
        pause: Callable[[], None] = lambda: None,
        resume: Callable[[], None] = lambda: None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.loop = loop
        self.admission: Admission | None = None
        self.behind_proxy = config.proxy_from is not None
        self.capacity = self._max_capacity = max_capacity
        self.arriving = 0  # accepted, and not known to ``accepted`` yet
        self.stats = ServerStats()
        self.ungreeted: TimeoutQueue[Connection] = TimeoutQueue(
            loop, config.greet_timeout, self._on_greet_deadline, lazy=True
        )
        self.lingering: TimeoutQueue[Connection] = TimeoutQueue(
            loop, config.linger_timeout, self._on_linger_deadline
        )
        self.lingering_sockets = LingeringSockets(
            loop, config.linger_timeout, self._freed, self._on_socket_linger_deadlines
        )
        # At the greet deadline, while the event loop reads once more.
        self._expiring: TimeoutQueue[Connection] = TimeoutQueue(
            loop, LAST_READ_SECONDS, self._greet_timed_out
        )
        self._aborting: set[Connection] = set()  # told to abort, not closed yet
        self._admitted: dict[object, str] = {}  # the hosts whose admission is to be released
        self._check_seconds = min(CHECK_SECONDS, config.greet_timeout)
        self._check_timer: asyncio.TimerHandle | None = None
        self._check_due = 0.0
        # Those that began to wait for their greeting since the last check, and in the interval before.
        self._waiting: list[Connection] = []
        self._waiting_before: list[Connection] = []
        self.log = ConnectionLog(loop, choose_access_log(config.access_log))
        self.endings = self.log.endings
        self.accept_pause = AcceptPause(loop, self.log.limit, self.stats, pause, resume)
        self._idle: asyncio.Future[None] | None = None
        self._free: asyncio.Future[None] | None = None
        self.configure(config)

    def configure(self, config: ServerConfig) -> None:
        """Go on with the greeting, the limits and the TLS context of ``config``, from the next client on."""
        self.config = config
        self.greeting = config.greeting
        if config.limits is not None:
            from greeter.core.admission import Admission  # with ipaddress, it is slow to load

            if self.admission is None:
                self.admission = Admission.of(config.limits)
            elif self.admission.limits is not config.limits:
                self.admission.replace(config.limits)
            self.set_capacity(min(self._max_capacity, config.limits.max_connections or self._max_capacity))

    # -- from ACCEPTED to GREETING

    def accepted(self, address: Address, key: object) -> bool:
        """A connection was accepted. Returns False if it is rejected; the caller must then close it.

        ``key`` is the connection's, or the socket that will linger.
        """
        self.stats.block[ACCEPTED] += 1
        admitted = self.behind_proxy or self.admit(address, key)
        if admitted and self.endings is not None:
            self.endings.opened(key, address)
        return admitted

    def arrived(self) -> None:
        """A connection that was counted in ``arriving`` has been told to ``accepted``, or is lost."""
        self.arriving -= 1
        self._freed(())

    def admit(self, address: Address, key: object) -> bool:
        """Decide about the client with ``address`` and log its connection. Returns False to reject it.

        The admission is held by ``key`` until that connection is closed. It is held before anything of the
        user's is called, which may turn the limits on.
        """
        if self.admission is not None and isinstance(address, tuple):
            refusal = self.admission.admit(address[0], self.loop.time())
            if refusal is not None:
                self.count_rejection(address, refusal)
                self.log.ended(refusal, key)
                return False
            self._admitted[key] = address[0]
        self.log.admitted(address)
        return True

    def count_rejection(self, address: Address, why: str) -> None:
        """A connection was rejected, for one of the REJECTIONS."""
        self.stats.count_rejected(why)
        self.log.rejected(address, why, self.stats.rejected)

    def release_admission(self, key: object) -> None:
        """The client was admitted and is gone, before ``start``."""
        self._freed((key,))

    def start(self, connection: Connection, now: float | None = None) -> None:
        """The greet deadline of ``connection`` runs from here on."""
        self.ungreeted.start(connection, now)
        if self._check_timer is None:
            self._set_check_timer()

    def waits_for_greeting(self, connection: Connection) -> None:
        """The greeting is being made; if it takes long, ``connection`` has to watch for a reset."""
        connection.state = GREETING
        self._waiting.append(connection)
        if self._check_timer is None:
            self._set_check_timer()

    # -- from GREETING to LINGERING, or to FAILED

    def mark_greeted(self, connection: Connection, sent: int) -> None:
        """The kernel has the greeting of ``connection``, which is ``sent`` bytes, and its end of stream."""
        if connection in self._expiring:
            self._expiring.discard(connection)
            seconds = self.ungreeted.seconds
        else:
            seconds = self.ungreeted.waited(connection, self.loop.time())
        self.stats.count_greeted(sent, seconds)
        if self.endings is not None:
            self.endings.greeted(connection.key, sent)

    def mark_batch_greeted(self, connections: Sequence[Connection], sent: int) -> None:
        """``mark_greeted`` for connections that were accepted together, with ``sent`` bytes in all."""
        seconds = self.ungreeted.waited(connections[0], self.loop.time())
        for connection in connections:
            self.ungreeted.discard(connection)
        self.stats.count_greeted(sent, seconds, len(connections))

    def start_linger(self, connection: Connection) -> None:
        """``connection`` is half-closed, and its linger deadline runs from here on (streams path)."""
        connection.state = LINGERING
        self.lingering.start(connection)

    def fail(self, connection: Connection, why: str) -> None:
        """``connection`` will not be greeted, for one of the FAILURES."""
        self.stats.count_failed(why)
        self.log.ended(why, connection.key)
        self._leave(connection, FAILED)

    def reject(self, connection: Connection, why: str = "") -> None:
        """``connection`` is rejected after its start, for one of the REJECTIONS if not yet counted."""
        if why:
            self.count_rejection(connection.address, why)
            self.log.ended(why, connection.key)
        self._leave(connection, REJECTED)

    def count_reset(self) -> None:
        """A client closed its connection before it was greeted."""
        self.stats.count_failed("reset")

    def count_greeting_error(
        self, address: Address, key: object, error: GreetingError, seconds: float
    ) -> None:
        """The greeting callable failed for this client, ``seconds`` after it was accepted."""
        self.stats.count_failed("greeting_error")
        self.log.greeting_failed(address, error, seconds)
        self.log.ended("greeting_error", key)

    def fail_greeting(self, connection: Connection, error: GreetingError) -> None:
        """The greeting callable failed for ``connection``."""
        self.count_greeting_error(connection.address, connection.key, error, self._elapsed(connection))
        self._leave(connection, FAILED)

    def fail_preamble(self, connection: Connection, why: str, message: str, *, left: bool = False) -> None:
        """A PROXY header or TLS handshake failed. ``left``: the client disconnected, and had sent nothing."""
        self.log.preamble_failed(connection.address, why, message, self._elapsed(connection), left=left)
        self.fail(connection, why)

    def closed(self, connection: Connection) -> None:
        """``connection`` is closed. A second call changes nothing."""
        if not self.lingering.discard(connection):
            if connection in self.ungreeted or connection in self._expiring:
                self.fail(connection, "reset")
            self._aborting.discard(connection)
        connection.state = CLOSED
        self._freed((connection.key,))

    def _leave(self, connection: Connection, state: State) -> None:
        """``connection`` will not be greeted: its greet deadline is over."""
        connection.state = state
        self.ungreeted.discard(connection)
        self._expiring.discard(connection)

    def _elapsed(self, connection: Connection) -> float:
        """Returns the seconds since ``connection`` was accepted, while it is not greeted."""
        expiring = connection in self._expiring
        return self.ungreeted.seconds if expiring else self.ungreeted.elapsed(connection, self.loop.time())

    # -- how many are open, and waiting for changes of that

    @property
    def open_count(self) -> int:
        """How many connections are open, in any state."""
        waiting = self.arriving + len(self.ungreeted) + len(self._expiring)
        return waiting + len(self.lingering) + len(self._aborting) + len(self.lingering_sockets)

    @property
    def free_slots(self) -> int:
        """How many more connections may be open."""
        return self.capacity - self.open_count

    def set_capacity(self, capacity: int) -> None:
        """Change how many connections may be open."""
        self.capacity = capacity
        self._freed(())

    async def wait_idle(self) -> None:
        """Wait until no connection is open."""
        while self.open_count:
            await asyncio.shield(self.idle())

    def idle(self) -> asyncio.Future[None]:
        """Returns a future that is done when no connection is open."""
        if self._idle is None or self._idle.done():
            self._idle = self.loop.create_future()
            if not self.open_count:
                self._idle.set_result(None)
        return self._idle

    async def wait_for_capacity(self) -> None:
        """Wait until one more connection may be open."""
        while self.free_slots <= 0:
            if self._free is None or self._free.done():
                self._free = self.loop.create_future()
            await asyncio.shield(self._free)

    async def abort_remaining(self) -> int:
        """Abort every connection, but serve those accepted this very moment. Returns how many it aborted."""
        try:
            for _ in range(TURNS):
                await asyncio.sleep(0)
        finally:  # also when it is cancelled
            aborted = self.abort_all()
        for _ in range(TURNS):  # ... in which the event loop closes them
            await asyncio.sleep(0)
        return aborted

    def abort_all(self) -> int:
        """Abort every connection now; returns how many there were."""
        ungreeted = [*self.ungreeted, *self._expiring]
        lingering = list(self.lingering)
        self.log.ended("aborted", *self.log.open_keys())
        for connection in ungreeted:
            self.stats.count_failed("aborted")
            self._leave(connection, ABORTED)
        for connection in lingering:
            self._stop_lingering(connection)
        for connection in ungreeted + lingering:
            self.abort(connection)
        return len(ungreeted) + len(lingering) + self.lingering_sockets.close_all()

    def abort(self, connection: Connection) -> None:
        """Close ``connection``, which has been counted, whatever is under way."""
        self._aborting.add(connection)
        connection.abort()

    def _freed(self, keys: Iterable[object]) -> None:
        """Connections were closed: release their admission, go on accepting, and wake what waits for it."""
        if self.endings is not None:
            self.endings.closed(keys)
        if self._admitted:
            for key in keys:
                host = self._admitted.pop(key, None)
                if host is not None and self.admission is not None:
                    self.admission.release(host)
        if self.accept_pause.until_capacity and self.free_slots > 0:
            self.accept_pause.end()
        if self._idle is not None and not self._idle.done() and not self.open_count:
            self._idle.set_result(None)
        if self._free is not None and not self._free.done() and self.free_slots > 0:
            self._free.set_result(None)

    def at_capacity(self) -> None:
        """Pause accepting until a connection is closed."""
        self.accept_pause.pause(f"at {self.capacity} connections")

    def cannot_accept(self, error: OSError) -> None:
        """The system lacks what a connection needs: pause accepting, and try again in a while."""
        self.stats.block[ACCEPT_ERRORS] += 1
        self.accept_pause.pause(f"cannot accept ({os_error_text(error)})", retry=True)

    def stop_accepting(self) -> None:
        """Accepting has stopped for good: it is neither paused nor resumed any more, and a stop may wait."""
        self.accept_pause.stop()
        self.lingering_sockets.restart()

    # -- timers

    def _set_check_timer(self) -> None:
        self._check_due = self.loop.time() + self._check_seconds
        self._check_timer = self.loop.call_at(self._check_due, self._check)

    def _check(self) -> None:
        """See to the connections that have waited for longer than a moment."""
        self._check_timer = None
        now = self.loop.time()
        self.ungreeted.allow_for_pause(now, now - self._check_due)
        waiting, self._waiting_before, self._waiting = self._waiting_before, self._waiting, []
        for connection in waiting:
            if connection in self.ungreeted:
                connection.watch_for_reset()
        self.ungreeted.set_timer()
        if self._waiting_before:
            self._set_check_timer()

    def _on_greet_deadline(self, connection: Connection) -> None:
        if connection.last_try():
            if connection in self.ungreeted:
                self._greet_timed_out(connection)
        else:
            self.ungreeted.discard(connection)
            self._expiring.start(connection)

    def _greet_timed_out(self, connection: Connection) -> None:
        message = f"not greeted within {self.ungreeted.seconds:g} s"
        self.log.timed_out(connection.address, message, self._elapsed(connection))
        self.fail(connection, "greet_timeout")
        self.abort(connection)

    def _on_linger_deadline(self, connection: Connection) -> None:
        self.stats.block[LINGER_TIMEOUTS] += 1
        self._stop_lingering(connection)
        self.log.ended("linger_timeout", connection.key)
        self.abort(connection)

    def _stop_lingering(self, connection: Connection) -> None:
        connection.state = ABORTED
        self.lingering.discard(connection)

    def _on_socket_linger_deadlines(self, socks: list[SocketType]) -> None:
        self.stats.block[LINGER_TIMEOUTS] += len(socks)
        self.log.ended("linger_timeout", *socks)
