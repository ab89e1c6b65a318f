"""Servers that keep every client waiting, so that the memory of a waiting client can be measured.

Invariants:
- Both wait for the same event in the same way; only the code around it differs. ``never`` is an async
  greeting for ``greeter serve --app``; the program is a bare ``asyncio.start_server`` handler.

usage: held.py PORT LOOP
"""

from __future__ import annotations

import asyncio
import sys

from tests.benchmarks.programs.loops import run

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
    run(main(int(sys.argv[1])), sys.argv[2])
