"""Where the value of an option comes from: the command line, an environment variable, or a TOML file.

Invariants:

- The command line overrides the environment, and the environment overrides the file.
- A value is named as its source spells it: ``--backlog``, ``GREETER_BACKLOG`` or ``backlog``.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from click.core import ParameterSource

from greeter.config.options import METADATA_KEY
from greeter.errors import ConfigError

if TYPE_CHECKING:
    import click

PREFIX = "GREETER_"
CONFIG_FILE = "greeter.config"  # the key in Context.meta under which the name of the file is
# The highest rank takes precedence.
_RANK: defaultdict[ParameterSource | None, int] = defaultdict(int)
_RANK |= {ParameterSource.COMMANDLINE: 3, ParameterSource.ENVIRONMENT: 2, ParameterSource.DEFAULT_MAP: 1}


def flag(name: str) -> str:
    """Return the command-line option of the field ``name``."""
    return "--" + dashed(name)


def dashed(name: str) -> str:
    """Return the key in a file of the field ``name``."""
    return name.replace("_", "-")


def environment_variable(name: str, prefix: str) -> str:
    """Return the environment variable of the field ``name``."""
    return prefix + name.upper()


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
        return dashed(name)
    if source == ParameterSource.ENVIRONMENT:
        return next(str(param.envvar) for param in ctx.command.params if param.name == name)
    return flag(name)


def source_file(ctx: click.Context, name: str) -> str | None:
    """Return the configuration file that the value of the field ``name`` came from, or None."""
    from_file = ctx.get_parameter_source(name) == ParameterSource.DEFAULT_MAP
    return ctx.meta.get(CONFIG_FILE) if from_file else None


def error_hint(param: click.Option, ctx: click.Context) -> str | None:
    """Return how an error names an option that was not given on the command line; else None."""
    source = ctx.get_parameter_source(param.name or "")
    if source == ParameterSource.ENVIRONMENT:
        return f"the environment variable '{param.envvar}'"
    return f"'{dashed(param.name or '')}'" if source == ParameterSource.DEFAULT_MAP else None
