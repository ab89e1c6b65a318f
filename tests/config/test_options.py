"""Every option from each of its sources, for every field of the dataclasses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click
import pytest

from greeter import Endpoint
from greeter.cli.cli import cli
from greeter.config.options import DemoOptions, GreetOptions, LoadOptions, ServeOptions
from greeter.config.values import ParsedType
from greeter.loadtest import parse_stage
from tests.cli.test_click_options import read
from tests.support.configuration import _bare_environment, config

__all__ = ["_bare_environment", "config"]  # fixtures

ALL = (ServeOptions, GreetOptions, LoadOptions, DemoOptions)


def sample(field: dataclasses.Field[Any]) -> tuple[str, Any]:
    """A text for an option, and its value, which is not the default."""
    kind = field.metadata["greeter"]["type"]
    if isinstance(field.default, bool):
        return str(not field.default).lower(), not field.default
    if isinstance(kind, click.Choice):
        choice = next(c for c in kind.choices if c != field.default)
        return str(choice), choice
    if isinstance(kind, click.Path):
        return "a file", "a file" if kind.type is None else Path("a file")
    if isinstance(kind, ParsedType):
        return {
            "endpoint": ("[::1]:80", Endpoint.tcp("::1", 80)),
            "n": ("7", 7),
            "text": ("hi $host", "hi $host"),
            "until": ("text:ready", "text:ready"),
            "bytes": ("hi\\r\\n", b"hi\r\n"),
            "rate": ("2.5", 2.5),
            "cidr": ("192.0.2.0/24", "192.0.2.0/24"),
            "mode": ("640", 0o640),
            "duration": ("1500ms", 1.5),
            "dur:rate": ("10s:500", parse_stage("10s:500")),
            "expr": ("errors:rate<0.1%", "errors:rate<0.1%"),
            "pct": ("25%", 25.0),
            "name": ("a.example", "a.example"),
            "module:name": ("module:name", "module:name"),
        }[kind.name]
    return "module:name", "module:name"


FIELDS = [
    pytest.param(cls, field, id=f"{cls.__name__}.{field.name}")
    for cls in ALL
    for field in dataclasses.fields(cls)
    if not field.metadata["greeter"]["argument"]
]


def as_field(field: dataclasses.Field[Any], value: Any) -> Any:
    return (value,) if field.metadata["greeter"]["multiple"] else value


@pytest.mark.parametrize("cls", ALL)
def test_without_sources_the_options_have_their_defaults(cls: type[Any]) -> None:
    assert read(cls) == cls()


@pytest.mark.parametrize(("cls", "field"), FIELDS)
def test_from_the_command_line(cls: type[Any], field: dataclasses.Field[Any]) -> None:
    text, value = sample(field)
    flag = "--" + field.name.replace("_", "-")
    switch = flag if value else flag.replace("--", "--no-", 1)
    args = [switch] if isinstance(value, bool) else [flag, text]
    assert read(cls, *args) == cls(**{field.name: as_field(field, value)})
    if short := field.metadata["greeter"]["short"]:
        assert read(cls, short, text) == cls(**{field.name: value})


@pytest.mark.parametrize(("cls", "field"), FIELDS)
def test_from_the_environment(
    cls: type[Any], field: dataclasses.Field[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    text, value = sample(field)
    many = field.metadata["greeter"]["multiple"]
    monkeypatch.setenv(f"GREETER_{field.name.upper()}", f"{text} {text}" if many else text)
    # greet does not take the variables of serve.
    given = {field.name: (value, value) if many else value} if field.metadata["greeter"]["env"] else {}
    assert read(cls) == cls(**given)


@pytest.mark.parametrize(("cls", "field"), [p for p in FIELDS if p.values[0] is ServeOptions])
@pytest.mark.parametrize("dash", ["-", "_"])
def test_from_the_file(cls: type[Any], field: dataclasses.Field[Any], dash: str, config: Any) -> None:
    text, value = sample(field)
    plain = json.dumps(value if isinstance(value, (bool, int, float)) and field.name != "unix_mode" else text)
    key = field.name.replace("_", dash)
    config(f"{key} = {plain}\n")
    assert read(cls) == cls(**{field.name: as_field(field, value)})
    if field.metadata["greeter"]["multiple"]:
        config(f"{key} = [{plain}, {plain}]\n")
        assert read(cls) == cls(**{field.name: (value, value)})
        config(f"{key} = []\n")
        assert read(cls) == cls()


def test_a_target_is_an_endpoint() -> None:
    assert read(LoadOptions, "unix:/run/x").target == Endpoint.unix("/run/x")
    assert read(GreetOptions).target == ()
    two = Endpoint.unix("/run/x"), Endpoint.tcp("::1", 25)
    assert read(GreetOptions, "unix:/run/x", "[::1]:25").target == two


def test_no_variable_has_two_meanings() -> None:
    """A shell has one environment for all commands, and a health check that of the service beside it."""
    meanings: dict[str, set[tuple[str, str]]] = {}
    for command in cli.commands.values():
        for param in command.params:
            if isinstance(param, click.Option) and param.envvar:
                assert isinstance(param.envvar, str)
                meanings.setdefault(param.envvar, set()).add((str(param.help), param.type.name))
    assert len(meanings) > 60
    assert {name: found for name, found in meanings.items() if len(found) > 1} == {}
