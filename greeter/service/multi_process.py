"""``greeter serve --workers N``: a parent that holds the listening sockets, and N workers that serve.

Invariants:

- The parent never accepts. If a worker dies, the clients in the accept queue wait for another worker.
- If the parent dies, the workers stop in order: they greet the clients in the accept queue, close the
  listening sockets, and finish their open connections.
- A reload checks the new configuration in the parent, then replaces the workers one by one. If a new worker
  does not become ready, the old ones serve on.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import logging
import os
import pickle
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greeter.config.loading import reloaded_options
from greeter.config.options import ServeOptions
from greeter.errors import ConfigError, GreeterError, os_error_text
from greeter.server import choose_path
from greeter.service.service import ServiceProcess, announce, warn_restart_required
from greeter.service.snapshot import AggregateStats, Counters
from greeter.service.supervisor import Supervisor
from greeter.system.listeners import close_inherited, open_listeners
from greeter.system.loops import choose_loop

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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


def pack_options(options: ServeOptions) -> str:
    """Serialize options and the current contents of the files that they name, for a worker.

    A worker must not read the files itself: after a reload that failed, the replacement of a dead worker
    needs the old contents.

    Args:
        options: The options of a worker.

    Returns:
        The task of the worker.

    Raises:
        ConfigError: A file cannot be read any more.
    """
    files: dict[str, bytes] = {}
    for name in FILE_OPTIONS:
        path: Path | None = getattr(options, name)
        if path is not None and path.is_file():  # anything else, such as a pipe, can be read only once
            try:
                files[name] = path.read_bytes()
            except OSError as error:
                raise ConfigError(f"cannot read {str(path)!r}: {os_error_text(error)}") from error
    return base64.b64encode(pickle.dumps((options, files))).decode()


@contextlib.contextmanager
def unpacked_options(task: str) -> Iterator[ServeOptions]:
    """Deserialize what ``pack_options`` has made, in the worker.

    Args:
        task: The task from the parent. It must be trusted, because it is a pickle.

    Returns:
        A context manager of the options. The files that they name exist inside the block.
    """
    options, files = pickle.loads(base64.b64decode(task))
    assert isinstance(options, ServeOptions)
    paths: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        if hasattr(os, "memfd_create") and os.path.isdir(
            "/proc/self/fd"
        ):  # else the worker reads the original files
            for name, data in files.items():
                file = stack.enter_context(open(os.memfd_create(name), "wb"))
                file.write(data)
                file.flush()
                paths[name] = Path(f"/proc/self/fd/{file.fileno()}")
        yield dataclasses.replace(options, **paths)


class MultiProcess(ServiceProcess):
    """The parent of workers, which run the same command line.

    Args:
        argv: The command line.
        count: The number of workers.
        process: The arguments of ServiceProcess.
    """

    def __init__(self, argv: Sequence[str], count: int, **process: Any) -> None:
        super().__init__(**process)
        # -P and a path instead of -m: the current directory may contain another package named greeter.
        self._command = [sys.executable, "-P", str(Path(__file__).parents[1] / "__main__.py"), *argv]
        self._count = count
        self._listeners: list[Listener] = []
        self._totals = AggregateStats()
        self._supervisor: Supervisor | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._reload_pending = False

    async def start(self) -> None:
        options = self.options
        self._listeners = open_listeners(
            self.endpoints, backlog=self.config.backlog, unix_mode=self.config.unix_mode
        )
        close_inherited(self.endpoints)
        self._supervisor = supervisor = Supervisor(
            self._command,
            self._listeners,
            self._count,
            task=self._task(options),
            on_stats=lambda pid, stats: self._totals.update(pid, Counters.from_json(stats)),
            on_exit=self._totals.retire,
            retire_timeout=options.drain_timeout + KILL_MARGIN,
        )
        await supervisor.start()

    def _task(self, options: ServeOptions) -> str:
        return pack_options(per_worker_options(options, self._count))

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(listener.address for listener in self._listeners)

    def announce(self) -> None:
        path = choose_path(self.config.accept, asyncio.get_running_loop())
        announce(self.addresses, choose_loop(self.options.loop)[0], path, self._count)

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
            certificate_expiry=self.config.certificate_expiry,
        )
        return self._totals.total() + mine

    def check_workers(self) -> None:
        self.supervisor.kill_unresponsive()

    def reload(self) -> None:
        """Start a reload. If one is running, start another one after it."""
        if self._reloading is not None:
            self._reload_pending = True
            return
        self._reloading = asyncio.get_running_loop().create_task(self._reload())

    async def _reload(self) -> None:
        self.notifier.reloading()
        try:
            new, config = self.reread()
            await self.supervisor.replace_all(self._task(reloaded_options(self.options, new, workers=True)))
        except GreeterError as error:
            self.reload_failed(error)
        else:
            warn_restart_required(self.options, new, workers=True)
            self.config = config
            self.reload_done()
        finally:
            self._reloading = None
        self.notifier.ready(self.status())
        if self._reload_pending:
            self._reload_pending = False
            self.reload()

    async def stop(self) -> None:
        if self._reloading is not None:
            self._reloading.cancel()
            await asyncio.wait([self._reloading])
        await self.supervisor.stop(self.options.drain_timeout + KILL_MARGIN)

    def kill_workers(self) -> None:
        if self._supervisor is not None:
            self._supervisor.kill()
