"""The command line of a load test, from the plan in its report."""

from __future__ import annotations

import shlex
from typing import Any

from greeter.loadtest.plan.plan import DEFAULT_CONNECTIONS, LoadPlan

# The names of options that differ from those of the plan.
_FLAGS = {"stages": "stage", "source_ips": "source-ip", "thresholds": "threshold"}


def command(plan: dict[str, Any]) -> str:
    """Return the command that runs a plan again, without options that have their default.

    Args:
        plan: the JSON values of a plan.
    """
    words = ["greeter", "load", plan["target"]]
    for name, default in _defaults(plan).items():
        value = plan.get(name, default)
        if value == default or value is None:
            continue
        flag = "--" + _FLAGS.get(name, name.removesuffix("_s")).replace("_", "-")
        for each in value if isinstance(value, list) else [value]:
            words += [flag] if each is True else [flag, _text(name, each)]
    return shlex.join(words)


def _defaults(plan: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a plan that the command line has, and their default values."""
    defaults = LoadPlan().to_dict()
    defaults["connections"] = DEFAULT_CONNECTIONS.get(plan["mode"])
    if plan["stages"]:
        defaults["duration_s"] = plan["duration_s"]  # the stages set it
    elif plan["count"] is not None:
        defaults["duration_s"] = None
    del defaults["mode"], defaults["target"]
    return defaults


def _text(name: str, value: Any) -> str:
    if isinstance(value, dict):  # a stage
        return f"{value['duration_s']:.12g}s:{value['rate']:.12g}"
    if isinstance(value, int | float):
        return f"{value:.12g}" + "s" * name.endswith("_s")
    return str(value)
