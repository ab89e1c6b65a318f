"""Servers that keep every client waiting, so that the price of one who waits can be seen.

The law: both wait for the same thing in the same way; what differs is what is around it. ``never`` is an
async greeting for ``greeter serve --app``; the program is a bare ``asyncio.start_server`` handler.

usage: held.py PORT LOOP
"""

from __future__ import annotations

import asyncio
import sys

from greeter.loops import run

_end = asyncio.Event()


async def never(_client: object) -> bytes:
    """A greeting that does not come."""
    await _end.wait()
    return b""


async def handle(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _end.wait()
    writer.close()


async def main(port: int) -> None:
    server = await asyncio.start_server(handle, "127.0.0.1", port, backlog=2048)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    run(main(int(sys.argv[1])), "uvloop" if sys.argv[2] == "uvloop" else "asyncio")
