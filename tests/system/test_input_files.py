"""What is read of a file: not more than a service can need."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from greeter.system import input_files
from greeter.system.input_files import read_input

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_may_have_so_many_bytes_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_files, "MAX_INPUT", 1000)
    path = tmp_path / "greeting"
    path.write_bytes(bytes(1000))
    assert read_input(path) == bytes(1000)
    path.write_bytes(bytes(1001))
    with pytest.raises(OSError, match="[Ff]ile too large") as caught:
        read_input(path)
    assert caught.value.errno == errno.EFBIG
