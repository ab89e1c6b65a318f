"""The conversation with one client, on both paths: slow, failing and large greetings."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

import greeter
from greeter import Greeting, Peer, serve
from greeter.server.stream_connection import CHUNK_SIZE
from greeter.server.threads import THREADS
from tests.conftest import PATIENCE
from tests.support.peers import Outcome, connect, read_to_end, reset, send_then_read, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from greeter.server import Server, Serving

    Serve = Callable[..., Serving]

NOTHING = Outcome(b"", reset=False)
FINE = Outcome(b"fine", reset=False)

pytestmark = pytest.mark.usefixtures("no_fd_leak")


@pytest.fixture
def here(accept: str) -> Serve:
    """serve() on a free port and on the path under test, without an access log or a near deadline."""
    defaults = {"greet_timeout": PATIENCE, "linger_timeout": PATIENCE, "access_log": False, "port": 0}

    def start(greeting: Any, **options: Any) -> Serving:
        return serve(greeting, **{**defaults, "accept": accept, **options})

    return start


async def all_at_once(server: Server, count: int) -> list[Outcome]:
    """What so many clients receive that are all in the accept queue before one of them is accepted."""
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(count)]
    for client in clients:
        client.setblocking(False)
    return await asyncio.gather(*map(read_to_end, clients))


def it_adds_up(server: Server) -> bool:
    stats = server.stats
    return stats.accepted == stats.greeted + sum(stats.failed.values())


class Bell:
    """An async greeting that waits for a bell, and the clients that it had to give up."""

    def __init__(self) -> None:
        self.rung = asyncio.Event()
        self.waiting = 0
        self.cancelled: list[int] = []

    async def __call__(self, peer: Peer) -> str:
        self.waiting += 1
        try:
            await self.rung.wait()
        except asyncio.CancelledError:
            self.cancelled.append(peer.count)
            raise
        finally:
            self.waiting -= 1
        return f"Hello {peer.port}"


# -- async greetings ---------------------------------------------------------------------------------------


async def test_many_may_wait_at_once(here: Serve) -> None:
    bell = Bell()
    async with here(bell) as server:
        clients = [await connect(server.port) for _ in range(100)]
        ports = [client.getsockname()[1] for client in clients]
        await until(lambda: bell.waiting == 100, "all of them wait")
        assert (server.stats.open, server.stats.greeted) == (100, 0)
        bell.rung.set()
        outcomes = await asyncio.gather(*map(read_to_end, clients))
        assert outcomes == [Outcome(f"Hello {port}".encode(), reset=False) for port in ports]
        assert server.stats.greeted == 100


@pytest.mark.parametrize("kind", ["async", "thread", "quick"])
async def test_each_of_many_at_once_has_its_own_number(kind: str, here: Serve) -> None:
    """Not that of the last client that had been accepted when the greeting began."""

    async def later(peer: Peer) -> str:
        return str(peer.count)

    def now(peer: Peer) -> str:
        return str(peer.count)

    async with here(Greeting(now, quick=True)) as server:
        server.update(greeting=later if kind == "async" else Greeting(now, quick=kind == "quick"))
        with contextlib.ExitStack() as stack:
            knocks = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
            for client in knocks:
                stack.enter_context(client).setblocking(False)
            outcomes = await asyncio.gather(*map(read_to_end, knocks))
    assert sorted(int(outcome.data) for outcome in outcomes) == list(range(1, 51))


@pytest.mark.parametrize("answer", ["raise", "type", "encoding"])
async def test_one_that_fails_costs_its_client_only(
    answer: str, caplog: pytest.LogCaptureFixture, here: Serve
) -> None:
    async def greeting(peer: Peer) -> Any:
        await asyncio.sleep(0)
        if peer.count > 1:
            return "fine"
        if answer == "raise":
            raise ZeroDivisionError("a bug\nforged line")
        return 42 if answer == "type" else "\ud800"

    async with here(greeting) as server:
        with caplog.at_level(logging.WARNING):
            assert await send_then_read(server.port, 18) == NOTHING
        assert await send_then_read(server.port, 18) == Outcome(b"fine", reset=False)
        assert server.stats.failed["greeting_error"] == server.stats.greeted == 1
        (record,) = caplog.records
        why = {"raise": "raised ZeroDivisionError: a bug", "type": "returned int", "encoding": "UTF-8"}
        assert why[answer] in record.getMessage()
        await until(lambda: server.stats.open == 0, "both have left")
        assert it_adds_up(server)


async def test_one_that_fails_when_its_client_has_left_says_nothing(
    caplog: pytest.LogCaptureFixture, here: Serve
) -> None:
    bell = asyncio.Event()

    async def greeting(peer: Peer) -> str:
        try:
            await bell.wait()
        finally:
            raise ZeroDivisionError

    async with here(greeting) as server:
        client = await connect(server.port)
        await until(lambda: server.stats.accepted == 1, "accepted")
        reset(client)
        await until(lambda: server.stats.open == 0, "it has left")
        assert {why: n for why, n in server.stats.failed.items() if n} == {"reset": 1}
    assert caplog.records == []


class Foreign(BaseException):
    """What a library that is not asyncio's may raise to end its own coroutine, as gevent does."""


