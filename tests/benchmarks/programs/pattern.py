"""The server as the documentation of asyncio's streams writes it: a coroutine for each client.

The law: what a careful reader of that page would write, and nothing else. It writes no log, its queue is
as long as ours, and a client that speaks first is reset by its close.

usage: pattern.py PORT LOOP
"""

from __future__ import annotations

import asyncio
import sys

from greeter.loops import run


async def handle(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"Thank you for connecting")
    await writer.drain()
    writer.close()


async def main(port: int) -> None:
    server = await asyncio.start_server(handle, "127.0.0.1", port, backlog=2048)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    run(main(int(sys.argv[1])), "uvloop" if sys.argv[2] == "uvloop" else "asyncio")
