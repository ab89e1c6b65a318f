"""Law 2, held with ``ast``: imports go down only. And what an import of greeter costs its user."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import greeter
from tests.conftest import ROOT
from tests.support.layers import (
    MODULES,
    PACKAGE,
    ROOF,
    drawing,
    floors,
    graph,
    imported_rooms,
    imports,
    room,
    rooms,
)

if TYPE_CHECKING:
    from pathlib import Path

# At the top of greeter/, whatever else is built.
MAX_ROOMS, MAX_FLOORS = 14, 10
# From the ground up. A room imports from the lines below its own, and from nowhere else.
ROOMS = [
    {"errors"},
    {"core"},
    {"system"},
    {"server", "client"},
    {"loadtest.plan"},
    {"loadtest.metrics"},
    {"loadtest.generator"},
    {"loadtest.report"},
    {"loadtest.distributed"},
    {"loadtest"},
    {"conformance"},
    {"config"},
    {"service"},
    {"cli", "testing"},
    ROOF,
]
# What waits, asks the system or knows the time. ``socket`` is for its constants only: see below.
IMPURE = {"asyncio", "concurrent", "multiprocessing", "select", "selectors", "signal", "subprocess"}
IMPURE |= {"threading", "time", "click", "uvloop"}
# Within the server, from the ground up.
SERVER = [
    {"accept_pause", "access_log", "connection", "poller", "threads", "timeouts"},
    {"connection_log"},
    {"datagram_limits", "lingering"},
    {"tracker"},
    {"acceptor", "conversation"},
    {"datagram_answers", "direct_connection", "stream_connection"},
    {"batch", "datagrams", "streams", "handler"},
    {"direct"},
    {"server"},
    {"serving"},
    {"__init__"},
]
# The two ends of a connection: neither may know the other.
SERVING = {"server", "service"}
STRANGERS = [
    ({"client"}, SERVING),
    ({"conformance"} | {room for room in set().union(*ROOMS) if "loadtest" in room}, SERVING),
]

each_module = pytest.mark.parametrize("name", MODULES)


def test_rooms_are_few_and_import_downwards_only() -> None:
    below = graph()  # with the rooms inside loadtest
    assert floors(below)
    top = {name.partition(".")[0] for name in below} - ROOF
    assert len(top) <= MAX_ROOMS
    drawn = re.search(r"(\d+) rooms at the top of greeter/, (\d+) floors", drawing())
    assert drawn
    assert int(drawn[1]) == len(top)
    assert int(drawn[2]) <= MAX_FLOORS


def test_every_module_is_in_a_room() -> None:
    assert rooms() == set().union(*ROOMS)


@each_module
def test_imports_go_down_only(name: str) -> None:
    floor = {name: number for number, names in enumerate(ROOMS) for name in names}
    for other in imported_rooms(name):
        assert floor[other] < floor[room(name)], f"{name} imports {other}"


def test_a_circle_of_rooms_is_noticed() -> None:
    with pytest.raises(ValueError, match="a circle of imports among client, server"):
        floors({"errors": set(), "client": {"errors", "server"}, "server": {"client"}})


@pytest.mark.parametrize("name", [name for name in MODULES if name.endswith(".__init__")])
def test_a_room_tells_its_story_and_its_bounds(name: str) -> None:
    doc = ast.get_docstring(ast.parse(MODULES[name].read_text())) or ""
    assert "Must not import: " in doc, name


def test_imports_within_the_server_go_down_only() -> None:
    floor = {name: number for number, names in enumerate(SERVER) for name in names}
    files = {path.stem: path for path in (PACKAGE / "server").glob("*.py")}
    assert files.keys() == floor.keys()
    for name, path in files.items():
        for module, _ in imports(path):
            if module.startswith("greeter.server."):
                below = floor[module.removeprefix("greeter.server.")]
                # What is imported for its type alone may be from anywhere: the parts refer to each other.
                assert below < floor[name] or module in typing_imports(path), f"{name} imports {module}"


def typing_imports(path: Path) -> set[str]:
    """The modules that a file imports for type checkers only."""
    return {
        node.module or ""
        for block in ast.parse(path.read_text()).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
    }


@pytest.mark.parametrize(("some", "others"), STRANGERS)
def test_they_do_not_know_each_other(some: set[str], others: set[str]) -> None:
    for name in MODULES:
        if room(name) in some:
            assert not imported_rooms(name) & others
        if room(name) in others:
            assert not imported_rooms(name) & some


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) in ("core", "errors")])
def test_core_is_pure(name: str) -> None:
    for module, attribute in imports(MODULES[name]):
        assert module.partition(".")[0] not in IMPURE, f"{name} imports {module}"
        if module == "socket" and attribute:
            assert attribute in {"AddressFamily", "SocketKind"} or attribute.isupper()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"now", "utcnow", "today"}, f"{name} asks for the time"
            if isinstance(node.value, ast.Name) and node.value.id == "socket":
                assert node.attr in {"AddressFamily", "SocketKind"} or node.attr.isupper()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"open", "print", "input"}, f"{name} calls {node.func.id}()"


@each_module
def test_a_module_opens_with_a_docstring(name: str) -> None:
    doc = ast.get_docstring(ast.parse(MODULES[name].read_text()))
    assert doc
    assert doc.partition("\n\n")[0].endswith((".", "::"))


# -- the public names ------------------------------------------------------------------------------------


def test_all_is_what_is_imported() -> None:
    body = ast.parse((PACKAGE / "__init__.py").read_text()).body
    for node in list(body):
        if isinstance(node, ast.If):  # TYPE_CHECKING: what is imported when it is first used
            body += node.body
    imported = [
        alias.asname or alias.name
        for node in body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("greeter.")
        for alias in node.names
    ]
    assert sorted(imported) == sorted(greeter.__all__)
    assert len(set(greeter.__all__)) == len(greeter.__all__)


def test_what_is_imported_later_is_there_and_nothing_else() -> None:
    from greeter import loadtest

    assert greeter.load is loadtest.load
    for name in ("client", "errors", "loadtest", "server"):
        assert loaded_by(f"import greeter; greeter.{name}") >= {f"greeter.{name}"}
    for module in (greeter, greeter.client):
        with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'unload'"):
            module.unload  # noqa: B018  # that it is missing is the test


@pytest.mark.parametrize("name", greeter.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(greeter, name)
    assert value.__doc__
    assert not value.__doc__.startswith(f"{name}(")  # what dataclasses make up
    assert value.__module__.startswith("greeter.")
    for attribute, member in vars(value).items() if isinstance(value, type) else ():
        if not attribute.startswith("_") and callable(member):
            assert member.__doc__ or attribute in ASYNCIO_SERVER, f"{name}.{attribute}"


# What asyncio.Server documents already, under the same names.
ASYNCIO_SERVER = {"is_serving"}


def test_the_whole_error_tree_is_public() -> None:
    from greeter import errors

    names = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.GreeterError) and not name.startswith("_")
    }
    assert names <= set(greeter.__all__)


def loaded_by(statement: str) -> set[str]:
    """The modules that a statement adds to those of a fresh interpreter."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_greeter_loads_the_standard_library_only() -> None:
    loaded = loaded_by("import greeter; [getattr(greeter, name) for name in ('serve', 'greet', 'Greeting')]")
    ours = {name for name in loaded if name.partition(".")[0] == "greeter"}
    foreign = {name.partition(".")[0] for name in loaded - ours} - sys.stdlib_module_names
    assert not foreign
    # ... and of greeter itself only what a library user can need.
    assert {room(name.removeprefix("greeter").removeprefix(".") or "__init__") for name in ours} <= {
        "__init__",
        "client",
        "core",
        "errors",
        "server",
        "system",
    }


def test_a_name_loads_its_module_when_it_is_first_used() -> None:
    assert loaded_by("import greeter") == {"greeter"}
    unneeded = {"greeter.client.discovery", "greeter.core.proxy_protocol", "datetime", "ipaddress"}
    assert not {"greeter.server", *unneeded} & loaded_by("from greeter import greet")
    assert not {"greeter.core.admission", *unneeded} & loaded_by("from greeter import serve")
    assert "greeter.client.discovery" in loaded_by("from greeter.client import discover")
    for module in (greeter, greeter.client):
        assert set(module.__all__) <= set(dir(module))
        for name in module.__all__:
            assert getattr(module, name) is getattr(greeter, name)


def test_the_command_line_loads_what_it_needs_only() -> None:
    loaded = loaded_by("import greeter.cli.cli")
    assert "click" in loaded
    assert not {"uvloop", "rich", "hdrh", "h11", "prometheus_client"} & loaded
