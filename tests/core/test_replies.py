"""Where a greeting ends: tables, and independence of how the bytes are segmented."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greeter.core.replies import MAX_SIZE, Reply, Until, line_end, reply_end
from greeter.errors import ConfigError

# The reply, and the bytes after it.
COMPLETE = [
    (b"220 mail.example ESMTP\r\n", b""),
    (b"220 here\n", b"250 more\n"),
    (b"250\r\n", b"250 more\r\n"),
    (b"250\n", b""),
    (b"\n", b"220 late\n"),
    (b"\r\n", b"\r\n"),
    (b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00\x00\x05"),
    (b"250-a\r\n250-b\r\n250 c\r\n", b"250 d\r\n"),
    (b"250-a\n250 b\n", b"x"),
    (b"250-a\r\n250\r\n", b"x"),
    (b"250-a\r\n250\n", b""),
    (b"250-\r\n250 \r\n", b""),
    (b"250-\n250\n", b"\n"),
    # RFC 959: inner lines need not begin with the code. Lines with another code do not end the reply.
    (b"123-First line\r\nSecond line\r\n  234 A line beginning with numbers\r\n123 The last line\r\n", b"x"),
    (b"220-a\r\n221 b\r\n221-c\r\n\r\n 220 d\r\n220 e\r\n", b""),
    (b"220-a\r\n2200 b\r\n220\tc\r\n220x\r\n220\r220 d\r\n220 e\r\n", b""),
    # A code has three ASCII digits, directly followed by a hyphen.
    (b"22-a\r\n", b"22 b\r\n"),
    (b"2200-a\r\n", b"2200 b\r\n"),
    (b"22a-a\r\n", b"22a b\r\n"),
    (b"220 -a\r\n", b""),
    (b" 220-a\r\n", b"220 b\r\n"),
    ("٢٢٠-a\r\n".encode(), b"x"),
    (b"000-\n000 \n", b"000 \n"),
    (b"250-\0\xff\n\0\n250 \0\n", b"\0"),
    (b"220\r-a\r\n", b""),
]
INCOMPLETE = [
    b"",
    b"2",
    b"220",
    b"220 here",
    b"220 here\r",
    b"250\r",
    b"250-",
    b"250-a\r\n",
    b"250-a\r\n25",
    b"250-a\r\n250",
    b"250-a\r\n250\r",
    b"250-a\r\n250 the last, cut",
    b"250-a\r\n250-b\r\n",
    b"250-a\r\n251 b\r\n",
    b"250-a\r\nx250 b\r\n",
    b"250-a\r250 b\r",
]


@pytest.mark.parametrize(("reply", "after"), COMPLETE)
def test_a_reply_ends_where_its_last_line_ends(reply: bytes, after: bytes) -> None:
    assert reply_end(reply + after) == len(reply)
    assert reply_end(bytearray(reply + after)) == len(reply)
    for size in range(len(reply)):
        assert reply_end(reply[:size]) is None


@pytest.mark.parametrize("data", INCOMPLETE)
def test_a_reply_without_its_last_line_is_not_complete(data: bytes) -> None:
    assert reply_end(data) is None


@pytest.mark.parametrize(
    ("data", "end"), [(b"", None), (b"a\r", None), (b"\n", 1), (b"a\r\nb\n", 3), (b"250-a\n250 b\n", 6)]
)
def test_a_line_ends_with_lf(data: bytes, end: int | None) -> None:
    assert line_end(data) == end


@pytest.mark.parametrize(
    ("until", "end"),
    [
        ("eof", None),
        ("line", len(b"250-a\n")),
        ("reply", len(b"250-a\n250 b\n")),
        ("text:250 ", len(b"250-a\n250 ")),
        ("text:a", len(b"250-a")),
        (r"text:\n\x32", len(b"250-a\n2")),
        ("text:absent", None),
        ("bytes:1", 1),
        ("bytes:14", 14),
        ("bytes:15", None),
        ("idle:1ms", None),
    ],
)
def test_until_selects_the_rule(until: str, end: int | None) -> None:
    assert Until.parse(until).end(b"250-a\n250 b\nc\n") == end


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("eof", Until("eof")),
        (r"text:a\r\n\t\\\xfF:", Until("text", text=b"a\r\n\t\\\xff:")),
        ("text:grüße", Until("text", text="grüße".encode())),
        ("bytes:2147483647", Until("bytes", size=MAX_SIZE)),
        ("idle:1.5", Until("idle", idle=1.5)),
        ("idle:250us", Until("idle", idle=250e-6)),
        ("idle:1m30s", Until("idle", idle=90)),
    ],
)
def test_until_is_parsed_from_text_and_formatted_back(text: str, value: Until) -> None:
    assert Until.parse(text) == value
    assert Until.parse(str(value)) == value
    assert Until.parse(value) is value


WORDS = ["", "word", "Line", "line:", "eof:1", "text", "text:", "bytes:", "bytes:0", "bytes:-1", "bytes:1k"]
WORDS += ["bytes:1.5", "bytes:٣", f"bytes:{MAX_SIZE + 1}", "bytes:" + "9" * 5000, "idle:", "idle:0", "idle"]


@pytest.mark.parametrize("until", WORDS)
def test_text_that_is_no_until_is_rejected(until: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Until.parse(until)
    forms = "eof, line, reply, text:TEXT, bytes:N or idle:DURATION"
    assert str(caught.value) == f"until must be {forms}, not {until!r}"


def test_a_wrong_value_of_until_is_named() -> None:
    with pytest.raises(ConfigError, match="^until 'idle:soon': 'soon' is not a duration, as in 500ms"):
        Until.parse("idle:soon")
    with pytest.raises(ConfigError, match=r"^until 'text:\\\\q': unknown escape \\q in \\q: the escapes are"):
        Until.parse(r"text:\q")


@pytest.mark.parametrize("value", [None, 1, b"line", ["line"], True])
def test_until_of_a_wrong_type_is_rejected(value: Any) -> None:
    with pytest.raises(
        ConfigError, match=f"^until must be a string, as in 'line', not {type(value).__name__}$"
    ):
        Until.parse(value)


@pytest.mark.parametrize(
    ("data", "complete"),
    [
        (b"220 her", True),
        (b"SSH-2.0", True),
        (b"22", True),
        (b"250-a\r\n250 b", True),
        (b"250-a\r\n250", True),
        (b"250-a\r\n250\r", True),
        (b"250-a", False),
        (b"250-a\r\n", False),
        (b"250-a\r\n25", False),
        (b"250-a\r\n251 b", False),
    ],
)
def test_the_end_of_the_stream_ends_a_line(data: bytes, complete: bool) -> None:
    assert Until("reply").ended_by_eof(data) is complete
    for until in ("line", "eof", "idle:1"):
        assert Until.parse(until).ended_by_eof(data)
    for until in ("text:absent", "bytes:100"):
        assert not Until.parse(until).ended_by_eof(data)


# -- segmentation -----------------------------------------------------------------------------------------

# Lines that resemble a last line more often than random bytes do.
PIECES = st.sampled_from([b"250", b"25", b"0", b"-", b" ", b"\r", b"\n", b"\r\n", b"251", b"x", b"\0"])
STREAMS = st.lists(PIECES, max_size=30).map(b"".join) | st.lists(PIECES, max_size=20).map(
    lambda pieces: b"250-" + b"".join(pieces)
)


def by_definition(data: bytes) -> int | None:
    """The definition of the RFCs, applied line by line."""
    *lines, _cut = data.split(b"\n")
    code = lines[0][:4] if lines and lines[0][:3].isdigit() and lines[0][3:4] == b"-" else None
    size = 0
    for number, line in enumerate(lines):
        size += len(line) + 1
        if code is None or (number and line[:3] == code[:3] and line[3:] in (b"", b"\r")):
            return size
        if number and line[:4] == code[:3] + b" ":
            return size
    return None


@settings(max_examples=500)
@given(STREAMS)
def test_reply_end_agrees_with_the_definition(data: bytes) -> None:
    assert reply_end(data) == by_definition(data)


@settings(max_examples=500)
@given(STREAMS, st.data())
def test_reply_end_does_not_depend_on_segmentation(data: bytes, draw: st.DataObject) -> None:
    whole = reply_end(data)
    held, start, found = bytearray(), 0, None
    while data and found is None:
        size = draw.draw(st.integers(1, len(data)))
        held += data[:size]
        data = data[size:]
        found = reply_end(held, start)
        assert found == reply_end(held)
        start = held.rfind(b"\n") + 1
    assert found == whole


@settings(max_examples=300)
@given(STREAMS, STREAMS)
def test_reply_end_does_not_depend_on_later_bytes(data: bytes, after: bytes) -> None:
    end = reply_end(data)
    if end is not None:
        assert reply_end(data + after) == end
        assert reply_end(data[: end - 1]) is None


RULES = (
    st.sampled_from([Until("eof"), Until("line"), Until("reply"), Until("idle", idle=1.0)])
    | st.builds(lambda text: Until("text", text=text), st.lists(PIECES, min_size=1, max_size=4).map(b"".join))
    | st.builds(lambda size: Until("bytes", size=size), st.integers(1, 40))
)


@settings(max_examples=500)
@given(RULES, STREAMS, st.data())
def test_the_end_does_not_depend_on_segmentation(until: Until, data: bytes, draw: st.DataObject) -> None:
    whole = until.end(data)
    held, rest, found = bytearray(), data, None
    while rest and found is None:
        size = draw.draw(st.integers(1, len(rest)))
        seen = len(held)
        held += rest[:size]
        rest = rest[size:]
        found = until.end(held, seen)
        assert found == until.end(held)
    assert found == whole
    assert whole is None or until.end(data[: whole - 1]) is None
    assert Until.parse(str(until)) == until


def test_continuing_at_the_last_line_costs_that_line_only() -> None:
    def cost(lines: int) -> float:
        data = b"250-" + b"x\n" * lines
        times = []
        for _ in range(20):
            begin = time.perf_counter()
            assert reply_end(data, len(data)) is None
            times.append(time.perf_counter() - begin)
        return min(times)

    assert cost(1_000_000) < 100 * cost(10)


# -- Reply ------------------------------------------------------------------------------------------------


def test_a_reply_is_true_with_a_byte_and_has_a_text() -> None:
    reply = Reply("grüße ".encode() + b"\xff\0", "x:1", 0.0, None, 0.0)
    assert reply
    assert reply.text == str(reply) == "grüße \\xff\0"
    assert not Reply(b"", "x:1", 0.0, None, 0.0)


def test_the_repr_of_a_reply_is_short() -> None:
    reply = Reply(b"220 here\r\n", "h:25", 0.001, 0.002, 0.0123456)
    assert repr(reply) == r"<Reply b'220 here\r\n' from h:25 in 12.3 ms>"
    ended = Reply(b"x" * 100_000, "h:25", 0.0, 0.0, 0.01, reset=True, truncated=True)
    assert repr(ended).endswith("... (100000 bytes) from h:25 in 10 ms reset truncated>")
    assert len(repr(ended)) < 150
