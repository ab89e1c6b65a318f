"""Command line, environment and file: their precedence, and the errors of each."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
import pytest

from greeter import ConfigError, Endpoint
from greeter.cli.click_options import parse_options, with_options
from greeter.config.options import GreetOptions, ServeOptions
from greeter.config.values import MAX_COUNT
from tests.support.configuration import _bare_environment, config

__all__ = ["_bare_environment", "config"]  # fixtures


def read(cls: type[Any], *args: str) -> Any:
    """The options of ``cls`` that a command parses."""

    @click.command()
    @with_options(cls, config=cls is ServeOptions)
    @click.pass_context
    def command(ctx: click.Context, /, **_: object) -> Any:
        return parse_options(cls, ctx)

    return command.main(list(args), "test", standalone_mode=False)


def error_of(*args: str) -> str:
    with pytest.raises((ConfigError, click.UsageError)) as caught:
        read(ServeOptions, *args)
    error = caught.value
    return error.format_message() if isinstance(error, click.ClickException) else str(error)


# -- precedence ------------------------------------------------------------------------------------------


def test_several_endpoints() -> None:
    options = read(ServeOptions, "--listen", ":1", "--listen", "unix:@x")
    assert options.listen == (Endpoint.tcp("", 1), Endpoint.unix("@x"))


def test_the_command_line_overrides_the_environment_and_that_the_file(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config("backlog = 1\nlinger-timeout = 1\ndrain-timeout = 1\naccess-log = false\n")
    monkeypatch.setenv("GREETER_BACKLOG", "2")
    monkeypatch.setenv("GREETER_LINGER_TIMEOUT", "2")
    options = read(ServeOptions, "--backlog", "3", "--access-log")
    assert (options.backlog, options.linger_timeout, options.drain_timeout) == (3, 2.0, 1.0)
    assert options.access_log


def test_the_file_can_be_named_on_the_command_line(config: Any, tmp_path: Path) -> None:
    config("backlog = 1")
    (tmp_path / "other.toml").write_text("backlog = 2")
    assert read(ServeOptions).backlog == 1
    assert read(ServeOptions, "--config", f"{tmp_path}/other.toml").backlog == 2


def test_a_byte_order_mark_is_skipped(config: Any) -> None:
    config(b"\xef\xbb\xbfbacklog = 3\n")
    assert read(ServeOptions).backlog == 3


def test_two_spellings_of_a_key_are_an_error(config: Any) -> None:
    file = config("greet-timeout = 1\ngreet_timeout = 2\n")
    assert error_of() == f"{file}: 'greet-timeout' and 'greet_timeout' are the same key"


def test_a_file_that_is_empty_at_a_later_reading_is_an_error(config: Any) -> None:
    file = config("deny = '10.0.0.0/8'\n")
    assert read(ServeOptions).deny == ("10.0.0.0/8",)
    config("\n")
    assert error_of() == f"{file}: empty, which it was not when it was first read"
    config("# no limits any more\n")
    assert read(ServeOptions).deny == ()


def test_a_pipe_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"backlog = 4\n")
    os.close(writing)
    monkeypatch.setenv("GREETER_CONFIG", f"/dev/fd/{reading}")
    assert [read(ServeOptions).backlog for _ in range(3)] == [4, 4, 4]
    os.close(reading)


def test_an_empty_file_changes_nothing(config: Any) -> None:
    config("# nothing\n")
    assert read(ServeOptions) == ServeOptions()


# -- one greeting of three -------------------------------------------------------------------------------


def test_one_greeting_from_one_source(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert error_of("--greeting", "x", "--app", "m:n") == "give one of --greeting and --app"
    assert error_of("--greeting", "x", "--app", "m:n", "--greeting-file", "f") == (
        "give one of --greeting and --greeting-file and --app"
    )
    file = config('greeting = "x"\ngreeting-file = "f"\n')
    assert error_of() == f"{file}: give one of greeting and greeting-file"
    monkeypatch.setenv("GREETER_GREETING", "x")
    monkeypatch.setenv("GREETER_APP", "m:n")
    assert error_of() == "give one of GREETER_GREETING and GREETER_APP"


def test_a_greeting_from_a_higher_source_replaces_those_below(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greeting_options(*args: str) -> tuple[object, ...]:
        options = read(ServeOptions, *args)
        return options.greeting, options.greeting_file, options.app

    default = ServeOptions().greeting
    config('app = "from:file"')
    assert greeting_options() == (default, None, "from:file")
    monkeypatch.setenv("GREETER_GREETING_FILE", "from-environment")
    assert greeting_options() == (default, Path("from-environment"), None)
    assert greeting_options("--greeting", "typed") == ("typed", None, None)
    assert greeting_options("--app", "typed:too") == (default, None, "typed:too")


# -- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "text", "why"),
    [
        ("--backlog", "0", f"'0' is not a whole number from 1 to {MAX_COUNT}"),
        ("--backlog", "-1", "'-1' is not a whole number"),
        ("--backlog", "1.5", "'1.5' is not a whole number"),
        ("--backlog", "1e3", "'1e3' is not a whole number"),
        ("--backlog", "٣", "'٣' is not a whole number"),
        ("--backlog", str(MAX_COUNT + 1), f"'{MAX_COUNT + 1}' is not a whole number"),
        ("--backlog", "9" * 5000, f"'{'9' * 40}' is not a whole number"),
        ("--greet-timeout", "0", "must be greater than 0 seconds"),
        ("--greet-timeout", "-1", "'-1' is not a duration, as in 500ms, 10s or 2m"),
        ("--linger-timeout", "nan", "'nan' is not a duration, as in 500ms, 10s or 2m"),
        ("--linger-timeout", "inf", "'inf' is not a duration, as in 500ms, 10s or 2m"),
        ("--linger-timeout", "", "'' is not a duration, as in 500ms, 10s or 2m"),
        ("--drain-timeout", "soon", "'soon' is not a duration, as in 500ms, 10s or 2m"),
        ("--listen", "localhost", "endpoint 'localhost' has no port"),
        ("--greeting", "$user", "greeting has the unknown name $user"),
        ("--greeting", "\udcff", "cannot be encoded as UTF-8"),
        ("--loop", "trio", "'trio' is not one of 'auto', 'asyncio', 'uvloop'"),
        ("--log-level", "loud", "'loud' is not one of"),
    ],
)
def test_an_invalid_value_is_an_error_in_every_source(
    flag: str, text: str, why: str, monkeypatch: pytest.MonkeyPatch, config: Any
) -> None:
    line = error_of(flag, text)
    assert line.startswith(f"Invalid value for '{flag}'")
    assert why in line
    key = flag.removeprefix("--")
    if text.strip() and text.isprintable():
        config(f"{key} = {json.dumps(text)}")
        assert why in error_of()
        config("# nothing\n")
        monkeypatch.setenv("GREETER_" + key.upper().replace("-", "_"), text)
        assert why in error_of()


def test_zero_seconds_is_valid_where_no_time_is_needed() -> None:
    assert read(ServeOptions, "--linger-timeout", "0").linger_timeout == 0
    assert read(GreetOptions, "--wait", "0").wait == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("lissten = ':1'", "unknown key 'lissten'; did you mean 'listen'?"),
        ("greet-timeouts = 1", "unknown key 'greet-timeouts'; did you mean 'greet-timeout'?"),
        ("zzz = 1", "unknown key 'zzz'"),
        ("[serve]\nbacklog = 1", "unknown key 'serve'"),
        ("config = 'other.toml'", "unknown key 'config'"),
        ("greeting = ['a', 'b']", "greeting is one value, not ['a', 'b']"),
        ("listen = 5", "listen is a list, not 5"),
        ("listen = {a = 1}", "listen is a list, not {'a': 1}"),
        ("listen = [5]", "listen cannot be [5]"),
        ("listen = [':1', true]", "listen cannot be [':1', True]"),
        ("greeting = 5", "greeting cannot be 5"),
        ("greeting = {a = 1}", "greeting cannot be {'a': 1}"),
        ("greeting-file = 5", "greeting-file cannot be 5"),
        ("app = 1.5", "app cannot be 1.5"),
        ("backlog = true", "backlog cannot be True"),
        ("greet-timeout = 2020-01-01", "greet-timeout cannot be datetime.date(2020, 1, 1)"),
        ("access-log = 'yes'", "access-log cannot be 'yes'"),
        ("access-log = 1", "access-log cannot be 1"),
        ("log-level = 5", "log-level cannot be 5"),
        ("unix-mode = 660", 'unix-mode cannot be 660: put its octal digits in quotes, as in "660"'),
        ("unix-mode = 0o660", 'unix-mode cannot be 432: put its octal digits in quotes, as in "660"'),
        ("backlog = ", "not TOML: Invalid value ("),
        ("backlog = 1\nbacklog = 2", "not TOML: Cannot overwrite a value ("),
        (b"greeting = '\xff'", "not TOML: 'utf-8' codec can't decode byte 0xff"),
        # What Python limits: the depth of calls, and the digits of a number.
        ("listen = " + "[" * 5000 + "]" * 5000, "not TOML: "),
        ("backlog = " + "9" * 5000, "not TOML: "),
        ("backlog = 0x" + "f" * 5000, "backlog has a number that is too long"),
        ("listen = [0x" + "f" * 5000 + "]", "listen has a number that is too long"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_an_invalid_file_is_one_error_line(text: str | bytes, why: str, config: Any) -> None:
    file = config(text)
    line = error_of()
    assert line.startswith(f"{file}: {why}")
    assert "\n" not in line


@pytest.mark.parametrize("text", ["backlog = 1.5", "backlog = -1"])
def test_a_number_in_the_file_is_checked(text: str, config: Any) -> None:
    config(text)
    assert "is not a whole number" in error_of()


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    assert error_of("--config", f"{tmp_path}/no.toml") == (
        f"cannot read the configuration '{tmp_path}/no.toml': no such file or directory"
    )
    assert "is a directory" in error_of("--config", str(tmp_path))


def test_a_flag_in_the_environment_is_a_boolean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREETER_ACCESS_LOG", "maybe")
    assert "'maybe' is not a valid boolean" in error_of()
    for text, value in (("0", False), ("on", True), ("FALSE", False)):
        monkeypatch.setenv("GREETER_ACCESS_LOG", text)
        assert read(ServeOptions).access_log is value
