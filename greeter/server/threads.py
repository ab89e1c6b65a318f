"""Threads for sync greeting callables that are not declared quick.

Invariants:

- A callable that never returns costs its thread and nothing else. What waits for a thread is kept here and
  not in the queue of the executor, which keeps the work of a cancelled future until a thread is free. So a
  client that is gone leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from greeter.errors import GreetingError

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

    from greeter.core.greeting import Greeting, Peer

# How many callables run at a time.
THREADS = 32


class CallableThreads:
    """Runs the callables of one server.

    Args:
        loop: the event loop that waits for them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._executor: ThreadPoolExecutor | None = None
        self._running = 0
        self._waiting: dict[asyncio.Future[bytes], tuple[Greeting, Peer]] = {}  # in order

    def begin(self, greeting: Greeting, peer: Peer) -> asyncio.Future[bytes]:
        """Begin to render ``greeting`` for ``peer``.

        Returns:
            A future of the bytes. If it is cancelled, a callable that has begun runs on, and its result is
            dropped.

        Raises:
            GreetingError: the system cannot start a thread.
        """
        result: asyncio.Future[bytes] = self._loop.create_future()
        if self._running < THREADS:
            self._start(result, greeting, peer)
        else:
            self._waiting[result] = greeting, peer
            result.add_done_callback(self._forget)
        return result

    def close(self) -> None:
        """Start no more callables; those that are running run on."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None

    def _start(self, result: asyncio.Future[bytes], greeting: Greeting, peer: Peer) -> None:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(THREADS, "greeter-callable")
        try:
            work = self._executor.submit(greeting.render, peer)
        except RuntimeError as error:  # no more threads, and the work is left in the queue of this executor
            self.close()
            raise GreetingError(str(error)) from error
        self._running += 1
        work.add_done_callback(functools.partial(self._on_returned, result))

    def _on_returned(self, result: asyncio.Future[bytes], work: Future[bytes]) -> None:
        """In the thread: the callable has returned."""
        with contextlib.suppress(RuntimeError):  # the event loop was closed meanwhile
            self._loop.call_soon_threadsafe(self._finish, result, work)

    def _finish(self, result: asyncio.Future[bytes], work: Future[bytes]) -> None:
        self._running -= 1
        if not result.done():
            if work.cancelled():
                result.set_exception(GreetingError("the greeting callable got no thread"))
            elif (error := work.exception()) is not None:
                result.set_exception(error)
            else:
                result.set_result(work.result())
        while self._waiting and self._running < THREADS:
            waiting = next(iter(self._waiting))
            greeting, peer = self._waiting.pop(waiting)
            if waiting.done():
                continue
            try:
                self._start(waiting, greeting, peer)
            except GreetingError as failure:
                waiting.set_exception(failure)

    def _forget(self, result: asyncio.Future[bytes]) -> None:
        self._waiting.pop(result, None)
