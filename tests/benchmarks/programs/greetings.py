"""The greeting callables that the benchmarks serve: for ``greeter serve --app``, and for pattern.py.

Invariants:
- All return the same 24 bytes; they differ in how long that takes and in where they wait.
"""

from __future__ import annotations

import asyncio
import time

GREETING = b"Thank you for connecting"
WAIT_SECONDS = 0.005


async def at_once(_peer: object) -> bytes:
    """Async, and returns without waiting."""
    return GREETING


async def after_5_ms(_peer: object) -> bytes:
    """Async, and waits in the event loop."""
    await asyncio.sleep(WAIT_SECONDS)
    return GREETING


def slow_call(_peer: object) -> bytes:
    """Blocks, so a server has to call it in a thread."""
    time.sleep(WAIT_SECONDS)
    return GREETING
