"""The log lines, and the log stream on real pipes: complete, in order, never blocking the service."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import threading
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from greeter.service import logs
from greeter.service.logs import FLUSH_SECONDS, LogStream, log_python_output
from tests.conftest import PATIENCE
from tests.support.log_peers import HOSTILE, Pipe, record
from tests.support.peers import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from greeter.service.log_format import LogFormat

BOTH = pytest.mark.parametrize("log_format", ["text", "json"])


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    it = Pipe()
    yield it
    it.close()


# -- the stream ------------------------------------------------------------------------------------------


@BOTH
def test_outside_a_loop_a_line_is_written_at_once(pipe: Pipe, log_format: LogFormat) -> None:
    log = LogStream(pipe.writing, log_format)
    log.handle(record(HOSTILE))
    (line,) = pipe.read().split("\n")[:-1]
    assert line.isprintable()
    log.connection(("127.0.0.1", 1))
    assert pipe.read().count("\n") == 1


async def test_in_a_loop_lines_are_batched_and_keep_their_order(pipe: Pipe) -> None:
    log = LogStream(pipe.writing)
    loop = asyncio.get_running_loop()
    log.handle(record("Listening"))
    latest = loop.time() + FLUSH_SECONDS + 0.01  # the clock of a loop may have a resolution of milliseconds
    for port in range(100):
        log.connection(("127.0.0.1", port))
    log.handle(record("Stopped"))
    assert pipe.read() == ""
    assert log._timer is not None
    assert log._timer.when() <= latest
    assert FLUSH_SECONDS <= 0.1
    readable = asyncio.Event()
    loop.add_reader(pipe.reading, readable.set)
    async with asyncio.timeout(PATIENCE):
        await readable.wait()
    loop.remove_reader(pipe.reading)
    clients = [f"Got a connection from ('127.0.0.1', {port})" for port in range(100)]
    assert pipe.read().splitlines() == ["Listening", *clients, "Stopped"]
    assert log._timer is None  # without lines there is no timer


async def test_flush_writes_all_lines(pipe: Pipe) -> None:
    log = LogStream(pipe.writing)
    log.connection(("127.0.0.1", 1))
    log.flush()
    assert pipe.read() == "Got a connection from ('127.0.0.1', 1)\n"
    log.flush()
    assert pipe.read() == ""


def test_records_below_the_level_are_not_written(pipe: Pipe) -> None:
    log = LogStream(pipe.writing, level="WARNING")
    logger = logging.Logger("greeter", logging.DEBUG)
    logger.addHandler(log)
    logger.info("not this")
    logger.warning("this")
    assert pipe.read() == "warning: this\n"


def test_after_the_loop_lines_are_written_at_once_again(pipe: Pipe) -> None:
    log = LogStream(pipe.writing)

    async def brief() -> None:
        log.handle(record("in the loop"))

    asyncio.run(brief())  # it ends before the timer does
    log.flush()
    log.handle(record("after it"))
    assert pipe.read().splitlines() == ["in the loop", "after it"]


@pytest.mark.parametrize("blocking", [True, False])
async def test_a_stalled_reader_does_not_block(pipe: Pipe, blocking: bool) -> None:
    log = LogStream(pipe.writing)
    pipe.fill()
    os.set_blocking(pipe.writing, blocking)
    for port in range(10_000):
        log.connection(("127.0.0.1", port))
    log.flush()  # returns
    assert log.dropped == 0
    got = ""
    for _ in range(100):  # the reader resumes and receives all lines
        got += pipe.read()
        log.flush()
    assert got.splitlines() == [f"Got a connection from ('127.0.0.1', {port})" for port in range(10_000)]


def test_a_write_that_would_block_after_poll_is_retried(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    refusals = [BlockingIOError]  # another writer was faster, between poll() and write()

    def write_after_refusal(fd: int, data: bytes) -> int:
        if refusals:
            raise refusals.pop()
        return write(fd, data)

    monkeypatch.setattr(os, "write", write_after_refusal)
    log = LogStream(pipe.writing)
    log.handle(record("one"))
    assert (pipe.read(), log.dropped) == ("", 0)
    log.handle(record("two"))
    assert pipe.read() == "one\ntwo\n"


async def test_unwritten_lines_are_retried_by_the_timer(pipe: Pipe) -> None:
    log = LogStream(pipe.writing)
    pipe.fill()
    log.handle(record("late"))
    await until(lambda: bool(log._unwritten), "the first try")
    assert log._timer is not None
    assert pipe.read() == ""
    await until(lambda: log._timer is None, "the second try")
    assert pipe.read() == "late\n"


def test_lines_beyond_the_backlog_are_dropped_and_their_count_is_logged(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "BACKLOG_BYTES", 100)
    log = LogStream(pipe.writing)
    pipe.fill()
    for n in range(20):
        log.handle(record(f"line {n:4}"))  # 10 bytes each
    assert log.dropped == 10
    assert pipe.read() == ""
    log.handle(record("dropped too"))
    assert pipe.read().splitlines() == [
        *(f"line {n:4}" for n in range(10)),
        "warning: 11 log lines were dropped",
    ]
    log.handle(record("room again"))
    assert (pipe.read(), log.dropped) == ("room again\n", 0)


def test_the_count_of_dropped_lines_waits_for_the_reader_too(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "BACKLOG_BYTES", 9000)
    monkeypatch.setattr(logs, "FINAL_FLUSH_SECONDS", 0)
    log = LogStream(pipe.writing, "json")
    pipe.fill()
    for _ in range(3):
        log.handle(record("x" * 4000))
    assert log.dropped == 1
    got = ""
    while log._unwritten:  # the reader reads a little at a time
        got += pipe.read(4096)
        log.flush()
    lines = [json.loads(line)["message"] for line in (got + pipe.read()).splitlines()]
    assert lines == ["x" * 4000, "x" * 4000, "1 log lines were dropped"]


async def test_a_closed_pipe_does_not_block(pipe: Pipe) -> None:
    log = LogStream(pipe.writing)
    os.close(pipe.reading)
    log.handle(record("without a reader"))
    log.connection(("127.0.0.1", 1))
    log.flush()
    assert log.dropped == 2
    log.flush()
    assert (log.dropped, bytes(log._unwritten)) == (2, b"")  # nothing is kept for a closed pipe


def test_a_full_disk_does_not_raise() -> None:
    with open("/dev/full", "wb") as full:
        log = LogStream(full.fileno())
        log.handle(record("too much"))
        assert log.dropped == 1


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process can grow beyond ``size``: a write is cut short there, and the next one fails.

    So it is on a full disk. RLIMIT_FSIZE needs no privilege, and its signal is ignored.
    """
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("mode", ["wb", "ab"])
@pytest.mark.parametrize("size", [*range(95, 106), 5000])
def test_a_line_is_whole_or_missing_when_the_disk_gets_full(tmp_path: Path, size: int, mode: str) -> None:
    """At any byte: within a line, at its end, and within one that is longer than a write to a pipe."""
    with open(tmp_path / "log", mode) as file:
        log = LogStream(file.fileno())
        with room_for(size):
            for n in range(20):
                log.handle(record("%s", f"{n} " + "x" * 7))
            log.handle(record("%s", "y" * 5000))
            assert b"x" in (tmp_path / "log").read_bytes()
            assert (tmp_path / "log").read_bytes().endswith(b"\n")
        log.handle(record("room again"))
    lines = (tmp_path / "log").read_text().splitlines()
    whole = [f"{n} xxxxxxx" for n in range(20)]
    kept = min(20, sum(len("\n".join(whole[: n + 1])) < size for n in range(20)))
    assert lines[:-2] == whole[:kept]
    assert lines[-2:] == ["room again", f"warning: {21 - kept} log lines were dropped"]


