"""Where a greeting ends: tables, and independence of how the bytes are segmented."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greeter.core.replies import UNTIL, Until, ended_by_eof, greeting_end, line_end, reply_end

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
    ("until", "end"), [("eof", None), ("line", len(b"250-a\n")), ("reply", len(b"250-a\n250 b\n"))]
)
def test_until_selects_the_rule(until: Until, end: int | None) -> None:
    assert until in UNTIL
    assert greeting_end(b"250-a\n250 b\nc\n", until) == end


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
    assert ended_by_eof(data, "reply") is complete
    assert ended_by_eof(data, "line")
    assert ended_by_eof(data, "eof")


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


@settings(deadline=None, max_examples=500)
@given(STREAMS)
def test_reply_end_agrees_with_the_definition(data: bytes) -> None:
    assert reply_end(data) == by_definition(data)


@settings(deadline=None, max_examples=500)
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


@settings(deadline=None, max_examples=300)
@given(STREAMS, STREAMS)
def test_reply_end_does_not_depend_on_later_bytes(data: bytes, after: bytes) -> None:
    end = reply_end(data)
    if end is not None:
        assert reply_end(data + after) == end
        assert reply_end(data[: end - 1]) is None


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
