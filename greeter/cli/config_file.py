"""Read the TOML file of ``--config``: its keys and the types of its values."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from typing import TYPE_CHECKING, Any

from greeter.cli.option_sources import CONFIG_FILE, dashed
from greeter.config.options import METADATA_KEY, WORKER_VARIABLE
from greeter.errors import ConfigError, os_error_text
from greeter.system.input_files import read_input

if TYPE_CHECKING:
    import click

_read_before: dict[str, bool] = {}  # the configuration files, and whether they had contents


def read_config(ctx: click.Context, cls: type[Any], file: str | None) -> None:
    """Set the values of a TOML file as the defaults of the command."""
    if file is None:
        return
    if WORKER_VARIABLE in os.environ:  # a worker receives its options from its parent, not from the file
        return
    try:
        data = read_input(file)
        table = tomllib.loads(data.decode("utf-8-sig"))  # with or without a byte order mark
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {file!r}: {os_error_text(error)}") from error
    # Of tomllib, of the decoder, and of int() for a number that is too long.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error
    if _read_before.setdefault(file, bool(data.strip())) and not data.strip():
        # Truncated by what writes it at this moment, for example. Its limits must not vanish.
        raise ConfigError(f"{file}: empty, which it was not when it was first read")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    defaults: dict[str, Any] = {}
    spellings: dict[str, str] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in fields:
            raise ConfigError(f"{file}: unknown key {key!r}{_suggestion(name, fields)}")
        if (other := spellings.setdefault(name, key)) != key:
            raise ConfigError(f"{file}: {other!r} and {key!r} are the same key")
        try:
            shown = repr(value)
        except ValueError:  # an integer in hexadecimal that is too long for decimal digits
            raise ConfigError(f"{file}: {key} has a number that is too long") from None
        many = fields[name].metadata[METADATA_KEY]["multiple"]
        if isinstance(value, list) != many and not (many and isinstance(value, str)):
            raise ConfigError(f"{file}: {key} is {'a list' if many else 'one value'}, not {shown}")
        values = value if isinstance(value, list) else [value]
        if any(type(item) not in _toml_types(fields[name]) for item in values):
            hint = getattr(fields[name].metadata[METADATA_KEY]["type"], "hint", "")
            raise ConfigError(f"{file}: {key} cannot be {shown}{hint and ': ' + hint}")
        defaults[name] = values if many else value
    ctx.default_map = defaults
    ctx.meta[CONFIG_FILE] = file


def _toml_types(field: dataclasses.Field[Any]) -> tuple[type, ...]:
    """Return the TOML types that ``field`` accepts. The parser of the option checks the value afterwards."""
    if isinstance(field.default, bool):
        return (bool,)
    return (str, int, float) if getattr(field.metadata[METADATA_KEY]["type"], "number", False) else (str,)


def _suggestion(name: str, known: dict[str, Any]) -> str:
    import difflib  # loaded for a misspelling only

    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {dashed(near[0])!r}?" if near else ""
