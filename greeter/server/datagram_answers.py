"""The answers to datagrams, from the admission of a source until its greeting is sent.

An answer is made and sent at once where that is possible. Else it waits: for its greeting, and then perhaps
for room in the send buffer of its socket.

Invariants:

- Each datagram that was received is counted once more when it is done with: as greeted, in one class of
  failed or in one of rejected.
- An answer that waits has a greet deadline.
- An ICMP error that the kernel reports on the socket belongs to an earlier datagram, and costs no other.
"""

from __future__ import annotations

import errno
import functools
from collections import deque
from typing import TYPE_CHECKING

from greeter.core.datagram_rules import LOOP, Reason, rejection
from greeter.core.datagram_sizes import DATAGRAM_MAX
from greeter.errors import GreetingError, os_error_text
from greeter.server.access_log import choose_datagram_log
from greeter.server.connection_log import ConnectionLog
from greeter.server.conversation import made
from greeter.server.timeouts import TimeoutQueue
from greeter.system.datagram_socket import MIN_TRUESIZE, DatagramSocket, receive_buffer

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from greeter.core.admission import Admission
    from greeter.core.greeting import Greeting, Peer
    from greeter.server.conversation import Conversation
    from greeter.system.datagram_socket import Source
    from greeter.system.listeners import Listener

# The errors with which the kernel reports what ICMP said about an earlier datagram (ip(7), icmp(7)).
ICMP_ERRORS = frozenset(
    (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)
    + (errno.ENOPROTOOPT, errno.EPROTO, errno.EOPNOTSUPP, errno.EMSGSIZE, errno.EACCES, errno.EINTR)
)


class BoundSocket:
    """A socket of the service.

    Args:
        listener: Its listener.

    Raises:
        OSError: As DatagramSocket.

    ``unsent`` are the answers that wait for room in its send buffer; ``watched`` is True while the event loop
    watches it for datagrams; ``queue_bound`` is more than its receive queue can hold; ``dropped`` is how many
    datagrams the kernel had dropped at the last look.
    """

    __slots__ = ("dropped", "fd", "listener", "queue_bound", "sock", "unsent", "watched")

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.sock = DatagramSocket(listener.sock)
        self.fd = self.sock.fd
        self.unsent: deque[Answer] = deque()
        self.watched = False
        self.dropped = listener.dropped()
        self.queue_bound = 2 * receive_buffer(listener.sock) // MIN_TRUESIZE + 1


class Answer:
    """The answer to one datagram.

    ``size`` and ``digest`` are those of the datagram, ``count`` is its number. ``admission`` has admitted its
    source, and is told when it is done with. ``data`` is the greeting once it is made by ``work``.
    """

    __slots__ = ("admission", "bound", "count", "data", "digest", "size", "source", "work")

    def __init__(
        self, bound: BoundSocket, source: Source, size: int, digest: int = 0, count: int = 0
    ) -> None:
        self.bound = bound
        self.source = source
        self.size = size
        self.digest = digest
        self.count = count
        self.admission: Admission | None = None
        self.data = b""
        self.work: asyncio.Future[bytes] | None = None


