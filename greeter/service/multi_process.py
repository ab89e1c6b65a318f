"""``greeter serve --workers N``: one parent that keeps the sockets, and N workers that serve.

The law: the parent never accepts, so it has nothing to lose and nothing to do; whatever becomes of a
worker, the clients in the listen queue wait for another one. A reload checks the new configuration here
first, then replaces the workers one by one; if one does not come up, the old ones serve on.
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

from greeter.config.options import ServeOptions
from greeter.config.server_config import in_force
from greeter.errors import ConfigError, GreeterError, reason
from greeter.server import choose_path
from greeter.service.service import Process, announce, warn_of_restart
from greeter.service.snapshot import Snapshot, Totals
from greeter.service.supervisor import Supervisor
from greeter.system.listeners import open_listeners
from greeter.system.loops import choose_loop

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from greeter.system.listeners import Listener

logger = logging.getLogger("greeter")

# Above a worker's own drain deadline, so that it is the worker that says whom it cut off.
GRACE = 2.0


def share(options: ServeOptions, workers: int) -> ServeOptions:
    """The options of one of so many workers: of the clients at a time, an equal part, rounded up."""
    if options.max_connections is None:
        return options
    return dataclasses.replace(options, max_connections=-(-options.max_connections // workers))


# The options whose file a worker has from its parent.
FILES = ("greeting_file", "tls_cert", "tls_key", "tls_client_ca")


def pack(options: ServeOptions) -> str:
    """The options for a worker, and the files that they name as they are now.

    A worker must read neither of them anew: after a reload that failed, the old ones are in force for
    whoever takes a dead worker's place. Raises ConfigError for a file that is gone since it was checked.
    """
    files: dict[str, bytes] = {}
    for name in FILES:
        path: Path | None = getattr(options, name)
        if path is not None and path.is_file():  # what is no file can be read once only
            try:
                files[name] = path.read_bytes()
            except OSError as error:
                raise ConfigError(f"cannot read {str(path)!r}: {reason(error)}") from error
    return base64.b64encode(pickle.dumps((options, files))).decode()


@contextlib.contextmanager
def unpacked(task: str) -> Iterator[ServeOptions]:
    """What ``pack`` made, in our own child: options that name files which are there inside the block."""
    options, files = pickle.loads(base64.b64decode(task))
    assert isinstance(options, ServeOptions)
    paths: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):  # else the files themselves
            for name, data in files.items():
                file = stack.enter_context(open(os.memfd_create(name), "wb"))
                file.write(data)
                file.flush()
                paths[name] = Path(f"/proc/self/fd/{file.fileno()}")
        yield dataclasses.replace(options, **paths)


class Parent(Process):
    """The process that was started, with ``count`` workers that run the same command line."""

    def __init__(self, argv: Sequence[str], count: int, **process: Any) -> None:
        super().__init__(**process)
        # -P, and not -m: a greeter that lies in the current directory is another one.
        self._command = [sys.executable, "-P", str(Path(__file__).parents[1] / "__main__.py"), *argv]
        self._count = count
        self._listeners: list[Listener] = []
        self._totals = Totals()
        self._supervisor: Supervisor | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._again = False

    async def start(self) -> None:
        options = self.options
        self._listeners = open_listeners(self.endpoints, backlog=options.backlog, unix_mode=options.unix_mode)
        self._supervisor = supervisor = Supervisor(
            self._command,
            self._listeners,
            self._count,
            task=self._task(options),
            on_stats=lambda pid, stats: self._totals.update(pid, Snapshot.from_json(stats)),
            on_left=self._totals.retire,
            retire_timeout=options.drain_timeout + GRACE,
        )
        try:
            await supervisor.start()
        except BaseException:
            self._close()
            raise

    def _task(self, options: ServeOptions) -> str:
        return pack(share(options, self._count))

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(listener.address for listener in self._listeners)

    def announce(self) -> None:
        path = choose_path(self.options.accept, asyncio.get_running_loop())
        announce(self.addresses, choose_loop(self.options.loop)[0], path, self._count)

    @property
    def supervisor(self) -> Supervisor:
        """There is one from the start on."""
        assert self._supervisor is not None
        return self._supervisor

    async def snapshot(self) -> Snapshot:
        await self.supervisor.stats()
        mine = Snapshot(
            reloads=dict(self.reloads),
            worker_restarts=self.supervisor.restarts,
            certificate_expiry=self.prepared.certificate_expiry,
        )
        return self._totals.total() + mine

    def look_after(self) -> None:
        self.supervisor.end_silence()

    def reload(self) -> None:
        """Bring a new configuration into force; one more time afterwards if it is asked for meanwhile."""
        if self._reloading is not None:
            self._again = True
            return
        self._reloading = asyncio.get_running_loop().create_task(self._reload())

    async def _reload(self) -> None:
        self.notifier.reloading()
        try:
            new, prepared = self.reread()
            await self.supervisor.replace_all(self._task(in_force(self.options, new, workers=True)))
        except GreeterError as error:
            self.reload_failed(error)
        else:
            warn_of_restart(self.options, new, workers=True)
            self.prepared = prepared
            self.reload_done()
        finally:
            self._reloading = None
        self.notifier.ready(self.status())
        if self._again:
            self._again = False
            self.reload()

    async def stop(self) -> None:
        if self._reloading is not None:
            self._reloading.cancel()
            await asyncio.wait([self._reloading])
        await self.supervisor.stop(self.options.drain_timeout + GRACE)
        self._close()

    def leave_at_once(self) -> None:
        if self._supervisor is not None:
            self._supervisor.kill()

    def _close(self) -> None:
        for listener in self._listeners:
            listener.close()
