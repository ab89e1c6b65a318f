"""Make click's parameters from a dataclass of options, and the dataclass from click's values.

Invariant:

- A wrong value is reported before anything starts. The error names the option as its source spells it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

import click

from greeter.cli.config_file import read_config
from greeter.cli.option_sources import PREFIX, dashed, environment_variable, error_hint, flag, overridden
from greeter.config.options import METADATA_KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

OptionsT = TypeVar("OptionsT")


class Option(click.Option):
    """An option with a heading in the help. Errors name it as the source of its value spells it."""

    def __init__(self, *args: Any, group: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.group = group

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Return the option as its source spells it, for click's error messages."""
        return (
            super().get_error_hint(ctx)
            if ctx is None
            else error_hint(self, ctx) or super().get_error_hint(ctx)
        )


class GroupedCommand(click.Command):
    """A command whose help shows options under headings, in the order in which these first appear."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None:
                groups.setdefault(getattr(param, "group", ""), []).append(record)
        other = groups.pop("", [])
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)
        with formatter.section("Other options" if groups else "Options"):
            formatter.write_dl(other)


def with_options(cls: type[Any], *, config: bool = False, prefix: str = PREFIX) -> Decorator:
    """Decorate a command with options.

    Args:
        cls: The dataclass whose fields are the options.
        config: True to add ``--config FILE.toml``.
        prefix: The prefix of the environment variables.

    Returns:
        The decorator.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(dataclasses.fields(cls)):
            function = _parameter(field, prefix)(function)
        if config:
            function = click.option(
                "--config",
                cls=Option,
                type=click.Path(dir_okay=False),
                envvar="GREETER_CONFIG",
                is_eager=True,
                expose_value=False,
                callback=lambda ctx, _param, file: read_config(ctx, cls, file),
                metavar="FILE.toml",
                help="Read options from this file; a key is an option's name.",
            )(function)
        return function

    return decorate


def parse_options(cls: type[OptionsT], ctx: click.Context) -> OptionsT:
    """Make the options of a command from what click has parsed.

    Args:
        cls: The dataclass of the options.
        ctx: The context of the command.

    Returns:
        The options.

    Raises:
        ConfigError: One source gives several options of an exclusive group.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # a dataclass
    return cls(**ctx.params | {name: fields[name].default for name in overridden(cls, ctx)})


def _parameter(field: dataclasses.Field[Any], prefix: str) -> Decorator:
    meta = field.metadata[METADATA_KEY]
    if meta["argument"]:
        kind, metavar = meta["type"], meta["metavar"]
        if meta["multiple"]:
            required = not metavar.startswith("[")
            return click.argument(field.name, type=kind, nargs=-1, required=required, metavar=metavar)
        return click.argument(field.name, type=kind, default=str(field.default), metavar=metavar)
    long = flag(field.name)
    if isinstance(field.default, bool):
        # A flag that is on by default also gets --no-FLAG.
        declared, kind = (f"{long}/--no-{dashed(field.name)}" if field.default else long), bool
    else:
        declared, kind = long, meta["type"]
    many = meta["multiple"]
    default: Any = field.default
    return click.option(
        *([meta["short"]] if meta["short"] else []),
        declared,
        field.name,
        cls=Option,
        group=meta["group"],
        type=kind,
        is_flag=isinstance(field.default, bool),
        multiple=many,
        default=[str(item) for item in default] if many else default,
        show_default=meta["default_text"] or default not in (None, False, ()),
        envvar=environment_variable(field.name, prefix) if meta["env"] else None,
        help=meta["help"],
    )
