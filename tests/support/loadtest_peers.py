"""Servers for the tests of the load tester. Each behaves in one known way."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeAlias

import jsonschema  # type: ignore[import-untyped]  # its types are a package of their own

from greeter.loadtest import LoadReport
from greeter.loadtest.metrics.histogram import decode
from tests.conftest import PATIENCE

if TYPE_CHECKING:
    import ssl

GREETING = b"Thank you for connecting"

Handler: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(
    handler: Handler,
    host: str = "127.0.0.1",
    *,
    path: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncIterator[str]:
    """Run a server in this loop. Yields its endpoint as text. Closes open connections at the end."""
    writers: set[asyncio.StreamWriter] = set()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        try:
            with contextlib.suppress(ConnectionError):
                await handler(reader, writer)
        finally:
            writers.discard(writer)
            writer.close()

    if path is not None:
        server = await asyncio.start_unix_server(client, path, ssl=ssl_context)
        endpoint = f"unix:{path}".replace("\0", "@")
    else:
        server = await asyncio.start_server(client, host, 0, ssl=ssl_context, backlog=2048)
        name = server.sockets[0].getsockname()
        endpoint = f"[{name[0]}]:{name[1]}" if ":" in host else f"{name[0]}:{name[1]}"
    try:
        yield endpoint
    finally:
        # asyncio leaks an accepted socket if the server is closed before its transport exists, which takes
        # a few iterations of the loop (cpython #109564). uvloop creates both at once.
        loop = asyncio.get_running_loop()
        if isinstance(loop, asyncio.SelectorEventLoop):
            for sock in server.sockets:
                loop.remove_reader(sock.fileno())
        for _ in range(10):
            await asyncio.sleep(0)
        server.close()
        for writer in list(writers):
            writer.transport.abort()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def serving_and_counting(handler: Handler) -> AsyncIterator[tuple[str, asyncio.Semaphore]]:
    """Run a server. Yields its endpoint and a semaphore that is released for every connection."""
    accepted = asyncio.Semaphore(0)

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.release()
        await handler(reader, writer)

    async with serving(counted) as target:
        yield target, accepted


async def wait_for_clients(accepted: asyncio.Semaphore, count: int) -> None:
    """Wait until ``count`` more connections were accepted."""
    async with asyncio.timeout(PATIENCE):
        for _ in range(count):
            await accepted.acquire()


async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send the greeting and close."""
    writer.write(GREETING)


async def close_at_once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close at once."""


async def wait_for_close(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Send nothing until the client closes."""
    await reader.read()


async def greet_and_stay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a line, as SMTP does, and wait for the client to close."""
    writer.write(b"220 " + GREETING + b"\r\n")
    await reader.read()


def abort_with_reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset (socket(7), SO_LINGER with a timeout of 0)."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextlib.contextmanager
def never_accepting(backlog: int = 0, path: str | None = None) -> Any:
    """A listening socket that is never accepted from. Yields the socket and its endpoint as text."""
    with socket.socket(socket.AF_UNIX if path is not None else socket.AF_INET) as sock:
        sock.bind(path if path is not None else ("127.0.0.1", 0))
        sock.listen(backlog)
        if path is not None:
            yield sock, f"unix:{path}"
        else:
            yield sock, f"127.0.0.1:{sock.getsockname()[1]}"


# Bound but not listening while the process lives, so that no other test gets its port.
_REFUSING = socket.socket()
_REFUSING.bind(("127.0.0.1", 0))
atexit.register(_REFUSING.close)


def refused_endpoint() -> str:
    """Return an endpoint that refuses every connection."""
    return f"127.0.0.1:{_REFUSING.getsockname()[1]}"


@cache
def _validator() -> Any:
    schema = json.loads(files("greeter.loadtest").joinpath("report-schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def checked(report: LoadReport) -> LoadReport:
    """Check what holds for every report: the published schema, the sums, and JSON in both directions."""
    values = json.loads(report.to_json())
    _validator().validate(values)
    connections, errors = values["connections"], values["errors"]
    assert connections["attempted"] == connections["greeted"] + connections["failed"]
    assert connections["failed"] == sum(errors.values()) == values["latency_us"]["failed"]["count"]
    answered = connections["greeted"] + errors["empty"] + errors["unexpected_greeting"]
    assert values["latency_us"]["service"]["count"] == values["latency_us"]["response"]["count"] == answered
    for name in ("attempted", "greeted", "failed"):
        assert sum(row[name] for row in values["timeline"]) == connections[name], name
    assert sum(n for row in values["timeline"] for n in decode(row["histogram"]).values()) == answered
    assert LoadReport.from_json(report.to_json()) == report
    return report
