"""A worker process, as its parent sees it: started, heard, told to leave, and seen to its end.

The law: a worker is a direct child, started with the descriptors that it is given and no others, and it
is gone when the kernel says so: its death is a pidfd that becomes readable, so there is no SIGCHLD handler
to share and nothing to poll. What it said before it died is heard first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
from typing import TYPE_CHECKING, Any

from greeter.errors import GreeterError
from greeter.service.channel import VARIABLE, Channel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger("greeter")


class WorkerFailed(GreeterError):
    """A worker did not become ready. The message says why, in its own words if it had any."""


class Child:
    """A worker process that runs ``command`` with the descriptors ``fds`` and has ``task`` to do.

    ``ready`` is a future that ends when the worker serves, or in WorkerFailed; ``gone`` one of its exit
    status. ``serves`` is True in between. ``stats`` is what it reported last, ``overdue`` is True when it
    was killed because it did not leave in time. ``on_stats`` is called for each report, ``on_left`` when
    the worker is gone. Raises OSError when the system cannot start it.
    """

    def __init__(
        self,
        command: Sequence[str],
        fds: Sequence[int],
        task: object,
        on_stats: Callable[[Child], None],
        on_left: Callable[[Child], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.stats: dict[str, Any] | None = None
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.ready_at = self._loop.time()
        self.serves = self.overdue = self._killed = False
        self.gone: asyncio.Future[int] = self._loop.create_future()
        self._on_stats = on_stats
        self._on_left = on_left
        self._last_words = ""
        self._answer: asyncio.Future[None] | None = None
        self._asked: asyncio.Future[None] | None = None  # when its silence was last looked into
        self._deadline: asyncio.TimerHandle | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                passed = [theirs.fileno(), *fds]
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    pass_fds=passed,
                    env={**os.environ, VARIABLE: ",".join(map(str, passed))},
                    process_group=0,  # a Ctrl-C is for the parent, which then retires its workers
                )
            except BaseException:
                ours.close()
                raise
        self.pid = self._process.pid
        self._channel = Channel(ours, self._on_message, self._on_end)
        self._channel.open()
        self._channel.send("task", task)
        self._watch()

    def report(self) -> asyncio.Future[None]:
        """Ask for the worker's stats; the future ends when they have come, or the worker is gone."""
        if self._answer is None:
            self._answer = self._loop.create_future()
            self._channel.send("report")
        return self._answer

    def end_silence(self) -> None:
        """Kill the worker if it has not reported since the last call, else ask for the next report.

        One that does not serve yet, or was told to leave, has a deadline already and is let be.
        """
        if not self.serves or self._killed or self._deadline is not None:
            return
        self._channel.read()  # perhaps it is we who were away
        if self._asked is None or self._asked.done():
            self._asked = self.report()
        else:
            logger.error("worker %d does not answer: killed", self.pid, extra={"event": "worker"})
            self.kill()

    def retire(self, seconds: float, *, last: bool = False) -> None:
        """Tell the worker to finish and leave, and kill it if it is not gone after ``seconds``.

        ``last``: no other serves on, and nobody new can come. The seconds of the last call count.
        """
        if self.gone.done():
            return
        if self._deadline is None:
            self._channel.send("stop" if last else "retire")
        else:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(seconds, self._late, seconds)

    def kill(self) -> None:
        """End the worker at once."""
        if not self.gone.done():
            self._killed = True
            self._process.kill()

    def _late(self, seconds: float) -> None:
        logger.warning(
            "worker %d was not gone within %g s: killed", self.pid, seconds, extra={"event": "worker"}
        )
        self.overdue = True
        self.kill()

    def _watch(self) -> None:
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # not Linux, or one before 5.3
            threading.Thread(target=self._wait, name=f"greeter-worker-{self.pid}", daemon=True).start()
        else:
            self._loop.add_reader(self._pidfd, self._on_pidfd)

    def _on_pidfd(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._died()

    def _wait(self) -> None:
        self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop was closed before the worker was gone
            self._loop.call_soon_threadsafe(self._died)

    def _died(self) -> None:
        status = self._process.wait()
        self._channel.read()  # what it said last may still be there
        self._channel.close()
        if self._deadline is not None:
            self._deadline.cancel()
            if status and not self._killed:
                logger.error("%s while it was leaving", self.obituary(status), extra={"event": "worker"})
        self.serves = False
        self._answered()
        if not self.ready.done():
            self.ready.set_exception(WorkerFailed(f"{self.obituary(status)} before it was ready"))
            self.ready.exception()  # whether anybody waits for it or not
        self.gone.set_result(status)
        self._on_left(self)

    def obituary(self, status: int) -> str:
        """How the worker ended, and what it said about it."""
        if status < 0:
            with contextlib.suppress(ValueError):  # a signal without a name
                return f"worker {self.pid} was killed by {signal.Signals(-status).name}"
            return f"worker {self.pid} was killed by signal {-status}"
        return f"worker {self.pid} exited with code {status}" + (
            self._last_words and f" ({self._last_words})"
        )

    def _answered(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_result(None)

    def _on_message(self, name: str, value: Any) -> None:
        if name == "stats":
            self.stats = value
            self._answered()
            try:
                self._on_stats(self)
            except Exception as error:  # it came from another process, perhaps of another version
                logger.error(
                    "worker %d: its stats are of no use: %r", self.pid, error, extra={"event": "worker"}
                )
        elif name == "ready" and not self.ready.done():
            self.ready_at = self._loop.time()
            self.serves = True
            self.ready.set_result(None)
        elif name == "failed":
            self._last_words = str(value)

    def _on_end(self, why: str) -> None:
        if why:
            logger.error("worker %d %s: killed", self.pid, why, extra={"event": "worker"})
            self.kill()
