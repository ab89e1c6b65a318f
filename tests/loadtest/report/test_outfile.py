from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from greeter.loadtest.report import outfile
from greeter.loadtest.report.outfile import WriteFailed
from tests.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_is_created_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    outfile.write(path, "one\n")
    assert path.read_text() == "one\n"
    os.chmod(path, 0o640)
    outfile.write(str(path), "µ\n")
    assert path.read_text(encoding="utf-8") == "µ\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        outfile.write(tmp_path / "x", "")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_a_symbolic_link_is_kept(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    outfile.write(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "text"


def test_a_pipe_is_written_to() -> None:
    read, write = os.pipe()
    outfile.write(f"/dev/fd/{write}", "text")
    assert os.read(read, 100) == b"text"
    os.close(read)
    os.close(write)


def in_a_child(code: str, stdout: int) -> None:
    """Run ``code``, with ``outfile`` imported, in a process with this standard output."""
    code = f"from greeter.loadtest.report import outfile; {code}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=stdout, check=True)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "log"])
@pytest.mark.parametrize("mode", ["ab", "wb"])
def test_a_log_behind_stdout_is_appended_to(tmp_path: Path, name: str, mode: str) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    path = str(log) if name == "log" else name
    with log.open(mode) as stream:
        in_a_child(
            f"print(1, flush=True); outfile.write({path!r}, 'two\\n'); print(3)", stdout=stream.fileno()
        )
        assert os.path.samestat(os.fstat(stream.fileno()), log.stat())
    assert log.read_text() == "before\n" * (mode == "ab") + "1\ntwo\n3\n"


def test_a_file_behind_another_descriptor_is_appended_to(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    with log.open("ab") as stream:
        outfile.write(f"/dev/fd/{stream.fileno()}", "after\n")
    assert log.read_text() == "before\nafter\n"


def test_unencodable_characters_are_escaped(tmp_path: Path) -> None:
    outfile.write(tmp_path / "x", "a\udcffb")
    assert (tmp_path / "x").read_text() == "a\\udcffb"


def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        outfile.write(tmp_path / "x", "text")
    assert os.listdir(tmp_path) == []


def test_check_reports_an_unwritable_path(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    for path in (tmp_path / "new", tmp_path / "old", "/dev/null", "/dev/stdout"):
        outfile.check(path)
    assert os.listdir(tmp_path) == ["old"], "the check leaves no file"
    for path, reason in (
        (tmp_path / "none" / "x", "no such file or directory"),
        (tmp_path / "old" / "x", "not a directory"),
        (tmp_path, "is a directory"),
    ):
        with pytest.raises(WriteFailed, match=f"^cannot write {path}: {reason}$"):
            outfile.check(path)


def test_a_directory_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    euid = os.geteuid()
    if euid == 0:  # root ignores permissions
        os.seteuid(65534)
    try:
        with pytest.raises(WriteFailed, match="permission denied"):
            outfile.check(tmp_path / "x")
    finally:
        os.seteuid(euid)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_full_disk_keeps_the_previous_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "run.json"
    outfile.write(path, "old")

    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteFailed) as caught:
        outfile.write(path, "new")
    assert str(caught.value).startswith(f"cannot write {path}: ")
    assert caught.value.errno == code
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_device() -> None:
    with pytest.raises(WriteFailed, match="cannot write /dev/full: no space left on device"):
        outfile.write("/dev/full", "text")


def test_a_missing_directory_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(WriteFailed, match="no such file or directory"):
        outfile.write(tmp_path / "none" / "run.json", "text")
    with pytest.raises(WriteFailed, match="is a directory"):
        outfile.write(tmp_path, "text")


def test_a_failed_rename_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(WriteFailed, match="permission denied"):
        outfile.write(tmp_path / "x", "text")
    assert os.listdir(tmp_path) == []
