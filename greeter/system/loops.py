"""The choice of the event loop: asyncio's, or uvloop where it is installed.

Invariants:

- The loop is chosen once, when a command starts. The library runs in whatever loop is running.
- A loop that cannot run raises GreeterError with one line.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from greeter.errors import GreeterError, MissingExtra, os_error_text
from greeter.system import interrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

LoopName = Literal["auto", "asyncio", "uvloop"]
T = TypeVar("T")

# Descriptors that a loop needs to start, to serve one listening socket and to shut down.
REQUIRED_DESCRIPTORS = {"asyncio": 6, "uvloop": 12}


def choose_loop(name: LoopName = "auto") -> tuple[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Return the name and the factory of an event loop.

    Args:
        name: ``"asyncio"``, ``"uvloop"``, or ``"auto"`` for uvloop if it is installed and else asyncio.

    Returns:
        ``"asyncio"`` or ``"uvloop"``, and a function that makes such a loop.

    Raises:
        MissingExtra: uvloop is required and not installed.
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
    """Run ``main`` to completion on a new event loop, as ``asyncio.run()`` does.

    Args:
        main: The coroutine to run. It is closed even if no loop can run.
        loop: As for ``choose_loop()``.

    Returns:
        What ``main`` returns.

    Raises:
        MissingExtra: uvloop is required and not installed.
        GreeterError: The process has too few descriptors for the loop.
    """
    try:
        name, factory = choose_loop(loop)
        _check_descriptors(name)
        interrupt.restore_keyboard_interrupt()
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main)
    finally:
        main.close()  # or Python warns that it was never awaited


async def run_in_thread(function: Callable[[], T]) -> T:
    """Run ``function`` in a thread of its own, and return what it returns.

    The process does not wait for the thread when it exits, as it would for one of ``asyncio.to_thread()``: a
    file system that hangs must not delay a stop.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def finish(value: T | None, error: BaseException | None) -> None:
        if result.done():  # cancelled
            return
        if error is None:
            result.set_result(value)  # type: ignore[arg-type]  # without an error, it is a T
        else:
            result.set_exception(error)

    def run() -> None:
        outcome: tuple[T | None, BaseException | None]
        try:
            outcome = function(), None
        except BaseException as error:
            outcome = None, error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish, *outcome)

    threading.Thread(target=run, name="greeter-read", daemon=True).start()
    return await result


def _check_descriptors(name: str) -> None:
    """Raise GreeterError if the loop would run out of descriptors, on which uvloop calls abort()."""
    taken: list[int] = []
    try:
        while len(taken) < REQUIRED_DESCRIPTORS[name]:
            taken += os.pipe()
    except OSError as error:
        missing = f"it needs {REQUIRED_DESCRIPTORS[name]} more (ulimit -n)"
        raise GreeterError(f"cannot run on {name}: {os_error_text(error)}; {missing}") from error
    finally:
        for fd in taken:
            os.close(fd)
