"""The datagram path: each datagram that is admitted gets one greeting, from the address it was sent to.

Datagrams are received in batches on the raw socket. A greeting that is known, with nothing before it but the
rules of core/datagram_rules.py, is sent within the batch. Any other is an Answer (datagram_answers.py)::

    receive → rules, admission → access log → greeting → rules that need its size → send

Invariants:

- What comes from the network ends neither the service nor a batch.
- Answers that wait are bounded in number: receiving pauses, and the kernel queues what comes or drops it.
- What was queued when the server was closed is answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from greeter.core.datagram_rules import LOOP, Reason, rejection
from greeter.errors import ListenFailed, os_error_text
from greeter.server.accept_pause import LOG_INTERVAL, RETRY_SECONDS, logger
from greeter.server.acceptor import COALESCE_SECONDS, COALESCE_THRESHOLD
from greeter.server.datagram_answers import ICMP_ERRORS, Answer, BoundSocket, DatagramAnswers

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from greeter.core.greeting import Greeting
    from greeter.server.conversation import Conversation
    from greeter.system.listeners import Listener

# Datagrams received per wake-up: about a millisecond's worth, so that other tasks get their turn. As many as
# COALESCE_THRESHOLD are a sign of load: the next ones come in a batch, as connections do (acceptor.py). With
# 5 datagrams to a wake-up, a greeting costs a tenth more.
RECEIVE_BATCH = 128
# Answers that wait, for their greeting or for room in the send buffer, at which receiving pauses.
MAX_ANSWERS = 1024
# More than any datagram has.
_BUFFER_SIZE = 65536


class DatagramPath:
    """Answers the datagrams that come to ``listeners``, for one server.

    Raises:
        ListenFailed: the system cannot tell the address that a datagram was sent to.
    """

    def __init__(self, conversation: Conversation, listeners: Sequence[Listener]) -> None:
        self._tracker = tracker = conversation.tracker
        self._loop = tracker.loop
        self._bound: list[BoundSocket] = []
        for listener in listeners:
            try:
                self._bound.append(BoundSocket(listener))
            except OSError as error:
                raise ListenFailed(listener.address, error) from error
        self._ports = frozenset(listener.endpoint.port for listener in listeners)
        self._answers = DatagramAnswers(conversation, self._ports, self._on_done)
        self._waiting = self._answers.waiting
        self._buffer = bytearray(_BUFFER_SIZE)
        self._received = 0
        self._receiving = self._stopped = False
        self._batches = 0  # that are under way: a callable may close the server
        self._retry: asyncio.TimerHandle | None = None
        self._drop_check: asyncio.TimerHandle | None = None
        self._idle: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Begin to receive."""
        self._receiving = True
        self._watch()

    def stop(self) -> None:
        """Answer what is queued, and receive no more. The sockets are closed when the last answer is sent."""
        if self._stopped:
            return
        self._stopped, self._receiving = True, False
        if self._retry is not None:
            self._retry.cancel()
        if self._drop_check is not None:
            self._drop_check.cancel()
        self._watch()
        self._batches += 1  # no socket is closed before all queues are empty
        for bound in self._bound:
            left = bound.queue_bound
            while left > 0 and (received := self._receive_batch(bound, left)):
                left -= received
        self._batches -= 1
        self._close_if_done()

    @property
    def open_count(self) -> int:
        """How many answers wait, for their greeting or for room in the send buffer."""
        return len(self._waiting)

    def idle(self) -> asyncio.Future[None]:
        """Returns a future that is done when no answer waits."""
        if self._idle is None or self._idle.done():
            self._idle = self._loop.create_future()
            if not self._waiting:
                self._idle.set_result(None)
        return self._idle

    def abort_all(self) -> int:
        """Drop every answer that waits; returns how many there were."""
        return self._answers.abort_all()

    # -- receiving

    def _watch(self) -> None:
        """Watch the sockets from which datagrams can be taken now, and no others."""
        receiving = self._receiving and not self._full
        for bound in self._bound:
            wanted = receiving and not bound.unsent
            if wanted == bound.watched:
                continue
            bound.watched = wanted
            if not wanted:
                self._loop.remove_reader(bound.fd)
                continue
            try:
                self._loop.add_reader(bound.fd, self._on_readable, bound)
            except OSError as error:  # ENOMEM, ENOSPC (epoll_ctl(2)): as if receiving had failed
                bound.watched = False
                self._on_receive_error(bound, error)
                return

    def _on_readable(self, bound: BoundSocket) -> None:
        received = self._receive_batch(bound, RECEIVE_BATCH)
        if COALESCE_THRESHOLD <= received < RECEIVE_BATCH and bound.watched:
            bound.watched = False
            self._loop.remove_reader(bound.fd)
            self._loop.call_later(COALESCE_SECONDS, self._watch)
        if received > 1 and self._drop_check is None:  # some had to wait, so others may have been dropped
            self._drop_check = self._loop.call_later(LOG_INTERVAL, self._check_drops)

    def _check_drops(self) -> None:
        """Log what the kernel has dropped since the last look."""
        self._drop_check = None
        for bound in self._bound:
            before, bound.dropped = bound.dropped, bound.listener.dropped()
            if count := (bound.dropped - before) % (1 << 32):
                address = bound.listener.address
                extra = {"event": "datagrams_dropped", "address": address, "count": count}
                text = "the kernel dropped %d datagrams to %s: its receive buffer was full"
                logger.warning(text, count, address, extra=extra)

    @property
    def _full(self) -> bool:
        return len(self._waiting) >= min(MAX_ANSWERS, self._tracker.capacity)

    def _receive_batch(self, bound: BoundSocket, limit: int) -> int:
        """Receive up to ``limit`` datagrams and answer them; returns how many there were, with errors."""
        before, errors = self._received, 0
        self._batches += 1
        try:
            while (received := self._received - before + errors) < limit:
                greeting = self._tracker.greeting
                try:
                    if self._answers.at_once and greeting.fixed is not None:
                        self._answer_at_once(bound, limit - received, greeting.fixed)
                    else:
                        self._answer_each(bound, limit - received, greeting)
                except BlockingIOError:
                    break
                except OSError as error:
                    errors += 1
                    if not self._on_receive_error(bound, error):
                        break
                if not self._stopped and (bound.unsent or self._full):
                    break
        finally:
            self._batches -= 1
            if bound.unsent or self._waiting:
                self._watch()
            if self._stopped:
                self._close_if_done()
        return self._received - before + errors

    def _answer_at_once(self, bound: BoundSocket, limit: int, greeting: bytes) -> None:
        """Receive up to ``limit`` datagrams and send each that the rules admit the ``greeting``.

        Raises:
            OSError: there is no datagram, or the kernel reports an error of the socket.
        """
        receive, send = bound.sock.receive, bound.sock.send
        buffer, ports, greeting_size = self._buffer, self._ports, len(greeting)
        received = greeted = 0
        try:
            for received in range(limit):  # as many as before this one
                size, source = receive(buffer)
                reason: Reason | None = rejection(source[0], source[1], ports, size, greeting_size)
                if reason is None and size == greeting_size and buffer.startswith(greeting):
                    reason = LOOP
                if reason is not None:
                    self._answers.reject(source, reason)
                    continue
                try:
                    send(greeting, source)
                    greeted += 1
                except OSError:
                    self._answers.send(Answer(bound, source, size), greeting)
                    if bound.unsent and not self._stopped:
                        received += 1
                        return
            received = limit
        finally:
            self._count(received)
            if greeted:
                self._tracker.stats.count_datagrams("greeted", greeted)
                self._tracker.stats.count_datagrams("sent_bytes", greeted * greeting_size)

    def _answer_each(self, bound: BoundSocket, limit: int, greeting: Greeting) -> None:
        """The same for any ``greeting``, with admission and the access log.

        Ends early when receiving has to pause, and when a callable or the access log changes the greeting.
        """
        buffer, size_known = self._buffer, len(greeting.fixed or b"")
        for _ in range(limit):
            size, source = bound.sock.receive(buffer)
            self._count(1)
            reason: Reason | None = rejection(source[0], source[1], self._ports, size, size_known)
            if reason is not None:
                self._answers.reject(source, reason)
                continue
            digest = hash(bytes(memoryview(buffer)[:size]))
            self._answers.admit(Answer(bound, source, size, digest, self._received), greeting)
            if self._tracker.greeting is not greeting:
                break
            if not self._stopped and (bound.unsent or self._full):
                break

    def _count(self, received: int) -> None:
        self._received += received
        self._tracker.stats.count_datagrams("received", received)

    def _on_receive_error(self, bound: BoundSocket, error: OSError) -> bool:
        """Returns True if it was no error of this moment, so that the next datagram can be received."""
        self._tracker.stats.count_datagrams("receive_errors")
        if error.errno in ICMP_ERRORS:
            return True
        if self._answers.log.limit.allows("receive"):
            what, address = os_error_text(error), bound.listener.address
            extra = {"event": "receive_error", "address": address, "error": what}
            logger.warning("cannot receive from %s: %s", address, what, extra=extra)
        if self._receiving:  # a lack of memory, as far as we know
            self._receiving = False
            self._retry = self._loop.call_later(RETRY_SECONDS, self.start)
            self._watch()
        return False

    # -- the end

    def _on_done(self) -> None:
        """An answer no longer waits."""
        self._watch()
        if not self._waiting:
            if self._idle is not None and not self._idle.done():
                self._idle.set_result(None)
            self._close_if_done()

    def _close_if_done(self) -> None:
        if self._stopped and not self._waiting and not self._batches:
            self._check_drops()
            for bound in self._bound:
                bound.sock.close()
