"""The descriptor limit, tested in a separate process so that this one's limit does not change."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING

from greeter.system import fdlimit
from greeter.system.fdlimit import OVERSHOOT, RESERVE, connection_capacity, fd_limit, raise_fd_limit
from tests.conftest import ROOT

if TYPE_CHECKING:
    import pytest


def in_a_process(soft: int, hard: int, code: str) -> str:
    """Run ``code`` in a process with these limits. Return what it prints."""
    limits = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))"
    program = f"{limits}; from greeter.system.fdlimit import *; {code}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.strip()


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    code = "before = fd_limit(); after = raise_fd_limit(); print(before, after, fd_limit(), raise_fd_limit())"
    assert in_a_process(40, 80, code) == "40 80 80 80"


class Resource:
    """A resource module with fixed limits that cannot be raised."""

    RLIMIT_NOFILE = resource.RLIMIT_NOFILE
    RLIM_INFINITY = resource.RLIM_INFINITY

    def __init__(self, soft: int, hard: int) -> None:
        self.limits = (soft, hard)

    def getrlimit(self, _which: int) -> tuple[int, int]:
        return self.limits

    def setrlimit(self, _which: int, _limits: tuple[int, int]) -> None:
        raise ValueError("current limit exceeds maximum limit")


def test_a_limit_that_cannot_be_raised_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fdlimit, "resource", Resource(256, resource.RLIM_INFINITY))
    assert raise_fd_limit() == fd_limit() == 256


def test_no_limit_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fdlimit, "resource", Resource(resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert raise_fd_limit() is None
    assert fd_limit() is None
    assert connection_capacity(1) >= 100_000


def test_the_capacity_reserves_descriptors_for_the_process() -> None:
    # The interpreter has three descriptors open, and one more while it counts them.
    assert in_a_process(100, 100, "print(connection_capacity())") == str(100 - 4 - RESERVE)
    assert in_a_process(20, 20, "print(connection_capacity(2))") == "1"


def test_an_event_loop_that_accepts_needs_duplicates_and_a_reserve_for_what_it_overshoots() -> None:
    assert in_a_process(200, 200, "print(connection_capacity(2))") == str(
        200 - 4 - RESERVE - 2 - 2 * OVERSHOOT
    )
    left = 1024 - 4 - RESERVE - 60
    assert in_a_process(1024, 1024, "print(connection_capacity(60))") == str(left // 2)


def test_the_capacity_without_proc_assumes_a_small_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def listdir(_path: str) -> list[str]:
        raise FileNotFoundError

    monkeypatch.setattr(fdlimit, "resource", Resource(100, 100))
    monkeypatch.setattr(os, "listdir", listdir)
    assert connection_capacity() == 100 - 16 - RESERVE
