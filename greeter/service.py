"""``greeter serve`` in one process: a Server with signals, a log, a reload and an end.

The law: the first SIGTERM or SIGINT closes the door in order and finishes with everybody inside; the
second one ends the process at once. SIGHUP brings a checked configuration into force or leaves the old
one. Whatever the log was told is written before the process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from greeter.endpoint import Endpoint
from greeter.errors import GreeterError
from greeter.fdlimit import raise_fd_limit
from greeter.logs import LogStream
from greeter.loops import choose_loop, run
from greeter.options import ServeOptions
from greeter.prepare import Prepared, need_restart, prepare
from greeter.server import Server, serve
from greeter.systemd import Notifier, listen_fds

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

logger = logging.getLogger("greeter")

INTERRUPTED = 130

Reread = Callable[[], ServeOptions]


def run_service(options: ServeOptions, reread: Reread) -> int:
    """Serve until a signal says stop; returns the exit code. Raises GreeterError when it cannot start.

    ``reread`` gives the options anew, from the same command line and environment, for a reload; it
    raises ConfigError.
    """
    prepared = prepare(options)  # before the loop, the sockets and the log: it may be wrong
    endpoints = options.listen
    inherited = listen_fds()
    if inherited and options.listen == ServeOptions().listen:
        endpoints = tuple(Endpoint.inherited(fd) for fd in inherited)
    notifier = Notifier.from_environment()
    with logging_to_stderr(options) as log:
        service = Service(options, prepared, endpoints, reread=reread, log=log, notifier=notifier)
        return run_to_its_end(service.run(), options, log)


@contextlib.contextmanager
def logging_to_stderr(options: ServeOptions) -> Iterator[LogStream]:
    """The log of a service."""
    log = LogStream(sys.stderr.fileno(), options.log_format, options.log_level.upper())
    logging.getLogger().addHandler(log)
    logger.setLevel(options.log_level.upper())
    try:
        yield log
    finally:
        log.flush()
        logging.getLogger().removeHandler(log)


def run_to_its_end(main: Coroutine[None, None, int], options: ServeOptions, log: LogStream) -> int:
    """Run a service, and leave no thread behind that would keep the process."""
    raise_fd_limit()
    code = run(main, options.loop)
    _leave_no_thread_behind(log)
    return code


class Service:
    """One process that serves ``endpoints`` as its options say."""

    def __init__(
        self,
        options: ServeOptions,
        prepared: Prepared,
        endpoints: tuple[Endpoint, ...],
        *,
        reread: Reread,
        log: LogStream,
        notifier: Notifier,
    ) -> None:
        self.options = options
        self.prepared = prepared
        self.endpoints = endpoints
        self.reloads = {"ok": 0, "failed": 0}
        self._reread = reread
        self._log = log
        self._notifier = notifier
        self._watchdog: asyncio.TimerHandle | None = None
        self.server: Server

    async def run(self) -> int:
        """Serve until a stop signal; returns the exit code."""
        _warn_of_root()
        self.server = await start_server(self.options, self.prepared, self.endpoints, self._log)
        stop = stop_on_signals(self._log)
        _on_hangup(self.reload)
        announce(self.server.addresses, choose_loop(self.options.loop)[0], self.server.path)
        self._notifier.ready(self._status())
        self._pet_watchdog()
        name = await stop
        await wait_before_stop(name, self.options, self._notifier)
        await self.server.drain()
        self._notifier.close()
        if self._watchdog is not None:
            self._watchdog.cancel()
        _report(self.server)
        return 0

    def reload(self) -> None:
        """Bring a new configuration into force, or keep the old one and say why."""
        self._notifier.reloading()
        try:
            new = self._reread()
            prepared = prepare(new)
            self.server.update(greeting=prepared.greeting, limits=prepared.limits, tls=prepared.tls)
        except GreeterError as error:
            self.reloads["failed"] += 1
            logger.error("reload failed, the old configuration stays: %s", error, extra={"event": "reload"})
        else:
            self.reloads["ok"] += 1
            warn_of_restart(self.options, new, workers=False)
            self.prepared = prepared
            logger.info("Reloaded", extra={"event": "reload"})
        self._notifier.ready(self._status())

    def _status(self) -> str:
        return f"serving on {', '.join(self.server.addresses)}"

    def _pet_watchdog(self) -> None:
        if (interval := self._notifier.watchdog_interval) is not None:
            self._notifier.watchdog()
            self._watchdog = asyncio.get_running_loop().call_later(interval, self._pet_watchdog)


async def start_server(
    options: ServeOptions, prepared: Prepared, endpoints: tuple[Endpoint, ...], log: LogStream
) -> Server:
    """The Server that the options describe."""
    return await serve(
        prepared.greeting,
        listen=endpoints,
        accept=options.accept,
        backlog=options.backlog,
        unix_mode=options.unix_mode,
        limits=prepared.limits,
        ssl=prepared.tls,
        proxy_from=prepared.proxy_from,
        greet_timeout=options.greet_timeout,
        linger_timeout=options.linger_timeout,
        drain_timeout=options.drain_timeout,
        access_log=log.connection if options.access_log and logger.isEnabledFor(logging.INFO) else False,
    )


async def wait_before_stop(name: str, options: ServeOptions, notifier: Notifier) -> None:
    """Say that the end has come, and go on serving for the time that load balancers need to notice."""
    notifier.stopping()
    if options.stop_delay:
        logger.info("%s: serving for another %g s", name, options.stop_delay)
        await asyncio.sleep(options.stop_delay)
    logger.info("%s: closing the door", name, extra={"event": "stopping", "reason": name})


def _report(server: Server) -> None:
    """The last line."""
    stats = server.stats
    rejected = sum(stats.rejected.values())
    logger.info(
        "Stopped: %d greeted of %d accepted, %d failed%s",
        stats.greeted,
        stats.accepted,
        sum(stats.failed.values()),
        f", {rejected} turned away" if rejected else "",
        extra={"event": "stopped"},
    )


def announce(addresses: tuple[str, ...], loop: str, path: str, workers: int = 1) -> None:
    """The start lines, one for each endpoint."""
    processes = f", {workers} workers" if workers > 1 else ""
    for address in addresses:
        fields = {"event": "listening", "address": address, "loop": loop, "path": path, "workers": workers}
        logger.info("Listening on %s (%s, %s%s)", address, loop, path, processes, extra=fields)


def warn_of_restart(old: ServeOptions, new: ServeOptions, *, workers: bool) -> None:
    """Name what a reload cannot change."""
    for flag in need_restart(old, new, workers=workers):
        logger.warning("%s has changed, which takes effect with a restart", flag)


def stop_on_signals(log: LogStream) -> asyncio.Future[str]:
    """A future of the name of the first stop signal; the second one does not return."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[str] = loop.create_future()

    def on_signal(name: str) -> None:
        if not stop.done():
            stop.set_result(name)
            return
        logger.warning("%s again: leaving at once", name)
        log.flush()
        os._exit(INTERRUPTED)

    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # elsewhere, Ctrl-C is KeyboardInterrupt
            loop.add_signal_handler(number, on_signal, number.name)
    return stop


def _on_hangup(reload: Callable[[], None]) -> None:
    with contextlib.suppress(NotImplementedError, AttributeError):  # a system without SIGHUP
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)


def _warn_of_root() -> None:
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        logger.warning("running as root, which greeting needs only for ports below 1024")


def _leave_no_thread_behind(log: LogStream) -> None:
    """A sync greeting that never returns holds a thread, and Python would wait for it for ever."""
    stuck = [thread for thread in threading.enumerate() if thread.name.startswith("greeter-callable")]
    for thread in stuck:
        thread.join(0.1)
    if any(thread.is_alive() for thread in stuck):
        logger.warning("leaving %d greeting callables that do not return", len(stuck))
        log.flush()
        os._exit(0)
