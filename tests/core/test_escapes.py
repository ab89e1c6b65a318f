"""Escapes: what they stand for, that they lose nothing, and that no character is hidden when printed."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greeter.core.escapes import escape, hex_dump, is_binary, printable, unescape
from greeter.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("", b""),
        (r"EHLO client.example\r\n", b"EHLO client.example\r\n"),
        (r"\t\\n\x00\xFf", b"\t\\n\0\xff"),
        ("grüße", "grüße".encode()),
        ("\udcff", b"\xff"),  # an undecodable argument of the command line (PEP 383)
    ],
)
def test_unescape(text: str, data: bytes) -> None:
    assert unescape(text) == data


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("\\", "\\"),
        (r"a\q", r"\q"),
        (r"\x1", r"\x1"),
        (r"\x", r"\x"),
        (r"\xg0", r"\xg"),
        (r"\N", r"\N"),
    ],
)
def test_an_unknown_escape_is_named(text: str, wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        unescape(text)
    assert str(caught.value).startswith(f"unknown escape {wrong}")


def test_text_that_is_not_unicode_is_rejected() -> None:
    with pytest.raises(ConfigError, match="cannot be encoded as UTF-8"):
        unescape("\ud800")


@given(st.binary() | st.text().map(lambda text: text.encode(errors="surrogatepass")))
def test_escape_is_one_printable_line_that_unescape_reverses(data: bytes) -> None:
    assert escape(data).isprintable()
    assert unescape(escape(data)) == data


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain grüße 你好\n\tend", "plain grüße 你好\n\tend"),
        ("a\xa0b\u3000c", "a\xa0b\u3000c"),  # spaces
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("220-a\r\n220 b\rc\r", "220-a\n220 b\\rc\\r"),
        ("\0\x08\x7f\x80\x85\x9b\x9f", r"\x00\x08\x7f\x80\x85\x9b\x9f"),
        ("a\u202eb\u2066c\u200fd", r"a\u202eb\u2066c\u200fd"),  # bidirectional overrides, isolates and marks
        ("a\u200bb\u200dc\ufeffd\u2060e\xad", r"a\u200bb\u200dc\ufeffd\u2060e\xad"),  # zero-width
        ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
        ("\ue000\U000f0000\U000e0041", r"\ue000\U000f0000\U000e0041"),  # private use, tags
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_printable_text_has_only_characters_that_are_shown(text: str) -> None:
    shown = printable(text)
    kinds = {unicodedata.category(c) for c in shown if c not in "\n\t"}
    assert not kinds & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("data", "binary"),
    [
        (b"", False),
        (b"220 here\r\n\t\x1b[1m", False),
        ("grüße".encode(), False),
        ("grüße".encode("latin-1"), False),
        (b"a\0b", True),
        (b"J\0\0\0\x0a5.5.5-10.11.6-MariaDB", True),
        (b"\xff\xfd\x18\xff\xfd\x20", True),  # telnet
        (b"bell\x07 \xff", False),
        (b"\x01", False),
    ],
)
def test_is_binary(data: bytes, binary: bool) -> None:
    assert is_binary(data) is binary


def test_a_hex_dump_has_the_text_beside_the_bytes() -> None:
    assert hex_dump(b"J\0\0\0\n5.5.5-10.11.6-M\xe9") == (
        "00000000  4a 00 00 00 0a 35 2e 35  2e 35 2d 31 30 2e 31 31  |J....5.5.5-10.11|\n"
        "00000010  2e 36 2d 4d e9                                    |.6-M.|"
    )
    assert hex_dump(b"") == ""
