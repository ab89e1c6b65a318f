"""Signal handling of a service: stop and reload.

Invariants:

- A signal that arrives before the service is ready takes effect when it is.
- The first SIGTERM or SIGINT requests a graceful stop. A further one exits the process if it arrives at least
  ``SAME_REQUEST_SECONDS`` later. An earlier one is the same request, delivered twice: timeout(1) signals its
  child and then its process group, and a terminal signals a process and the wrapper that forwards signals.
- After a stop was requested, SIGHUP is ignored. After the stop is done, no signal changes the exit code.
- SIGINT that is ignored at the start stays ignored.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from time import monotonic
from typing import TYPE_CHECKING

from greeter.system import interrupt

if TYPE_CHECKING:
    from collections.abc import Callable

# Stop signals within so many seconds are one request.
SAME_REQUEST_SECONDS = 1.0


def stop_signals() -> list[signal.Signals]:
    """Return the signals that stop a command: SIGTERM, and SIGINT unless it is ignored."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return [signal.SIGTERM] if ignored else [signal.SIGINT, signal.SIGTERM]


class Signals:
    """Handles SIGTERM, SIGINT and SIGHUP in the running loop.

    Args:
        reload: Called for SIGHUP.
        force_exit: Called with the name of a SIGTERM or SIGINT that asks for an exit at once. Must not
            return.

    Attributes:
        stop: A future that resolves to the name of the first SIGTERM or SIGINT.
    """

    def __init__(self, reload: Callable[[], None], force_exit: Callable[[str], None]) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self.stop: asyncio.Future[str] = loop.create_future()
        self._stopped_at = 0.0
        self._reload, self._force_exit = reload, force_exit
        self._started = self._reload_pending = False
        self._handled: list[int] = []
        # Without support for signal handlers (Windows), Ctrl-C raises KeyboardInterrupt.
        with contextlib.suppress(NotImplementedError, AttributeError):
            for number in stop_signals():
                loop.add_signal_handler(number, self._on_stop, number.name)
                self._handled.append(number)
            loop.add_signal_handler(signal.SIGHUP, self._on_reload)
            self._handled.append(signal.SIGHUP)

    def service_started(self) -> None:
        """The service is ready: reload now if SIGHUP arrived before."""
        self._started = True
        if self._reload_pending:
            self._on_reload()

    def close(self) -> None:
        """The service has stopped: let no signal change the exit code.

        Without this, the handlers would end with the event loop, and a signal that follows would kill the
        process while it exits. A stop signal still ends a process that does not exit: see the invariants.
        """
        for number in self._handled:
            # In between, a signal has its default action. So it waits, unless another thread takes it.
            signal.pthread_sigmask(signal.SIG_BLOCK, [number])
            self._loop.remove_signal_handler(number)
            signal.signal(number, self._on_late_signal)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        if self._handled:
            interrupt.ignore_at_exit([*self._handled, signal.SIGUSR1, signal.SIGUSR2])

    def _on_stop(self, name: str) -> None:
        now = monotonic()
        if not self.stop.done():
            self._stopped_at = now
            self.stop.set_result(name)
        elif now - self._stopped_at >= SAME_REQUEST_SECONDS:
            self._force_exit(name)

    def _on_late_signal(self, number: int, _: object) -> None:
        if number != signal.SIGHUP and monotonic() - self._stopped_at >= SAME_REQUEST_SECONDS:
            os._exit(interrupt.INTERRUPTED)

    def _on_reload(self) -> None:
        if not self._started:
            self._reload_pending = True
        elif not self.stop.done():
            self._reload()
