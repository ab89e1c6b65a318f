"""The choice of the event loop, with and without uvloop."""

from __future__ import annotations

import asyncio
import sys

import pytest

from greeter import MissingExtra
from greeter.loops import LoopName, choose_loop, run


async def running() -> str:
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


@pytest.mark.parametrize("name", ["auto", "uvloop"])
def test_auto_is_uvloop_where_it_is_installed(name: LoopName) -> None:
    pytest.importorskip("uvloop", reason="uvloop is not installed")
    assert choose_loop(name)[0] == "uvloop"
    assert run(running(), name) == "uvloop"


def test_asyncio_can_be_asked_for() -> None:
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
        run(running(), "uvloop")  # the coroutine is closed, or the test run would warn
    assert caught.value.extra == "uvloop"