class Wordless(Foreign):
    """One that cannot even be turned into text."""

    def __str__(self) -> str:
        raise Foreign


class Text(str):
    """A greeting that fails when it is encoded, which is after its callable has returned."""

    def encode(self, *_: object) -> bytes:
        raise Foreign


def fails(kind: str) -> None:
    """End a callable in a way that must cost its own client only."""
    if kind == "cancels itself":
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
    else:
        errors: dict[str, type[BaseException]] = {
            "CancelledError": asyncio.CancelledError,
            "SystemExit": SystemExit,
            "GeneratorExit": GeneratorExit,
            "StopIteration": StopIteration,
            "Foreign": Foreign,
            "GreetingError": greeter.GreetingError,
            "Wordless": Wordless,
        }
        raise errors[kind]


FAILURES = ["CancelledError", "SystemExit", "GeneratorExit", "StopIteration", "Foreign", "GreetingError"]
FAILURES += ["Wordless"]


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after a wait"])
@pytest.mark.parametrize("kind", [*FAILURES, "cancels itself"])
async def test_an_async_callable_that_fails_in_any_way_costs_its_own_client_only(
    kind: str, waits: bool, here: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def greeting(peer: Peer) -> str:
        if waits:
            await asyncio.sleep(0)
        if peer.count % 2:
            fails(kind)
            if waits:
                await asyncio.sleep(0)  # where the cancellation arrives
        return "fine"

    async with here(greeting) as server:
        outcomes = await all_at_once(server, 20)
        assert sorted(outcomes, key=lambda outcome: outcome.data) == [NOTHING] * 10 + [FINE] * 10
        await until(lambda: server.stats.open == 0, "all are closed")
        assert (server.stats.failed["greeting_error"], server.stats.greeted) == (10, 10)
    assert len(caplog.records) == 10
    assert {record.name for record in caplog.records} == {"greeter"}


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("kind", FAILURES)
async def test_a_sync_callable_that_fails_in_any_way_costs_its_own_client_only(
    kind: str, quick: bool, here: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    def greeting(peer: Peer) -> str:
        if peer.count % 2:
            fails(kind)
        return "fine"

    async with here(Greeting(greeting, quick=quick)) as server:
        outcomes = await all_at_once(server, 20)
        assert sorted(outcomes, key=lambda outcome: outcome.data) == [NOTHING] * 10 + [FINE] * 10
        assert (server.stats.failed["greeting_error"], server.stats.greeted) == (10, 10)
    assert len(caplog.records) == 10


@pytest.mark.parametrize("kind", ["quick", "in a thread", "async"])
async def test_what_a_callable_returns_fails_its_own_client_only(kind: str, here: Serve) -> None:
    def now(peer: Peer) -> str:
        return Text("never sent") if peer.count % 2 else "fine"

    async def later(peer: Peer) -> str:
        return now(peer)

    greetings: dict[str, Any] = {"in a thread": now, "quick": Greeting(now, quick=True), "async": later}
    async with here(greetings[kind]) as server:
        outcomes = await all_at_once(server, 20)
        assert sorted(outcomes, key=lambda outcome: outcome.data) == [NOTHING] * 10 + [FINE] * 10
        assert (server.stats.failed["greeting_error"], server.stats.greeted) == (10, 10)


variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)


@pytest.mark.parametrize("kind", ["at once", "after a wait", "in a thread", "quick"])
async def test_what_a_callable_sets_in_its_context_does_not_reach_the_next(kind: str, here: Serve) -> None:
    def now(_: Peer) -> str:
        variable.set(variable.get() + 1)
        return str(variable.get())

    async def later(peer: Peer) -> str:
        now(peer)
        if kind == "after a wait":
            await asyncio.sleep(0)
        return str(variable.get())

    greetings: dict[str, Any] = {"in a thread": now, "quick": Greeting(now, quick=True)}
    async with here(greetings.get(kind, later)) as server:
        assert set(await all_at_once(server, 40)) == {Outcome(b"1", reset=False)}
    assert variable.get() == 0


async def test_an_async_callable_runs_in_a_task_that_is_its_own(here: Serve) -> None:
    """As far as it can tell: what asyncio offers to tasks works in it."""

    async def greeting(peer: Peer) -> str:
        task = asyncio.current_task()
        if peer.count % 3 == 0:
            return "at once"
        if peer.count % 3 == 1:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0):
                    await asyncio.sleep(PATIENCE)
        else:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(0))
        assert asyncio.current_task() is task
        return "waited"

    async with here(greeting) as server:
        outcomes = await all_at_once(server, 30)
        assert sorted(outcome.data for outcome in outcomes) == [b"at once"] * 10 + [b"waited"] * 20


