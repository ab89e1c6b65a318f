"""The log lines, and the log stream on real pipes: complete, in order, never blocking the service."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import resource
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from greeter.service import logs
from greeter.service.log_format import (
    JsonFormatter,
    LogFormat,
    TextFormatter,
    choose_formatter,
    escape,
    is_journal,
)
from greeter.service.logs import FLUSH_SECONDS, LogStream
from tests.conftest import PATIENCE
from tests.support.peers import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BOTH = pytest.mark.parametrize("log_format", ["text", "json"])
CLIENT = ("192.0.2.7", 3747)
HOSTILE = "a\nGot a connection from ('6.6.6.6', 6)\r\x1b[2J\x00\x7f\x85\u2028b"


def record(message: str, *args: object, level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("greeter", level, "", 0, message, args, None)
    vars(made).update(extra)
    return made


def broken(message: str) -> logging.LogRecord:
    """A record with a traceback."""
    try:
        raise ValueError("line one\nline two \x1b[31m")
    except ValueError:
        return logging.LogRecord("greeter", logging.ERROR, "", 0, message, (), sys.exc_info())


class Pipe:
    """A pipe for a LogStream to write to. The test is the reader."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.filler = b""

    def read(self, limit: int = 1 << 24) -> str:
        """What the pipe contains, without what ``fill`` has written."""
        data = b""
        with contextlib.suppress(BlockingIOError):
            while len(data) < limit and (chunk := os.read(self.reading, min(65536, limit - len(data)))):
                data += chunk
        found, self.filler = data.removeprefix(self.filler[: len(data)]), self.filler[len(data) :]
        return found.decode()

    def fill(self) -> None:
        os.set_blocking(self.writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.filler += b"#" * os.write(self.writing, b"#" * 4096)
        os.set_blocking(self.writing, True)

    def close(self) -> None:
        for fd in (self.reading, self.writing):
            with contextlib.suppress(OSError):
                os.close(fd)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    it = Pipe()
    yield it
    it.close()


# -- lines -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain grüße 你好 \xa0", "plain grüße 你好 \xa0"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\0\x1b[2J\x7f\x85\x9b", "\\x00\\x1b[2J\\x7f\\x85\\x9b"),
        ("\u2028\u2029", "\\u2028\\u2029"),
    ],
)
def test_escape(text: str, shown: str) -> None:
    assert escape(text) == shown


@settings(deadline=None)
@given(st.text(st.characters() | st.characters(max_codepoint=0xA0)))
def test_escaped_text_is_one_line_without_controls(text: str) -> None:
    shown = escape(text)
    assert len(f"{shown}.".splitlines()) == 1
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in shown)
    assert escape(shown) == shown
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize(
    ("level", "line"),
    [
        (logging.DEBUG, "debug: 2 of 3"),
        (logging.INFO, "2 of 3"),
        (logging.WARNING, "warning: 2 of 3"),
        (logging.ERROR, "error: 2 of 3"),
    ],
)
def test_a_line_of_text(level: int, line: str) -> None:
    assert TextFormatter().format(record("%d of %d", 2, 3, level=level)) == line


def test_a_traceback_is_one_line() -> None:
    line = TextFormatter().format(broken("it broke"))
    assert line.startswith("error: it broke | Traceback (most recent call last):\\n")
    assert line.endswith("ValueError: line one\\nline two \\x1b[31m")
    assert line.isprintable()


def test_a_json_line() -> None:
    entry = json.loads(
        JsonFormatter().format(
            record(
                "Listening on %s",
                "127.0.0.1:9",
                level=logging.WARNING,
                event="listening",
                address="127.0.0.1:9",
                workers=2,
                secret="not a field",
            )
        )
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry.pop("time"))
    assert entry == {
        "pid": os.getpid(),
        "level": "warning",
        "event": "listening",
        "address": "127.0.0.1:9",
        "workers": 2,
        "message": "Listening on 127.0.0.1:9",
    }


def test_a_traceback_is_a_field_of_a_json_line() -> None:
    line = JsonFormatter().format(broken("it broke"))
    entry = json.loads(line)
    assert line.isprintable()
    assert entry["message"] == "it broke"
    assert entry["traceback"].startswith("Traceback (most recent call last):\n")
    assert "ValueError: line one\nline two \x1b[31m" in entry["traceback"]


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2)],
)
def test_under_journald_a_line_begins_with_its_priority(
    pipe: Pipe, log_format: LogFormat, level: int, priority: int
) -> None:
    found = os.fstat(pipe.writing)
    journal = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
    formatter = choose_formatter(pipe.writing, log_format, journal)
    plain = choose_formatter(pipe.writing, log_format, {})
    made = record("hello", level=level)
    assert formatter.format(made) == f"<{priority}>" + plain.format(made)
    assert formatter.connection(CLIENT).startswith("<6>")


