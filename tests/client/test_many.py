"""greet_many(): one result per target, bounded, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Any

import pytest

import greeter
from greeter import ConfigError, ConnectFailed, Endpoint, GreetFailed, GreetTimeout, Reply, greet_many
from tests.client.test_oneshot import HELLO, RawServer, full_accept_queue, raw_server
from tests.conftest import PATIENCE, open_fds
from tests.support.peers import until

__all__ = ["raw_server"]  # a fixture

pytestmark = pytest.mark.usefixtures("no_fd_leak")


async def results(targets: Any, **options: Any) -> dict[Any, Any]:
    async with asyncio.timeout(PATIENCE):
        return {target: result async for target, result in greet_many(targets, **options)}


async def test_every_target_has_its_reply_or_its_failure(raw_server: RawServer) -> None:
    with socket.socket() as closed, full_accept_queue() as dead:
        closed.bind(("127.0.0.1", 0))
        refused = f"127.0.0.1:{closed.getsockname()[1]}"
        async with greeter.serve("here", port=0) as server:
            targets = [
                refused,
                Endpoint.tcp("127.0.0.1", server.port),
                f"127.0.0.1:{server.port}",
                Endpoint.tcp(port=dead),
                Endpoint.tcp(port=raw_server.port),
            ]
            found = await results(targets, timeout=0.5)
    kinds = [type(found[target]) for target in targets]
    assert kinds == [ConnectFailed, Reply, Reply, GreetTimeout, GreetTimeout]
    assert found[targets[1]].text == "here"


async def test_results_come_as_they_end(raw_server: RawServer) -> None:
    async with greeter.serve("here", port=0) as server:
        silent, quick = f"127.0.0.1:{raw_server.port}", f"127.0.0.1:{server.port}"
        many = greet_many([silent, quick, quick])
        async with contextlib.aclosing(many):
            assert [(await anext(many))[0] for _ in range(2)] == [quick, quick]
            connection = await raw_server.accept()
            connection.sendall(HELLO)
            connection.close()
            target, reply = await anext(many)
            assert (target, bytes(reply)) == (silent, HELLO)  # type: ignore[arg-type]  # it is a Reply


async def test_five_thousand_targets_five_hundred_at_a_time() -> None:
    greeted = 0
    async with greeter.serve("here", port=0, access_log=False) as server:
        good, bad = f"127.0.0.1:{server.port}", "unix:/nonexistent"
        async for target, result in greet_many([good, bad] * 2500, limit=500, timeout=PATIENCE):
            assert isinstance(result, Reply if target == good else ConnectFailed)
            greeted += 1
        assert server.stats.greeted == 2500
    assert greeted == 5000


async def test_no_more_than_the_limit_at_a_time(raw_server: RawServer) -> None:
    task = asyncio.create_task(results([f"127.0.0.1:{raw_server.port}"] * 7, limit=3))
    waiting = [await raw_server.accept() for _ in range(3)]
    for ended in range(7):
        with pytest.raises(BlockingIOError):
            raw_server.sock.accept()  # no fourth
        connection = waiting.pop(0)
        connection.sendall(HELLO)
        connection.close()
        if ended < 4:
            waiting.append(await raw_server.accept())
    assert len(await task) == 1  # one target, seven times


async def test_a_rate_spaces_the_attempts() -> None:
    loop = asyncio.get_running_loop()
    async with greeter.serve("here", port=0) as server:
        begin = loop.time()
        assert len([x async for x in greet_many([f"127.0.0.1:{server.port}"] * 5, rate=50)]) == 5
        assert loop.time() - begin >= 4 / 50 * 0.9


async def test_names_that_are_not_resolved_do_not_delay_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    released, look_up = threading.Event(), socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **options: Any) -> Any:
        if host.startswith("slow"):
            released.wait(PATIENCE)
        return look_up("127.0.0.1", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    async with greeter.serve("here", port=0) as server:
        slow = [
            f"slow{number}.example:{server.port}" for number in range(40)
        ]  # more than asyncio has threads
        many = greet_many([*slow, f"localhost:{server.port}"], connect_timeout=PATIENCE, timeout=PATIENCE)
        async with contextlib.aclosing(many):
            try:
                first, reply = await anext(many)
            finally:
                released.set()
        assert (first, str(reply)) == (f"localhost:{server.port}", "here")


async def test_cancelling_leaves_no_descriptor(raw_server: RawServer) -> None:
    before = open_fds()
    task = asyncio.create_task(results([f"127.0.0.1:{raw_server.port}"] * 50, limit=20))
    for _ in range(20):
        await raw_server.accept()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for connection in raw_server.connections:
        connection.close()
    await until(lambda: open_fds().keys() <= before.keys(), "the descriptors are closed")


@pytest.mark.parametrize("close", [True, False])
async def test_leaving_early_ends_what_is_under_way(raw_server: RawServer, close: bool) -> None:
    async with greeter.serve("here", port=0) as server:
        before = open_fds()
        many = greet_many([f"127.0.0.1:{raw_server.port}", f"127.0.0.1:{server.port}"])
        async for _, _ in many:
            break
        if close:
            await many.aclose()
        del many
        await until(lambda: open_fds().keys() <= before.keys(), "the descriptors are closed")


async def test_options_apply_to_each_target(raw_server: RawServer) -> None:
    async with greeter.serve("here\n", port=0) as server:
        targets = [f"127.0.0.1:{server.port}", f"localhost:{server.port}"]
        found = await results(targets, until="line", expect="there", send=b"x", wait=0.001)
    assert [str(error).partition(": ")[2] for error in found.values()] == [
        "the greeting 'here' does not contain 'there'"
    ] * 2


@pytest.mark.parametrize(
    ("targets", "options", "why"),
    [
        (["h:1"], {"limit": 0}, "limit must be an integer of at least 1, not 0"),
        (["h:1"], {"limit": True}, "limit must be an integer of at least 1, not True"),
        (["h:1"], {"rate": 0}, "rate must be a positive number per second, not 0"),
        (["h:1"], {"rate": "5"}, "rate must be a positive number per second, not '5'"),
        (["h:1"], {"wait": -1}, "wait must be a number of seconds, 0 or more, not -1"),
        (["h:1"], {"until": "x"}, "until must be eof, line, .*, not 'x'"),
        ("h:1", {}, "targets must be several targets, not the string 'h:1'"),
        (["h:1", b"h"], {}, "a target must be a string, an integer or an Endpoint, not bytes"),
        (["h:1", "fd:7"], {"wait": 1}, "wait cannot be combined with fd:7: it cannot be connected again"),
        (["h:1", "unix:/x"], {"ssl": True}, "TLS to unix:/x needs server_hostname, the name to verify"),
    ],
)
async def test_invalid_arguments(targets: Any, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=f"^{why}$"):
        await results(targets, **options)


async def test_no_targets_are_no_results() -> None:
    assert await results([]) == {}


async def test_an_unexpected_error_ends_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> Reply:
        raise ZeroDivisionError

    monkeypatch.setattr("greeter.client.many.exchange_once", broken)
    with pytest.raises(ZeroDivisionError):
        await results(["h:1", "h:2"])


def test_a_failure_is_one_of_greet() -> None:
    assert issubclass(ConnectFailed, GreetFailed)