async def test_a_callable_that_ignores_its_cancellation_outlives_its_client_alone(
    here: Serve, give_time: Callable[[Server], None]
) -> None:
    over = asyncio.Event()
    cancelled = 0

    async def greeting(peer: Peer) -> str:
        nonlocal cancelled
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                cancelled += 1
        return "too late"

    async with here(greeting, greet_timeout=0.05) as server:
        client = await connect(server.port)
        assert (await read_to_end(client)).data == b""
        await until(lambda: cancelled == 1, "it was told")
        assert server.stats.open == 0
        give_time(server)
        server.update(greeting=b"fine")
        assert await send_then_read(server.port, 18) == FINE
        over.set()
        assert server.stats.failed["greet_timeout"] == server.stats.greeted == 1


@pytest.mark.parametrize("before", ["fixed", "template", "quick", "thread", "async"])
@pytest.mark.parametrize("after", ["fixed", "thread", "async"])
async def test_a_greeting_may_change_its_kind_while_clients_are_waiting_for_it(
    before: str, after: str, here: Serve
) -> None:
    async def later(_: Peer) -> str:
        await asyncio.sleep(0)
        return "fine"

    greetings = {
        "fixed": Greeting("fine"),
        "template": Greeting("fine$$"),
        "quick": Greeting(lambda _: "fine", quick=True),
        "thread": Greeting(lambda _: "fine"),
        "async": Greeting(later),
    }
    async with here(greetings[before]) as server:
        for kind in (before, after, before):
            clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(10)]
            await asyncio.sleep(0)  # some are accepted, some are not
            server.update(greeting=greetings[kind])
            for client in clients:
                client.setblocking(False)
            outcomes = await asyncio.gather(*map(read_to_end, clients))
            assert {outcome.data.removesuffix(b"$") for outcome in outcomes} == {b"fine"}
        assert server.stats.greeted == 30


async def test_early_leavers_cancel_their_callables_and_no_others(here: Serve) -> None:
    bell = Bell()
    async with here(bell) as server:
        stay = [await connect(server.port) for _ in range(50)]
        leave = [await connect(server.port) for _ in range(50)]
        await until(lambda: bell.waiting == 100, "all wait")
        for client in leave:
            reset(client)
        await until(lambda: len(bell.cancelled) == 50, "those that left are cancelled")
        assert (server.stats.failed["reset"], server.stats.open) == (50, 50)
        bell.rung.set()
        outcomes = await asyncio.gather(*map(read_to_end, stay))
        assert all(outcome.data.startswith(b"Hello ") for outcome in outcomes)
        assert (server.stats.greeted, len(bell.cancelled)) == (50, 50)


