"""The server as the documentation of asyncio's streams writes it: a handler coroutine for each client.

Invariants:
- It is what a careful reader of that page would write, and nothing else: no log, no deadlines, no lingering
  close, so a client that sends first is reset.
- Its listen backlog is as long as greeter's.
- An async greeting is awaited; a blocking one is called in a thread (``asyncio.to_thread``).

usage: pattern.py [--app NAME] [--times N] [--tls CERTIFICATE KEY] PORT LOOP
  NAME  a callable of greetings.py; without one the greeting is fixed
  N     the fixed greeting is the usual one so many times
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import ssl
from typing import TYPE_CHECKING

from tests.benchmarks.programs import greetings
from tests.benchmarks.programs.loops import run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def handler(name: str | None, times: int) -> Handler:
    """The handler that greets with the callable of that name; without one, with a fixed greeting."""
    data = greetings.GREETING * times

    async def fixed(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    if name is None:
        return fixed
    greeting = getattr(greetings, name)

    async def awaited(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await greeting(writer.get_extra_info("peername")))
        await writer.drain()
        writer.close()

    async def in_thread(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await asyncio.to_thread(greeting, writer.get_extra_info("peername")))
        await writer.drain()
        writer.close()

    return awaited if inspect.iscoroutinefunction(greeting) else in_thread


async def main(options: argparse.Namespace) -> None:
    context = None
    if options.tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*options.tls)
    server = await asyncio.start_server(
        handler(options.app, options.times), "127.0.0.1", options.port, backlog=2048, ssl=context
    )
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--app")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--tls", nargs=2)
    parser.add_argument("port", type=int)
    parser.add_argument("loop")
    arguments = parser.parse_args()
    run(main(arguments), arguments.loop)
