"""Every README is true: its links, commands, tables, figures and examples.

Invariants:

- A table that lists what the code has is compared with the code, in both directions.
- A command that a README shows is parsed by the program that it is for; an example runs.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from prometheus_client.parser import text_string_to_metric_families

from greeter import errors
from greeter.cli.cli import cli
from greeter.config.options import ServeOptions
from greeter.config.reloading import RELOADABLE, RELOADABLE_BY_WORKERS, restart_required
from greeter.core.stats import DATAGRAM_FAILURES, DATAGRAM_REJECTIONS, FAILURES, REJECTIONS
from greeter.loadtest.plan.outcome import FAILURE_CLASSES
from greeter.loadtest.plan.threshold import PHASES, STATS, Threshold
from greeter.service.log_format import FIELDS
from greeter.service.prometheus import render
from tests.benchmarks.__main__ import parser as benchmark_parser
from tests.conftest import ROOT, run_greeter
from tests.faults.__main__ import parser as faults_parser
from tests.service.test_prometheus import everything
from tests.services.__main__ import parser as services_parser
from tests.soak import soak_parser
from tests.test_examples import run_example
from tests.torture.__main__ import torture_parser

if TYPE_CHECKING:
    from collections.abc import Iterator

README = "README.md"
REFERENCE = "greeter/README.md"
LOAD = "greeter/loadtest/README.md"
CONFORMANCE = "greeter/conformance/README.md"
LIBRARY = "examples/README.md"
DEPLOY = "examples/deploy/README.md"
TESTS = "tests/README.md"
BENCHMARKS = "tests/benchmarks/README.md"
READMES = {
    name: (ROOT / name).read_text()
    for name in (README, REFERENCE, LOAD, CONFORMANCE, LIBRARY, DEPLOY, TESTS, BENCHMARKS)
}

SECTIONS = [
    "Why",
    "Quick start",
    "Run it as a service",
    "Check a service",
    "Load test",
    "In your program",
    "When not to use it",
    "Questions",
    "Speed",
    "Developing",
    "Licence",
]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def commands() -> dict[str, click.Command]:
    return dict(cli.commands)


def flags_of(command: str) -> set[str]:
    """The long flags of a command, but for --help."""
    found = set()
    for parameter in commands()[command].params:
        if isinstance(parameter, click.Option):
            found |= {flag for flag in (*parameter.opts, *parameter.secondary_opts) if flag.startswith("--")}
    return found


def blocks(name: str, language: str) -> list[str]:
    """The fenced blocks of a language in a README."""
    return re.findall(rf"^```{language}\n(.*?)^```$", READMES[name], re.M | re.S)


def rows_of(name: str, heading: str) -> list[list[str]]:
    """The cells of the table in a README whose first column has this heading."""
    before, found, rest = READMES[name].partition(f"\n| {heading} |")
    assert found, f"{name} has no table {heading!r}"
    rows = rest.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip("|"))] for row in rows]


def codes(cell: str) -> list[str]:
    """What a cell has in code, without the arguments of options."""
    return [code.split()[0] for code in re.findall(r"`([^`]+)`", cell)]


# -- the README of the repository


def test_the_readme_is_short() -> None:
    lines = READMES[README].splitlines()
    assert len(lines) <= 180
    assert max(map(len, lines)) <= 120


def test_the_sections_are_in_the_agreed_order() -> None:
    assert re.findall(r"^## (.+)$", READMES[README], re.M) == SECTIONS


def test_the_first_two_sh_blocks_are_the_two_commands() -> None:
    first, second = blocks(README, "sh")
    assert first.count("\n") == second.count("\n") == 1
    assert "'.[all]'" in first
    assert first.endswith("greeter demo\n")
    assert "'.[dev]'" in second
    assert second.endswith("-m pytest\n")  # where .ci/run appends its own options


def test_the_readme_says_where_greeter_runs() -> None:
    text = " ".join(READMES[README].split())
    least = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert f"It runs on Linux with Python {least} or newer" in text
    assert re.search(r"takes about \w+ minutes", text)
    assert re.search(rf"tested on Linux [\d.]+ .* with CPython {re.escape(least)}", text)


def test_the_extras_are_those_of_the_project() -> None:
    paragraph = next(text for text in READMES[README].split("\n\n") if text.startswith("`all` is"))
    everything = PROJECT["project"]["optional-dependencies"]["all"][0]
    assert set(re.findall(r"`(\w+)`", paragraph.partition(". ")[0])) == {
        "all",
        *everything.removeprefix("greeter[").removesuffix("]").split(","),
    }


# -- every README


def test_no_readme_is_forgotten() -> None:
    hidden = {path for path in ROOT.iterdir() if path.name.startswith(".")}
    found = {path for path in ROOT.rglob("README.md") if not hidden & set(path.parents)}
    assert {str(path.relative_to(ROOT)) for path in found} == set(READMES)


def anchors(path: Path) -> set[str]:
    """What GitHub makes of the headings of a file."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", READMES)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", READMES[name]):
        assert "://" not in target, f"{target}: a link into the network cannot be checked"
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