async def test_one_that_takes_too_long_is_given_up_alone(
    caplog: pytest.LogCaptureFixture, here: Serve, give_time: Callable[[Server], None]
) -> None:
    bell = Bell()

    async def greeting(peer: Peer) -> str:
        return await bell(peer) if peer.count == 1 else "fine"

    async with here(greeting, greet_timeout=0.2) as server:
        late = await connect(server.port)
        name = late.getsockname()
        await until(lambda: bell.waiting == 1, "it waits")
        give_time(server)
        assert await send_then_read(server.port, 18) == Outcome(b"fine", reset=False)
        assert (await read_to_end(late)).data == b""
        await until(lambda: server.stats.open == 0, "both have left")
        assert bell.cancelled == [1]
        assert server.stats.failed["greet_timeout"] == server.stats.greeted == 1
        assert it_adds_up(server)
    assert [record.getMessage() for record in caplog.records] == [f"{name}: not greeted within 0.2 s"]


async def test_the_greeting_of_a_client_that_leaves_is_given_up(here: Serve) -> None:
    bell = Bell()
    async with here(bell) as server:
        client = await connect(server.port)
        await until(lambda: bell.waiting == 1, "it waits")
        reset(client)
        await until(lambda: bell.waiting == 0, "it is given up")
        assert bell.cancelled == [1]
        assert {why: n for why, n in server.stats.failed.items() if n} == {"reset": 1}
        await until(lambda: server.stats.open == 0, "it is closed")


async def test_a_client_may_end_its_side_while_it_waits(here: Serve) -> None:
    bell = Bell()
    async with here(bell) as server:
        client = await connect(server.port)
        port = client.getsockname()[1]
        client.shutdown(socket.SHUT_WR)
        await until(lambda: bell.waiting == 1, "it waits")
        bell.rung.set()
        assert await read_to_end(client) == Outcome(f"Hello {port}".encode(), reset=False)
        await until(lambda: server.stats.open == 0, "it has left")
        assert (server.stats.greeted, server.stats.linger_timeouts) == (1, 0)


async def test_a_client_may_say_a_lot_while_it_waits(here: Serve) -> None:
    bell = Bell()
    async with here(bell) as server:
        loop = asyncio.get_running_loop()
        client = await connect(server.port)
        port = client.getsockname()[1]
        await loop.sock_sendall(client, b"x" * 1_000_000)
        bell.rung.set()
        assert await read_to_end(client) == Outcome(f"Hello {port}".encode(), reset=False)
        assert server.stats.greeted == 1


async def test_those_who_still_wait_at_the_end_are_cut_off(
    caplog: pytest.LogCaptureFixture, here: Serve
) -> None:
    bell = Bell()
    server = await here(bell)
    clients = [await connect(server.port) for _ in range(3)]
    await until(lambda: bell.waiting == 3, "they wait")
    assert await server.drain(0.05) is False
    await until(lambda: bell.waiting == 0, "all are given up")
    assert bell.cancelled == [1, 2, 3]
    assert server.stats.failed["aborted"] == 3
    assert it_adds_up(server)
    assert "aborted 3 connections" in caplog.text
    for client in clients:
        client.close()


# -- sync greetings that may wait --------------------------------------------------------------------------


@pytest.fixture
def bell() -> Iterator[threading.Event]:
    """Rung at the end at the latest, so that no thread is left behind."""
    bell = threading.Event()
    yield bell
    bell.set()


async def test_a_sync_greeting_runs_in_a_thread_and_holds_up_no_other_client(
    bell: threading.Event, here: Serve
) -> None:
    threads: list[str] = []

    def greeting(peer: Peer) -> str:
        threads.append(threading.current_thread().name)
        if peer.count == 1:
            assert bell.wait(PATIENCE)
        return f"Hello {peer.count}"

    async with here(greeting) as server:
        first = await connect(server.port)
        await until(lambda: len(threads) == 1, "it waits in its thread")
        for count in (2, 3, 4):
            assert await send_then_read(server.port, 18) == Outcome(f"Hello {count}".encode(), reset=False)
        bell.set()
        assert await read_to_end(first) == Outcome(b"Hello 1", reset=False)
    assert len(threads) == 4
    assert all(name.startswith("greeter-callable") for name in threads)


