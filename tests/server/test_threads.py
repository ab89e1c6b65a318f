"""Threads for sync callables: what waits for one, and what is left of a client that is gone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading
from typing import TYPE_CHECKING, Literal

import pytest

from greeter import Greeting, GreetingError, Peer, serve
from greeter.server.threads import THREADS, CallableThreads
from tests.conftest import PATIENCE
from tests.support.peers import connect, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PEER = Peer("192.0.2.1", 1, socket.AF_INET)


@pytest.fixture
def bell() -> Iterator[threading.Event]:
    """What callables hang on. It rings at the end of the test, so that their threads end."""
    bell = threading.Event()
    yield bell
    bell.set()


@pytest.fixture
async def threads() -> AsyncIterator[CallableThreads]:
    threads = CallableThreads(asyncio.get_running_loop())
    yield threads
    threads.close()


def peers_alive() -> int:
    gc.collect()
    return sum(isinstance(each, Peer) for each in gc.get_objects())


@pytest.mark.parametrize("accept", ["direct", "streams"])
async def test_clients_that_hung_callables_failed_leave_nothing_behind(
    accept: Literal["direct", "streams"], bell: threading.Event
) -> None:
    def hang(_: Peer) -> str:
        bell.wait(10 * PATIENCE)
        return ""

    clients = THREADS + 100
    before = peers_alive()
    async with serve(
        hang,
        port=0,
        accept=accept,
        greet_timeout=0.2,
        linger_timeout=0.2,
        drain_timeout=0.2,
        access_log=False,
    ) as server:
        with contextlib.ExitStack() as held:
            for _ in range(clients):
                held.enter_context(await connect(server.port))
            await until(lambda: server.stats.failed["greet_timeout"] == clients, "all have failed")
            await until(lambda: server.stats.open == 0, "all are closed")
        threads = server._conversation._threads
        assert threads is not None
        await until(lambda: not threads._waiting, "nothing waits for a thread")
        assert peers_alive() - before <= THREADS


async def test_what_waits_for_a_thread_runs_in_order_and_without_what_was_cancelled(
    bell: threading.Event, threads: CallableThreads
) -> None:
    order: list[int] = []

    def make(number: int) -> Greeting:
        def greeting(_: Peer) -> str:
            if number < THREADS:
                bell.wait(PATIENCE)
            else:
                order.append(number)
            return str(number)

        return Greeting(greeting)

    work = [threads.begin(make(number), PEER) for number in range(THREADS + 6)]
    for number in (1, THREADS + 1, THREADS + 4):  # one that runs already, and two that wait
        work[number].cancel()
    bell.set()
    results = await asyncio.gather(*work, return_exceptions=True)
    assert [number for number, result in enumerate(results) if isinstance(result, BaseException)] == [
        1,
        THREADS + 1,
        THREADS + 4,
    ]
    assert results[-1] == str(THREADS + 5).encode()
    assert sorted(order) == [THREADS, THREADS + 2, THREADS + 3, THREADS + 5]
    await until(lambda: threads._running == 0, "all have returned")


async def test_an_error_reaches_the_client_that_waits_for_it(threads: CallableThreads) -> None:
    def broken(_: Peer) -> str:
        raise ZeroDivisionError("a bug")

    with pytest.raises(GreetingError, match="raised ZeroDivisionError: a bug"):
        await threads.begin(Greeting(broken), PEER)
    assert await threads.begin(Greeting(lambda _: "fine"), PEER) == b"fine"


async def test_without_a_thread_nothing_stays_in_a_queue(
    threads: CallableThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    called: list[Peer] = []

    def greeting(peer: Peer) -> str:
        called.append(peer)
        return "hello"

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        for _ in range(3):
            with pytest.raises(GreetingError, match="can't start new thread"):
                threads.begin(Greeting(greeting), PEER)
    assert await threads.begin(Greeting(greeting), PEER) == b"hello"
    assert called == [PEER], "those that failed are not called later"


async def test_a_thread_that_runs_serves_those_that_get_none_of_their_own(
    bell: threading.Event, threads: CallableThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def greeting(_: Peer) -> str:
        bell.wait(PATIENCE)
        return threading.current_thread().name

    first = threads.begin(Greeting(greeting), PEER)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        others = [threads.begin(Greeting(greeting), PEER) for _ in range(3)]
    bell.set()
    assert set(await asyncio.gather(*others)) == {await first}
    await until(lambda: threads._running == 0, "all have returned")