class DatagramAnswers:
    """The answers of one server.

    Args:
        conversation: makes the greetings.
        ports: on which the server receives datagrams.
        on_done: called when an answer no longer waits.

    ``waiting`` are the answers that wait.
    """

    def __init__(
        self, conversation: Conversation, ports: frozenset[object], on_done: Callable[[], None]
    ) -> None:
        self._conversation = conversation
        self._tracker = tracker = conversation.tracker
        self._loop = tracker.loop
        self._stats = tracker.stats
        self._ports = ports
        self._on_done = on_done
        self.log = ConnectionLog(self._loop, choose_datagram_log(tracker.config))
        self.waiting: TimeoutQueue[Answer] = TimeoutQueue(
            self._loop, tracker.config.greet_timeout, self._on_greet_deadline
        )

    @property
    def at_once(self) -> bool:
        """Whether there is nothing to do with an answer whose greeting is known, but to send it."""
        return self.log.access_log is None and self._tracker.admission is None

    def admit(self, answer: Answer, greeting: Greeting) -> None:
        """Admit the source and begin to make the greeting, or reject it."""
        source = answer.source
        if (admission := self._tracker.admission) is not None:
            if (reason := admission.admit(source[0], self._loop.time())) is not None:
                self.reject(source, reason)
                return
            answer.admission = admission
        self.log.admitted(answer.bound.sock.address(source))
        try:
            if greeting.quick:
                data = greeting.fixed
                self._reply(answer, greeting.render(self._peer(answer)) if data is None else data)
            else:
                answer.work = self._conversation.begin(greeting, self._peer(answer))
                self.waiting.start(answer)
                answer.work.add_done_callback(functools.partial(self._on_made, answer))
        except GreetingError as error:
            self._fail_greeting(answer, error)

    def send(self, answer: Answer, data: bytes) -> None:
        """Send a greeting now, or when the send buffer has room."""
        bound = answer.bound
        error = None if bound.unsent else self._try_send(answer, data)
        if bound.unsent or isinstance(error, BlockingIOError):
            answer.data = data
            if answer not in self.waiting:
                self.waiting.start(answer)
            bound.unsent.append(answer)
            if len(bound.unsent) == 1:
                try:
                    self._loop.add_writer(bound.fd, self._on_writable, bound)
                except OSError as no_memory:  # ENOMEM, ENOSPC (epoll_ctl(2))
                    bound.unsent.clear()
                    self._on_sent(answer, len(data), no_memory)
        else:
            self._on_sent(answer, len(data), error)

    def reject(self, source: Source, why: Reason) -> None:
        """A datagram is not answered, for one of the DATAGRAM_REJECTIONS."""
        self._stats.count_datagrams(f"rejected_{why}")
        self.log.rejected(source, why, self._stats.datagram_rejections)

    def abort_all(self) -> int:
        """Drop every answer that waits; returns how many there were."""
        answers = list(self.waiting)
        for answer in answers:
            self._fail(answer, "aborted")
        return len(answers)

    # -- making

    def _peer(self, answer: Answer) -> Peer:
        listener = answer.bound.listener
        return self._conversation.make_peer(answer.source, listener.family, listener.address, answer.count)

    def _on_made(self, answer: Answer, work: asyncio.Future[bytes]) -> None:
        if answer not in self.waiting:  # timed out, or aborted
            return
        try:
            self._reply(answer, made(work))
        except GreetingError as error:
            self._fail_greeting(answer, error)

    def _reply(self, answer: Answer, data: bytes) -> None:
        """Send a greeting, if the rules that need it allow that. Raises GreetingError if it is too large."""
        if len(data) > DATAGRAM_MAX:
            raise GreetingError(f"the greeting has {len(data)} bytes; a datagram has at most {DATAGRAM_MAX}")
        source = answer.source
        reason: Reason | None = rejection(source[0], source[1], self._ports, answer.size, len(data))
        if reason is None and answer.size == len(data) and answer.digest == hash(data):
            reason = LOOP
        if reason is None:
            self.send(answer, data)
        else:
            self.reject(source, reason)
            self._done(answer)

    # -- sending

    def _try_send(self, answer: Answer, data: bytes) -> OSError | None:
        """Returns the error of sending, if there is one that is not about an earlier datagram."""
        found: OSError | None = None
        for _ in range(2):
            try:
                answer.bound.sock.send(data, answer.source)
                return None
            except OSError as error:
                found = error
                if error.errno not in ICMP_ERRORS:
                    break
        return found

    def _on_writable(self, bound: BoundSocket) -> None:
        while bound.unsent:
            answer = bound.unsent[0]
            error = self._try_send(answer, answer.data)
            if isinstance(error, BlockingIOError):
                return
            self._remove_unsent(answer)
            self._on_sent(answer, len(answer.data), error)

    def _remove_unsent(self, answer: Answer) -> None:
        unsent = answer.bound.unsent
        unsent.remove(answer)
        if not unsent:
            self._loop.remove_writer(answer.bound.fd)

    def _on_sent(self, answer: Answer, size: int, error: OSError | None) -> None:
        if error is not None:
            self.log.not_sent(answer.source, f"cannot send: {os_error_text(error)}", self._elapsed(answer))
            self._fail(answer, "unsent")
            return
        self._stats.count_datagrams("greeted")
        self._stats.count_datagrams("sent_bytes", size)
        self._done(answer)

    # -- the end

    def _on_greet_deadline(self, answer: Answer) -> None:
        message = f"not greeted within {self.waiting.seconds:g} s"
        self.log.timed_out(answer.source, message, self._elapsed(answer))
        self._fail(answer, "greet_timeout")

    def _fail_greeting(self, answer: Answer, error: GreetingError) -> None:
        self.log.greeting_failed(answer.source, error, self._elapsed(answer))
        self._fail(answer, "greeting_error")

    def _elapsed(self, answer: Answer) -> float:
        return self.waiting.elapsed(answer, self._loop.time())

    def _fail(self, answer: Answer, why: str) -> None:
        """A datagram will not be answered, for one of the DATAGRAM_FAILURES."""
        self._stats.count_datagrams(f"failed_{why}")
        if answer.work is not None:
            answer.work.cancel()
        if answer in answer.bound.unsent:
            self._remove_unsent(answer)
        self._done(answer)

    def _done(self, answer: Answer) -> None:
        """``answer`` has been counted, and nothing refers to it any more."""
        if answer.admission is not None:
            answer.admission.release(answer.source[0])
        if self.waiting.discard(answer):
            self._on_done()
