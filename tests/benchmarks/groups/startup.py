"""How long a start takes: an import, and being greeted from the command line.

Invariants:
- Time is wall-clock time, which is what a user waits for. Each command runs in a new process, in turn, with
  its files in the page cache.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.benchmarks import servers
from tests.benchmarks.bench import counted, rotated
from tests.benchmarks.figures import Table, compared

if TYPE_CHECKING:
    from tests.benchmarks.bench import Bench

IMPORTS = "import asyncio, ssl"
GREETER = "from greeter import greet, serve"
SOCKET = "a socket one-liner"
ASYNCIO = "an asyncio one-liner"
COMMAND = "greeter greet"
IMPORT_LIMIT = 1.25
COMMAND_LIMIT = 2.5

_ASYNCIO = """\
import asyncio
async def main():
    reader, writer = await asyncio.open_connection("127.0.0.1", {port})
    print((await reader.read()).decode())
    writer.close()
asyncio.run(main())
"""
_SOCKET = 'import socket; print(socket.create_connection(("127.0.0.1", {port})).recv(1024).decode())'
# What the installed script does, without depending on where it was installed.
_COMMAND = "from greeter.__main__ import main; main()"


def run(bench: Bench) -> list[Table]:
    with bench.serving([servers.greeter(servers.DIRECT, "asyncio")], measured=False) as (server,):
        commands = {
            "nothing": ["pass"],
            IMPORTS: [IMPORTS],
            GREETER: [GREETER],  # names load what they need as they are asked for
            SOCKET: [_SOCKET.format(port=server.port)],
            ASYNCIO: [_ASYNCIO.format(port=server.port)],
            COMMAND: [_COMMAND, "greet", f"127.0.0.1:{server.port}"],
        }
        for arguments in commands.values():  # once, for the caches
            bench.output("-c", *arguments)
        times: dict[str, list[float]] = {name: [] for name in commands}
        for number in bench.rounds(21, 3, seconds=30):
            for name in rotated(list(commands), number):
                begin = time.perf_counter()
                bench.output("-c", *commands[name])
                times[name].append((time.perf_counter() - begin) * 1e3)
    imports = {name: times[name] for name in ("nothing", IMPORTS, GREETER)}
    rounds = counted(len(times[COMMAND]), "round")
    return [
        Table(
            "import",
            f"from nothing to imported and ended, {rounds}",
            "ms",
            compared(imports, IMPORTS, claims={GREETER: IMPORT_LIMIT}),
            IMPORTS,
        ),
        Table(
            "command",
            f"from nothing to greeted and ended, {rounds}",
            "ms",
            compared(
                {name: times[name] for name in (ASYNCIO, COMMAND)}, ASYNCIO, claims={COMMAND: COMMAND_LIMIT}
            ),
            ASYNCIO,
        ),
        Table(
            "command_socket",
            "the same, beside a client that neither waits for the end nor has a deadline",
            "ms",
            compared({name: times[name] for name in (SOCKET, COMMAND)}, SOCKET),
            SOCKET,
        ),
    ]
