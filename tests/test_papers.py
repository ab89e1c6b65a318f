"""What a contributor finds beside the code: papers, gates and settings that agree with the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest

import greeter
from tests.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

GITHUB = ROOT / ".github"
CONTRIBUTING = GITHUB / "CONTRIBUTING.md"
CHECK = ROOT / ".ci" / "check"
DEV = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
SETTINGS = (
    ".editorconfig",
    ".gitignore",
    ".pre-commit-config.yaml",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)
TEXT = {"", ".c", ".cfg", ".css", ".h", ".j2", ".js", ".json", ".md", ".py", ".service", ".socket", ".toml"}
TEXT |= {".yaml", ".yml"}


def text_files() -> list[Path]:
    """Every text file of the repository, as far as a source distribution has it too."""
    folders = ("greeter", "tests", "examples", ".ci", ".github")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    found += [ROOT / name for name in SETTINGS]
    return sorted(path for path in found if path.suffix in TEXT and "__pycache__" not in path.parts)


def run_check(tree: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``.ci/check`` of ``tree`` with ``env`` beside the bare necessities."""
    necessities = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [tree / ".ci" / "check"], env=necessities | env, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """A repository of one module and one test that pass, with this one's gate and settings."""
    for name in (
        ".ci",
        "greeter",
        "tests/core",
        "tests/config",
        "tests/loadtest/plan",
        "tests/loadtest/metrics",
    ):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(CHECK, tmp_path / ".ci" / "check")
    (tmp_path / "pyproject.toml").write_text('[tool.mypy]\nstrict = true\nfiles = ["greeter"]\n')
    (tmp_path / "greeter" / "module.py").write_text('"""A module."""\n')
    (tmp_path / "tests" / "core" / "test_module.py").write_text("def test_it() -> None:\n    assert True\n")
    for name in ("test_layers.py", "test_package.py"):
        (tmp_path / "tests" / name).touch()
    return tmp_path


@pytest.mark.thorough
@pytest.mark.one_interpreter
def test_the_check_passes_where_nothing_is_wrong(small_tree: Path) -> None:
    done = run_check(small_tree, VIRTUAL_ENV=sys.prefix)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\ncheck: passed in \d+ s\n$", done.stdout)


@pytest.mark.thorough
@pytest.mark.one_interpreter
@pytest.mark.parametrize(
    ("path", "text", "step"),
    [
        ("greeter/module.py", "x = 'single quotes'\n", "format"),
        ("greeter/module.py", "import os\n", "lint"),
        ("greeter/module.py", 'number: int = "text"\n', "types"),
        ("greeter/module.py", "# what we reci" + "eve\n", "spelling"),
        ("tests/core/test_module.py", "def test_it() -> None:\n    assert not True\n", "pure tests"),
    ],
)
def test_the_check_names_the_step_that_failed(small_tree: Path, path: str, text: str, step: str) -> None:
    (small_tree / path).write_text(text)
    done = run_check(small_tree, VIRTUAL_ENV=sys.prefix)
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (1, [f"check: failed: {step}"]), done.stdout


def test_the_check_without_an_environment_says_how_to_make_one(small_tree: Path) -> None:
    done = run_check(small_tree)
    assert (done.returncode, done.stdout) == (2, "")
    assert "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]'" in done.stderr


def test_the_check_without_a_tool_says_which(small_tree: Path) -> None:
    (small_tree / ".venv" / "bin").mkdir(parents=True)
    (small_tree / ".venv" / "bin" / "python").symlink_to(sys.executable)
    done = run_check(small_tree, VIRTUAL_ENV=sys.prefix)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("check: .venv/bin has no ruff.")


def test_the_check_installs_nothing() -> None:
    script = "\n".join(line for line in CHECK.read_text().splitlines() if not line.startswith(("#", "make=")))
    assert not re.search(r"\b(apt-get|apt|sudo|pip|venv)\b(?! here)", script.replace(".venv", ""))


def test_the_tools_of_the_check_are_in_the_extra_dev() -> None:
    (tools,) = re.findall(r"^for tool in (.*); do$", CHECK.read_text(), re.M)
    assert set(tools.split()) <= {re.split(r"[<>=\[]", need)[0] for need in DEV}


