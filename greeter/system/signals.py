"""What the signals to a service have come to.

The law: no signal is lost and none is obeyed at the wrong time. One that comes before the service is up waits
until it is; the first stop is the caller's to carry out in order, the second one ends the process.
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

    ``stop`` is a future of the name of the first SIGTERM or SIGINT; the second is ``leave``'s, which does not
    return. SIGHUP calls ``reload``, from ``serving`` on (one that came before is not forgotten) and until the
    stop.
    """

    def __init__(self, reload: Callable[[], None], force_exit: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()
        self.stop: asyncio.Future[str] = loop.create_future()
        self._reload, self._force_exit = reload, force_exit
        self._started = self._reload_pending = False
        # Elsewhere there are no such handlers, and Ctrl-C is KeyboardInterrupt.
        with contextlib.suppress(NotImplementedError, AttributeError):
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._on_stop, number.name)
            loop.add_signal_handler(signal.SIGHUP, self._on_reload)

    def service_started(self) -> None:
        """The service has started: what was asked of it meanwhile is due."""
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
        elif not self.stop.done():  # else there is nobody to whom it would matter
            self._reload()
