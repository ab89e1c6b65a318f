"""The choice of the event loop: asyncio's, or uvloop where it is installed.

Invariants:

- The loop is chosen once, when a command starts. The library runs in whatever loop is running.
- A loop that cannot run raises GreeterError with one line.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import inspect
import logging
import os
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from greeter.errors import GreeterError, MissingExtra, os_error_text
from greeter.system import interrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

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
        GreeterError: The process has too few descriptors for the loop, or the system no memory.
    """
    try:
        name, factory = choose_loop(loop)
        _check_descriptors(name)
        interrupt.restore_keyboard_interrupt()
        runner = asyncio.Runner(loop_factory=functools.partial(_make_loop, factory))
        try:
            return runner.run(main)
        except OSError as error:
            if inspect.getcoroutinestate(main) != inspect.CORO_CREATED:  # it is of ``main``
                raise
            failure = error
        finally:
            _close(runner)
        with _deleting_a_loop():
            text = os_error_text(failure)
            del failure, runner  # the traceback has the loop
            gc.collect()
        raise GreeterError(f"cannot run on {name}: {text}")
    finally:
        main.close()  # or Python warns that it was never awaited


def _make_loop(factory: Callable[[], asyncio.AbstractEventLoop]) -> asyncio.AbstractEventLoop:
    with _deleting_a_loop():  # if it cannot be made
        return factory()


def _close(runner: asyncio.Runner) -> None:
    """Close the event loop of ``runner``, but for one that the system does not let run any more.

    To close it, it has to run, and for that uvloop opens a socket pair. If that fails it counts as running,
    and so can never be closed. The process is about to exit.
    """
    try:
        runner.close()
    except (OSError, RuntimeError) as error:
        with _deleting_a_loop():
            error.__context__ = error.__traceback__ = None  # which have the loop
            vars(runner).clear()
            gc.collect()


@contextlib.contextmanager
def _deleting_a_loop() -> Iterator[None]:
    """Delete an event loop that could be neither made nor closed: asyncio reports that, with tracebacks."""
    log, hook = logging.getLogger("asyncio"), sys.unraisablehook
    log.disabled, sys.unraisablehook = True, lambda _: None
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        log.disabled, sys.unraisablehook = False, hook


async def run_in_thread(function: Callable[[], T]) -> T:
    """Run ``function`` in a thread of its own, and return what it returns.

    The process does not wait for the thread when it exits, as it would for one of ``asyncio.to_thread()``: a
    file system or a resolver that hangs must not delay a stop.

    Raises:
        OSError: The system cannot start a thread (EAGAIN).
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

    try:
        threading.Thread(target=run, name="greeter-thread", daemon=True).start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
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