def test_the_commands_of_contributing_exist() -> None:
    text = CONTRIBUTING.read_text()
    table = re.findall(
        r"^\| `([^`]+)` \|", text.partition("## The three commands")[2].partition("## ")[0], re.M
    )
    assert table == [".ci/check", ".venv/bin/python -m pytest", ".ci/run"]
    for command in (".ci/check", ".ci/run"):
        assert os.access(ROOT / command, os.X_OK), command
    assert table[1] in (ROOT / "README.md").read_text()
    for module in re.findall(r"\.venv/bin/python -m (tests[.\w]*)", text):
        path = ROOT / module.replace(".", "/")
        assert (path / "__main__.py").is_file() or path.with_suffix(".py").is_file(), module
    for script in re.findall(r"\.venv/bin/python ([\w/]+\.py)", text):
        assert (ROOT / script).is_file(), script


def test_the_paths_of_contributing_exist() -> None:
    paths = re.findall(r"`((?:greeter|tests|examples)/[\w./]*)`", CONTRIBUTING.read_text())
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_table_of_rooms_is_complete() -> None:
    named = re.findall(r"^\| `greeter/(\w+)(?:/|\.py)` \|", CONTRIBUTING.read_text(), re.M)
    found = {path.parent.name for path in (ROOT / "greeter").glob("*/__init__.py")}
    found |= {path.stem for path in (ROOT / "greeter").glob("*.py") if not path.name.startswith("__")}
    assert sorted(named) == sorted(found)


def test_the_glossary_is_sorted_and_says_each_term_once() -> None:
    glossary = CONTRIBUTING.read_text().partition("\n## Glossary\n")[2]
    terms = re.findall(r"^\| ([\w -]+) \| ", glossary, re.M)[1:]
    assert terms == sorted(set(terms))
    assert {"accept queue", "preamble", "lingering close", "drain", "direct path", "streams path"} <= set(
        terms
    )


def test_the_changelog_has_this_version_and_what_comes_next() -> None:
    headings = re.findall(r"^## (.*)$", (GITHUB / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "[Unreleased]"
    dated = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d", heading) for heading in headings[1:]]
    versions = [found[1] for found in dated if found]
    assert len(versions) == len(dated), headings
    assert versions[0] == greeter.__version__
    assert versions == sorted(versions, key=lambda text: [*map(int, text.split("."))], reverse=True)


def test_the_workflow_only_calls_the_gate() -> None:
    workflow = (GITHUB / "workflows" / "ci.yml").read_text()
    assert [path.name for path in (GITHUB / "workflows").iterdir()] == ["ci.yml"]
    assert re.findall(r"^\s*(?:- )?run: *(.*)$", workflow, re.M) == ['sudo env "PATH=$PATH" .ci/run']
    actions = re.findall(r"^\s*(?:- )?uses: *(.*)$", workflow, re.M)
    assert [re.sub(r"@v\d+$", "", action) for action in actions] == [
        "actions/checkout",
        "actions/setup-python",
    ]


def test_the_hooks_are_those_of_the_check() -> None:
    settings = (ROOT / ".pre-commit-config.yaml").read_text()
    hooks = re.findall(r"^ {6}- id: ([\w-]+)$", settings, re.M)
    assert hooks == ["end-of-file-fixer", "ruff", "ruff-format", "mypy", "codespell"]
    assert re.findall(r"^ {2}- repo: (.*)$", settings, re.M) == ["local"]
    entries = [entry.split()[0] for entry in re.findall(r"^ {8}entry: (.*)$", settings, re.M)]
    assert entries[0] == hooks[0]  # from a package of its own
    assert set(entries[1:]) < set(re.findall(r"\$bin/(\w+)", CHECK.read_text()))
    assert "\t" not in settings


@pytest.mark.parametrize(
    "path",
    sorted([*GITHUB.rglob("*.yml"), ROOT / ".pre-commit-config.yaml"]),
    ids=lambda path: path.name,
)
def test_settings_are_yaml(path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML, which kubernetes-validate brings")
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_every_text_ends_with_one_newline() -> None:
    bad = []
    for path in text_files():
        text = path.read_bytes()
        if text and (not text.endswith(b"\n") or text.endswith(b"\n\n") or b"\r\n" in text):
            bad.append(str(path.relative_to(ROOT)))
    assert bad == []


@pytest.mark.parametrize("path", sorted(GITHUB.rglob("*.md")), ids=lambda path: path.name)
def test_links_of_the_papers_lead_somewhere(path: Path) -> None:
    text = path.read_text()
    anchors = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)", text, re.M)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("https://"):
            assert (path.parent / target).exists(), target
