from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from greeter.errors import ConfigError
from greeter.loadtest import LoadPlan, LoadReport, Threshold
from greeter.loadtest.report.outputs import OUTPUTS, check, deliver
from tests.loadtest.report.test_report import report

if TYPE_CHECKING:
    from pathlib import Path

MISSED = report(plan=LoadPlan(rate=100, duration=1.0, thresholds=[Threshold.parse("response:p50<1us")]))


def delivered(found: LoadReport, paths: dict[str, str | Path]) -> tuple[int, list[str], list[str]]:
    """The exit code, what was said, and what was complained about."""
    said: list[str] = []
    complaints: list[OSError] = []
    code = deliver(found, None, paths, said.append, complaints.append)
    return code, said, [str(error) for error in complaints]


def test_every_file_is_written(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    paths: dict[str, str | Path] = {name: tmp_path / name for name in OUTPUTS}
    check(paths)
    code, said, complaints = delivered(report(), paths)
    assert (code, complaints) == (0, [])
    assert said[0].endswith(report().verdict)
    assert LoadReport.from_json((tmp_path / "json").read_text()) == report()
    assert sorted(os.listdir(tmp_path)) == sorted(OUTPUTS)
    assert all((tmp_path / name).read_text() for name in OUTPUTS)


@pytest.mark.parametrize(("found", "code"), [(report(), 1), (MISSED, 99)])
def test_one_that_fails_takes_neither_the_others_nor_the_exit_code(
    tmp_path: Path, found: LoadReport, code: int
) -> None:
    bad = tmp_path / "gone" / "run.json", tmp_path / "gone" / "run.hlog"
    found_code, said, complaints = delivered(
        found, {"json": bad[0], "hdr": bad[1], "csv": tmp_path / "run.csv"}
    )
    assert (found_code, len(said)) == (code, 1)
    assert complaints == [f"cannot write {path}: no such file or directory" for path in bad]
    assert (tmp_path / "run.csv").read_text().startswith("t_s,")


def test_a_summary_that_cannot_be_said(tmp_path: Path) -> None:
    def say(_: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    complaints: list[OSError] = []
    assert deliver(report(), None, {"json": tmp_path / "run.json"}, say, complaints.append) == 1
    assert [error.errno for error in complaints] == [errno.ENOSPC]
    assert (tmp_path / "run.json").exists()
    assert deliver(MISSED, None, {}, say, complaints.append) == 99


def test_what_is_wrong_is_said_before(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("x")
    for paths, words in (
        ({"json": "-"}, "--json takes a path; standard output is /dev/stdout, not -"),
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
            check(paths)
        assert str(caught.value) == words
    with pytest.raises(ConfigError, match="^--greeter-json takes a path"):
        check({"json": "-"}, prefix="--greeter-")


def test_a_page_of_an_older_run_that_cannot_be_drawn(tmp_path: Path) -> None:
    """It would be found out after the run, and with it the run would be lost."""
    pytest.importorskip("plotly")
    old = report()
    old.histograms["service"] = "HIST"
    check({"json": tmp_path / "x"}, old)
    with pytest.raises(ConfigError, match="a histogram that cannot be read"):
        check({"html": tmp_path / "x"}, old)
