"""Every example of the load tester, run as its docstring says."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from greeter.loadtest import LoadPlan, LoadReport
from tests.conftest import PATIENCE, ROOT
from tests.loadtest.report.test_report import report
from tests.support.loadtest_peers import close_at_once, greet, refused_endpoint, serving


async def run(example: str, *args: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, f"examples/{example}", *args),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode()


def exit_code(page: str) -> int:
    """Return the exit code that matches a summary. On a busy machine, it may be 98."""
    if "\n  MISSED  errors" in page:
        return 99
    if "The generator was saturated: " in page or "The machine of the generator was busy: " in page:
        return 98
    return 99 if "\n  MISSED " in page or "\n  WORSE " in page else 0


async def from_a_coroutine() -> None:
    code, out = await run("load_from_coroutine.py")
    assert code == 0
    for line, (rate, due) in zip(out.splitlines(), ((100, 40), (200, 80), (400, 160)), strict=True):
        name, _, rest = line.partition(": ")
        assert name == f"{rate}/s"
        assert 0 < int(rest.partition(" greeted, p50 ")[0]) <= due


async def a_gate() -> None:
    async with serving(greet) as good:
        code, page = await run("load_ci_gate.py", good)
    assert code == exit_code(page), page
    assert " 0 failed" in page
    assert "MISSED  errors" not in page
    async with serving(close_at_once) as bad:
        code, page = await run("load_ci_gate.py", bad)
    assert code == exit_code(page) != 0
    assert "MISSED  errors:rate<0.1%             100%" in page


async def a_baseline(path: Path) -> None:
    code, page = await run("load_baseline.py", refused_endpoint(), str(path))
    assert code == (exit_code(page) or 1)
    assert path.name not in os.listdir(path.parent), "a failed run is not kept as a baseline"
    async with serving(greet) as target:
        code, page = await run("load_baseline.py", target, str(path))
        assert code == exit_code(page)
        assert (path.name in os.listdir(path.parent)) == (code == 0)
        code, page = await run("load_baseline.py", target, str(path.parent / "nowhere" / path.name))
        assert code == (exit_code(page) or 1)
        assert " 0 failed" in page, "the summary is printed anyway"
        write_fast_baseline(path, report(plan=LoadPlan(target, rate=500, duration=1.0)))
        code, page = await run("load_baseline.py", target, str(path))
    assert code == exit_code(page) != 0
    assert "WORSE response p50 " in page


def write_fast_baseline(path: Path, run: LoadReport) -> None:
    """Write a baseline that every other run is worse than."""
    values = json.loads(run.to_json())
    for stat in ("mean", "p50", "p90", "p99"):
        values["latency_us"]["response"][stat] = 1
    path.write_text(json.dumps(values))


@pytest.mark.thorough
def test_examples_work(tmp_path: Path) -> None:
    """All run at the same time, because they mostly wait."""

    async def run_all() -> None:
        await asyncio.gather(from_a_coroutine(), a_gate(), a_baseline(tmp_path / "last-run.json"))

    asyncio.run(run_all())


def test_examples_without_arguments_print_their_usage() -> None:
    for example in ("load_ci_gate.py", "load_baseline.py"):
        command = [sys.executable, f"examples/{example}"]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        found = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE)
        assert found.returncode == 1
        assert f"python examples/{example} 127.0.0.1:9999" in found.stderr
        assert "Traceback" not in found.stderr


def test_errors_of_examples_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    nowhere = "127.0.0.1:no-such-service"
    for args, message in (
        (("load_ci_gate.py", "bogus"), "endpoint 'bogus' has no port"),
        (("load_ci_gate.py", nowhere), f"cannot connect to {nowhere}: "),
        (("load_baseline.py", nowhere, f"{tmp_path}/new.json"), f"cannot connect to {nowhere}: "),
        (("load_baseline.py", nowhere, f"{tmp_path}/run.json"), "run.json is not a load test report"),
    ):
        command = [sys.executable, f"examples/{args[0]}", *args[1:]]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        found = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE)
        assert (found.returncode, found.stdout, found.stderr.count("\n")) == (1, "", 1)
        assert message in found.stderr


def test_examples_are_short() -> None:
    for path in Path(ROOT, "examples").glob("load_*.py"):
        assert len(path.read_text().splitlines()) <= 40, path
