"""``greeter serve``: the life of a process that serves, from its options to its exit code.

The law: the first SIGTERM or SIGINT closes the door in order and finishes with everybody inside; the
second one ends the process at once. SIGHUP brings a checked configuration into force or leaves the old
one. Whatever the log was told is written before the process ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from greeter.config.options import ServeOptions
from greeter.config.server_config import Prepared, need_restart, prepare
from greeter.errors import GreeterError
from greeter.server import Server, serve
from greeter.service.channel import STOPPED
from greeter.service.snapshot import Snapshot
from greeter.system import interrupt
from greeter.system.loops import choose_loop
from greeter.system.signals import Signals

if TYPE_CHECKING:
    from greeter.core.endpoint import Endpoint
    from greeter.service.channel import WorkerChannel
    from greeter.service.httpd import HTTPServer
    from greeter.service.logs import LogStream
    from greeter.service.systemd import Notifier

logger = logging.getLogger("greeter")

Reread = Callable[[], ServeOptions]


class Process(ABC):
    """What the process that was started does, whether it serves itself or has workers for that.

    ``options`` and what is ``prepared`` from them; ``endpoints`` to listen on; ``reread`` gives the options
    anew, for a reload; ``log`` and ``notifier`` are told what happens.
    """

    def __init__(
        self,
        *,
        options: ServeOptions,
        prepared: Prepared,
        endpoints: tuple[Endpoint, ...],
        reread: Reread,
        log: LogStream,
        notifier: Notifier,
    ) -> None:
        self.options = options
        self.prepared = prepared
        self.endpoints = endpoints
        self.log = log
        self.notifier = notifier
        self.reloads = {"ok": 0, "failed": 0}
        self._reread = reread
        self._watchdog: asyncio.TimerHandle | None = None
        self._metrics: HTTPServer | None = None

    @abstractmethod
    async def start(self) -> None:
        """Begin to serve. Raises GreeterError, and nothing is left then."""

    @abstractmethod
    async def stop(self) -> None:
        """Close the door in order and finish with everybody."""

    @abstractmethod
    def reload(self) -> None:
        """Bring a new configuration into force, or keep the old one and say why."""

    @abstractmethod
    async def snapshot(self) -> Snapshot:
        """What has been counted by now."""

    @abstractmethod
    def announce(self) -> None:
        """Write the start lines."""

    @abstractmethod
    def look_after(self) -> None:
        """See to whom the watchdog of systemd does not see; called each time that it is told we are alive."""

    @property
    @abstractmethod
    def addresses(self) -> tuple[str, ...]:
        """Where it listens."""

    @abstractmethod
    def leave_at_once(self) -> None:
        """The process ends now; nobody else must stay."""

    async def run(self) -> int:
        """Serve until a stop signal; returns the exit code. Signals count from the beginning: one that comes
        while workers start waits until they serve, so that whoever is in the queue by then is greeted."""
        signals = self._listen_to_signals()
        await self.start()
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            logger.warning(
                "running as root, which greeting needs only for ports below 1024", extra={"event": "root"}
            )
        try:
            await self._serve_metrics(signals.stop)
            self.announce()
            self.notifier.ready(self.status())
            self._pet_watchdog()
            signals.serving()
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
            logger.info("%s: closing the door", name, extra={"event": "stopping", "reason": name})
        finally:
            await self.stop()
        _report(await self.snapshot())
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._metrics is not None:
            self._metrics.close()
            await self._metrics.wait_closed()
        self.notifier.close()
        return 0

    def status(self) -> str:
        """For ``systemctl status``."""
        return f"serving on {', '.join(self.addresses)}"

    def reread(self) -> tuple[ServeOptions, Prepared]:
        """The options as they are now, checked. Raises ConfigError."""
        new = self._reread()
        return new, prepare(new)

    def reload_done(self) -> None:
        """Count and log it."""
        self.reloads["ok"] += 1
        logger.info("Reloaded", extra={"event": "reload"})

    def reload_failed(self, error: Exception) -> None:
        """Count and log it."""
        self.reloads["failed"] += 1
        logger.error("reload failed, the old configuration stays: %s", error, extra={"event": "reload"})

    async def _serve_metrics(self, stop: asyncio.Future[str]) -> None:
        if self.options.metrics is not None:
            from greeter.service.metrics import serve_metrics

            self._metrics = await serve_metrics(
                self.options.metrics, self.snapshot, stopping=stop.done, unix_mode=self.options.unix_mode
            )
            logger.info("Metrics on %s", self._metrics.address, extra={"event": "metrics"})

    def _pet_watchdog(self) -> None:
        if (interval := self.notifier.watchdog_interval) is not None:
            self.notifier.watchdog()
            self.look_after()
            self._watchdog = asyncio.get_running_loop().call_later(interval, self._pet_watchdog)

    def _listen_to_signals(self) -> Signals:
        def leave(name: str) -> None:
            logger.warning("%s again: leaving at once", name, extra={"event": "killed", "reason": name})
            self.log.flush()
            self.leave_at_once()
            os._exit(interrupt.INTERRUPTED)

        return Signals(self.reload, leave)


class Single(Process):
    """One process that serves by itself."""

    server: Server

    async def start(self) -> None:
        self.server = await start_server(self.options, self.prepared, self.endpoints, self.log)

    async def stop(self) -> None:
        await self.server.drain()

    @property
    def addresses(self) -> tuple[str, ...]:
        return self.server.addresses

    def announce(self) -> None:
        announce(self.addresses, choose_loop(self.options.loop)[0], self.server.path)

    async def snapshot(self) -> Snapshot:
        return Snapshot.of(
            self.server.stats,
            reloads=dict(self.reloads),
            certificate_expiry=self.prepared.certificate_expiry,
        )

    def reload(self) -> None:
        self.notifier.reloading()
        try:
            new, prepared = self.reread()
            self.server.update(greeting=prepared.greeting, limits=prepared.limits, tls=prepared.tls)
        except GreeterError as error:
            self.reload_failed(error)
        else:
            warn_of_restart(self.options, new, workers=False)
            if prepared.tls is None:  # what is served until the restart still has its certificate
                was = self.prepared
                prepared = replace(prepared, tls=was.tls, certificate_expiry=was.certificate_expiry)
            self.prepared = prepared
            self.reload_done()
        self.notifier.ready(self.status())

    def look_after(self) -> None:
        pass

    def leave_at_once(self) -> None:
        pass


async def serve_as_worker(
    channel: WorkerChannel, options: ServeOptions, prepared: Prepared, log: LogStream
) -> int:
    """Serve the sockets of a parent until it says that it is enough, or is gone."""
    try:
        server = await start_server(options, prepared, channel.endpoints, log)
    except GreeterError as error:
        channel.failed(str(error))
        return 1
    leave = channel.open(lambda: Snapshot.of(server.stats).to_json())
    loop = asyncio.get_running_loop()
    # A terminal and a process manager signal the whole group; here it is the parent that decides.
    for number in (signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, lambda: None)
    told = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    leave.add_done_callback(lambda _: told.set())
    channel.ready()
    await told.wait()
    await server.drain(last=leave.done() and leave.result() == STOPPED)
    channel.close()
    return 0


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


def announce(addresses: tuple[str, ...], loop: str, path: str, workers: int = 1) -> None:
    """The start lines, one for each endpoint."""
    processes = f", {workers} workers" if workers > 1 else ""
    for address in addresses:
        fields = {"event": "listening", "address": address, "loop": loop, "path": path, "workers": workers}
        logger.info("Listening on %s (%s, %s%s)", address, loop, path, processes, extra=fields)


def warn_of_restart(old: ServeOptions, new: ServeOptions, *, workers: bool) -> None:
    """Name what a reload cannot change."""
    for flag in need_restart(old, new, workers=workers):
        logger.warning(
            "%s has changed, which takes effect with a restart", flag, extra={"event": "restart_needed"}
        )


def _report(total: Snapshot) -> None:
    """The last line."""
    rejected = sum(total.rejected.values())
    logger.info(
        "Stopped: %d greeted of %d accepted, %d failed%s",
        total.greeted,
        total.accepted,
        sum(total.failed.values()),
        f", {rejected} turned away" if rejected else "",
        extra={"event": "stopped"},
    )
