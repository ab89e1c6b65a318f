"""The direct path: accept connections, and serve them on the accepted sockets.

A greeting that is known when a connection is accepted, with nothing before it, is sent within the batch that
accepted it: greeting and end of stream leave in one segment, and the socket lingers. All else runs as a
Conversation over a DirectConnection, except that the async greetings of one batch share a task (batch.py).

No connection gets a transport, a protocol object or a registration with the event loop of its own.
"""

from __future__ import annotations

import contextlib
from collections import deque
from socket import SHUT_WR, SOCK_STREAM, SocketType
from time import perf_counter
from typing import TYPE_CHECKING

from greeter.errors import GreetingError
from greeter.server.acceptor import Acceptor
from greeter.server.batch import GreetingBatches
from greeter.server.direct_connection import LAST_SEND_FLAGS, DirectConnection
from greeter.server.poller import SocketPoller
from greeter.system.listeners import TRANSIENT_ACCEPT_ERRORS

if TYPE_CHECKING:
    from greeter.core.address import Address
    from greeter.core.greeting import Greeting
    from greeter.server.conversation import Conversation
    from greeter.system.listeners import Listener


class DirectPath:
    """Accepts on ``listeners`` and serves, for one server."""

    name = "direct"

    def __init__(self, conversation: Conversation, listeners: list[Listener]) -> None:
        self._conversation = conversation
        self._tracker = conversation.tracker
        self._acceptor = Acceptor(self._tracker, listeners, self.accept_batch)
        self._poller: SocketPoller  # from the start on
        self._batches = GreetingBatches(self._tracker.loop, conversation.peer, self._deliver)

    async def start(self) -> None:
        """Begin to accept. Raises OSError if the system has no descriptor for an epoll instance."""
        self._poller = SocketPoller(self._tracker.loop)
        self._acceptor.resume()

    def resume(self) -> None:
        """Accept again after ``pause``."""
        self._acceptor.resume()

    def pause(self) -> None:
        """Accept no more for now. The accept queues stay as they are."""
        self._acceptor.pause()

    def stop(self) -> None:
        """Accept no more for good. The accept queues stay as they are."""
        self._acceptor.pause()

    def close(self) -> None:
        """The last connection is closed."""
        self._poller.close()

    def accept_batch(self, listener: Listener, limit: int) -> int:
        """Accept up to ``limit`` connections and begin to serve them; returns how many there were.

        A connection that died in the accept queue ends the batch, and so does a change of the greeting that
        comes from a callable or the access log. Zero means that the queue is empty.

        Raises:
            OSError: the system cannot accept, for want of descriptors or memory.
        """
        tracker = self._tracker
        admit, accept, family = tracker.accepted, listener.accept_fd, listener.family
        greeting, preamble = tracker.greeting, tracker.config.has_preamble
        endings = tracker.endings
        greeted: list[SocketType] = []
        awaiting: deque[DirectConnection] = deque()
        total = accepted = 0
        start = perf_counter()
        try:
            while accepted < limit and tracker.greeting is greeting:
                fd, address = accept()
                accepted += 1
                # In blocking mode, and of the base class: what socket.socket adds costs a system call.
                sock = SocketType(family, SOCK_STREAM, 0, fd)
                if not admit(address, sock):
                    sock.close()
                    continue
                if preamble or not greeting.quick:
                    connection = self._track(sock, address, listener)
                    if preamble or greeting.kind != "async":
                        connection.run(self._conversation.run(connection))
                    else:
                        awaiting.append(connection)
                    continue
                data = greeting.fixed
                if data is None and (data := self._render(greeting, sock, address, listener, start)) is None:
                    continue
                try:
                    sent = sock.send(data, LAST_SEND_FLAGS)
                    if sent == len(data):
                        sock.shutdown(SHUT_WR)
                        total += sent
                        greeted.append(sock)
                        if endings is not None:
                            endings.greeted(sock, sent)
                        continue
                except BlockingIOError:
                    sent = 0
                except OSError:  # EPIPE, ECONNRESET, ENOTCONN
                    sock.close()
                    tracker.count_reset()
                    tracker.release_admission(sock)
                    continue
                connection = self._track(sock, address, listener)
                connection.run(self._conversation.send_rest(connection, data, sent))
        except BlockingIOError:
            pass  # the queue is empty
        except OSError as error:
            if error.errno not in TRANSIENT_ACCEPT_ERRORS:
                raise
            accepted += 1  # it was one of them: the queue need not be empty
        finally:
            if awaiting:
                self._batches.start(greeting, awaiting)
            if greeted:
                tracker.stats.count_greeted(total, (perf_counter() - start) / accepted, len(greeted))
                tracker.lingering_sockets.add_all(greeted)
        return accepted

    def _track(self, sock: SocketType, address: Address, listener: Listener) -> DirectConnection:
        tracker = self._tracker
        connection = DirectConnection(tracker, self._poller, sock, address, listener.family, listener.address)
        tracker.start(connection)
        return connection

    def _render(
        self, greeting: Greeting, sock: SocketType, address: Address, listener: Listener, start: float
    ) -> bytes | None:
        """The greeting for one client; None if its callable failed, and the connection is seen to.

        ``start`` is when its batch was begun to be accepted.
        """
        tracker = self._tracker
        try:
            count = tracker.stats.accepted
            peer = self._conversation.make_peer(address, listener.family, listener.address, count)
            return greeting.render(peer)
        except GreetingError as error:
            tracker.count_greeting_error(address, sock, error, perf_counter() - start)
            with contextlib.suppress(OSError):
                sock.shutdown(SHUT_WR)
            tracker.lingering_sockets.add(sock)
            return None

    def _deliver(self, made: list[tuple[DirectConnection, bytes | GreetingError]]) -> None:
        """Send the greetings of connections in a batch, or count why there are none."""
        tracker = self._tracker
        served: list[DirectConnection] = []
        total = 0
        for connection, result in made:
            sock = connection.sock
            try:
                if connection.closed:  # aborted while its callable ran
                    continue
                if isinstance(result, GreetingError):
                    tracker.fail_greeting(connection, result)
                    sock.shutdown(SHUT_WR)
                    connection.hand_over()
                    continue
                try:
                    sent = sock.send(result, LAST_SEND_FLAGS)
                except BlockingIOError:
                    sent = 0
                if sent < len(result):
                    connection.run(self._conversation.send_rest(connection, result, sent))
                    continue
                sock.shutdown(SHUT_WR)
            except OSError:  # EPIPE, ECONNRESET, ENOTCONN
                connection.abort()
            else:
                served.append(connection)
                total += sent
                if tracker.endings is not None:
                    tracker.endings.greeted(connection.key, sent)
        if served:
            tracker.mark_batch_greeted(served, total)
            for connection in served:
                connection.hand_over()
