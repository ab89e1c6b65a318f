"""Signal handling of a service: stop and reload.

Invariants:

- A signal that arrives before the service is ready takes effect when it is.
- The first SIGTERM or SIGINT requests a graceful stop. The second one exits the process.
- After a stop was requested, SIGHUP is ignored.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Signals:
    """Handles SIGTERM, SIGINT and SIGHUP in the running loop.

    Args:
        reload: Called for SIGHUP.
        force_exit: Called with the name of the second SIGTERM or SIGINT; must not return.

    Attributes:
        stop: A future that resolves to the name of the first SIGTERM or SIGINT.
    """

    def __init__(self, reload: Callable[[], None], force_exit: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()
        self.stop: asyncio.Future[str] = loop.create_future()
        self._reload, self._force_exit = reload, force_exit
        self._started = self._reload_pending = False
        # Without support for signal handlers (Windows), Ctrl-C raises KeyboardInterrupt.
        with contextlib.suppress(NotImplementedError, AttributeError):
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._on_stop, number.name)
            loop.add_signal_handler(signal.SIGHUP, self._on_reload)

    def service_started(self) -> None:
        """The service is ready: reload now if SIGHUP arrived before."""
        self._started = True
        if self._reload_pending:
            self._on_reload()

    def _on_stop(self, name: str) -> None:
        if self.stop.done():
            self._force_exit(name)
        else:
            self.stop.set_result(name)

    def _on_reload(self) -> None:
        if not self._started:
            self._reload_pending = True
        elif not self.stop.done():
            self._reload()
