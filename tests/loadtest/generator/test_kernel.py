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


def test_counters_of_udp_are_those_of_both_families(tmp_path: Path) -> None:
    four, six = tmp_path / "snmp", tmp_path / "snmp6"
    four.write_text(
        "Ip: InReceives\nIp: 9\nUdp: InDatagrams NoPorts RcvbufErrors\nUdp: 1 2 3\nUdpLite: A\nUdpLite: 7\n"
    )
    assert kernel.udp_counters(four, six) == {"RcvbufErrors": 3, "NoPorts": 2}
    six.write_text(
        "Ip6InReceives 9\nUdp6NoPorts                     10\nUdp6RcvbufErrors 20\nUdpLite6NoPorts 5\n"
    )
    assert kernel.udp_counters(four, six) == {"RcvbufErrors": 23, "NoPorts": 12}
    assert kernel.udp_counters(tmp_path / "none", six) == {}


@pytest.mark.skipif(platform.system() != "Linux", reason="/proc exists on Linux only")
def test_this_kernel_has_all_counters() -> None:
    assert set(kernel.counters_of(datagrams=False)) == set(kernel.COUNTERS)
    assert set(kernel.counters_of(datagrams=True)) == set(kernel.UDP_COUNTERS)


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
