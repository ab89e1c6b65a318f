"""What ``serve()`` returns before the server runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from greeter.server.server import Server


class Serving:
    """What ``serve()`` returns: await it for the Server, or enter it with ``async with``."""

    def __init__(self, start: Callable[[], Coroutine[None, None, Server]]) -> None:
        self._start = start
        self._server: Server | None = None

    def __await__(self) -> Generator[Any, None, Server]:
        return self._start().__await__()

    async def __aenter__(self) -> Server:
        self._server = await self._start()
        return self._server

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await self._server.drain()
