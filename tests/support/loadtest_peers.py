"""Servers for the load tester's tests: each behaves, or misbehaves, in one known way."""

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
    """A server in this loop; its endpoint's text. Connections that a handler leaves open end with it."""
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
        # asyncio leaks a socket that it has accepted when the server is closed before its transport is made,
        # which takes a few turns of the loop (cpython #109564). uvloop makes both at once.
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
    """A server, and a semaphore that is released for every client."""
    accepted = asyncio.Semaphore(0)

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.release()
        await handler(reader, writer)

    async with serving(counted) as target:
        yield target, accepted


async def wait_for_clients(accepted: asyncio.Semaphore, count: int) -> None:
    """Wait until so many have come."""
    async with asyncio.timeout(PATIENCE):
        for _ in range(count):
            await accepted.acquire()


async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Greet and close."""
    writer.write(GREETING)


async def close_at_once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close at once."""


async def wait_for_close(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Say nothing until the client has gone."""
    await reader.read()


async def greet_and_stay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Greet with a line, as SMTP does, and leave the end to the client."""
    writer.write(b"220 " + GREETING + b"\r\n")
    await reader.read()


def abort_with_reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset (socket(7), SO_LINGER with a time of 0)."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextlib.contextmanager
def never_accepting(backlog: int = 0, path: str | None = None) -> Any:
    """A listening socket that nobody accepts from: the socket, and its endpoint's text."""
    with socket.socket(socket.AF_UNIX if path is not None else socket.AF_INET) as sock:
        sock.bind(path if path is not None else ("127.0.0.1", 0))
        sock.listen(backlog)
        if path is not None:
            yield sock, f"unix:{path}"
        else:
            yield sock, f"127.0.0.1:{sock.getsockname()[1]}"


# Bound and not listening, for as long as the process lives: no other test can be given its port meanwhile.
_REFUSING = socket.socket()
_REFUSING.bind(("127.0.0.1", 0))
atexit.register(_REFUSING.close)


def refused_endpoint() -> str:
    """An endpoint that refuses every connection."""
    return f"127.0.0.1:{_REFUSING.getsockname()[1]}"


@cache
def _validator() -> Any:
    schema = json.loads(files("greeter.loadtest").joinpath("report-schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def checked(report: LoadReport) -> LoadReport:
    """Check what holds for every report: the published schema, the sums, the way to JSON and back."""
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
