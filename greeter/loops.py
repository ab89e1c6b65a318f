"""Which event loop to run on: asyncio's own, or uvloop where it is installed.

The law: a loop is chosen once, at the top, and nothing below asks which one it is.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from greeter.errors import MissingExtra

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

LoopName = Literal["auto", "asyncio", "uvloop"]
T = TypeVar("T")


def choose_loop(name: LoopName = "auto") -> tuple[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The name and the factory of the loop that ``name`` stands for; "auto" takes uvloop if it is there.

    Raises MissingExtra when uvloop is asked for and not installed.
    """
    if name != "asyncio":
        try:
            import uvloop

            return "uvloop", uvloop.new_event_loop
        except ImportError:
            if name == "uvloop":
                raise MissingExtra("--loop uvloop", "uvloop") from None
    return "asyncio", asyncio.new_event_loop


def run(main: Coroutine[Any, Any, T], loop: LoopName = "auto") -> T:
    """Run ``main`` to its end on the chosen loop, as asyncio.run does."""
    try:
        factory = choose_loop(loop)[1]
    except MissingExtra:
        main.close()
        raise
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)
