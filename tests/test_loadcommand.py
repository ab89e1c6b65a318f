"""``greeter load`` and ``greeter report``: what they print, write and exit with."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.conftest import greeter_process, run_greeter

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("hdrh")
pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])

SHORT = ("-c", "5", "-n", "200", "--quiet")


async def test_a_run_and_its_files(tmp_path: Path) -> None:
    run, page, timeline, histograms = (
        tmp_path / name for name in ("run.json", "page", "run.csv", "run.hlog")
    )
    files = ("--json", str(run), "--csv", str(timeline), "--hdr", str(histograms))
    async with greeter_process("serve", "--listen", "127.0.0.1:0") as server:
        code, out, err = await run_greeter("load", server.address, *SHORT, *files)
        assert (code, err) == (0, "")
        assert "200 attempted, 200 greeted, 0 failed" in out
        assert json.loads(run.read_text())["connections"]["greeted"] == 200
        assert timeline.read_text()
        assert histograms.read_text().startswith("#")
        code, out, _ = await run_greeter("load", server.address, *SHORT, "--threshold", "response:max<1us")
        assert code == 99
        assert "response:max<1us" in out
        old = ("--baseline", str(run), "--tolerance", "100000")
        code, out, _ = await run_greeter("load", server.address, *SHORT, *old)
        assert code == 0
    if pytest.importorskip("plotly"):
        code, out, err = await run_greeter("report", str(run), "--html", str(page))
        assert (code, err) == (0, "")
        assert page.read_text().lower().startswith("<!doctype html>")


async def test_a_page_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, the right exit code, and nothing half-written."""
    pytest.importorskip("jsonschema")
    pytest.importorskip("plotly")
    run, page = tmp_path / "run.json", tmp_path / "page.html"
    await run_greeter("load", "127.0.0.1:1", *SHORT, "--json", str(run))
    good = json.loads(run.read_text())
    for values, words in (
        ({"a": 1}, "is no report of a load test: it has no schema"),
        ({**good, "schema": 2}, "has schema 2; this greeter reads schema 1"),
        ({**good, "connections": {**good["connections"], "greeted": "x"}}, "connections.greeted"),
        (
            {**good, "histograms": {**good["histograms"], "service": "HIST"}},
            "a histogram that cannot be read",
        ),
    ):
        run.write_text(json.dumps(values))
        code, _, err = await run_greeter("report", str(run), "--html", str(page))
        assert (code, err.count("\n")) == (2, 1), err
        assert words in err
    run.write_text(json.dumps(good))
    nowhere = tmp_path / "nowhere" / "page.html"
    code, _, err = await run_greeter("report", str(run), "--html", str(nowhere))
    assert (code, err) == (1, f"greeter: cannot write {nowhere}: no such file or directory\n")
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['plotly'] = None")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, out, err = await run_greeter("report", str(run), "--html", str(page))
    assert (code, out) == (2, ""), "it is said before anything is done"
    assert err == "greeter: --html needs an optional package: pip install 'greeter[report]'\n"
    assert set(os.listdir(tmp_path)) <= {"run.json", "sitecustomize.py", "__pycache__"}


async def test_nobody_there() -> None:
    code, out, err = await run_greeter("load", "127.0.0.1:1", *SHORT)
    assert (code, err) == (1, "")
    assert "connect_refused" in out.splitlines()[-1]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-c", "0"), "not 0"),
        (("--rate", "-5"), "-5"),
        (("--threshold", "speed:p99<1s"), "speed"),
        (("--baseline", "/nonexistent"), "/nonexistent"),
    ],
)
async def test_what_is_wrong_is_one_line(args: tuple[str, ...], words: str) -> None:
    code, out, err = await run_greeter("load", "127.0.0.1:1", *args)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert words in err
