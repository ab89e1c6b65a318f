"""The lines of the log: text, text on a terminal, JSON, and with priorities for journald."""

from __future__ import annotations

import json
import logging
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from greeter.service.log_format import (
    JsonFormatter,
    LogFormat,
    TextFormatter,
    choose_formatter,
    error_line,
    escape,
    is_journal,
)
from tests.support.log_peers import CLIENT, HOSTILE, Pipe, broken, record

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    it = Pipe()
    yield it
    it.close()


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


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_error_at_the_start_is_a_line_of_the_log(
    pipe: Pipe, log_format: LogFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = error_line("cannot listen", log_format, pipe.writing)
    if log_format == "text":
        assert line == "greeter: cannot listen"
    else:
        entry = json.loads(line)
        del entry["time"], entry["pid"]
        assert entry == {"level": "error", "event": "start_failed", "message": "cannot listen"}
    found = os.fstat(pipe.writing)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    assert error_line("cannot listen", log_format, pipe.writing).startswith("<3>")
    assert error_line("cannot listen", "text", -1) == "greeter: cannot listen"