def test_the_stream_of_another_process_is_not_ours(pipe: Pipe) -> None:
    found = os.fstat(pipe.reading)
    for text in ("", "8", "8:", f"{found.st_dev}:{found.st_ino + 1}", f"{found.st_dev + 1}:{found.st_ino}"):
        assert not is_journal(pipe.writing, text)
    assert is_journal(pipe.writing, f"{found.st_dev}:{found.st_ino}")
    pipe.close()
    assert not is_journal(pipe.writing, "8:1")


@pytest.fixture
def terminal() -> Iterator[int]:
    main, terminal = os.openpty()
    yield terminal
    os.close(main)
    os.close(terminal)


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [
        ({}, True),
        ({"NO_COLOR": ""}, True),
        ({"NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({"TERM": "xterm"}, True),
    ],
)
def test_on_a_terminal_a_line_has_the_time_and_colours(
    terminal: int, environ: dict[str, str], coloured: bool
) -> None:
    formatter = choose_formatter(terminal, "text", environ)
    line = formatter.format(record(HOSTILE, level=logging.WARNING))
    assert ("\x1b" in line) is coloured
    plain = re.sub(r"\x1b\[\d*m", "", line)
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning: a\\nGot .*", plain)
    assert plain.isprintable()
    assert formatter.connection(CLIENT) == "Got a connection from ('192.0.2.7', 3747)"
    rows = formatter.format(broken("it broke")).split("\n")
    assert len(rows) > 3
    assert rows[-1] == "line two \\x1b[31m"


def test_json_on_a_terminal_is_json(terminal: int) -> None:
    assert json.loads(choose_formatter(terminal, "json", {}).format(record("hello")))["message"] == "hello"


def test_a_field_that_json_cannot_represent_is_text() -> None:
    entry = json.loads(JsonFormatter().format(record("x", address=b"\xff", path={"a": object})))
    assert entry["address"] == "b'\\xff'"


@settings(deadline=None)
@given(st.text(st.characters()))
@example("\x7f")
def test_a_json_line_is_one_line_whatever_its_text(text: str) -> None:
    line = JsonFormatter().format(record("%s", text, peer=text))
    entry = json.loads(line)
    assert (entry["message"], entry["peer"]) == (text, text)
    assert line.isascii()
    assert line.isprintable()


@pytest.mark.parametrize(
    ("address", "text", "peer"),
    [
        (("127.0.0.1", 3747), "('127.0.0.1', 3747)", "127.0.0.1:3747"),
        (("::1", 3747, 0, 0), "('::1', 3747)", "[::1]:3747"),
        ("", "'unix:'", ""),
        ("/run/\nx", "'unix:/run/\\nx'", "/run/\nx"),
        (b"\0na\xffme", "'unix:@na\\\\xffme'", "@na\\xffme"),
        (None, "a disconnected client", None),
    ],
)
def test_the_access_log_line_of_a_client(address: Any, text: str, peer: object) -> None:
    assert TextFormatter().connection(address) == f"Got a connection from {text}"
    entry = json.loads(JsonFormatter().connection(address))
    assert (entry["event"], entry["level"], entry["peer"]) == ("connection", "info", peer)
    assert re.fullmatch(r"[0-9-]{10}T[0-9:]{8}\.\d{3}Z", entry["time"])


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
    begun = loop.time()
    log.handle(record("Listening"))
    for port in range(100):
        log.connection(("127.0.0.1", port))
    log.handle(record("Stopped"))
    assert pipe.read() == ""
    assert log._timer is not None
    assert log._timer.when() - begun <= FLUSH_SECONDS + 0.01 <= 0.2
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


def test_the_last_flush_waits_for_a_slow_reader(pipe: Pipe) -> None:
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


def test_a_record_that_cannot_be_formatted_is_reported(
    pipe: Pipe, capsys: pytest.CaptureFixture[str]
) -> None:
    log = LogStream(pipe.writing)
    log.handle(record("%d clients", "some"))
    assert "--- Logging error ---" in capsys.readouterr().err
    log.handle(record("go on"))
    assert pipe.read() == "go on\n"
