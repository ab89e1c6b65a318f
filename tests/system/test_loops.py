"""The choice of the event loop, with and without uvloop."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from greeter import GreeterError, MissingExtra
from greeter.system.loops import REQUIRED_DESCRIPTORS, LoopName, choose_loop, run, run_in_thread
from tests.conftest import loop_factories, one_loop
from tests.support.service_peers import started_by_init


async def running() -> str:
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


@pytest.mark.parametrize("name", ["auto", "uvloop"])
def test_auto_is_uvloop_where_it_is_installed(name: LoopName) -> None:
    pytest.importorskip("uvloop", reason="uvloop is not installed")
    assert choose_loop(name)[0] == "uvloop"
    assert run(running(), name) == "uvloop"


def test_asyncio_can_be_chosen() -> None:
    assert choose_loop("asyncio")[0] == "asyncio"
    assert run(running(), "asyncio") == "asyncio"


def test_without_uvloop_auto_is_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert choose_loop()[0] == "asyncio"
    assert run(running()) == "asyncio"


def test_uvloop_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with pytest.raises(
        MissingExtra, match=r"^--loop uvloop needs .*: pip install '\.\[uvloop\]' in greeter's source tree$"
    ) as caught:
        run(running(), "uvloop")  # the coroutine is closed, or Python would warn
    assert caught.value.extra == "uvloop"


@one_loop  # a child of uvloop may inherit one more descriptor
@pytest.mark.parametrize("loop", loop_factories())
async def test_too_few_descriptors_are_an_error_of_one_line(loop: str) -> None:
    """Three are stdin, stdout and stderr. With fewer than five, Python itself does not start."""
    args = ("serve", "--listen", "127.0.0.1:0", "--loop", loop)

    async def refused(files: int) -> None:
        async with started_by_init(*args, files=files, ready="") as service:
            assert await service.ended() == 1
        (line,) = service.lines
        assert line.startswith(f"greeter: cannot run on {loop}: too many open files; it needs ")

    async def serves() -> None:
        async with started_by_init(*args, files=3 + REQUIRED_DESCRIPTORS[loop]) as service:
            assert await service.stop() == 0
        assert service.lines[-1] == "Stopped: 0 greeted of 0 accepted, 0 failed"

    await asyncio.gather(serves(), *map(refused, {5, 6, 7, 2 + REQUIRED_DESCRIPTORS[loop]}))


def test_a_coroutine_that_cannot_run_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REQUIRED_DESCRIPTORS, "asyncio", 1 << 20)
    with pytest.raises(GreeterError, match="^cannot run on asyncio: too many open files; "):
        run(running(), "asyncio")  # or Python would warn


async def test_a_thread_that_cannot_be_started_is_an_error_of_the_system() -> None:
    before = threading.stack_size(1 << 46)  # more than there is address space
    try:
        with pytest.raises(OSError, match="temporarily unavailable"):
            await run_in_thread(int)
    finally:
        threading.stack_size(before)
