"""How many cores may be used: affinity, and quotas of cgroups of both versions."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from greeter.system.processors import cpu_quota, usable_cores
from tests.conftest import ROOT

V2 = "30 25 0:26 {root} {point} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "33 30 0:29 {root} {point} rw,nosuid shared:11 - cgroup cgroup rw,cpu,cpuacct"


class Cgroups:
    """A tree of cgroups, and what /proc tells a process in one of them."""

    def __init__(self, directory: Path) -> None:
        self.proc = directory / "proc"
        self.proc.mkdir()
        self.point = directory / "sys fs" / "cgroup"
        self.point.mkdir(parents=True)

    def process(self, groups: str, mount: str, root: str = "/") -> None:
        """Put the process into ``groups``, where the group ``root`` is what is mounted."""
        (self.proc / "cgroup").write_text(groups)
        point = str(self.point).replace(" ", "\\040")
        other = "24 30 0:22 / /proc rw - proc proc rw\n"
        (self.proc / "mountinfo").write_text(other + mount.format(root=root, point=point) + "\n")

    def v2(self, group: str, quota: str) -> None:
        """Give a group a quota, as version 2 does."""
        directory = self.point / group
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cpu.max").write_text(f"{quota}\n")

    def v1(self, group: str, quota: int, period: int = 100_000) -> None:
        """Give a group a quota, as version 1 does."""
        directory = self.point / group
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (directory / "cpu.cfs_period_us").write_text(f"{period}\n")


@pytest.fixture
def cgroups(tmp_path: Path) -> Cgroups:
    return Cgroups(tmp_path)


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ({"": "max 100000", "pods": "max 100000", "pods/mine": "50000 100000"}, 0.5),
        ({"pods": "150000 100000", "pods/mine": "400000 100000"}, 1.5),
        ({"pods": "300000 100000", "pods/mine": "max 100000"}, 3.0),
        ({"pods": "max 100000", "pods/mine": "max 100000"}, math.inf),
        ({"pods/mine": "nonsense"}, math.inf),
        ({"pods/mine": "100000 0"}, math.inf),
        ({"pods/mine/below": "10000 100000", "pods/other": "10000 100000"}, math.inf),
        ({}, math.inf),
    ],
)
def test_the_smallest_quota_on_the_way_up_counts(
    cgroups: Cgroups, quotas: dict[str, str], expected: float
) -> None:
    for group, quota in quotas.items():
        cgroups.v2(group, quota)
    cgroups.process("1:name=systemd:/\n0::/pods/mine\n", V2)
    assert cpu_quota(cgroups.proc) == expected


@pytest.mark.parametrize(
    ("group", "root", "directory"),
    [
        ("/docker/0af1", "/docker/0af1", ""),  # the mount shows the container's group only
        ("/docker/0af1/below", "/docker/0af1", "below"),
        ("/", "/", ""),  # a namespace of its own
        ("/../outside", "/", ""),
        ("/elsewhere", "/docker/0af1", ""),
        ("/a:b", "/", "a:b"),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_group_is_found_where_it_is_mounted(
    cgroups: Cgroups, version: int, group: str, root: str, directory: str
) -> None:
    if version == 1:
        cgroups.v1(directory, 25_000, 50_000)
        cgroups.process(f"3:cpuset:/not/this\n2:cpu,cpuacct:{group}\n0::/\n", V1, root)
    else:
        cgroups.v2(directory, "25000 50000")
        cgroups.process(f"0::{group}\n", V2, root)
    assert cpu_quota(cgroups.proc) == 0.5


def test_a_quota_of_version_1_that_is_not_set_is_none(cgroups: Cgroups) -> None:
    cgroups.v1("", -1)
    cgroups.v1("mine", -1)
    cgroups.process("2:cpu:/mine\n", V1)
    assert cpu_quota(cgroups.proc) == math.inf


def test_cores_are_whole_and_no_more_than_the_affinity_allows(
    cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    cgroups.process("0::/\n", V2)
    for quota, cores in (("20000", 1), ("100000", 1), ("120000", 2), ("9900000", 8), ("max", 8)):
        cgroups.v2("", f"{quota} 100000")
        assert usable_cores(cgroups.proc) == cores
    assert usable_cores(cgroups.proc / "missing") == 8
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(cgroups.proc) == 1


def test_a_real_cgroup_with_a_quota_of_half_a_core() -> None:
    old = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").exists()
    group = Path("/sys/fs/cgroup") / ("cpu" if old else "") / f"greeter-test-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / ("cpu.cfs_quota_us" if old else "cpu.max")).write_text("50000" if old else "50000 100000")
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    code = f"""
import os, pathlib
pathlib.Path({str(group / "cgroup.procs")!r}).write_text(str(os.getpid()))
from greeter.system.processors import cpu_quota, usable_cores
print(cpu_quota(), usable_cores())
"""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (done.stdout, done.stderr) == ("0.5 1\n", "")
    finally:
        group.rmdir()
