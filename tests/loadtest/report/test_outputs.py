from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from greeter.errors import ConfigError
from greeter.loadtest import LoadPlan, LoadReport, Threshold
from greeter.loadtest.report.outputs import OUTPUTS, check_outputs, write_outputs
from tests.conftest import ROOT
from tests.loadtest.report.test_report import report

if TYPE_CHECKING:
    from pathlib import Path

MISSED = report(plan=LoadPlan(rate=100, duration=1.0, thresholds=[Threshold.parse("response:p50<1us")]))


def write_to(found: LoadReport, paths: dict[str, str | Path]) -> tuple[int, list[str], list[str]]:
    """Write the outputs; return the exit code, what was printed, and the errors."""
    printed: list[str] = []
    errors: list[OSError] = []
    code = write_outputs(found, None, paths, printed.append, errors.append)
    return code, printed, [str(error) for error in errors]


def test_every_output_is_written(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    paths: dict[str, str | Path] = {name: tmp_path / name for name in OUTPUTS}
    check_outputs(paths)
    code, printed, errors = write_to(report(), paths)
    assert (code, errors) == (0, [])
    assert printed[0].endswith(report().verdict)
    assert LoadReport.from_json((tmp_path / "json").read_text()) == report()
    assert sorted(os.listdir(tmp_path)) == sorted(OUTPUTS)
    assert all((tmp_path / name).read_text() for name in OUTPUTS)


@pytest.mark.parametrize(("found", "code"), [(report(), 1), (MISSED, 99)])
def test_a_failed_output_affects_neither_the_others_nor_the_exit_code(
    tmp_path: Path, found: LoadReport, code: int
) -> None:
    bad = tmp_path / "missing" / "run.json", tmp_path / "missing" / "run.hlog"
    found_code, printed, errors = write_to(
        found, {"json": bad[0], "hdr": bad[1], "csv": tmp_path / "run.csv"}
    )
    assert (found_code, len(printed)) == (code, 1)
    assert errors == [f"cannot write {path}: no such file or directory" for path in bad]
    assert (tmp_path / "run.csv").read_text().startswith("t_s,")


PROGRAM = """
import sys
from greeter.loadtest.report.outputs import check_outputs, write_outputs
from tests.loadtest.report.test_report import report
paths = {"json": sys.argv[1]}
check_outputs(paths)
sys.exit(write_outputs(report(), None, paths, print, lambda error: print(error, file=sys.stderr)))
"""


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "the file behind it"])
@pytest.mark.thorough
def test_an_output_to_stdout_is_the_only_thing_there(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = str(out) if name == "the file behind it" else name
    with out.open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, path], cwd=ROOT, stdout=file, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 0
    assert LoadReport.from_json(out.read_text()) == report()
    assert done.stderr.decode().endswith(f"{report().verdict}\n")


def test_the_summary_stays_on_stdout_if_the_output_is_discarded(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "/dev/null"], cwd=ROOT, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().endswith(f"{report().verdict}\n")


def test_a_summary_that_cannot_be_printed(tmp_path: Path) -> None:
    def print_summary(_: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    errors: list[OSError] = []
    assert write_outputs(report(), None, {"json": tmp_path / "run.json"}, print_summary, errors.append) == 1
    assert [error.errno for error in errors] == [errno.ENOSPC]
    assert (tmp_path / "run.json").exists()
    assert write_outputs(MISSED, None, {}, print_summary, errors.append) == 99


def test_invalid_output_paths_are_reported_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("x")
    for paths, message in (
        ({"json": "-", "csv": "/dev/stdout"}, "--json and --csv both go to standard output"),
        (
            {"csv": tmp_path / "no" / "x"},
            f"--csv: cannot write {tmp_path}/no/x: no such file or directory",
        ),
        (
            {"json": tmp_path / "x", "csv": tmp_path / "link"},
            f"--json and --csv name the same file, {tmp_path}/link",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            check_outputs(paths)
        assert str(caught.value) == message
    with pytest.raises(ConfigError, match="^--greeter-json: cannot write"):
        check_outputs({"json": tmp_path / "no" / "x"}, prefix="--greeter-")


def test_a_baseline_that_cannot_be_drawn_is_reported_before_the_run(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    old = report()
    old.histograms["service"] = "HIST"
    check_outputs({"json": tmp_path / "x"}, old)
    with pytest.raises(ConfigError, match="a histogram that cannot be read"):
        check_outputs({"html": tmp_path / "x"}, old)
