"""The greeting of the group ``scale``: for ``greeter serve --app``, with any number of workers.

Invariants:
- A client of one endpoint is held until all are released. A client of any other is greeted at once.
- Nothing polls. Every process that holds clients reads from a FIFO, whose end of stream releases them.
- All return the same 24 bytes.

Environment: ``HELD_ENDPOINT``, as in 127.0.0.1:9999, and ``HELD_FIFO``, the path of a FIFO that
another process has open for writing.
"""

from __future__ import annotations

import asyncio
import functools
import os
from typing import TYPE_CHECKING

from tests.benchmarks.programs.greetings import GREETING

if TYPE_CHECKING:
    from greeter import Peer


async def held(peer: Peer) -> bytes:
    """Async; waits for the release if the client came to the endpoint of held clients."""
    if peer.server == os.environ["HELD_ENDPOINT"]:
        await _released().wait()
    return GREETING


@functools.cache
def _released() -> asyncio.Event:
    """The event that is set at the end of the FIFO."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    fifo = os.open(os.environ["HELD_FIFO"], os.O_RDONLY | os.O_NONBLOCK)

    def on_end() -> None:
        loop.remove_reader(fifo)
        os.close(fifo)
        event.set()

    loop.add_reader(fifo, on_end)
    return event
