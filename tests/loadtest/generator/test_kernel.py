from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
from typing import TYPE_CHECKING

import pytest

from greeter.loadtest.generator import kernel

if TYPE_CHECKING:
    from pathlib import Path

NETSTAT = """\
TcpExt: SyncookiesSent SyncookiesRecv ListenOverflows ListenDrops TCPReqQFullDoCookies TCPSynRetrans
TcpExt: 1 2 3 4 5 6
IpExt: InNoRoutes InTruncatedPkts
IpExt: 7 8
"""


def test_counters_are_read_by_name(tmp_path: Path) -> None:
    file = tmp_path / "netstat"
    file.write_text(NETSTAT)
    assert kernel.counters(file) == {
        "ListenOverflows": 3,
        "ListenDrops": 4,
        "TCPReqQFullDoCookies": 5,
        "SyncookiesSent": 1,
        "TCPSynRetrans": 6,
    }


def test_counters_that_a_system_lacks_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "netstat"
    assert kernel.counters(file) == {}
    file.write_text("IpExt: InNoRoutes\nIpExt: 7\n")
    assert kernel.counters(file) == {}
    file.write_text("TcpExt: ListenDrops Other\nTcpExt: 4 5\n")
    assert kernel.counters(file) == {"ListenDrops": 4}


@pytest.mark.skipif(platform.system() != "Linux", reason="/proc exists on Linux only")
def test_this_kernel_has_all_counters() -> None:
    assert set(kernel.counters()) == set(kernel.COUNTERS)


def test_the_difference_of_two_readings_is_by_counter() -> None:
    assert kernel.difference({"a": 3, "b": 1}, {"a": 5, "b": 1, "c": 9}) == {"a": 2, "b": 0}
    assert kernel.difference({}, {"a": 5}) == {}


def test_the_settings_that_exist_are_read(tmp_path: Path) -> None:
    (tmp_path / "net/ipv4").mkdir(parents=True)
    (tmp_path / "net/ipv4/ip_local_port_range").write_text("32768\t60999\n")
    assert kernel.sysctls(tmp_path) == {"net.ipv4.ip_local_port_range": "32768 60999"}
    assert kernel.port_range(tmp_path) == (32768, 60999)
    assert kernel.port_range(tmp_path / "none") is None


async def test_the_environment_has_the_versions_and_the_cores() -> None:
    loop = asyncio.get_running_loop()
    version = importlib.metadata.version("uvloop") if "uvloop" in type(loop).__module__ else None
    assert kernel.uvloop_version(loop) == version
    found = kernel.environment(version)
    assert found["python"] == platform.python_version()
    assert found["uvloop"] == version
    assert found["cpus"] >= 1
    assert found["greeter"]


def test_the_cores_of_a_system_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert kernel.cpu_count() >= 1
