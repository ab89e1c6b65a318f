"""The import structure of the package by rooms: ``python -m tests.support.layers`` draws it.

A room is a package or a module at the top of greeter/. loadtest/ is a room with rooms inside, which are drawn
apart. A room's floor is one above the highest room that it imports from. Imports are read from the source,
also those inside functions and for type checkers.
"""

from __future__ import annotations

import argparse
import ast
import functools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).parents[2] / "greeter"
# Every module of the package: its name without ``greeter.``, and its file.
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))
}
# The package itself and its entry point are above all rooms.
ROOF = {"__init__", "__main__"}


def room(name: str) -> str:
    """Returns the room of a module of greeter, which is named without ``greeter.``."""
    first, _, rest = name.removesuffix(".__init__").partition(".")
    second = rest.partition(".")[0]
    if first == "loadtest" and second and (PACKAGE / "loadtest" / second).is_dir():
        return f"loadtest.{second}"
    return first


def rooms() -> set[str]:
    """Returns the names of all rooms, with the package itself."""
    return {room(name) for name in MODULES}


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yields every import of a file, wherever it stands: the module, and the name taken from it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}, line {node.lineno}: a relative import"
            for alias in node.names:
                yield node.module or "", alias.name


def imported_rooms(name: str) -> set[str]:
    """Returns the other rooms that a module imports from; "__init__" is the package itself."""
    found = set()
    for module, attribute in imports(MODULES[name]):
        package, _, inner = module.partition(".")
        if package == "greeter" and attribute != "__version__":  # a constant, which every module may know
            if f"{inner}.{attribute}" in MODULES or (not inner and attribute in rooms()):
                inner = f"{inner}.{attribute}".removeprefix(".")  # from greeter.loadtest.plan import units
            found.add(room(inner) if inner else "__init__")
    return found - {room(name)}


def graph() -> dict[str, set[str]]:
    """Returns what each room imports from."""
    found: dict[str, set[str]] = {name: set() for name in rooms()}
    for name in MODULES:
        found[room(name)] |= imported_rooms(name)
    return found


def floors(below: dict[str, set[str]]) -> dict[str, int]:
    """Returns the floor of each room of a ``graph()``, from 0 for those that import from no other.

    Raises:
        ValueError: Rooms import from each other in a circle.
    """
    found: dict[str, int] = {}
    while len(found) < len(below):
        ready = [name for name in below if name not in found and below[name] <= found.keys()]
        if not ready:
            raise ValueError(f"a circle of imports among {', '.join(sorted(below.keys() - found.keys()))}")
        for name in ready:
            found[name] = 1 + max((found[other] for other in below[name]), default=-1)
    return found


def drawing() -> str:
    """Returns the rooms, the highest floor first, each with its modules and what it imports from."""
    inner = {name: others for name, others in graph().items() if name.startswith("loadtest")}
    outer: dict[str, set[str]] = {}
    for name, others in graph().items():
        if name not in ROOF:
            top = name.partition(".")[0]
            outer.setdefault(top, set()).update(other.partition(".")[0] for other in others)
            outer[top].discard(top)
    inner = {name: {other for other in others if other in inner} for name, others in inner.items()}
    number = max(floors(outer).values()) + 1
    return "\n".join(
        [
            *_rows(outer),
            f"{len(outer)} rooms at the top of greeter/, {number} floors, no import upwards, no circle",
            "",
            "inside loadtest/:",
            *_rows(inner),
        ]
    )


def _rows(below: dict[str, set[str]]) -> list[str]:
    floor = floors(below)
    width = max(map(len, below))
    rows = []
    for name in sorted(below, key=lambda name: (-floor[name], name)):
        size = sum(f"{room(module)}.".startswith(f"{name}.") for module in MODULES)
        modules = "1 module" if size == 1 else f"{size} modules"
        others = sorted(below[name], key=lambda other: (-floor[other], other))
        arrow = f" → {' '.join(others)}" if others else ""
        rows.append(f"{floor[name]:>2}  {name:<{width}}  {modules:>10}{arrow}")
    return rows


def main() -> None:
    argparse.ArgumentParser(prog="python -m tests.support.layers", description=__doc__).parse_args()
    print(drawing())


if __name__ == "__main__":
    main()
