"""Files without a name and shared memory: with and without memfd_create, and across processes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from greeter.system.anonymous_file import map_shared_words, open_anonymous_file, open_shared_words

if TYPE_CHECKING:
    from pathlib import Path

ADD_ONE = """
import sys
from greeter.system.anonymous_file import map_shared_words
words = map_shared_words(int(sys.argv[1]), 3)
words[1] += 1
words[2] = -1
"""


@pytest.fixture(params=["memfd", "denied", "missing"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    def denied(*_: object) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    if request.param == "denied":
        monkeypatch.setattr(os, "memfd_create", denied)
    elif request.param == "missing":
        monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return str(request.param)


@pytest.mark.usefixtures("no_fd_leak")
def test_an_anonymous_file_is_read_back_and_has_no_name(kind: str, tmp_path: Path) -> None:
    with open_anonymous_file("test") as file:
        file.write(b"hello")
        file.seek(0)
        assert file.read() == b"hello"
        assert os.fstat(file.fileno()).st_nlink == 0
    assert not list(tmp_path.iterdir()), kind


@pytest.mark.usefixtures("no_fd_leak", "kind")
def test_a_child_process_counts_in_shared_words() -> None:
    file, words = open_shared_words(3)
    with file:
        words[1] = 41
        subprocess.run(
            [sys.executable, "-c", ADD_ONE, str(file.fileno())], check=True, pass_fds=[file.fileno()]
        )
    assert list(words) == [0, 42, -1], "also when the file is closed"


def test_shared_words_of_another_length_or_kind_are_an_error() -> None:
    file, _ = open_shared_words(3)
    with file, pytest.raises(ValueError, match="length"):
        map_shared_words(file.fileno(), 4)
    read, write = os.pipe()
    with open(read), open(write, "w"), pytest.raises(OSError, match=r"\[Errno"):
        map_shared_words(read, 3)
