from __future__ import annotations

import json

import pytest

from greeter.loadtest.metrics.greeting_table import _MAX_HEADS, _MAX_TEXTS, SHOWN, GreetingTable, group_text


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (b"220 mail.example ESMTP\r\n", "220 mail.example ESMTP"),
        (b"220-mail.example wait\r\n220 ready\r\n", "220-mail.example wait"),
        (b"421 4.7.0 too many connections\n", "421 #.#.# too many connections"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "SSH-#.#-OpenSSH_#.#p#"),
        (b"RFB 003.008\n", "RFB #.#"),
        (b"+OK <1896.69717095@pop.example>\r\n", "+OK <#.#@pop.example>"),
        (b"hello 3f9a2c, deadbeefcafe and 0xC0FFEE", "hello #, # and #"),
        (b"id 550e8400-e29b-41d4-abcd-446655440000 ok", "id # ok"),
        (b"a bad face", "a bad face"),
        (b"2201 is not a code", "# is not a code"),
        (b"220", "220"),
        ("grüß dich\ttab".encode(), "grüß dich tab"),
        ("grüß dich".encode()[:3], "gr"),  # cut within a character
        (b"\r\n\r\nwelcome\r\n", "welcome"),
        (b"J\x00\x00\x00\x0a8.0.39\x00\x08\x1a", "J"),
        (b"\x16\x03\x03\x00Z", "\\x16"),
        ("name \u202e gnirts".encode(), "name "),
        (b"\r\n", ""),
    ],
)
def test_a_greeting_is_counted_under_its_text(head: bytes, text: str) -> None:
    assert group_text(head) == text


def test_the_text_of_a_greeting_is_bounded() -> None:
    assert group_text(b"x" * 10_000) == "x" * 120


def test_greetings_that_differ_in_numbers_are_one() -> None:
    table = GreetingTable()
    for n in range(5 * _MAX_HEADS):
        table.heads[b"hello number %d" % n] += 1
        table.heads[b"421 too many connections"] += 1
        table.bound()
    assert table.to_json() == {
        "texts": [
            {"text": "421 too many connections", "count": 5 * _MAX_HEADS},
            {"text": "hello number #", "count": 5 * _MAX_HEADS},
        ],
        "others": 0,
    }


def letters(n: int) -> bytes:
    return bytes(103 + int(digit) for digit in str(n))  # g to p: neither digits nor hexadecimal


def test_the_table_is_bounded_and_keeps_the_most_frequent() -> None:
    table = GreetingTable()
    count = 3 * _MAX_HEADS
    for n in range(count):
        table.heads[b"once " + letters(n)] += 1
        if n > count - 100:
            table.heads[b"late, but often"] += 1
        table.bound()
        assert len(table.heads) <= _MAX_HEADS + 1
    assert len(table.to_json()["texts"]) == _MAX_TEXTS
    shown = table.to_json(SHOWN)
    assert shown["texts"][0] == {"text": "late, but often", "count": 99}
    assert len(shown["texts"]) == SHOWN
    assert sum(row["count"] for row in shown["texts"]) + shown["others"] == count + 99


def test_the_tables_of_workers_are_added() -> None:
    one, other = GreetingTable({"a": 3, "b": 1}, 2), GreetingTable({"b": 5}, 1)
    other.heads[b"c"] += 1
    one.merge(GreetingTable.from_json(json.loads(json.dumps(other.to_json()))))
    assert one.to_json() == {
        "texts": [{"text": "b", "count": 6}, {"text": "a", "count": 3}, {"text": "c", "count": 1}],
        "others": 3,
    }