@pytest.mark.parametrize("name", READMES)
def test_every_readme_is_linked_from_one_above(name: str) -> None:
    if name == README:
        return
    folder = (ROOT / name).parent
    for other in READMES:
        for target in re.findall(r"\]\(([^)#]+README\.md)", READMES[other]):
            if (
                other != name
                and ((ROOT / other).parent / target).resolve() == (folder / "README.md").resolve()
            ):
                return
    pytest.fail(f"no README links to {name}")


@pytest.mark.parametrize("name", READMES)
def test_every_flag_exists(name: str) -> None:
    known = {"--version", "--help"} | {flag for command in commands() for flag in flags_of(command)}
    for parser in (benchmark_parser(), soak_parser(), services_parser(), torture_parser(), faults_parser()):
        known |= {flag for action in parser._actions for flag in action.option_strings}
    for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", READMES[name]):
        assert flag in known, flag


def shown_commands() -> Iterator[tuple[str, str]]:
    """The command lines of console blocks, each with its README."""
    for name in READMES:
        for block in blocks(name, "console"):
            lines = block.splitlines()
            assert lines[0].startswith("$ "), lines[0]
            yield from ((name, line.removeprefix("$ ")) for line in lines if line.startswith("$ "))


@pytest.mark.parametrize(("name", "line"), list(shown_commands()))
def test_every_command_can_be_given(name: str, line: str) -> None:
    program, *words = shlex.split(line)
    if program == "greeter":
        parse_greeter(words)
    elif program == "source":
        assert words == [".venv/bin/activate"]
    elif program == "python" and words[:2] == ["-m", "tests.benchmarks"]:
        try:
            benchmark_parser().parse_args(words[2:])
        except (SystemExit, argparse.ArgumentError):
            pytest.fail(line)
    elif program == "python" and words[:2] == ["-m", "pytest"]:
        if words[2:3] == ["-m"]:
            markers = [
                marker.partition(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]
            ]
            assert set(words[3].split()) <= {"not", *markers}
        else:
            assert all((ROOT / word).exists() for word in words[2:])
    else:
        assert (ROOT / (words[0] if program == "python" else program)).is_file()


def parse_greeter(words: list[str]) -> None:
    """Raises click.UsageError if greeter does not know the words."""
    if words == ["--help"]:
        return
    group = click.Context(cli, **cli.context_settings)  # or click would remember that -h is no help option
    with commands()[words[0]].make_context(words[0], words[1:], parent=group):
        pass


# What the first line of the output of each example in a README begins with.
PROMISES = {
    (README, 0): "Hello 127.0.0.1 ",
    (README, 1): "220 mail.example ",
    (CONFORMANCE, 0): "Loses no client that was tried: all ",
    (LIBRARY, 0): "Welcome, 127.0.0.1\n",
    (LIBRARY, 1): ".",  # a test, which pytest runs
}


def test_every_example_in_a_text_is_known_here() -> None:
    assert set(PROMISES) == {(name, i) for name in READMES for i in range(len(blocks(name, "python")))}


async def test_the_examples_in_the_texts_run(tmp_path: Path) -> None:
    smtp = pytest.importorskip("aiosmtpd.smtp")
    server = await asyncio.get_running_loop().create_server(
        lambda: smtp.SMTP(None, hostname="mail.example"), "127.0.0.1", 0
    )
    async with server:
        port = server.sockets[0].getsockname()[1]
        for (name, number), promise in PROMISES.items():
            text = blocks(name, "python")[number]
            assert ('"mail.example", 25' in text) == ("mail.example" in promise)
            (tmp_path / "example.py").write_text(text.replace('"mail.example", 25', f'"127.0.0.1", {port}'))
            example = str(tmp_path / "example.py")
            test = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "-c", os.devnull]
            test *= "pytest_plugins" in text
            code, out, err = await run_example(*test, example)
            assert (code, err) == (0, "")
            assert out.startswith(promise)


# -- options


TABLES = {"serve": (REFERENCE, 4), "greet": (REFERENCE, 3), "load": (LOAD, 3)}


@pytest.mark.parametrize("command", TABLES)
def test_every_option_stands_in_its_table_once(command: str) -> None:
    name, columns = TABLES[command]
    rows = rows_of(name, f"option of `greeter {command}`")
    assert {len(row) for row in rows} == {columns}
    shown = [flag for row in rows for flag in codes(row[0]) if flag.startswith("--")]
    assert sorted(shown) == sorted(flags_of(command))


