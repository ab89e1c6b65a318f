"""The datagram path: each datagram that is admitted gets one greeting, from the address it was sent to.

Datagrams are received in batches on the raw socket. A greeting that is known, or is made without waiting, is
sent within the batch. Any other is an _Answer until it is made and sent::

    receive → rules, admission → access log → greeting → rules that need its size → send

Invariants:

- Each datagram is counted once as received and, when it is done with, once more: as greeted, in one class of
  failed or in one of rejected.
- What comes from the network ends neither the service nor a batch: an ICMP error that the kernel reports on
  the socket belongs to an earlier datagram.
- Answers that wait are bounded: in number, because receiving pauses, and in time, by the greet deadline.
- What was queued when the server was closed is answered.
"""

from __future__ import annotations

import errno
import functools
from collections import deque
from typing import TYPE_CHECKING, Any

from greeter.core.address import format_peer
from greeter.core.datagram_rules import LOOP, Reason, rejection
from greeter.core.server_config import DATAGRAM_MAX
from greeter.core.stats import DATAGRAM_REJECTIONS
from greeter.errors import GreetingError, ListenFailed, os_error_text
from greeter.server.accept_pause import RETRY_SECONDS, LogLimit, logger
from greeter.server.access_log import choose_datagram_log
from greeter.server.conversation import made
from greeter.server.timeouts import TimeoutQueue
from greeter.system.datagram_socket import MIN_TRUESIZE, DatagramSocket, receive_buffer

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from greeter.core.admission import Admission
    from greeter.core.greeting import Greeting, Peer
    from greeter.server.conversation import Conversation
    from greeter.system.datagram_socket import Control
    from greeter.system.listeners import Listener

# Datagrams received per wake-up, so that every other task gets its turn.
RECEIVE_BATCH = 64
# Answers that wait, for their greeting or for room in the send buffer, at which receiving pauses.
MAX_ANSWERS = 1024
# More than any datagram has.
_BUFFER_SIZE = 65536
# The errors with which the kernel reports what ICMP said about an earlier datagram (ip(7), icmp(7)).
_ICMP_ERRORS = frozenset(
    (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)
    + (errno.ENOPROTOOPT, errno.EPROTO, errno.EOPNOTSUPP, errno.EMSGSIZE, errno.EACCES, errno.EINTR)
)


class _Bound:
    """A socket of the service, and what waits for room in its send buffer."""

    __slots__ = ("fd", "listener", "queue_bound", "sock", "unsent", "watched")

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.sock = DatagramSocket(listener.sock)
        self.fd = self.sock.fd
        self.unsent: deque[_Answer] = deque()
        self.watched = False
        # Datagrams that its queue holds at the most.
        self.queue_bound = 2 * receive_buffer(listener.sock) // MIN_TRUESIZE + 1


class _Answer:
    """The answer to one datagram.

    ``size`` and ``digest`` are those of the datagram, ``count`` is its number. ``admission`` has admitted its
    source, and is told when it is done with. ``data`` is the greeting once it is made by ``work``.
    """

    __slots__ = ("address", "admission", "bound", "control", "count", "data", "digest", "size", "work")

    def __init__(
        self, bound: _Bound, address: Any, control: Control, size: int, digest: int, count: int
    ) -> None:
        self.bound = bound
        self.address = address
        self.control = control
        self.size = size
        self.digest = digest
        self.count = count
        self.admission: Admission | None = None
        self.data = b""
        self.work: asyncio.Future[bytes] | None = None