async def test_a_thread_that_is_stuck_costs_its_client_only(
    bell: threading.Event, here: Serve, give_time: Callable[[Server], None]
) -> None:
    def greeting(peer: Peer) -> str:
        if peer.count == 1:
            bell.wait()
        return "fine"

    async with here(greeting, greet_timeout=0.2) as server:
        stuck = await connect(server.port)
        await until(lambda: server.stats.accepted == 1, "accepted")
        give_time(server)
        assert await send_then_read(server.port, 18) == Outcome(b"fine", reset=False)
        assert (await read_to_end(stuck)).data == b""
        assert await send_then_read(server.port, 18) == Outcome(b"fine", reset=False)
        assert (server.stats.failed["greet_timeout"], server.stats.greeted) == (1, 2)


@pytest.mark.parametrize("answer", ["raise", "type", "awaitable"])
async def test_a_thread_that_fails_costs_its_client_only(
    answer: str, caplog: pytest.LogCaptureFixture, here: Serve
) -> None:
    async def promise() -> str:
        return "promised"

    def greeting(peer: Peer) -> Any:
        if peer.count > 1:
            return "fine"
        if answer == "raise":
            raise ZeroDivisionError("a bug")
        return 42 if answer == "type" else promise()

    async with here(greeting) as server:
        assert await send_then_read(server.port, 18) == NOTHING
        assert await send_then_read(server.port, 18) == Outcome(b"fine", reset=False)
        assert server.stats.failed["greeting_error"] == server.stats.greeted == 1
    why = {"raise": "raised ZeroDivisionError: a bug", "type": "returned int", "awaitable": "async def"}
    (record,) = caplog.records
    assert why[answer] in record.getMessage()


async def test_a_server_that_closes_has_threads_for_those_who_are_here(
    bell: threading.Event, here: Serve
) -> None:
    def greeting(_: Peer) -> str:
        bell.wait(PATIENCE)
        return "Hello"

    server = await here(greeting)
    inside = [await connect(server.port) for _ in range(THREADS + 3)]  # of whom some wait for a thread
    await until(lambda: server.stats.accepted == len(inside), "they are in")
    queued = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
    server.close()
    bell.set()
    for client in inside + queued:
        client.setblocking(False)
        assert await read_to_end(client) == Outcome(b"Hello", reset=False)
    async with asyncio.timeout(PATIENCE):
        await server.wait_closed()
    assert server._conversation._threads is not None
    assert server._conversation._threads._executor is None  # they are not kept either


async def test_without_a_thread_a_greeting_is_not_made(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, here: Serve
) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with here(Greeting(lambda _: "Hello")) as server:
        monkeypatch.setattr(threading.Thread, "start", none_left)
        assert await send_then_read(server.port, 18) == NOTHING
        monkeypatch.undo()
        assert server.stats.failed["greeting_error"] == 1
    assert "can't start new thread" in caplog.text


async def test_a_quick_greeting_runs_in_the_loop(here: Serve) -> None:
    threads: list[threading.Thread] = []

    def greeting(peer: Peer) -> str:
        threads.append(threading.current_thread())
        return "Hello"

    async with here(Greeting(greeting, quick=True)) as server:
        assert await send_then_read(server.port, 18) == Outcome(b"Hello", reset=False)
    assert threads == [threading.current_thread()]


# -- greetings that go in parts ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [CHUNK_SIZE, CHUNK_SIZE + 1, 12 * CHUNK_SIZE])
async def test_what_waits_for_a_slow_client_is_one_chunk(size: int, here: Serve) -> None:
    """Of an asynchronous greeting too: it may be of any size."""
    data = bytes(range(256)) * (size // 256) + b"!" * (size % 256)

    async def greeting(peer: Peer) -> bytes:
        return data

    async with here(greeting) as server:
        client = await connect(server.port, receive_buffer=4096)
        await until(lambda: server.stats.accepted == 1, "accepted")
        assert await read_to_end(client) == Outcome(data, reset=False)
        assert (server.stats.greeted, server.stats.bytes_sent) == (1, size)


async def test_a_client_that_leaves_amid_its_greeting_was_not_greeted(here: Serve) -> None:
    async with here(b"g" * 8_000_000) as server:
        client = await connect(server.port, receive_buffer=4096)
        assert await asyncio.get_running_loop().sock_recv(client, 1000)
        reset(client)
        await until(lambda: server.stats.open == 0, "it has left")
        assert {why: n for why, n in server.stats.failed.items() if n} == {"reset": 1}
        assert (server.stats.greeted, server.stats.bytes_sent) == (0, 0)
