"""Messages between parent and worker: partial and large lines, invalid lines, the end of the stream."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from greeter import ConfigError, Endpoint
from greeter.config.options import WORKER_VARIABLE
from greeter.core.stats import BLOCK_LENGTH
from greeter.service import channel
from greeter.service.channel import COUNTERS_VARIABLE, PARENT_GONE, RETIRED, Channel, WorkerChannel
from greeter.system.anonymous_file import open_shared_words
from tests.conftest import PATIENCE
from tests.support.peers import until

if TYPE_CHECKING:
    from collections.abc import Iterator


class RecordingChannel:
    """A channel, and what it has received."""

    def __init__(self, sock: socket.socket) -> None:
        self.received: list[tuple[str, Any]] = []
        self.ends: list[str] = []
        self.channel = Channel(
            sock, lambda name, value: self.received.append((name, value)), self.ends.append
        )


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    yield one, other
    one.close()
    other.close()


Pair = tuple[socket.socket, socket.socket]


@pytest.mark.usefixtures("no_fd_leak")
async def test_messages_go_both_ways_and_end() -> None:
    one, two = map(RecordingChannel, socket.socketpair())
    one.channel.send("early", 1)
    one.channel.open()
    two.channel.open()
    two.channel.send("answer", {"text": "ä\n", "list": [1, None]})
    one.channel.send("bare")
    await until(lambda: len(two.received) == 2 and len(one.received) == 1, "both have received")
    assert two.received == [("early", 1), ("bare", None)]
    assert one.received == [("answer", {"text": "ä\n", "list": [1, None]})]
    one.channel.send("last")
    one.channel.close()
    one.channel.close()
    one.channel.send("too late")
    await until(lambda: bool(two.ends), "the end is received")
    assert two.received[2:] == [("last", None)]
    assert two.ends == [""]
    assert one.ends == []


async def test_unsent_messages_are_kept_until_the_socket_accepts_them() -> None:
    one, two = map(RecordingChannel, socket.socketpair())
    one.channel.open()
    sent = ["x" * 100_000 for _ in range(30)]
    for text in sent:
        one.channel.send("bulk", text)
    two.channel.open()
    await until(lambda: len(two.received) == len(sent), "all messages arrive")
    assert [value for _, value in two.received] == sent
    one.channel.close()
    two.channel.close()


async def test_a_line_may_arrive_byte_by_byte(pair: Pair) -> None:
    end = RecordingChannel(pair[0])
    end.channel.open()
    line = b'["one", 1]\n["two", 2]\n'
    for byte in line:
        pair[1].send(bytes([byte]))
        end.channel.read()
    assert end.received == [("one", 1), ("two", 2)]
    end.channel.close()


@pytest.mark.parametrize("line", [b"nonsense", b"[1, 2, 3]", b"7", b"\xff", b"[" * 100_000])
async def test_an_invalid_line_ends_the_channel(pair: Pair, line: bytes) -> None:
    end = RecordingChannel(pair[0])
    end.channel.open()
    pair[1].settimeout(PATIENCE)
    pair[1].sendall(b'["good", 1]\n' + line + b'\n["after", 1]\n')
    end.channel.read()
    assert end.received == [("good", 1)]
    (reason,) = end.ends
    assert reason == f"sent an invalid message: {line[:80]!r}"


async def test_a_line_that_is_too_long_ends_the_channel(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MAX_LINE_BYTES", 1000)
    end = RecordingChannel(pair[0])
    end.channel.open()
    pair[1].send(b"x" * 1001)
    end.channel.read()
    assert end.ends == ["sent a line of more than 1000 bytes"]


async def test_a_death_of_the_other_side_with_unread_input_ends_the_channel(pair: Pair) -> None:
    end = RecordingChannel(pair[0])
    end.channel.open()
    end.channel.send("never read")
    pair[1].close()  # recv() fails with ECONNRESET
    await until(lambda: bool(end.ends), "it is noticed")
    assert end.ends == [""]


async def test_sending_to_a_closed_socket_is_not_an_error(pair: Pair) -> None:
    end = RecordingChannel(pair[0])
    pair[1].close()
    end.channel.send("hello")  # EPIPE
    end.channel.send("again")
    end.channel.open()
    await until(lambda: bool(end.ends), "it is noticed")


async def test_a_callback_may_close_the_channel(pair: Pair) -> None:
    received = []

    def once(name: str, _value: object) -> None:
        received.append(name)
        end.close()

    end = Channel(pair[0], once, received.append)
    end.open()
    pair[1].send(b'["one", 1]\n["two", 2]\n')
    end.read()
    assert received == ["one"]


# -- the worker's end ------------------------------------------------------------------------------------


class Parent:
    """A simulated parent: it holds one end, and its environment names the other."""

    def __init__(self, task: object = None) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(PATIENCE)
        self.send("task", task)
        fd = os.dup(theirs.fileno())
        theirs.close()
        os.set_inheritable(fd, True)
        self.fd = fd
        self.environ = {WORKER_VARIABLE: f"{fd},{fd}", "OTHER": "stays"}

    def send(self, name: str, value: object = None) -> None:
        self.sock.send(json.dumps([name, value]).encode() + b"\n")

    async def received(self) -> list[Any]:
        """What the worker has sent until it closed the channel."""
        self.sock.setblocking(False)
        data = b""
        async with asyncio.timeout(PATIENCE):
            while chunk := await asyncio.get_running_loop().sock_recv(self.sock, 65536):
                data += chunk
        self.sock.close()
        return [json.loads(line) for line in data.splitlines()]


def start_worker(parent: Parent) -> WorkerChannel:
    worker = WorkerChannel.from_environment(parent.environ)
    assert worker is not None
    return worker


@pytest.mark.usefixtures("no_fd_leak")
async def test_a_worker_receives_its_task_and_retire() -> None:
    parent = Parent({"greeting": "x" * 50_000})
    worker = start_worker(parent)
    assert parent.environ == {"OTHER": "stays"}
    assert not os.get_inheritable(parent.fd)
    assert worker.endpoints == (Endpoint.inherited(parent.fd),)
    assert worker.task == {"greeting": "x" * 50_000}
    greeted = 0
    reason = worker.open(lambda: {"greeted": greeted})
    worker.ready(100)
    greeted = 1
    parent.send("report")
    parent.send("report")
    parent.send("retire")
    parent.send("retire")
    async with asyncio.timeout(PATIENCE):
        assert await reason == RETIRED
    greeted = 2
    worker.close()
    assert await parent.received() == [
        ["ready", 100],
        ["stats", {"greeted": 1}],
        ["stats", {"greeted": 1}],
        ["stats", {"greeted": 2}],
    ]


@pytest.mark.usefixtures("no_fd_leak")
@pytest.mark.parametrize(("length", "found"), [(BLOCK_LENGTH, True), (BLOCK_LENGTH - 1, False)])
def test_a_worker_gets_the_memory_to_count_in(length: int, found: bool) -> None:
    parent = Parent()
    file, words = open_shared_words(length)
    parent.environ[COUNTERS_VARIABLE] = str(os.dup(file.fileno()))
    worker = start_worker(parent)
    assert parent.environ == {"OTHER": "stays"}
    assert (worker.counters is not None) is found
    if worker.counters is not None:
        worker.counters[1] = 7
        assert words[1] == 7
    worker.close()
    file.close()
    parent.sock.close()


async def test_a_worker_whose_parent_is_gone_stops() -> None:
    parent = Parent()
    worker = start_worker(parent)
    reason = worker.open(dict)
    parent.sock.close()
    async with asyncio.timeout(PATIENCE):
        assert await reason == PARENT_GONE
    worker.close()


@pytest.mark.parametrize("early", ["retire", "nonsense"])
async def test_a_message_received_before_open_counts(early: str) -> None:
    parent = Parent()
    if early == "nonsense":
        parent.sock.send(b"nonsense\n")
        expected = "the parent process sent an invalid message: b'nonsense'"
    else:
        parent.send("retire")
        parent.send("retire")
        expected = RETIRED
    worker = start_worker(parent)
    async with asyncio.timeout(PATIENCE):
        assert await worker.open(dict) == expected
    worker.close()
    parent.sock.close()


async def test_a_failed_worker_sends_the_reason() -> None:
    parent = Parent()
    worker = start_worker(parent)
    worker.failed("no greeting today")
    worker.close()
    assert await parent.received() == [["failed", "no greeting today"]]


def test_a_process_without_the_variable_is_not_a_worker() -> None:
    assert WorkerChannel.from_environment({}) is None


@pytest.mark.parametrize("text", ["", "yes", "3,", "-1", "999999", "0x3"])
def test_a_variable_not_set_by_a_parent_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match=f"^GREETER_WORKER='{text}' was not set by a parent of workers$"):
        WorkerChannel.from_environment({WORKER_VARIABLE: text})


def test_a_parent_that_died_before_the_task_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with pytest.raises(ConfigError, match=PARENT_GONE):
        WorkerChannel.from_environment({WORKER_VARIABLE: str(theirs.detach())})
