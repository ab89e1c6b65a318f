from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from greeter.loadtest import outfile
from greeter.loadtest.outfile import WriteFailed

if TYPE_CHECKING:
    from pathlib import Path


def test_a_new_file_and_one_that_is_replaced(tmp_path: Path) -> None:
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


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    outfile.write(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "text"


def test_what_is_no_regular_file_is_written_to() -> None:
    read, write = os.pipe()
    outfile.write(f"/dev/fd/{write}", "text")
    assert os.read(read, 100) == b"text"
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fills_leaves_what_was_there(
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
def test_a_device_that_is_full() -> None:
    with pytest.raises(WriteFailed, match="cannot write /dev/full: no space left on device"):
        outfile.write("/dev/full", "text")


def test_no_such_folder_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(WriteFailed, match="no such file or directory"):
        outfile.write(tmp_path / "none" / "run.json", "text")
    with pytest.raises(WriteFailed, match="is a directory"):
        outfile.write(tmp_path, "text")


def test_an_error_behind_the_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(WriteFailed, match="permission denied"):
        outfile.write(tmp_path / "x", "text")
    assert os.listdir(tmp_path) == []