def test_the_rest_of_a_line_is_written_first_when_the_file_has_grown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has appended to the file: what was written cannot be taken back."""
    with open(tmp_path / "log", "ab") as file, open(tmp_path / "log", "ab", buffering=0) as other:
        log = LogStream(file.fileno())
        write = os.write

        def cut_short(fd: int, data: bytes) -> int:
            monkeypatch.setattr(os, "write", no_room)
            written = write(fd, data[:3])
            other.write(b"[]")
            return written

        def no_room(fd: int, data: bytes) -> int:
            raise OSError(28, "no room")

        monkeypatch.setattr(os, "write", cut_short)
        log.handle(record("first line"))
        log.handle(record("dropped"))
        monkeypatch.setattr(os, "write", write)
        log.handle(record("room again"))
    assert (tmp_path / "log").read_text().replace("[]", "").splitlines() == [
        "first line",
        "room again",
        "warning: 1 log lines were dropped",
    ]


def test_a_closed_descriptor_does_not_raise(pipe: Pipe) -> None:
    log = LogStream(pipe.writing)
    pipe.close()
    log.handle(record("nowhere"))
    assert log.dropped == 1


def test_a_file_gets_every_line(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb") as file:
        log = LogStream(file.fileno())
        for n in range(100):
            log.handle(record("%s", f"{n} " + "x" * 100))
    assert [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()] == [
        str(n) for n in range(100)
    ]


async def test_writes_to_a_pipe_end_at_line_ends(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []
    write = os.write

    def recording_write(fd: int, data: bytes) -> int:
        writes.append(bytes(data))
        return write(fd, data)

    log = LogStream(pipe.writing)
    lines = [f"{n} " + "x" * (37 * n % 300) for n in range(200)]
    lines.insert(100, "y" * (2 * logs.MAX_WRITE_BYTES + 5))
    for line in lines:
        log.handle(record("%s", line))
    monkeypatch.setattr(os, "write", recording_write)
    log.flush()
    assert b"".join(writes).decode().splitlines() == pipe.read().splitlines() == lines
    assert all(len(data) <= logs.MAX_WRITE_BYTES for data in writes)
    assert (
        sum(not data.endswith(b"\n") for data in writes) == 2
    )  # only of the line that is longer than a write


def test_a_line_added_while_others_are_encoded_is_kept(pipe: Pipe) -> None:
    class Lines(list[str]):
        def __getitem__(self, key: Any) -> Any:
            found = super().__getitem__(key)
            self.append("from another thread")
            return found

    log = LogStream(pipe.writing)
    log._lines = Lines()
    log.handle(record("from this one"))
    assert pipe.read() == "from this one\n"
    log.flush()
    assert pipe.read() == "from another thread\n"


async def test_threads_lose_no_line(pipe: Pipe) -> None:
    log = LogStream(pipe.writing)
    found: list[str] = []
    held = ""

    def work(name: int) -> None:
        for n in range(300):
            log.handle(record("thread %d line %d", name, n))

    def collect() -> None:
        nonlocal held
        held += pipe.read()
        *new, held = held.split("\n")
        found.extend(new)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for n in range(3000):
        log.connection(("here", n))
        if n % 10 == 0:
            log.flush()
            collect()
    for thread in threads:
        await asyncio.to_thread(thread.join)
        collect()
    while log._unwritten or log._lines:
        log.flush()
        collect()
    collect()
    assert [line for line in found if "here" in line] == [
        f"Got a connection from ('here', {n})" for n in range(3000)
    ]
    for name in range(4):
        mine = [line for line in found if line.startswith(f"thread {name} ")]
        assert mine == [f"thread {name} line {n}" for n in range(300)]


def test_the_last_flush_waits_for_a_slow_reader(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FINAL_FLUSH_SECONDS", PATIENCE)
    log = LogStream(pipe.writing)
    pipe.fill()
    log.handle(record("the last line"))
    got: list[str] = []
    reader = threading.Timer(0.02, lambda: got.append(pipe.read()))
    reader.start()
    log.flush()
    reader.join()
    assert "".join(got) + pipe.read() == "the last line\n"


def test_the_last_flush_does_not_wait_longer_than_its_timeout(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FINAL_FLUSH_SECONDS", 0.02)
    log = LogStream(pipe.writing)
    pipe.fill()
    log.handle(record("not read"))
    log.flush()
    assert log._unwritten


@BOTH
def test_a_record_that_cannot_be_formatted_is_a_line(pipe: Pipe, log_format: LogFormat) -> None:
    log = LogStream(pipe.writing, log_format)
    log.handle(record("%d clients", "some"))
    (line,) = pipe.read().splitlines()
    assert "cannot format the log record '%d clients'" in line
    assert "TypeError" in line
    log.handle(record("go on"))
    assert "go on" in pipe.read()


def test_what_python_prints_to_stderr_is_logged(pipe: Pipe, capfd: pytest.CaptureFixture[str]) -> None:
    class Bad:
        def __del__(self) -> None:
            raise ValueError("in __del__")

    def fail() -> None:
        raise ValueError("in a thread")

    log = LogStream(pipe.writing, "json")
    root = logging.getLogger()
    root.addHandler(log)
    try:
        with log_python_output():
            thread = threading.Thread(target=fail, name="mine")
            thread.start()
            thread.join()
            Bad()
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn("a warning\nof two lines", UserWarning, stacklevel=1)
    finally:
        root.removeHandler(log)
    entries = [json.loads(line) for line in pipe.read().splitlines()]
    texts = ["exception in thread mine: ValueError('in a thread')", "ValueError('in __del__')", "a warning"]
    for entry, text in zip(entries, texts, strict=True):
        assert text in entry["message"]
    assert "in fail" in entries[0]["traceback"]
    assert capfd.readouterr().err == ""
