"""The README is true: its commands, its options, its file table, its examples."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import click
import pytest
from prometheus_client.parser import text_string_to_metric_families

from greeter.cli import cli
from greeter.logs import _FIELDS
from greeter.metrics import render
from greeter.stats import FAILURES, REJECTIONS
from tests.conftest import ROOT, run_greeter
from tests.test_examples import run_example
from tests.test_metrics import everything

README = (ROOT / "README.md").read_text()


def commands() -> dict[str, click.Command]:
    return dict(cli.commands)


def test_the_first_two_sh_blocks_are_the_two_commands() -> None:
    first, second = re.findall(r"```sh\n(.*?)```", README, re.S)[:2]
    assert first.count("\n") == second.count("\n") == 1
    assert ".[all]" in first
    assert "greeter demo" in first
    assert ".[dev]" in second
    assert "pytest" in second


def test_the_file_table_names_every_module_and_no_other() -> None:
    named = set(re.findall(r"^\| \[[\w./]+\]\((greeter/[\w./]+)\) \|", README, re.M))
    package = ROOT / "greeter"
    found = {str(path.relative_to(ROOT)) for path in package.glob("*.py") if not path.name.startswith("__")}
    found |= {f"greeter/{path.parent.name}/" for path in package.glob("*/__init__.py")}
    server = package / "server"  # which has a table of its own
    found |= {str(path.relative_to(ROOT)) for path in server.glob("*.py") if not path.name.startswith("__")}
    assert named == found


def test_the_example_table_names_every_example() -> None:
    named = set(re.findall(r"^\| \[[\w./]+\]\(examples/([\w./]+)\) \|", README, re.M))
    assert named == {path.name for path in (ROOT / "examples").glob("*.py")}


async def test_the_examples_in_the_text_run(tmp_path: Path) -> None:
    smtp = pytest.importorskip("aiosmtpd.smtp")
    serve, converse, own_server = re.findall(r"```python\n(.*?)```", README, re.S)
    server = await asyncio.get_running_loop().create_server(
        lambda: smtp.SMTP(None, hostname="mail.example"), "127.0.0.1", 0
    )
    async with server:
        port = server.sockets[0].getsockname()[1]
        real = converse.replace('"mail.example", 25', f'"127.0.0.1", {port}')
        assert real != converse
        promises = {serve: "Hello 127.0.0.1 ", real: "220 mail.example ", own_server: "Welcome, 127.0.0.1\n"}
        for text, promise in promises.items():
            (tmp_path / "example.py").write_text(text)
            code, out, err = await run_example(str(tmp_path / "example.py"))
            assert (code, err) == (0, "")
            assert out.startswith(promise)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_option_is_documented(name: str) -> None:
    for parameter in commands()[name].params:
        if isinstance(parameter, click.Option):
            for flag in (*parameter.opts, *parameter.secondary_opts):
                if flag.startswith("--"):
                    assert f"`{flag}" in README or f" {flag} " in README, f"{flag} of {name}"


def test_every_documented_option_exists() -> None:
    known = {"--version", "--help", "--only", "--rounds"}  # the last two are those of tests.benchmarks
    for command in commands().values():
        for parameter in command.params:
            known |= {*parameter.opts, *parameter.secondary_opts}
    for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", README):
        assert flag in known, flag


def test_defaults_in_the_option_table_are_the_real_ones() -> None:
    table = README.partition("| option of `greeter serve` |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(--[\w-]+)[^|]*(?:\\\|[^|]*)*\|[^|]*\| ([^|]*) \|$", table, re.M)
    serve = {flag: p for p in commands()["serve"].params for flag in p.opts}
    checked = 0
    for flag, shown in ((flag, shown.strip().strip("`")) for flag, shown in rows):
        default = serve[flag].default
        if not shown or isinstance(default, bool):
            continue
        if default in (None, []):  # it depends, and the help says on what
            assert shown in str(serve[flag].show_default), flag
        else:
            assert shown == str(default).removesuffix(".0"), flag
        checked += 1
    assert checked >= 8


def rows_of(heading: str) -> list[list[str]]:
    """The cells of a table."""
    table = README.partition(f"\n| {heading} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[2:]]


def test_the_events_of_the_log_are_those_in_the_table() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "greeter").rglob("*.py"))
    shown = [name for row in rows_of("`event`") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(shown) == sorted(set(re.findall(r'"event": "(\w+)"', sources)))
    fields = {name for row in rows_of("`event`") for name in re.findall(r"`(\w+)`", row[2])}
    assert fields <= {*_FIELDS, *FAILURES}


def test_the_metrics_are_those_in_the_table() -> None:
    families = text_string_to_metric_families(render(everything()).decode())
    found = {m.name + "_total" * (m.type == "counter"): m for m in families}
    rows = rows_of("metric")
    assert [row[0].strip("`") for row in rows] == list(found)
    values = {"class": list(FAILURES), "reason": list(REJECTIONS), "result": ["ok", "failed"]}
    for name, labels, meaning in rows:
        metric = found[name.strip("`")]
        assert meaning.casefold() + "." == metric.documentation.casefold()
        label, *known = re.findall(r"`(\w+)`", labels) or [""]
        real = {label for sample in metric.samples for label in sample.labels} - {"le"}
        assert {label, *([] if label in values else known)} - {""} == real
        assert known == values.get(label, known)


async def test_help_of_every_command_works() -> None:
    for name in commands():
        code, out, err = await run_greeter(name, "--help")
        assert (code, err) == (0, "")
        assert "Usage: greeter" in out


def test_examples_are_short() -> None:
    for path in (ROOT / "examples").glob("*.py"):
        if path.name == "pictures.py":
            continue  # a tool that makes the pictures, not an example to learn from
        assert len(Path(path).read_text().splitlines()) <= 40, path.name
