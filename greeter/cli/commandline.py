"""Make click's parameters from a dataclass of options, and the dataclass from click's values.

Invariants:

- A wrong value is reported before anything starts. The error names the option as its source spells it: the
  flag, the environment variable, or the key and its file.
- The command line overrides the environment, and the environment overrides the file.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from greeter.config.options import METADATA_KEY, WORKER_VARIABLE
from greeter.errors import ConfigError, os_error_text
from greeter.system.input_files import read_input

if TYPE_CHECKING:
    from collections.abc import Callable

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

OptionsT = TypeVar("OptionsT")

PREFIX = "GREETER_"
_read_before: dict[str, bool] = {}  # the configuration files, and whether they had contents
CONFIG_FILE = "greeter.config"  # the key in Context.meta under which the name of the file is


class Option(click.Option):
    """An option with a heading in the help. Errors name it as the source of its value spells it."""

    def __init__(self, *args: Any, group: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.group = group

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Return the option as its source spells it, for click's error messages."""
        return super().get_error_hint(ctx) if ctx is None else _hint(self, ctx) or super().get_error_hint(ctx)


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
                callback=lambda ctx, _param, file: _read_config(ctx, cls, file),
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


def overridden(cls: type[Any], ctx: click.Context) -> set[str]:
    """Return the options that another one of their exclusive group overrides.

    The arguments, and what it raises, are those of ``parse_options``.
    """
    groups: dict[str, list[str]] = {}
    for field in dataclasses.fields(cls):
        if group := field.metadata[METADATA_KEY]["exclusive_group"]:
            groups.setdefault(group, []).append(field.name)
    found: set[str] = set()
    # Of each group, keep what the strongest source gives.
    for names in groups.values():
        ranks = {name: _RANK[ctx.get_parameter_source(name)] for name in names}
        best = max(ranks.values())
        chosen = [name for name in names if ranks[name] == best]
        if best and len(chosen) > 1:
            where = f"{ctx.meta[CONFIG_FILE]}: " if best == _RANK[ParameterSource.DEFAULT_MAP] else ""
            spelled = " and ".join(spell(ctx, name) for name in chosen)
            raise ConfigError(f"{where}give one of {spelled}")
        found |= {name for name in names if name not in chosen}
    return found


def describe_source(ctx: click.Context, name: str) -> str:
    """Return where the value of the field ``name`` comes from, as text."""
    source = ctx.get_parameter_source(name)
    if source == ParameterSource.COMMANDLINE:
        return "command line"
    if source == ParameterSource.ENVIRONMENT:
        return f"environment {spell(ctx, name)}"
    return f"file {source_file(ctx, name)}" if source == ParameterSource.DEFAULT_MAP else "default"


def spell(ctx: click.Context, name: str) -> str:
    """Return the option of the field ``name`` as its source spells it: a flag, a variable or a key."""
    source = ctx.get_parameter_source(name)
    if source == ParameterSource.DEFAULT_MAP:
        return _dashed(name)
    if source == ParameterSource.ENVIRONMENT:
        return next(str(param.envvar) for param in ctx.command.params if param.name == name)
    return _flag(name)


def source_file(ctx: click.Context, name: str) -> str | None:
    """Return the configuration file that the value of the field ``name`` came from, or None."""
    from_file = ctx.get_parameter_source(name) == ParameterSource.DEFAULT_MAP
    return ctx.meta.get(CONFIG_FILE) if from_file else None


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _flag(name: str) -> str:
    return "--" + _dashed(name)


def _hint(param: click.Option, ctx: click.Context) -> str | None:
    """Return how an error names an option that was not given on the command line; else None."""
    source = ctx.get_parameter_source(param.name or "")
    if source == ParameterSource.ENVIRONMENT:
        return f"the environment variable '{param.envvar}'"
    return f"'{_dashed(param.name or '')}'" if source == ParameterSource.DEFAULT_MAP else None


# The sources of a value. The highest rank takes precedence.
_RANK: defaultdict[ParameterSource | None, int] = defaultdict(int)
_RANK |= {ParameterSource.COMMANDLINE: 3, ParameterSource.ENVIRONMENT: 2, ParameterSource.DEFAULT_MAP: 1}


def _parameter(field: dataclasses.Field[Any], prefix: str) -> Decorator:
    meta = field.metadata[METADATA_KEY]
    if meta["argument"]:
        kind, metavar = meta["type"], meta["metavar"]
        if meta["multiple"]:
            required = not metavar.startswith("[")
            return click.argument(field.name, type=kind, nargs=-1, required=required, metavar=metavar)
        return click.argument(field.name, type=kind, default=str(field.default), metavar=metavar)
    flag = _flag(field.name)
    if isinstance(field.default, bool):
        # A flag that is on by default also gets --no-FLAG.
        declared, kind = (f"{flag}/--no-{_dashed(field.name)}" if field.default else flag), bool
    else:
        declared, kind = flag, meta["type"]
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
        envvar=prefix + field.name.upper() if meta["env"] else None,
        help=meta["help"],
    )


def _read_config(ctx: click.Context, cls: type[Any], file: str | None) -> None:
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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
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
        many = fields[name].metadata[METADATA_KEY]["multiple"]
        if isinstance(value, list) != many and not (many and isinstance(value, str)):
            raise ConfigError(f"{file}: {key} is {'a list' if many else 'one value'}, not {value!r}")
        values = value if isinstance(value, list) else [value]
        if any(type(item) not in _toml_types(fields[name]) for item in values):
            hint = getattr(fields[name].metadata[METADATA_KEY]["type"], "hint", "")
            raise ConfigError(f"{file}: {key} cannot be {value!r}{hint and ': ' + hint}")
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
    return f"; did you mean {_dashed(near[0])!r}?" if near else ""
