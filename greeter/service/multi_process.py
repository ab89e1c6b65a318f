"""``greeter serve --workers N``: a parent that holds the listening sockets, and N workers that serve.

Invariants:

- The parent never accepts. If a worker dies, the clients in the accept queue wait for another worker.
- If the parent dies, the workers stop in order: they greet the clients in the accept queue, close the
  listening sockets, and finish their open connections.
- A reload checks the new configuration in the parent, then replaces the workers one by one. If a new worker
  does not become ready, the old ones serve on.
- Workers read no file that the options name, but copies of those that the parent has read.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import functools
import logging
import os
import pickle
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greeter.config.options import ServeOptions
from greeter.config.reloading import reloaded_options
from greeter.errors import ConfigError, os_error_text
from greeter.server import choose_path, log_datagram_limits
from greeter.service.service import ServiceProcess, announce
from greeter.service.snapshot import AggregateStats, Counters
from greeter.service.supervisor import Supervisor
from greeter.system.input_files import open_copy, path_of
from greeter.system.listeners import close_inherited, open_listeners
from greeter.system.loops import choose_loop, run_in_thread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from greeter.core.server_config import ServerConfig
    from greeter.system.listeners import Listener

logger = logging.getLogger("greeter")

# Seconds beyond the drain timeout after which a worker is killed, so that it can log what it aborts before.
KILL_MARGIN = 2.0


def per_worker_options(options: ServeOptions, workers: int) -> ServeOptions:
    """Return the options of one worker: its equal share of ``max_connections``, rounded up.

    Args:
        options: The options of the service.
        workers: The number of workers.
    """
    if options.max_connections is None:
        return options
    return dataclasses.replace(options, max_connections=-(-options.max_connections // workers))


# The options whose file contents the parent passes to its workers.
FILE_OPTIONS = ("greeting_file", "tls_cert", "tls_key", "tls_client_ca")


def pack_options(options: ServeOptions) -> tuple[str, tuple[int, ...]]:
    """Serialize options, and open copies of the files that they name, for workers.

    A worker must not read the files themselves: after a reload that failed, the replacement of a dead worker
    needs the old contents, and a pipe can be read only once.

    Args:
        options: The options of a worker.

    Returns:
        The task of the workers, and the descriptors of the copies, which it refers to. The caller closes
        them.

    Raises:
        ConfigError: A file cannot be read any more, or not be copied.
    """
    copies: dict[str, Any] = {}
    fds: list[int] = []
    try:
        for name in FILE_OPTIONS:
            path: Path | None = getattr(options, name)
            if path is None:
                continue
            try:
                fds.append(open_copy(path))
            except OSError as error:
                raise ConfigError(f"cannot read {str(path)!r}: {os_error_text(error)}") from error
            copies[name] = Path(path_of(fds[-1]))
            if not copies[name].exists():
                raise ConfigError(f"cannot pass {str(path)!r} to workers: /proc is not mounted")
        task = pickle.dumps((dataclasses.replace(options, **copies), fds))
    except BaseException:
        close_all(fds)
        raise
    return base64.b64encode(task).decode(), tuple(fds)


@contextlib.contextmanager
def unpacked_options(task: str) -> Iterator[ServeOptions]:
    """Deserialize what ``pack_options`` has made, in the worker.

    Args:
        task: The task from the parent. It must be trusted, because it is a pickle.

    Returns:
        A context manager of the options. The files that they name exist inside the block.
    """
    options, fds = pickle.loads(base64.b64decode(task))
    assert isinstance(options, ServeOptions)
    try:
        yield options
    finally:
        close_all(fds)


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


class MultiProcess(ServiceProcess):
    """The parent of workers, which run the same command line.

    Args:
        argv: The command line.
        count: The number of workers.
        process: The arguments of ServiceProcess.
    """

    replaces_workers = True

    def __init__(self, argv: Sequence[str], count: int, **process: Any) -> None:
        super().__init__(**process)
        # -P and a path instead of -m: the current directory may contain another package named greeter.
        self._command = [sys.executable, "-P", str(Path(__file__).parents[1] / "__main__.py"), *argv]
        self._count = count
        self._listeners: list[Listener] = []
        self._totals = AggregateStats()
        self._supervisor: Supervisor | None = None
        self._files: tuple[int, ...] = ()  # of the task of the workers

    async def start(self) -> None:
        task, self._files = self._task(self.options)
        self._listeners = open_listeners(
            self.endpoints, backlog=self.config.backlog, unix_mode=self.config.unix_mode
        )
        close_inherited(self.endpoints)
        try:
            for listener in self._listeners:  # an inherited socket may be one for datagrams
                self.config.check_endpoint(listener.endpoint)
        except ConfigError:
            for listener in self._listeners:
                listener.close()
            raise
        log_datagram_limits(self.config, self._listeners)
        self._supervisor = Supervisor(
            self._command,
            self._listeners,
            self._count,
            task=task,
            files=self._files,
            on_stats=lambda pid, stats: self._totals.update(pid, Counters.from_json(stats)),
            on_exit=self._totals.retire,
            retire_timeout=self.config.connection_timeout + KILL_MARGIN,
        )
        await self._supervisor.start()

    def _task(self, options: ServeOptions) -> tuple[str, tuple[int, ...]]:
        return pack_options(per_worker_options(options, self._count))

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(listener.address for listener in self._listeners)

    def announce(self) -> None:
        path = choose_path(self.config.accept, asyncio.get_running_loop())
        announce(self.addresses, choose_loop(self.options.loop)[0], path, self._count)

    @property
    def max_connections(self) -> int:
        return self.supervisor.max_connections

    @property
    def supervisor(self) -> Supervisor:
        """The supervisor, which exists from ``start`` on."""
        assert self._supervisor is not None
        return self._supervisor

    async def snapshot(self) -> Counters:
        await self.supervisor.stats()
        mine = Counters(
            reloads=dict(self.reloads),
            worker_restarts=self.supervisor.restarts,
            workers=self._count,
            workers_ready=self.supervisor.ready_count,
            certificate_expiry=self.config.certificate_expiry,
            datagrams_dropped=sum(listener.dropped() for listener in self._listeners),
        )
        return self._totals.total() + mine

    @property
    def worker_pids(self) -> tuple[int, ...]:
        return self.supervisor.running_pids

    async def unready(self) -> str:
        return await self.supervisor.health.unready()

    async def not_alive(self) -> str:
        return await self.supervisor.health.not_alive()

    def check_workers(self) -> None:
        self.supervisor.kill_unresponsive()

    async def apply(self, new: ServeOptions, config: ServerConfig) -> None:
        options = reloaded_options(self.options, new, workers=True)
        task, files = await run_in_thread(functools.partial(self._task, options))
        try:
            timeout = config.connection_timeout + KILL_MARGIN
            await self.supervisor.replace_all(task, files=files, retire_timeout=timeout)
        except BaseException:
            close_all(files)
            raise
        close_all(self._files)
        self._files = files
        self.config = config

    async def stop(self) -> None:
        await self.supervisor.stop(self.options.drain_timeout + KILL_MARGIN)

    def kill_workers(self) -> None:
        if self._supervisor is not None:
            self._supervisor.kill()
