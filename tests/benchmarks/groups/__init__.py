"""The registry of groups: which questions are asked, in which order.

Invariants:
- A group is a module with one question. ``run(bench)`` returns the tables of its answer, and the first line
  of its documentation is what ``--list`` shows. To add one, write the module and name it here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.benchmarks.bench import Bench
    from tests.benchmarks.figures import Table

GROUPS = (
    "greeting",
    "async_greeting",
    "large_greeting",
    "workers",
    "proxy",
    "tls",
    "datagrams",
    "speak_first",
    "client",
    "memory",
    "scale",
    "startup",
    "idle",
    "load_cost",
    "load_memory",
)

# Groups that take a minute and cannot take less; a quick run makes them only if they are named.
LONG = ("load_memory",)


def describe(name: str) -> str:
    """What the group asks, in a line."""
    text = importlib.import_module(f"{__name__}.{name}").__doc__ or ""
    return text.partition("\n")[0]


def run(name: str, bench: Bench) -> Sequence[Table]:
    """Ask the group's question; returns its tables."""
    return cast("Sequence[Table]", importlib.import_module(f"{__name__}.{name}").run(bench))
