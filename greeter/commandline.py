"""From a dataclass of options to click's parameters, the environment and a TOML file; and back.

The law: what is wrong is said before anything starts, with the name of where it came from. The command
line wins over the environment, and that over the file.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from greeter.errors import ConfigError, reason
from greeter.options import KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

OptionsT = TypeVar("OptionsT")

PREFIX = "GREETER_"


def with_options(cls: type[Any], *, config: bool = False, prefix: str = PREFIX) -> Decorator:
    """Decorate a command with the options of ``cls``; ``config`` adds ``--config FILE.toml``.

    ``prefix`` is that of the environment variables.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(dataclasses.fields(cls)):
            function = _parameter(field, prefix)(function)
        if config:
            function = click.option(
                "--config",
                type=click.Path(dir_okay=False),
                envvar="GREETER_CONFIG",
                show_envvar=True,
                is_eager=True,
                expose_value=False,
                callback=lambda ctx, _param, file: _read_config(ctx, cls, file),
                metavar="FILE.toml",
                help="Read options from a file; its keys are the options' names.",
            )(function)
        return function

    return decorate


def collect(cls: type[OptionsT], ctx: click.Context) -> OptionsT:
    """The options of ``cls`` that the command was given. Raises ConfigError where they contradict."""
    values = dict(ctx.params)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # it is one
    groups: dict[str, list[str]] = {}
    for name, field in fields.items():
        if group := field.metadata[KEY]["only"]:
            groups.setdefault(group, []).append(name)
    for names in groups.values():
        ranks = {name: _RANK[ctx.get_parameter_source(name)] for name in names}
        best = max(ranks.values())
        chosen = [name for name in names if ranks[name] == best]
        if best and len(chosen) > 1:
            where = f"{ctx.meta['greeter.config']}: " if _SPELL[best] is _dashed else ""
            raise ConfigError(f"{where}give one of {' and '.join(_SPELL[best](name) for name in chosen)}")
        values |= {name: fields[name].default for name in names if name not in chosen}
    return cls(**values)


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _flag(name: str) -> str:
    return "--" + _dashed(name)


def _variable(name: str) -> str:
    return PREFIX + name.upper()


# Where a value comes from, by rank, and how its option is spelled there.
_RANK: defaultdict[ParameterSource | None, int] = defaultdict(int)
_RANK |= {ParameterSource.COMMANDLINE: 3, ParameterSource.ENVIRONMENT: 2, ParameterSource.DEFAULT_MAP: 1}
_SPELL = {3: _flag, 2: _variable, 1: _dashed}


def _parameter(field: dataclasses.Field[Any], prefix: str) -> Decorator:
    meta = field.metadata[KEY]
    if meta["argument"]:
        if meta["multiple"]:
            kind = meta["type"]
            return click.argument(field.name, type=kind, nargs=-1, required=True, metavar="RUN.json...")
        return click.argument(field.name, type=meta["type"], default=str(field.default), metavar="[TARGET]")
    flag = _flag(field.name)
    if isinstance(field.default, bool):
        # What is on by default needs a way to turn it off; what is off needs only its name.
        declared, kind = (f"{flag}/--no-{_dashed(field.name)}" if field.default else flag), bool
    else:
        declared, kind = flag, meta["type"]
    many = meta["multiple"]
    default: Any = field.default
    return click.option(
        *([meta["short"]] if meta["short"] else []),
        declared,
        field.name,
        type=kind,
        is_flag=isinstance(field.default, bool),
        multiple=many,
        default=[str(item) for item in default] if many else default,
        show_default=default not in (None, False),
        envvar=prefix + field.name.upper() if meta["env"] else None,
        show_envvar=True,
        help=meta["help"],
    )


def _read_config(ctx: click.Context, cls: type[Any], file: str | None) -> None:
    """Make the keys of a TOML file the defaults of the command."""
    if file is None:
        return
    from greeter.channel import VARIABLE  # not for a command without a file

    if VARIABLE in os.environ:  # a worker has its options from its parent, whatever the file says by now
        return
    try:
        with open(file, "rb") as stream:
            table = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {file!r}: {reason(error)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error
    fields = {field.name: field for field in dataclasses.fields(cls)}
    defaults: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in fields:
            raise ConfigError(f"{file}: unknown key {key!r}{_nearest(name, fields)}")
        many = fields[name].metadata[KEY]["multiple"]
        if isinstance(value, list) != many and not (many and isinstance(value, str)):
            raise ConfigError(f"{file}: {key} is {'a list' if many else 'one value'}, not {value!r}")
        values = value if isinstance(value, list) else [value]
        if any(type(item) not in _kinds(fields[name]) for item in values):
            hint = getattr(fields[name].metadata[KEY]["type"], "hint", "")
            raise ConfigError(f"{file}: {key} cannot be {value!r}{hint and ': ' + hint}")
        defaults[name] = values if many else value
    ctx.default_map = defaults
    ctx.meta["greeter.config"] = file


def _kinds(field: dataclasses.Field[Any]) -> tuple[type, ...]:
    """What TOML may have for ``field``; the option's own check comes after it."""
    if isinstance(field.default, bool):
        return (bool,)
    return (str, int, float) if getattr(field.metadata[KEY]["type"], "number", False) else (str,)


def _nearest(name: str, known: dict[str, Any]) -> str:
    import difflib  # only for a misspelling

    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {_dashed(near[0])!r}?" if near else ""