class DatagramPath:
    """Answers the datagrams that come to ``listeners``, for one server.

    Raises:
        ListenFailed: the system cannot tell the address that a datagram was sent to.
    """

    def __init__(self, conversation: Conversation, listeners: Sequence[Listener]) -> None:
        self._conversation = conversation
        self._tracker = tracker = conversation.tracker
        self._loop = tracker.loop
        self._stats = tracker.stats
        self._bound: list[_Bound] = []
        for listener in listeners:
            try:
                self._bound.append(_Bound(listener))
            except OSError as error:
                raise ListenFailed(listener.address, error) from error
        self._ports = frozenset(listener.endpoint.port for listener in listeners)
        self._buffer = bytearray(_BUFFER_SIZE)
        self._access_log = choose_datagram_log(tracker.config)
        self._log_limit = LogLimit(self._loop)
        self._answers: TimeoutQueue[_Answer] = TimeoutQueue(
            self._loop, tracker.config.greet_timeout, self._on_greet_deadline
        )
        self._received = 0
        self._receiving = self._stopped = False
        self._batches = 0  # that are under way: a callable may close the server
        self._retry: asyncio.TimerHandle | None = None
        self._idle: asyncio.Future[None] | None = None

    # -- the interface to the server

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
        self._watch()
        self._batches += 1  # no socket is closed before all queues are empty
        for bound in self._bound:
            left = bound.queue_bound
            while left > 0 and (received := self._answer_batch(bound, left)):
                left -= received
        self._batches -= 1
        self._close_if_done()

    @property
    def open_count(self) -> int:
        """How many answers wait, for their greeting or for room in the send buffer."""
        return len(self._answers)

    def idle(self) -> asyncio.Future[None]:
        """Returns a future that is done when no answer waits."""
        if self._idle is None or self._idle.done():
            self._idle = self._loop.create_future()
            if not self._answers:
                self._idle.set_result(None)
        return self._idle

    def abort_all(self) -> int:
        """Drop every answer that waits; returns how many there were."""
        answers = list(self._answers)
        for answer in answers:
            self._fail(answer, "aborted")
        return len(answers)

    # -- receiving

    def _watch(self) -> None:
        """Watch the sockets from which datagrams can be taken now, and no others."""
        receiving = self._receiving and len(self._answers) < self._capacity
        for bound in self._bound:
            wanted = receiving and not bound.unsent
            if wanted == bound.watched:
                continue
            bound.watched = wanted
            if wanted:
                self._loop.add_reader(bound.fd, self._answer_batch, bound, RECEIVE_BATCH)
            else:
                self._loop.remove_reader(bound.fd)

    @property
    def _capacity(self) -> int:
        return min(MAX_ANSWERS, self._tracker.capacity)

    def _answer_batch(self, bound: _Bound, limit: int) -> int:
        """Receive up to ``limit`` datagrams and answer them; returns how many there were, with errors."""
        tracker, stats, buffer, ports = self._tracker, self._stats, self._buffer, self._ports
        receive, send = bound.sock.receive, bound.sock.send
        greeting = tracker.greeting
        fixed = greeting.fixed
        fixed_size = 0 if fixed is None else len(fixed)
        # Nothing but the rules is between receiving and sending.
        at_once = fixed if self._access_log is None and tracker.admission is None else None
        received = errors = greeted = 0
        self._batches += 1
        try:
            while received < limit and tracker.greeting is greeting:
                if not self._stopped and (bound.unsent or len(self._answers) >= self._capacity):
                    break
                try:
                    size, control, address = receive(buffer)
                except BlockingIOError:
                    break
                except OSError as error:
                    received, errors = received + 1, errors + 1
                    if self._on_receive_error(bound, error):
                        continue
                    break
                received += 1
                self._received += 1
                host, port = address[:2]
                reason: Reason | None = rejection(host, port, ports, size, fixed_size)
                if reason is None and size == fixed_size and fixed is not None and buffer.startswith(fixed):
                    reason = LOOP
                if reason is not None:
                    self._reject(address, reason)
                elif at_once is None:
                    digest = hash(bytes(memoryview(buffer)[:size]))
                    self._admit(_Answer(bound, address, control, size, digest, self._received), greeting)
                else:
                    try:
                        send(at_once, control, address)
                        greeted += 1
                    except OSError:
                        self._send(_Answer(bound, address, control, size, 0, 0), at_once)
        finally:
            self._batches -= 1
            stats.count_datagrams("received", received - errors)
            if greeted:
                stats.count_datagrams("greeted", greeted)
                stats.count_datagrams("sent_bytes", greeted * fixed_size)
            if bound.unsent or self._answers:
                self._watch()
            if self._stopped:
                self._close_if_done()
        return received

    def _on_receive_error(self, bound: _Bound, error: OSError) -> bool:
        """Returns True if it was no error of this moment, so that the next datagram can be received."""
        self._stats.count_datagrams("receive_errors")
        if error.errno in _ICMP_ERRORS:
            return True
        if self._log_limit.allows("receive"):
            what, address = os_error_text(error), bound.listener.address
            extra = {"event": "receive_error", "address": address, "error": what}
            logger.warning("cannot receive from %s: %s", address, what, extra=extra)
        if self._receiving:  # a lack of memory, as far as we know
            self._receiving = False
            self._retry = self._loop.call_later(RETRY_SECONDS, self.start)
            self._watch()
        return False

    # -- one answer, from its admission to its end

    def _admit(self, answer: _Answer, greeting: Greeting) -> None:
        """Admit the source and begin to make the greeting, or reject it."""
        address = answer.address
        if (admission := self._tracker.admission) is not None:
            if (reason := admission.admit(address[0], self._loop.time())) is not None:
                self._reject(address, reason)
                return
            answer.admission = admission
        if self._access_log is not None:
            try:
                self._access_log(address)
            except Exception as error:
                if self._log_limit.allows("log"):
                    extra = {"event": "access_log", "error": repr(error)}
                    logger.error("the access log failed for %s: %r", format_peer(address), error, extra=extra)
        try:
            if greeting.quick:
                data = greeting.fixed
                self._reply(answer, greeting.render(self._peer(answer)) if data is None else data)
            else:
                answer.work = self._conversation.begin(greeting, self._peer(answer))
                self._answers.start(answer)
                answer.work.add_done_callback(functools.partial(self._on_made, answer))
        except GreetingError as error:
            self._fail(answer, "greeting_error", str(error))

    def _peer(self, answer: _Answer) -> Peer:
        listener = answer.bound.listener
        return self._conversation.make_peer(answer.address, listener.family, listener.address, answer.count)

    def _on_made(self, answer: _Answer, work: asyncio.Future[bytes]) -> None:
        if answer not in self._answers:  # timed out, or aborted
            return
        try:
            self._reply(answer, made(work))
        except GreetingError as error:
            self._fail(answer, "greeting_error", str(error))

    def _reply(self, answer: _Answer, data: bytes) -> None:
        """Send a greeting, if the rules that need it allow that. Raises GreetingError if it is too large."""
        if len(data) > DATAGRAM_MAX:
            raise GreetingError(f"the greeting has {len(data)} bytes; a datagram has at most {DATAGRAM_MAX}")
        host, port = answer.address[:2]
        reason: Reason | None = rejection(host, port, self._ports, answer.size, len(data))
        if reason is None and answer.size == len(data) and answer.digest == hash(data):
            reason = LOOP
        if reason is None:
            self._send(answer, data)
        else:
            self._reject(answer.address, reason)
            self._done(answer)

    def _send(self, answer: _Answer, data: bytes) -> None:
        """Send a greeting now, or when the send buffer has room."""
        bound = answer.bound
        error = None if bound.unsent else self._try_send(answer, data)
        if bound.unsent or isinstance(error, BlockingIOError):
            answer.data = data
            if answer not in self._answers:
                self._answers.start(answer)
            bound.unsent.append(answer)
            if len(bound.unsent) == 1:
                self._loop.add_writer(bound.fd, self._on_writable, bound)
        else:
            self._on_sent(answer, len(data), error)

    def _try_send(self, answer: _Answer, data: bytes) -> OSError | None:
        """Returns the error of sending, if there is one that is not about an earlier datagram."""
        found: OSError | None = None
        for _ in range(2):
            try:
                answer.bound.sock.send(data, answer.control, answer.address)
                return None
            except OSError as error:
                found = error
                if error.errno not in _ICMP_ERRORS:
                    break
        return found

    def _on_writable(self, bound: _Bound) -> None:
        while bound.unsent:
            answer = bound.unsent[0]
            error = self._try_send(answer, answer.data)
            if isinstance(error, BlockingIOError):
                return
            bound.unsent.popleft()
            if not bound.unsent:
                self._loop.remove_writer(bound.fd)
            self._on_sent(answer, len(answer.data), error)

    def _on_sent(self, answer: _Answer, size: int, error: OSError | None) -> None:
        if error is not None:
            self._fail(answer, "unsent", os_error_text(error))
            return
        self._stats.count_datagrams("greeted")
        self._stats.count_datagrams("sent_bytes", size)
        self._done(answer)

    def _on_greet_deadline(self, answer: _Answer) -> None:
        self._fail(answer, "greet_timeout", f"not greeted within {self._answers.seconds:g} s")

    def _reject(self, address: Any, why: Reason) -> None:
        """A datagram is not answered, for one of the DATAGRAM_REJECTIONS."""
        self._stats.count_datagrams(f"rejected_{why}")
        if self._log_limit.allows("rejected"):
            extra = {"event": "rejected", "reason": why}
            logger.warning(
                "rejected a datagram from %s: %s", format_peer(address), DATAGRAM_REJECTIONS[why], extra=extra
            )

    def _fail(self, answer: _Answer, why: str, message: str = "") -> None:
        """A datagram will not be answered, for one of the DATAGRAM_FAILURES."""
        self._stats.count_datagrams(f"failed_{why}")
        if message and self._log_limit.allows(why):
            extra = {"event": "failed", "reason": why}
            logger.warning("%s: %s", format_peer(answer.address), message, extra=extra)
        if answer.work is not None:
            answer.work.cancel()
        bound = answer.bound
        if answer in bound.unsent:
            bound.unsent.remove(answer)
            if not bound.unsent:
                self._loop.remove_writer(bound.fd)
        self._done(answer)

    def _done(self, answer: _Answer) -> None:
        """``answer`` has been counted, and nothing refers to it any more."""
        if answer.admission is not None:
            answer.admission.release(answer.address[0])
        if not self._answers.discard(answer):  # it never waited
            return
        self._watch()
        if not self._answers:
            if self._idle is not None and not self._idle.done():
                self._idle.set_result(None)
            self._close_if_done()

    def _close_if_done(self) -> None:
        if self._stopped and not self._answers and not self._batches:
            for bound in self._bound:
                bound.sock.close()
