"""A worker process as its parent sees it, from its start to its exit.

Invariants:

- A worker is a direct child and inherits only the descriptors that it is given.
- Its exit is a readable pidfd (pidfd_open(2)): there is no SIGCHLD handler and no polling.
- Messages that it sent before its exit are processed before the exit.
- From its first instruction on, no signal that is sent to all processes of a service ends it: channel.py.
- It counts in memory that it shares with its parent. Whatever ends it, no count is lost, and the connections
  that it had not finished are counted as aborted.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greeter.config.options import WORKER_VARIABLE
from greeter.core.stats import BLOCK_LENGTH, GAUGES, ServerStats
from greeter.errors import GreeterError
from greeter.server.timeouts import Deadline
from greeter.service.channel import COUNTERS_VARIABLE, WORKER_SIGNALS, Channel
from greeter.service.snapshot import Counters
from greeter.system.anonymous_file import open_shared_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from greeter.system.listeners import Listener

logger = logging.getLogger("greeter")

# What a worker that retires may take to abort a connection at its drain deadline, in seconds. It takes 20 to
# 50 µs; the workers may have to share a core with each other and the load.
ABORT_SECONDS = 0.001
# If a worker that retires waited for a processor for more than this share of its time, it has so much longer,
# once: six workers that abort 100,000 connections on one busy core get a tenth of it each.
STARVED_SHARE = 0.5
# After a pause of the machine, a worker that retires has so long: its own deadline moves too (timeouts.py).
PAUSE_GRACE = 3.0


def starved_seconds(pid: int) -> float:
    """Return how long the first thread of a process was ready to run, and waited for a processor.

    Args:
        pid: Its process ID.

    Returns:
        The seconds since it was started (Documentation/scheduler/sched-stats.rst); 0 if the system does not
        say.
    """
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


class WorkerFailed(GreeterError):
    """A worker did not become ready. The message has the reason, from the worker itself if it sent one."""


@dataclasses.dataclass(frozen=True)
class WorkerTask:
    """What a worker is told at its start.

    Args:
        value: A value that JSON can represent.
        files: Descriptors that ``value`` refers to, which the worker inherits.
        retire_timeout: How long the worker may take to exit when it is replaced, in seconds.
    """

    value: object
    files: tuple[int, ...]
    retire_timeout: float


class WorkerProcess:
    """A running worker process.

    Args:
        command: The command to run.
        listeners: The listening sockets that it inherits.
        task: The task to send to it.
        on_stats: Called after each report, and before ``on_exit``.
        on_exit: Called after its exit.

    Raises:
        OSError: The system cannot start it.

    - ``pid``: its process ID.
    - ``ready``: a future that is done when the worker serves; WorkerFailed if it exits before.
    - ``ready_at``: the loop's time of that, in seconds.
    - ``responded_at``: the loop's time of its last report, or of when it became ready.
    - ``max_connections``: how many connections it may have open, from then on.
    - ``serving``: True from then on until its exit.
    - ``exited``: a future of its exit status; negative is the number of a signal.
    - ``stats``: its last report, or None. After its exit, it is the last state of the counters.
    - ``retire_timed_out``: True if it was killed because it did not exit in time after ``retire``.
    """

    def __init__(
        self,
        command: Sequence[str],
        listeners: Sequence[Listener],
        task: WorkerTask,
        on_stats: Callable[[WorkerProcess], None],
        on_exit: Callable[[WorkerProcess], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.stats: dict[str, Any] | None = None
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.ready_at = self._loop.time()
        self.responded_at = -math.inf
        self.max_connections = 0
        self.serving = self.retire_timed_out = self._killed = False
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self._retire_timeout = task.retire_timeout
        self._on_stats = on_stats
        self._on_exit = on_exit
        self._failure = ""
        self._pending_report: asyncio.Future[None] | None = None
        self._liveness_report: asyncio.Future[None] | None = None
        self._deadline: Deadline | None = None
        self._starved_before: float | None = None  # seconds at ``retire``; None once the deadline has moved
        counters, self._block = open_shared_words(BLOCK_LENGTH)
        try:
            with counters:
                parent_sock = self._spawn(command, listeners, task.files, counters.fileno())
            self.pid = self._process.pid
            self._channel = Channel(parent_sock, self._on_message, self._on_end)
            self._begin(task.value)
        except BaseException:
            self._block.release()  # with its descriptor, which would wait for the garbage collector
            raise

    def _spawn(
        self, command: Sequence[str], listeners: Sequence[Listener], files: Iterable[int], counters: int
    ) -> socket.socket:
        """Start the process. Returns the parent's end of its channel."""
        parent_sock, worker_sock = socket.socketpair()
        with worker_sock:
            passed = [worker_sock.fileno(), *(listener.sock.fileno() for listener in listeners)]
            marks = ["", *("+" if listener.inherited else "" for listener in listeners)]
            variables = {
                WORKER_VARIABLE: ",".join(f"{fd}{mark}" for fd, mark in zip(passed, marks, strict=True)),
                COUNTERS_VARIABLE: str(counters),
            }
            try:
                with _blocked(WORKER_SIGNALS):
                    self._process = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        pass_fds=[*passed, counters, *files],
                        env={**os.environ, **variables},
                        process_group=0,  # Ctrl-C reaches the parent only, which retires its workers
                    )
            except BaseException:
                parent_sock.close()
                raise
        return parent_sock

    def _begin(self, task: object) -> None:
        """Send the process its task, and watch it."""
        try:
            self._channel.open()
            self._channel.send("task", task)
            self._watch_exit()
        except OSError:  # ENOMEM, ENOSPC (epoll_ctl(2)): it could be neither told nor watched
            self._channel.close()
            self._process.kill()
            self._process.wait()
            raise

    @property
    def ready_to_serve(self) -> bool:
        """True if it serves and was not told to retire."""
        return self.serving and self._deadline is None

    def report(self) -> asyncio.Future[None]:
        """Request a report. Returns a future that is done when it has arrived or the worker has exited."""
        if self._pending_report is None:
            self._pending_report = self._loop.create_future()
            self._channel.send("report")
        return self._pending_report

    def kill_unresponsive(self) -> None:
        """Kill the worker if it has not reported since the last call, else request a report.

        A worker that does not serve yet, or was told to retire, is not killed: it has a deadline already.
        """
        if not self.serving or self._killed or self._deadline is not None:
            return
        self._channel.read()  # the report may have arrived while this process was stalled
        if self._liveness_report is None or self._liveness_report.done():
            self._liveness_report = self.report()
        else:
            logger.error(
                "worker %d does not respond: killed", self.pid, extra={"event": "worker", "worker": self.pid}
            )
            self.kill()

    def replace(self) -> None:
        """Tell the worker to drain and exit because another one has its place. Its task limits the time."""
        self.retire(self._retire_timeout)

    def retire(self, seconds: float, *, last: bool = False) -> None:
        """Tell the worker to drain and exit, and kill it if it does not exit in time.

        Args:
            seconds: The time to exit, besides what aborting the connections takes that it holds now, and for
                which it has waited for a processor. A further call replaces it.
            last: True if the whole service stops, so that no worker accepts any more.
        """
        if self.exited.done():
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._channel.send("stop" if last else "retire")
        counters = ServerStats.read_from(self._block)
        abort = ABORT_SECONDS * counters.unfinished if counters is not None else 0.0
        self._starved_before = starved_seconds(self.pid)
        self._set_retire_deadline(seconds + abort, seconds + abort, PAUSE_GRACE + abort)

    def _set_retire_deadline(self, delay: float, seconds: float, grace: float) -> None:
        """Call ``_on_retire_timeout`` with ``seconds`` and ``grace`` after ``delay``."""
        self._deadline = Deadline(
            self._loop, delay, lambda: self._on_retire_timeout(seconds, grace), grace=grace
        )

    def kill(self) -> None:
        """Kill the worker with SIGKILL."""
        if not self.exited.done():
            self._killed = True
            self._process.kill()

    def _on_retire_timeout(self, seconds: float, grace: float) -> None:
        if self._starved_before is not None:
            starved = starved_seconds(self.pid) - self._starved_before
            self._starved_before = None
            if starved > STARVED_SHARE * seconds:
                self._set_retire_deadline(starved, seconds, grace)
                return
        logger.warning(
            "worker %d did not exit within %.3g s: killed",
            self.pid,
            seconds,
            extra={"event": "worker", "worker": self.pid},
        )
        self.retire_timed_out = True
        self.kill()

    def _watch_exit(self) -> None:
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # not Linux, or Linux before 5.3
            threading.Thread(
                target=self._wait_in_thread, name=f"greeter-worker-{self.pid}", daemon=True
            ).start()
        else:
            try:
                self._loop.add_reader(self._pidfd, self._on_pidfd)
            except OSError:
                os.close(self._pidfd)
                raise

    def _on_pidfd(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._handle_exit()

    def _wait_in_thread(self) -> None:
        self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop was closed before the worker exited
            self._loop.call_soon_threadsafe(self._handle_exit)

    def _handle_exit(self) -> None:
        status = self._process.wait()
        self._channel.read()  # the last messages may still be in the socket
        self._channel.close()
        if self._deadline is not None:
            self._deadline.cancel()
            if status and not self._killed:
                logger.error(
                    "%s while it was retiring",
                    self.describe_exit(status),
                    extra={"event": "worker", "worker": self.pid},
                )
        self.serving = False
        self._read_counters_at_exit()
        self._resolve_report()
        if not self.ready.done():
            self.ready.set_exception(WorkerFailed(f"{self.describe_exit(status)} before it was ready"))
            self.ready.exception()  # mark it as retrieved: a future without a waiter would be logged
        self.exited.set_result(status)
        self._on_exit(self)

    def read_counters(self) -> None:
        """Bring ``stats`` up to date for a worker that does not report: its counters, not its gauges."""
        if (counters := ServerStats.read_from(self._block)) is not None:
            last = self.stats or {}
            gauges = {name: last.get(name, 0) for name in GAUGES}
            self._set_stats(Counters.of(counters, **gauges).to_json())

    def _read_counters_at_exit(self) -> None:
        if (counters := ServerStats.read_from(self._block)) is not None:
            counters.abort_unfinished()
            self._set_stats(Counters.of(counters).to_json())
        self._block.release()  # with its descriptor, which would wait for the garbage collector

    def describe_exit(self, status: int) -> str:
        """Return how the worker exited, and the reason that it sent, as text.

        Args:
            status: The exit status, as in ``exited``.
        """
        if status < 0:
            with contextlib.suppress(ValueError):  # a signal without a name
                return f"worker {self.pid} was killed by {signal.Signals(-status).name}"
            return f"worker {self.pid} was killed by signal {-status}"
        return f"worker {self.pid} exited with code {status}" + (self._failure and f" ({self._failure})")

    def _resolve_report(self) -> None:
        report, self._pending_report = self._pending_report, None
        if report is not None and not report.done():
            report.set_result(None)

    def _on_message(self, name: str, value: Any) -> None:
        if name in ("stats", "ready"):
            self.responded_at = self._loop.time()
        if name == "stats":
            self._set_stats(value)
            self._resolve_report()
        elif name == "ready" and not self.ready.done():
            self.ready_at = self._loop.time()
            self.max_connections = int(value or 0)
            self.serving = True
            self.ready.set_result(None)
        elif name == "failed":
            self._failure = str(value)

    def _set_stats(self, value: Any) -> None:
        self.stats = value
        try:
            self._on_stats(self)
        except Exception as error:  # the worker may run another version
            logger.error(
                "worker %d sent invalid stats: %r",
                self.pid,
                error,
                extra={"event": "worker", "worker": self.pid},
            )

    def _on_end(self, problem: str) -> None:
        if problem:
            logger.error(
                "worker %d %s: killed", self.pid, problem, extra={"event": "worker", "worker": self.pid}
            )
            self.kill()


@contextlib.contextmanager
def _blocked(numbers: Iterable[int]) -> Iterator[None]:
    """Block signals in this thread, and in the processes that it starts. They are delivered afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
