"""``greeter serve``: the life of a serving process, from its options to its exit code.

Invariants:

- The first SIGTERM or SIGINT starts a drain: no new clients, open connections finish. Another one, at least a
  second later, ends the process at once.
- SIGHUP applies a new configuration completely, or keeps the old one and logs why.
- Every log line is written before the process ends.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from greeter.config.loading import load_greeting, load_server_config
from greeter.config.options import ServeOptions
from greeter.config.reloading import restart_required
from greeter.errors import GreeterError
from greeter.server import log_large_greeting
from greeter.server.timeouts import PAUSE_SECONDS
from greeter.system import interrupt
from greeter.system.accept_queue import longest_accept_queue
from greeter.system.fdlimit import fd_limit
from greeter.system.input_files import inputs_read_once
from greeter.system.loops import run_in_thread
from greeter.system.signals import Signals

if TYPE_CHECKING:
    from greeter.core.endpoint import Endpoint
    from greeter.core.greeting import Greeting
    from greeter.core.server_config import ServerConfig
    from greeter.service.httpd import HTTPServer
    from greeter.service.logs import LogStream
    from greeter.service.snapshot import Counters
    from greeter.service.systemd import Notifier

logger = logging.getLogger("greeter")

Reread = Callable[[], ServeOptions]


class ServiceProcess(ABC):
    """The main process: what it does whether it serves itself or through workers.

    ``replaces_workers`` is True if a reload replaces the processes that serve.

    Args:
        options: The options of ``greeter serve``.
        config: The configuration made from ``options``.
        endpoints: Where to listen.
        reread: Returns the options anew, for a reload; raises ConfigError.
        log: The log of the process.
        notifier: Reports the state of the service to systemd.
    """

    replaces_workers: bool

    def __init__(
        self,
        *,
        options: ServeOptions,
        config: ServerConfig,
        endpoints: tuple[Endpoint, ...],
        reread: Reread,
        log: LogStream,
        notifier: Notifier,
    ) -> None:
        self.options = options
        self.config = config
        self.endpoints = endpoints
        self.log = log
        self.notifier = notifier
        self.reloads = {"ok": 0, "failed": 0}
        self._reread = reread
        self._reloading: asyncio.Task[None] | None = None
        self._reload_pending = False
        self._watchdog: asyncio.TimerHandle | None = None
        self._metrics: HTTPServer | None = None
        self._stop: asyncio.Future[str] | None = None  # of the stop signal
        self._started = time.monotonic()

    @abstractmethod
    async def start(self) -> None:
        """Start serving. Raises GreeterError, after releasing everything that was opened."""

    @abstractmethod
    async def stop(self) -> None:
        """Drain: accept no new clients and finish the open connections."""

    @abstractmethod
    async def apply(self, new: ServeOptions, config: ServerConfig) -> None:
        """Serve with a new configuration, or raise GreeterError and keep the old one."""

    @abstractmethod
    async def snapshot(self) -> Counters:
        """Return the current counters."""

    @property
    @abstractmethod
    def worker_pids(self) -> tuple[int, ...]:
        """The process IDs of the workers that run."""

    @abstractmethod
    async def unready(self) -> str:
        """Return why no client is served, "" if clients are. Takes at most a second."""

    @abstractmethod
    async def not_alive(self) -> str:
        """Return why this process should be replaced, or ""."""

    @abstractmethod
    def announce(self) -> None:
        """Write the start lines."""

    @abstractmethod
    def check_workers(self) -> None:
        """Kill unresponsive workers. Called at each watchdog notification, which covers this process only."""

    @property
    @abstractmethod
    def addresses(self) -> tuple[str, ...]:
        """The addresses that the service listens on."""

    @property
    @abstractmethod
    def max_connections(self) -> int:
        """How many connections may be open at once."""

    @abstractmethod
    def kill_workers(self) -> None:
        """Kill all workers, because this process exits at once."""

    async def run(self) -> int:
        """Serve until a stop signal.

        Signals received during startup take effect once the service is ready, so that the clients that are
        in the accept queue by then are greeted.

        Returns:
            The exit code.

        Raises:
            GreeterError: The service cannot start.
        """
        signals = self._install_signal_handlers()
        self._stop = signals.stop
        await self.start()
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            logger.warning(
                "running as root, which greeting needs only for ports below 1024", extra={"event": "root"}
            )
        self._warn_of_short_queues()
        try:
            await self._serve_metrics()
            self.announce()
            announce_limit(self.max_connections, self.options.max_connections)
            if self.log.on_terminal:
                logger.info("Press Ctrl-C to stop")
            self.notifier.ready(self.status())
            self._notify_watchdog()
            signals.service_started()
            name = await signals.stop
            self.notifier.stopping()
            if self.options.stop_delay:
                logger.info(
                    "%s: serving for another %g s",
                    name,
                    self.options.stop_delay,
                    extra={"event": "stop_delay", "reason": name},
                )
                await asyncio.sleep(self.options.stop_delay)
            logger.info(
                "%s: stopping: no new clients, finishing open connections",
                name,
                extra={"event": "stopping", "reason": name},
            )
        finally:
            if self._reloading is not None:
                self._reloading.cancel()
                await asyncio.wait([self._reloading])
            await self.stop()
        _log_totals(await self.snapshot())
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._metrics is not None:
            self._metrics.close()
            await self._metrics.wait_closed()
        self.notifier.close()
        signals.close()
        return 0

    @property
    def uptime(self) -> float:
        """Seconds since the start of this process's service."""
        return time.monotonic() - self._started

    @property
    def stopping(self) -> bool:
        """True from a stop signal on."""
        return self._stop is not None and self._stop.done()

    def status(self) -> str:
        """Return the line for ``systemctl status``."""
        return f"serving on {', '.join(self.addresses)}"

    def reload(self) -> None:
        """Start a reload. If one is running, start another one after it."""
        if self._reloading is not None:
            self._reload_pending = True
            return
        self._reloading = asyncio.get_running_loop().create_task(self._reload())

    async def _reload(self) -> None:
        self.notifier.reloading()
        try:
            new, config = await self._read_anew()
            await self.apply(new, config)
        except Exception as error:  # a file may also be too large for the memory, for example
            self.reloads["failed"] += 1
            text = str(error) if isinstance(error, GreeterError) else repr(error)
            logger.error("reload failed, the old configuration stays: %s", text, extra={"event": "reload"})
        else:
            self._warn_of_what_stays(new)
            log_large_greeting(config, self.addresses)
            self.reloads["ok"] += 1
            logger.info("Reloaded", extra={"event": "reload"})
        finally:
            self._reloading = None
        self.notifier.ready(self.status())
        if self._reload_pending:
            self._reload_pending = False
            self.reload()

    async def _read_anew(self) -> tuple[ServeOptions, ServerConfig]:
        """Return the current options and their configuration. Raises ConfigError.

        It may take a second, for thousands of networks, and a file system may hang. So a thread does it.
        Only the module of ``--app`` is imported here: modules may expect the main thread, as at the start.
        """
        new = await run_in_thread(self._reread)
        greeting = load_greeting(new) if new.app is not None else None
        config = await run_in_thread(functools.partial(load_config, new, self.log, greeting))
        return new, config

    def _warn_of_what_stays(self, new: ServeOptions) -> None:
        """Log what a reload with the options ``new`` does not apply."""
        for flag in restart_required(self.options, new, workers=self.replaces_workers):
            logger.warning(
                "%s has changed, which takes effect with a restart", flag, extra={"event": "restart_needed"}
            )
        for path in inputs_read_once():
            logger.warning(
                "%s can be read only once: it counts as it was at the start",
                path,
                extra={"event": "restart_needed"},
            )

    async def _serve_metrics(self) -> None:
        if self.options.metrics is not None:
            from greeter.service.prometheus import serve_metrics

            self._metrics = await serve_metrics(self.options.metrics, self, unix_mode=self.options.unix_mode)
            logger.info("Metrics on %s", self._metrics.address, extra={"event": "metrics"})

    def _warn_of_short_queues(self) -> None:
        limit = longest_accept_queue()
        backlog = self.config.backlog
        if (
            limit is not None
            and backlog > limit
            and any(each.kind not in ("fd", "udp") for each in self.endpoints)
        ):
            logger.warning(
                "net.core.somaxconn allows accept queues of %d connections, less than the %d of --backlog",
                limit,
                backlog,
                extra={"event": "backlog"},
            )

    def _notify_watchdog(self, due: float = math.inf) -> None:
        if (interval := self.notifier.watchdog_interval) is not None:
            loop = asyncio.get_running_loop()
            now = loop.time()
            self.notifier.watchdog()
            if now - due <= PAUSE_SECONDS:  # after a pause, the workers may have stood still too
                self.check_workers()
            due = now + interval
            self._watchdog = loop.call_at(due, self._notify_watchdog, due)

    def _install_signal_handlers(self) -> Signals:
        def exit_now(name: str) -> None:
            logger.warning("%s again: exiting at once", name, extra={"event": "killed", "reason": name})
            self.log.flush()
            self.kill_workers()
            os._exit(interrupt.INTERRUPTED)

        return Signals(self.reload, exit_now)


