from __future__ import annotations

import os
import re
import resource
import socket
from typing import TYPE_CHECKING

import pytest

from greeter.loadtest import LoadPlan, Stage
from greeter.loadtest.generator import kernel, preflight
from greeter.loadtest.generator.preflight import FD_RESERVE, ensure_fd_limit, port_notes
from greeter.loadtest.generator.target import Target
from greeter.loadtest.plan.plan import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACK = Target(socket.AF_INET, ("127.0.0.1", 9))
REMOTE = Target(socket.AF_INET, ("192.0.2.1", 9))


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    """Lower the soft limit of open files for a test, and restore it. Yields the limits before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    yield soft, hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_sufficient_limit_is_not_changed(limits: tuple[int, int]) -> None:
    assert ensure_fd_limit(256 - FD_RESERVE - 10, 1, already_open=10) == []
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 256


def test_a_raised_limit_is_noted(limits: tuple[int, int]) -> None:
    soft, hard = limits
    assert ensure_fd_limit(300, 1, already_open=10) == [f"raised the limit of open files from 256 to {hard}"]
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard


def test_a_plan_above_the_hard_limit_is_rejected_with_what_fits(limits: tuple[int, int]) -> None:
    hard = limits[1]
    for workers, fit in ((1, hard - FD_RESERVE - 10), (3, 3 * (hard - FD_RESERVE - 10))):
        message = (
            f"{fit + 1} connections do not fit: the limit of {hard} open files (ulimit -n) "
            f"allows {fit} with {workers} worker{'s' * (workers > 1)}: workers {workers + 1} is enough"
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            ensure_fd_limit(fit + 1, workers, already_open=10)
        ensure_fd_limit(fit, workers, already_open=10)


def test_workers_share_the_connections(limits: tuple[int, int]) -> None:
    assert ensure_fd_limit(400, 2, already_open=0) == []


def test_open_files_count_only_in_the_process_that_makes_the_connections(limits: tuple[int, int]) -> None:
    plan = LoadPlan(connections=256 - FD_RESERVE)
    assert preflight.preflight(plan, LOOPBACK, in_process=False) == []
    assert len(preflight.preflight(plan, LOOPBACK)) == 1, "this process has some files open already"


def test_open_files_that_cannot_be_counted_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> list[str]:
        raise FileNotFoundError

    monkeypatch.setattr(os, "listdir", broken)
    assert preflight.preflight(LoadPlan(), LOOPBACK) == []


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """1,000 local ports, as settings that a test may change."""
    settings = {"net.ipv4.ip_local_port_range": "40000 40999", "net.ipv4.tcp_tw_reuse": "2"}
    monkeypatch.setattr(kernel, "sysctls", lambda *_: settings)
    return settings


@pytest.mark.usefixtures("ports")
def test_more_connections_than_ports_are_noted() -> None:
    assert port_notes(LoadPlan(connections=1000), LOOPBACK) == []
    assert port_notes(LoadPlan(connections=1001), LOOPBACK) == [
        "1,001 connections share 1,000 ports of 40000-40999: the rest will be local_exhausted"
    ]
    plan = LoadPlan(connections=1001, source_ips=["127.0.0.2", "127.0.0.3"])
    assert port_notes(plan, LOOPBACK) == []
    plan = LoadPlan(connections=2001, source_ips=["127.0.0.2", "127.0.0.3"])
    assert "2,000 ports of 40000-40999 on 2 addresses" in port_notes(plan, LOOPBACK)[0]


def test_a_rate_that_uses_up_the_ports(ports: dict[str, str]) -> None:
    fast = LoadPlan(rate=100, until="line", connections=10)
    assert port_notes(fast, LOOPBACK) == [], "the loopback's ports are free again after a second"
    assert port_notes(fast, REMOTE) == [
        "100/s use up 1,000 ports of 40000-40999 in 10.0 s, and each stays in TIME_WAIT for 60 s, "
        "because this side closes first: add source addresses"
    ]
    assert port_notes(LoadPlan(rate=100, connections=10), REMOTE) == [], "the server closes first"
    assert port_notes(LoadPlan(until="line"), REMOTE) == [], "a closed loop has no rate in advance"
    assert port_notes(LoadPlan(stages=[Stage(1, 1), Stage(1, 100)], until="line", connections=10), REMOTE)
    ports["net.ipv4.tcp_tw_reuse"] = "1"
    assert port_notes(fast, REMOTE) == []
    ports["net.ipv4.tcp_tw_reuse"] = "0"
    assert port_notes(fast, LOOPBACK)
    del ports["net.ipv4.ip_local_port_range"]
    assert port_notes(fast, LOOPBACK) == []


@pytest.mark.usefixtures("ports")
def test_more_connections_to_hold_than_ports_are_rejected_with_the_addresses_that_are_enough() -> None:
    plan = LoadPlan(connections=1001, hold=1)
    message = (
        "1001 connections to hold do not fit: there are 1,000 ports of 40000-40999 "
        "(net.ipv4.ip_local_port_range): 3 addresses of source ips are enough"
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        port_notes(plan, LOOPBACK)
    three = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
    assert port_notes(LoadPlan(connections=1001, hold=1, source_ips=three), LOOPBACK) == []


@pytest.mark.usefixtures("ports")
def test_more_than_half_of_the_ports_held_is_noted_because_connecting_is_slow() -> None:
    assert port_notes(LoadPlan(connections=500, hold=1), LOOPBACK) == []
    assert port_notes(LoadPlan(connections=501, hold=1), LOOPBACK) == [
        "501 connections take more than half of 1,000 ports of 40000-40999: connect(2) is slow then, "
        "and 2 source addresses are enough"
    ]


@pytest.mark.usefixtures("ports")
def test_a_worker_among_others_on_other_machines_needs_ports_for_its_own_share() -> None:
    plan = LoadPlan(connections=4000, hold=1, workers=8, rate=800, until="line")
    with pytest.raises(PlanError, match="4000 connections to hold"):
        port_notes(plan, REMOTE)
    assert port_notes(plan, LOOPBACK, index=7) == []
    (note,) = port_notes(plan, REMOTE, index=7)
    assert note.startswith("100/s use up 1,000 ports of 40000-40999 in 10.0 s")


@pytest.mark.usefixtures("ports")
def test_unix_sockets_have_no_ports() -> None:
    assert preflight.preflight(LoadPlan("unix:/x", connections=5000), Target(socket.AF_UNIX, "/x")) == []
