"""Which event loop to run on: asyncio's own, or uvloop where it is installed.

The law: a loop is chosen once, at the top, and nothing below asks which one it is. It can run, or one line
says why not.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from greeter.errors import GreeterError, MissingExtra, reason
from greeter.system import interrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

LoopName = Literal["auto", "asyncio", "uvloop"]
T = TypeVar("T")

# With one listening socket, and what it takes to close that in order.
REQUIRED_DESCRIPTORS = {"asyncio": 6, "uvloop": 12}


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
    """Run ``main`` to its end on the chosen loop, as asyncio.run does.

    Raises GreeterError where no such loop can run: without uvloop, or with too few descriptors for it.
    """
    try:
        name, factory = choose_loop(loop)
        _check_descriptors(name)
        interrupt.restore_keyboard_interrupt()
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main)
    finally:
        main.close()  # or Python would warn of one that never began


def _check_descriptors(name: str) -> None:
    """A loop that runs out of them while it is made ends in a way of its own, be it by SIGABRT."""
    taken: list[int] = []
    try:
        while len(taken) < REQUIRED_DESCRIPTORS[name]:
            taken += os.pipe()
    except OSError as error:
        line = (
            f"cannot run on {name}: {reason(error)}; it needs {REQUIRED_DESCRIPTORS[name]} more (ulimit -n)"
        )
        raise GreeterError(line) from error
    finally:
        for fd in taken:
            os.close(fd)
