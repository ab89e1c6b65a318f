"""A service of one process, which accepts and greets itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greeter.server import Server, start_server
from greeter.service.service import ServiceProcess, announce
from greeter.service.snapshot import Counters
from greeter.system.listeners import close_inherited
from greeter.system.loops import choose_loop

if TYPE_CHECKING:
    from greeter.config.options import ServeOptions
    from greeter.core.server_config import ServerConfig


class SingleProcess(ServiceProcess):
    """A single process that accepts and greets."""

    replaces_workers = False
    server: Server

    async def start(self) -> None:
        self.server = await start_server(self.config, self.endpoints)
        close_inherited(self.endpoints)

    async def stop(self) -> None:
        await self.server.drain()

    @property
    def addresses(self) -> tuple[str, ...]:
        return self.server.addresses

    @property
    def max_connections(self) -> int:
        return self.server.max_connections

    def announce(self) -> None:
        announce(self.addresses, choose_loop(self.options.loop)[0], self.server.path)

    async def snapshot(self) -> Counters:
        return Counters.of(
            self.server.stats,
            reloads=dict(self.reloads),
            workers=1,
            workers_ready=int(self.server.is_serving()),
            certificate_expiry=self.server.config.certificate_expiry,
        )

    async def apply(self, new: ServeOptions, config: ServerConfig) -> None:
        self.server.reconfigure(config)

    @property
    def worker_pids(self) -> tuple[int, ...]:
        return ()

    async def unready(self) -> str:
        return ""  # this event loop serves, and it runs

    async def not_alive(self) -> str:
        return ""

    def check_workers(self) -> None:
        pass

    def kill_workers(self) -> None:
        pass
