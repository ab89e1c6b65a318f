"""What a newcomer sees first: a top level of few names, files that can be read, and a version."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from typing import TYPE_CHECKING

import pytest

import greeter
from tests.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

TOP_LEVEL = {"greeter", "tests", "examples", "pyproject.toml", "README.md", "LICENSE"}
MADE_BY_TOOLS = {"build", "dist", "htmlcov", "PKG-INFO"}  # .gitignore and the source distribution
SOURCES = sorted((ROOT / "greeter").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_top_level_holds_the_agreed_names_only() -> None:
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} - MADE_BY_TOOLS
    assert found == TOP_LEVEL


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_the_version_is_one() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", greeter.__version__)
    try:
        assert metadata.version("greeter") == greeter.__version__
    except metadata.PackageNotFoundError:
        pytest.skip("greeter is not installed here")
    assert "version" in PROJECT["dynamic"]


def test_version_of_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "greeter", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"greeter {greeter.__version__}\n")


def test_types_come_with_the_package() -> None:
    assert (ROOT / "greeter" / "py.typed").is_file()


def test_the_base_needs_click_only_and_every_extra_has_a_name() -> None:
    assert [re.split(r"[<>=!~;\[ ]", need)[0] for need in PROJECT["dependencies"]] == ["click"]
    extras = PROJECT["optional-dependencies"]
    assert {"uvloop", "load", "report", "metrics", "locust", "all", "dev"} <= extras.keys()
    (everything,) = extras["all"]
    assert set(everything.removeprefix("greeter[").removesuffix("]").split(",")) == extras.keys() - {
        "all",
        "dev",
        "locust",
    }
    assert "greeter[all,locust]" in extras["dev"]


def test_this_interpreter_is_one_of_those_promised() -> None:
    least = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    assert least == (3, 11)
    assert sys.version_info >= least


# -- one name, one thing -----------------------------------------------------------------------------------


def test_no_two_classes_of_the_package_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_no_two_modules_of_the_package_share_a_name_or_differ_by_a_plural() -> None:
    """No worker.py beside workers.py. A package may have a module of its own name: report/report.py."""
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        module = path.parent if path.stem == "__init__" else path.with_suffix("")
        if module.name not in (module.parent.name, "__main__"):
            places.setdefault(module.name.removesuffix("s"), []).append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_a_helper_of_the_tests_has_no_name_of_the_package() -> None:
    names = {path.stem for path in SOURCES} - {"__init__"}
    assert not names & {path.stem for path in (ROOT / "tests" / "support").glob("*.py")}