@pytest.mark.parametrize(
    ("command", "name"), [("report", LOAD), ("demo", REFERENCE), ("discover", REFERENCE)]
)
def test_every_option_is_documented(command: str, name: str) -> None:
    for flag in flags_of(command):
        assert flag in READMES[name], flag


@pytest.mark.parametrize("command", TABLES)
def test_defaults_are_the_real_ones(command: str) -> None:
    parameters = {flag: p for p in commands()[command].params for flag in p.opts}
    checked = 0
    for row in rows_of(TABLES[command][0], f"option of `greeter {command}`"):
        flags, shown = codes(row[0]), row[2].replace("`", "")
        flags = [flag for flag in flags if flag.startswith("--")]
        option = parameters[flags[0]]
        assert isinstance(option, click.Option)
        text = option.show_default if isinstance(option.show_default, str) else None
        if text is not None:
            assert shown == text, flags
        elif isinstance(option.default, bool):
            assert shown == ("on" if option.default else ""), flags
        elif isinstance(option.default, str | int | float):
            assert shown.removesuffix("s" * (command == "load")) == str(option.default).removesuffix(".0"), (
                flags
            )
        else:
            assert shown == "", flags
        checked += bool(shown)
    assert checked >= 4


def test_the_column_reload_is_what_a_reload_does() -> None:
    for row in rows_of(REFERENCE, "option of `greeter serve`"):
        name = codes(row[0])[0].removeprefix("--").replace("-", "_")
        expected = "yes" if name in RELOADABLE else "workers" if name in RELOADABLE_BY_WORKERS else "restart"
        assert row[3] == ("" if name in ("config", "check_config") else expected), name


def test_a_reload_without_workers_renews_tls_and_does_not_turn_it_on() -> None:
    without, one, other = ServeOptions(), ServeOptions(tls_cert=Path("1")), ServeOptions(tls_cert=Path("2"))
    assert restart_required(one, other, workers=False) == []
    assert restart_required(without, one, workers=False) == ["--tls-cert"]
    assert restart_required(without, one, workers=True) == []


async def test_help_of_every_command_works() -> None:
    for name in commands():
        code, out, err = await run_greeter(name, "--help")
        assert (code, err) == (0, "")
        assert "Usage: greeter" in out


# -- the service


def test_the_exit_codes_of_the_help_are_those_in_the_table() -> None:
    rows = rows_of(REFERENCE, "exit code")
    for column, command in enumerate(("serve", "greet", "load"), start=1):
        epilog = commands()[command].epilog or ""
        told = re.findall(r"^  (\d+) ", epilog.partition("Exit codes")[2], re.M)
        assert [row[0] for row in rows if row[column]] == told, command


def test_the_events_of_the_log_are_those_in_the_table() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "greeter").rglob("*.py"))
    rows = rows_of(REFERENCE, "`event`")
    shown = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(shown) == sorted(set(re.findall(r'"event": "(\w+)"', sources)))
    fields = {name for row in rows for name in re.findall(r"`(\w+)`", row[2])}
    assert fields - {*FAILURES, *DATAGRAM_FAILURES, "greeted", "linger_timeout", "descriptors"} | {
        "event"
    } == {*FIELDS}
    logging_rooms = [
        path for room in ("server", "service") for path in (ROOT / "greeter" / room).glob("*.py")
    ]
    assert {key for path in logging_rooms for key in fields_of_records(path)} == {*FIELDS}


