"""The wire between parent and worker: lines, in pieces and in bulk, and what the end of them means."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from greeter import ConfigError, Endpoint
from greeter.service import channel
from greeter.service.channel import PARENT_GONE, RETIRED, VARIABLE, Channel, WorkerChannel
from tests.conftest import PATIENCE
from tests.support.peers import until

if TYPE_CHECKING:
    from collections.abc import Iterator


class End:
    """A channel, and what came through it."""

    def __init__(self, sock: socket.socket) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.ended: list[str] = []
        self.channel = Channel(sock, lambda name, value: self.heard.append((name, value)), self.ended.append)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    yield one, other
    one.close()
    other.close()


Pair = tuple[socket.socket, socket.socket]


@pytest.mark.usefixtures("no_fd_leak")
async def test_messages_go_both_ways_and_end() -> None:
    one, two = map(End, socket.socketpair())
    one.channel.send("early", 1)
    one.channel.open()
    two.channel.open()
    two.channel.send("answer", {"text": "ä\n", "list": [1, None]})
    one.channel.send("bare")
    await until(lambda: len(two.heard) == 2 and len(one.heard) == 1, "they hear each other")
    assert two.heard == [("early", 1), ("bare", None)]
    assert one.heard == [("answer", {"text": "ä\n", "list": [1, None]})]
    one.channel.send("last words")
    one.channel.close()
    one.channel.close()
    one.channel.send("too late")
    await until(lambda: bool(two.ended), "it is heard")
    assert two.heard[2:] == [("last words", None)]
    assert two.ended == [""]
    assert one.ended == []


async def test_what_the_other_side_does_not_take_yet_is_kept() -> None:
    one, two = map(End, socket.socketpair())
    one.channel.open()
    sent = ["x" * 100_000 for _ in range(30)]
    for text in sent:
        one.channel.send("bulk", text)
    two.channel.open()
    await until(lambda: len(two.heard) == len(sent), "all of it comes")
    assert [value for _, value in two.heard] == sent
    one.channel.close()
    two.channel.close()


async def test_a_line_may_come_in_pieces(pair: Pair) -> None:
    end = End(pair[0])
    end.channel.open()
    line = b'["one", 1]\n["two", 2]\n'
    for byte in line:
        pair[1].send(bytes([byte]))
        end.channel.read()
    assert end.heard == [("one", 1), ("two", 2)]
    end.channel.close()


@pytest.mark.parametrize("line", [b"nonsense", b"[1, 2, 3]", b"7", b"\xff", b"[" * 100_000])
async def test_what_is_no_message_ends_it(pair: Pair, line: bytes) -> None:
    end = End(pair[0])
    end.channel.open()
    pair[1].settimeout(PATIENCE)
    pair[1].sendall(b'["good", 1]\n' + line + b'\n["after", 1]\n')
    end.channel.read()
    assert end.heard == [("good", 1)]
    (why,) = end.ended
    assert why == f"sent what is no message: {line[:80]!r}"


async def test_a_line_has_a_bound(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "LINE_BYTES", 1000)
    end = End(pair[0])
    end.channel.open()
    pair[1].send(b"x" * 1001)
    end.channel.read()
    assert end.ended == ["sent a line of more than 1000 bytes"]


async def test_the_death_of_the_other_side_with_our_words_unread(pair: Pair) -> None:
    end = End(pair[0])
    end.channel.open()
    end.channel.send("never read")
    pair[1].close()  # the kernel says ECONNRESET to us
    await until(lambda: bool(end.ended), "it is noticed")
    assert end.ended == [""]


async def test_sending_to_the_dead_is_no_error(pair: Pair) -> None:
    end = End(pair[0])
    pair[1].close()
    end.channel.send("hello")  # EPIPE
    end.channel.send("again")
    end.channel.open()
    await until(lambda: bool(end.ended), "it is noticed")


async def test_a_callback_may_close_it(pair: Pair) -> None:
    heard = []

    def once(name: str, _value: object) -> None:
        heard.append(name)
        end.close()

    end = Channel(pair[0], once, heard.append)
    end.open()
    pair[1].send(b'["one", 1]\n["two", 2]\n')
    end.read()
    assert heard == ["one"]


# -- the worker's end ------------------------------------------------------------------------------------


class Parent:
    """A parent that gave birth by hand: it holds one end, and the environment names the other."""

    def __init__(self, task: object = None) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(PATIENCE)
        self.say("task", task)
        fd = os.dup(theirs.fileno())
        theirs.close()
        os.set_inheritable(fd, True)
        self.fd = fd
        self.environ = {VARIABLE: f"{fd},{fd}", "OTHER": "stays"}

    def say(self, name: str, value: object = None) -> None:
        self.sock.send(json.dumps([name, value]).encode() + b"\n")

    async def heard(self) -> list[Any]:
        """What the worker said until it closed."""
        self.sock.setblocking(False)
        data = b""
        async with asyncio.timeout(PATIENCE):
            while chunk := await asyncio.get_running_loop().sock_recv(self.sock, 65536):
                data += chunk
        self.sock.close()
        return [json.loads(line) for line in data.splitlines()]


def born(parent: Parent) -> WorkerChannel:
    worker = WorkerChannel.from_environment(parent.environ)
    assert worker is not None
    return worker


@pytest.mark.usefixtures("no_fd_leak")
async def test_a_worker_is_told_its_task_and_to_retire() -> None:
    parent = Parent({"greeting": "x" * 50_000})
    worker = born(parent)
    assert parent.environ == {"OTHER": "stays"}
    assert not os.get_inheritable(parent.fd)
    assert worker.endpoints == (Endpoint.inherited(parent.fd),)
    assert worker.task == {"greeting": "x" * 50_000}
    greeted = 0
    leave = worker.open(lambda: {"greeted": greeted})
    worker.ready()
    greeted = 1
    parent.say("report")
    parent.say("report")
    parent.say("retire")
    parent.say("retire")
    async with asyncio.timeout(PATIENCE):
        assert await leave == RETIRED
    greeted = 2
    worker.close()
    assert await parent.heard() == [
        ["ready", os.getpid()],
        ["stats", {"greeted": 1}],
        ["stats", {"greeted": 1}],
        ["stats", {"greeted": 2}],
    ]


async def test_a_worker_whose_parent_is_gone_is_told_to_leave() -> None:
    parent = Parent()
    worker = born(parent)
    leave = worker.open(dict)
    parent.sock.close()
    async with asyncio.timeout(PATIENCE):
        assert await leave == PARENT_GONE
    worker.close()


@pytest.mark.parametrize("early", ["retire", "nonsense"])
async def test_what_was_said_before_it_listened_counts(early: str) -> None:
    parent = Parent()
    if early == "nonsense":
        parent.sock.send(b"nonsense\n")
        expected = "the parent process sent what is no message: b'nonsense'"
    else:
        parent.say("retire")
        parent.say("retire")
        expected = RETIRED
    worker = born(parent)
    async with asyncio.timeout(PATIENCE):
        assert await worker.open(dict) == expected
    worker.close()
    parent.sock.close()


async def test_a_worker_that_fails_says_why() -> None:
    parent = Parent()
    worker = born(parent)
    worker.failed("no greeting today")
    worker.close()
    assert await parent.heard() == [["failed", "no greeting today"]]


def test_a_process_that_is_no_worker() -> None:
    assert WorkerChannel.from_environment({}) is None


@pytest.mark.parametrize("text", ["", "yes", "3,", "-1", "999999", "0x3"])
def test_a_variable_that_no_parent_set(text: str) -> None:
    with pytest.raises(ConfigError, match=f"^GREETER_WORKER='{text}' was not set by a parent of workers$"):
        WorkerChannel.from_environment({VARIABLE: text})


def test_a_parent_that_died_at_once() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with pytest.raises(ConfigError, match=PARENT_GONE):
        WorkerChannel.from_environment({VARIABLE: str(theirs.detach())})
