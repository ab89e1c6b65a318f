"""The parsers of option values: the value of a text, and the error for an invalid one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from greeter import ConfigError, Endpoint
from greeter.config import values
from greeter.config.values import MAX_COUNT, ParsedType
from greeter.loadtest import parse_stage

KINDS = {name: kind for name, kind in vars(values).items() if isinstance(kind, click.ParamType)}


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("ENDPOINT", "[::1]:9", Endpoint.tcp("::1", 9)),
        ("SECONDS", "0", 0.0),
        ("SECONDS", "1e2", 100.0),
        ("SECONDS", "1m30s", 90.0),
        ("POSITIVE_SECONDS", "250ms", 0.25),
        ("POSITIVE_SECONDS", ".5", 0.5),
        ("COUNT", "1", 1),
        ("COUNT", str(MAX_COUNT), MAX_COUNT),
        ("TEMPLATE", "hi $host, $$5", "hi $host, $$5"),
        ("RATE", "2.5", 2.5),
        ("NETWORK", "192.0.2.0/24", "192.0.2.0/24"),
        ("NETWORK", "::1", "::1"),
        ("MODE", "660", 0o660),
        ("MODE", "0600", 0o600),
        ("WORKERS", "auto", "auto"),
        ("WORKERS", "3", 3),
        ("DURATION", "500ms", 0.5),
        ("DURATION", "2m", 120.0),
        ("QUANTITY", "10k", 10_000),
        ("PER_SECOND", "1.5k", 1500.0),
        ("STAGE", "10s:500", parse_stage("10s:500")),
        ("LIMIT", "response:p99<20ms", "response:p99<20ms"),
        ("PERCENT", "10%", 10.0),
        ("PERCENT", "0.5", 0.5),
        ("FILE", "a file", Path("a file")),
        ("LOOP", "auto", "auto"),
    ],
)
def test_a_valid_text_is_parsed(kind: str, text: str, value: object) -> None:
    assert KINDS[kind].convert(text, None, None) == value


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        ("ENDPOINT", "localhost", "endpoint 'localhost' has no port"),
        ("STREAM_ENDPOINT", "udp::9", "HTTP needs a stream, and udp::9 is an endpoint for datagrams"),
        ("SECONDS", "-1", "'-1' is not a duration, as in 500ms, 10s or 2m"),
        ("SECONDS", "nan", "'nan' is not a duration, as in 500ms, 10s or 2m"),
        ("SECONDS", "inf", "'inf' is not a duration, as in 500ms, 10s or 2m"),
        ("SECONDS", "999999999999", "'999999999999' is longer than 100000000 s"),
        ("POSITIVE_SECONDS", "0.0", "must be greater than 0 seconds"),
        ("COUNT", "0", f"'0' is not a whole number from 1 to {MAX_COUNT}"),
        ("COUNT", str(MAX_COUNT + 1), f"'{MAX_COUNT + 1}' is not a whole number"),
        ("COUNT", "²", "'²' is not a whole number"),
        ("COUNT", "9" * 5000, f"'{'9' * 40}' is not a whole number"),
        ("TEMPLATE", "$user", "greeting has the unknown name $user"),
        ("TEMPLATE", "\udcff", "cannot be encoded as UTF-8"),
        ("RATE", "0", "'0'"),
        ("RATE", "many", "'many'"),
        ("NETWORK", "192.0.2.1/24", "'192.0.2.1/24'"),
        ("NETWORK", "example.org", "'example.org'"),
        ("MODE", "88", "'88' is not a mode of three or four octal digits"),
        ("MODE", "686", "'686' is not a mode of three or four octal digits"),
        ("MODE", "rw-", "'rw-' is not a mode of three or four octal digits"),
        ("WORKERS", "all", "'all' is not a whole number from 1 to 1024, nor auto"),
        ("WORKERS", "1025", "'1025' is not a whole number from 1 to 1024, nor auto"),
        ("PROCESS_COUNT", "1025", "'1025' is not a whole number from 1 to 1024"),
        ("DURATION", "soon", "'soon'"),
        ("QUANTITY", "1.5", "'1.5'"),
        ("PER_SECOND", "fast", "'fast'"),
        ("STAGE", "500", "'500'"),
        ("LIMIT", "response", "'response'"),
        ("PERCENT", "-1", "'-1' is not a percentage"),
        ("PERCENT", "%", "'%' is not a percentage"),
        ("PERCENT", "nan", "'nan' is not a percentage"),
        ("LOOP", "trio", "'trio' is not one of 'auto', 'asyncio', 'uvloop'"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_an_invalid_text_is_rejected(kind: str, text: str, why: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        KINDS[kind].convert(text, None, None)
    assert why in caught.value.message


def test_a_service_name_as_port_must_be_known_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("socket.getservbyname", lambda *asked_for: asked.append(asked_for))
    assert KINDS["ENDPOINT"].convert(":known", None, None) == Endpoint.tcp("", "known")
    assert KINDS["ENDPOINT"].convert("udp::known", None, None) == Endpoint.udp("", "known")
    assert asked == [("known", "tcp"), ("known", "udp")]
    monkeypatch.undo()
    with pytest.raises(
        click.BadParameter, match="endpoint ':no-such': this machine knows no service 'no-such'"
    ):
        KINDS["ENDPOINT"].convert(":no-such", None, None)


def test_a_config_error_of_a_parser_is_a_bad_parameter() -> None:
    def parse(_text: str) -> Any:
        raise ConfigError("never")

    with pytest.raises(click.BadParameter, match="never"):
        ParsedType("x", parse).convert("anything", None, None)


@settings(max_examples=50)
@example("FILE", "\0")
@example("FILE_NAME", "\ud800")
@example("ENDPOINT", ":a\0")
@example("ENDPOINT", ":a\ud800")
@given(st.sampled_from(sorted(KINDS)), st.text(st.characters(), max_size=12) | st.integers().map(str))
def test_any_text_is_parsed_or_rejected(kind: str, text: str) -> None:
    try:
        KINDS[kind].convert(text, None, None)
    except click.BadParameter as error:
        message = error.message
    else:
        message = "none"
    assert message
