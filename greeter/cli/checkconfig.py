"""``greeter serve --check-config``: print the options in effect, and where each comes from.

Invariants:

- The text is TOML that ``--config`` accepts, and means the same configuration.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from greeter.cli.option_sources import describe_source, overridden
from greeter.config.options import METADATA_KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    import click

    from greeter.config.options import ServeOptions

Field = dataclasses.Field[Any]


def print_options(options: ServeOptions, ctx: click.Context, echo: Callable[[str], None]) -> None:
    """Print the options in effect: as TOML, or as a JSON object with ``--log-format json``.

    Args:
        options: The options of ``greeter serve``.
        ctx: The context of the command, which knows where they come from.
        echo: Prints a line.
    """
    unused = overridden(type(options), ctx)
    fields = dataclasses.fields(options)
    sources = {field.name: describe_source(ctx, field.name) for field in fields}
    if options.log_format == "json":
        shown = {
            _key(field): {"value": _value(field, options), "source": sources[field.name]}
            for field in fields
            if field.name not in unused
        }
        echo(json.dumps({"options": shown}, indent=2))
        return
    rows = [(_row(field, options, field.name in unused), sources[field.name]) for field in fields]
    width = min(40, max(len(row) for row, _ in rows))
    for row, source in rows:
        echo(f"{row:<{width}}  # {source}" if not row.startswith("#") else row)


def _row(field: Field, options: ServeOptions, unused: bool) -> str:
    value = _value(field, options)
    if unused:
        return f"# {_key(field)}: not used"
    if value in (None, []):
        return f"# {_key(field)}: {field.metadata[METADATA_KEY]['default_text'] or 'not set'}"
    return f"{_key(field)} = {_toml(value)}"


def _key(field: Field) -> str:
    return field.name.replace("_", "-")


def _value(field: Field, options: ServeOptions) -> Any:
    """Return the value of an option as JSON and TOML have it; None if it is not set."""
    value = getattr(options, field.name)
    if isinstance(value, tuple):
        return [str(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    kind = field.metadata[METADATA_KEY]["type"]
    if isinstance(value, int | float) and getattr(kind, "number", False):
        return int(value) if value == int(value) else value
    return kind.text(value) if hasattr(kind, "text") else str(value)


def _toml(value: Any) -> str:
    # A basic string of TOML has the escapes of JSON, but no surrogates (toml.io, 1.0.0). What a terminal
    # obeys or hides is escaped too.
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