def load_config(options: ServeOptions, log: LogStream, greeting: Greeting | None = None) -> ServerConfig:
    """Return the configuration that the options describe, with ``log`` as the access log.

    Args:
        options: The options of this process.
        log: The log of this process.
        greeting: The greeting that the options name, if it is loaded already.

    Raises:
        ConfigError: As ``load_server_config``.
    """
    access_log = log.connection if logger.isEnabledFor(logging.INFO) else False
    config = load_server_config(options, access_log, greeting)
    return replace(config, datagram_log=log.datagram if config.access_log else None)


def announce(addresses: tuple[str, ...], loop: str, path: str, workers: int = 1) -> None:
    """Log the start lines, one for each address.

    Args:
        addresses: The addresses that the service listens on.
        loop: The name of the event loop.
        path: The name of the accept path. Datagrams have none.
        workers: The number of processes that serve.
    """
    processes = f", {workers} workers" if workers > 1 else ""
    for address in addresses:
        how = "datagrams" if address.startswith("udp:") else path
        fields = {"event": "listening", "address": address, "loop": loop, "path": how, "workers": workers}
        logger.info("Listening on %s (%s, %s%s)", address, loop, how, processes, extra=fields)


def announce_limit(allowed: int, wanted: int | None) -> None:
    """Log how many connections may be open at once, and what sets this limit.

    Args:
        allowed: The limit, over all workers.
        wanted: The value of ``--max-connections``, or None.
    """
    limit = fd_limit()
    if wanted is not None and allowed >= wanted:
        source, text = "max-connections", "--max-connections"
    else:
        source = "descriptors"
        text = "no descriptor limit" if limit is None else f"descriptor limit {limit} for each process"
    fields = {"event": "limit", "max_connections": allowed, "source": source}
    logger.info("At most %d connections at once (%s)", allowed, text, extra=fields)


def _log_totals(total: Counters) -> None:
    """Log the last line: the counters of the whole run."""
    rejected = sum(total.rejected.values())
    received, greeted = (total.datagrams.get(name, 0) for name in ("received", "greeted"))
    logger.info(
        "Stopped: %d greeted of %d accepted, %d failed%s%s",
        total.greeted,
        total.accepted,
        sum(total.failed.values()),
        f", {rejected} rejected" if rejected else "",
        f", {greeted} greeted of {received} datagrams" if received else "",
        extra={"event": "stopped"},
    )
