"""Threads for sync greeting callables that are not declared quick.

A thread that has begun goes on as long as something waits, so under load nothing wakes a thread, and the
event loop is woken for several greetings at a time. Server CPU of a greeting that blocks for 5 ms, with a job
of the executor and a wake-up of the event loop for each = 1.00: 0.78 / 0.71 here, and 0.83 / 0.75 without
COALESCE_SECONDS (asyncio / uvloop, 11 paired rounds). A program whose 32 threads accept, sleep, send and
close by themselves needs 0.53: most of the cost is that threads take turns in the interpreter.

Invariants:

- A callable that never returns costs its thread and nothing else. What waits for a thread is kept here and
  not in the queue of the executor, which keeps the work of a cancelled future until a thread is free. So a
  client that is gone leaves nothing behind.
- What waits, and how many threads look for it, changes under the lock alone. So none waits while its thread
  ends.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from greeter.errors import GreetingError

if TYPE_CHECKING:
    import asyncio

    from greeter.core.greeting import Greeting, Peer

# How many callables run at a time.
THREADS = 32
# While some wait for a thread, the event loop takes what was made in this interval, in seconds, at a time.
COALESCE_SECONDS = 0.001


class CallableThreads:
    """Runs the callables of one server.

    Args:
        loop: the event loop that waits for them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._executor: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._running = 0  # threads that run callables, or look for the next one
        self._waiting: dict[asyncio.Future[bytes], tuple[Greeting, Peer]] = {}  # in order
        self._made: deque[tuple[asyncio.Future[bytes], bytes | BaseException]] = deque()
        self._woken = False  # the event loop was told of what was made

    def begin(self, greeting: Greeting, peer: Peer) -> asyncio.Future[bytes]:
        """Begin to render ``greeting`` for ``peer``.

        Returns:
            A future of the bytes. If it is cancelled, a callable that has begun runs on, and its result is
            dropped.

        Raises:
            GreetingError: the system cannot start a thread, and none is running.
        """
        result: asyncio.Future[bytes] = self._loop.create_future()
        result.add_done_callback(self._forget)
        with self._lock:
            self._waiting[result] = greeting, peer
            needed = self._running < THREADS
            self._running += needed
        if needed:
            self._start(result)
        return result

    def close(self) -> None:
        """Start no more callables; those that are running run on."""
        with self._lock:
            self._waiting.clear()
        self._drop_executor()

    def _drop_executor(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None

    def _start(self, result: asyncio.Future[bytes]) -> None:
        """Start a thread, on behalf of ``result``."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(THREADS, "greeter-callable")
        try:
            self._executor.submit(self._work)
        except RuntimeError as error:  # no more threads, and the work is left in the queue of this executor
            self._drop_executor()
            with self._lock:
                self._running -= 1
                if self._running or self._waiting.pop(result, None) is None:
                    return
            raise GreetingError(str(error)) from error

    def _work(self) -> None:
        """In a thread: make the greetings that wait, until none does."""
        while True:
            with self._lock:
                result = next(iter(self._waiting), None)
                if result is None:
                    self._running -= 1
                    return
                greeting, peer = self._waiting.pop(result)
            if result.cancelled():
                continue
            made: bytes | BaseException
            try:
                made = greeting.render(peer)
            except BaseException as error:
                made = error
            self._made.append((result, made))
            del result, greeting, peer, made  # the next callable may take its time
            if not self._woken:
                self._woken = True
                with contextlib.suppress(RuntimeError):  # the event loop was closed meanwhile
                    self._loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        """In the event loop: greetings have been made."""
        if self._waiting and self._made:
            self._loop.call_later(COALESCE_SECONDS, self._hand_out)
        else:
            self._woken = False  # before the last look: what is made after that wakes the event loop again
        while self._made:
            result, made = self._made.popleft()
            if result.done():
                continue
            if isinstance(made, BaseException):
                result.set_exception(made)
            else:
                result.set_result(made)

    def _forget(self, result: asyncio.Future[bytes]) -> None:
        with self._lock:
            self._waiting.pop(result, None)