def fields_of_records(path: Path) -> Iterator[str]:
    """The fields that a module gives to its log records: the keys of what is "extra" or has an "event"."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Expr):
            text = ast.unparse(node)
            if re.search(r"\bextra\b|'event':", text):
                yield from re.findall(r"'(\w+)': ", text) + re.findall(r"extra\['(\w+)'\]", text)


def test_the_metrics_are_those_in_the_table() -> None:
    families = text_string_to_metric_families(render(everything(), ["self"]).decode())
    found = {m.name + "_total" * (m.type == "counter"): m for m in families}
    rows = rows_of(REFERENCE, "metric")
    assert [row[0].strip("`") for row in rows] == list(found)
    streams = {"class": list(FAILURES), "reason": list(REJECTIONS), "result": ["ok", "failed"]}
    datagrams = {"class": list(DATAGRAM_FAILURES), "reason": list(DATAGRAM_REJECTIONS)}
    for name, labels, meaning in rows:
        values = datagrams if "datagrams" in name else streams
        metric = found[name.strip("`")]
        assert meaning.casefold() + "." == metric.documentation.casefold()
        label, *known = re.findall(r"`(\w+)`", labels) or [""]
        real = {label for sample in metric.samples for label in sample.labels} - {"le"}
        assert {label, *([] if label in values else known)} - {""} == real
        assert known == values.get(label, known)


def test_the_entry_points_exist() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "greeter").rglob("*.py"))
    for room, _, entries in rows_of(REFERENCE, "room"):
        for entry in codes(entries):
            assert re.search(rf"^(async )?(def|class) {entry.removesuffix('()')}\b", sources, re.M), room


# -- the load tester


def test_the_classes_of_failures_are_those_in_the_table() -> None:
    rows = rows_of(LOAD, "class")
    assert {row[0].strip("`"): row[1] for row in rows} == FAILURE_CLASSES


def test_the_thresholds_in_the_table_can_be_read() -> None:
    rows = rows_of(LOAD, "metric")
    assert tuple(codes(rows[0][0])) == PHASES
    assert tuple(codes(rows[0][1])) == STATS
    known = set(PHASES)
    for metrics, _, value in rows:
        known |= set(codes(metrics))
        threshold = Threshold.parse(codes(value)[0])
        assert threshold.metric in codes(metrics)
    assert known == {*PHASES, "errors", "connections", "rate"}


# -- the library


def test_the_gallery_names_every_example() -> None:
    named = set(re.findall(r"^\| \[[\w./]+\]\(([\w./]+)\) \|", READMES[LIBRARY], re.M))
    assert named == {path.name for path in (ROOT / "examples").glob("*.py")}


def test_examples_are_short() -> None:
    for path in (ROOT / "examples").glob("*.py"):
        if path.name == "pictures.py":
            continue  # a tool that makes the pictures, not an example to learn from
        assert len(path.read_text().splitlines()) <= 40, path.name


def test_the_errors_are_those_in_the_tables() -> None:
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for table in READMES[LIBRARY].split("| error | also | raised when |\n")[1:]
        for row in table.partition("\n\n")[0].splitlines()[1:]
    ]
    public = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.GreeterError) and not name.startswith("_")
    }
    assert {row[0].strip("`") for row in rows} == public.keys() - {"GreeterError", "GreetFailed"}
    for name, also, _ in rows:
        error = public[name.strip("`")]
        builtins = {base.__name__ for base in error.__mro__ if base.__module__ == "builtins"}
        assert set(codes(also)) <= builtins, name
        assert bool(codes(also)) == bool(builtins - {"Exception", "BaseException", "object"}), name


# -- deployment, tests, benchmarks


def test_the_files_for_deployment_are_those_in_the_table() -> None:
    named = {link for row in rows_of(DEPLOY, "file") for link in re.findall(r"\]\(([\w./]+)\)", row[0])}
    assert named == {path.name for path in (ROOT / DEPLOY).parent.iterdir()} - {"README.md"}


def test_the_arithmetic_for_more_than_one_machine_is_right() -> None:
    section = " ".join(READMES[DEPLOY].partition("## Beyond one machine")[2].split())
    unit = "(?: kB| MB)?"
    shown = re.findall(rf"([\d,.]*\d){unit} ([×/]) ([\d,.]*\d)({unit}) = ([\d,.]*\d)({unit})", section)
    assert (
        len(shown)
        == len(re.findall(r" [×/] [\d,.]+\d\S* = | [×/] [\d,.]*\d kB = | [×/] \d = ", section))
        > 20
    )
    for left, sign, right, unit_of_one, result, unit_of_all in shown:
        a, b, c = (float(number.replace(",", "")) for number in (left, right, result))
        exact = a * b if sign == "×" else a / b
        if unit_of_one != unit_of_all:
            assert (unit_of_one, unit_of_all) == (" kB", " MB")
            exact /= 1000
        digits = len(result.partition(".")[2])
        assert c == pytest.approx(exact, abs=0.5000001 * 10**-digits), (left, sign, right, result)
    assert 60_999 - 32_768 + 1 == 28_232


def test_the_markers_are_those_in_the_table() -> None:
    shown = [f"{row[0].strip('`')}: {row[1]}" for row in rows_of(TESTS, "marker")]
    assert shown == PROJECT["tool"]["pytest"]["ini_options"]["markers"]


def test_the_options_of_the_benchmarks_are_those_in_the_table() -> None:
    shown = [codes(row[0])[0] for row in rows_of(BENCHMARKS, "option")]
    assert sorted([*shown, "--help"]) == sorted(
        flag
        for action in benchmark_parser()._actions
        for flag in action.option_strings
        if flag.startswith("--")
    )


def test_the_figures_of_the_readme_are_those_of_the_benchmarks() -> None:
    measured = rows_of(BENCHMARKS, "server")
    shown = rows_of(README, "server | × nginx")
    assert len(shown) == 4
    assert all(row in measured for row in shown)
    lost = {row[0]: row[1] for row in rows_of(BENCHMARKS, "server | lost")}
    assert [row[1] for row in rows_of(README, "server")] == [
        lost["nginx `return`"],
        lost["asyncio's documented pattern, asyncio"],
        "0",
    ]
