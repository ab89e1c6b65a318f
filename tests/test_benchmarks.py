"""The benchmarks: their arithmetic, their tables, and that they run. No measured time is asserted here."""

from __future__ import annotations

import json
import os
import pkgutil
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.benchmarks import costs, groups, machine, report, servers
from tests.benchmarks.__main__ import main
from tests.benchmarks.bench import Bench, Contender, Server, counted, greets, listens, rotated
from tests.benchmarks.certificate import Certificate, make_certificate
from tests.benchmarks.figures import Claim, Row, Table, compared, figure, ratio
from tests.benchmarks.groups import (
    async_greeting,
    large_greeting,
    load_cost,
    load_memory,
    memory,
    proxy,
    scale,
    speak_first,
    tls,
    workers,
)
from tests.benchmarks.haproxy import find_haproxy
from tests.benchmarks.load import GREETING, PROGRAMS, Load, Outcome, TLSLoad, compile_c
from tests.benchmarks.nginx import Nginx, find_nginx
from tests.benchmarks.process import Process, WouldNotStart, environment, processors, run_to_end
from tests.conftest import PATIENCE, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="they read Linux's /proc"),
]

COMPILER = machine.compiler()
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")


# -- the arithmetic


def test_a_figure_is_the_median_and_the_spread() -> None:
    found = figure([3.0, 1.0, 2.0, 10.0])
    assert (found.median, found.low, found.high) == (2.5, 1.0, 10.0)
    with pytest.raises(ValueError, match="at least one round"):
        figure([])


def test_the_median_of_ratios_is_not_the_ratio_of_medians() -> None:
    # The machine becomes slower: to a half of its speed, then to a third.
    ours, theirs = figure([12.0, 18.0, 39.0]), figure([10.0, 20.0, 30.0])
    assert ratio(ours, theirs).samples == (1.2, 0.9, 1.3)
    assert ratio(ours, theirs).median == 1.2
    assert ours.median / theirs.median == 0.9


def test_a_ratio_needs_the_same_rounds() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        ratio(figure([1.0]), figure([1.0, 2.0]))


def test_a_claim_is_about_the_median_ratio_or_about_every_value() -> None:
    value, spread = figure([1.0]), figure([1.0, 1.2, 9.0])
    assert Row("x", value).holds is None
    assert Row("x", value, ratio=spread, claim=Claim(1.2)).holds is True
    assert Row("x", value, ratio=spread, claim=Claim(1.19)).holds is False
    assert Row("x", figure([0, 0, 0]), claim=Claim(0)).holds is True
    assert Row("x", figure([0, 0, 1]), claim=Claim(0)).holds is False


def test_a_claim_may_be_of_at_least_so_much() -> None:
    value, spread = figure([1.0]), figure([0.8, 1.2, 1.3])
    assert Row("x", value, ratio=spread, claim=Claim(1.2, at_least=True)).holds is True
    assert Row("x", value, ratio=spread, claim=Claim(1.21, at_least=True)).holds is False
    assert Row("x", figure([7, 5, 9]), claim=Claim(5, at_least=True)).holds is True
    assert Row("x", figure([7, 4.9, 9]), claim=Claim(5, at_least=True)).judged == 4.9
    assert Row("x", figure([7, 4.9, 9]), claim=Claim(5, at_least=True)).holds is False


def test_rows_are_compared_with_one_of_them() -> None:
    samples = {"nginx": [10.0, 20.0], "ours": [9.0, 22.0]}
    nginx, ours = compared(samples, "nginx", claims={"ours": 1.0}, extras={"ours": {"lost": 3}})
    assert (nginx.name, nginx.claim, nginx.extras) == ("nginx", None, {})
    assert nginx.ratio is not None
    assert nginx.ratio.samples == (1.0, 1.0)
    assert (ours.name, ours.claim, ours.extras) == ("ours", Claim(1.0), {"lost": 3})
    assert ours.judged == pytest.approx(1.0)


# -- what is printed

TABLE = Table(
    "greeting",
    "CPU per greeting",
    "µs",
    compared(
        {"nginx": [10.0, 20.0, 30.0], "ours": [11.0, 30.0, 27.0], "theirs": [1000.0, 2000.0, 3000.0]},
        "nginx",
        claims={"ours": 1.25, "theirs": 2.0},
        extras={"ours": {"lost": 0}, "theirs": {"lost": 1234}},
    ),
    "nginx",
)
RATE = Table("rate", "clients", "/s", (Row("ours", figure([9e3]), claim=Claim(1e4, at_least=True)),))
PLAIN = Table("idle", "wake-ups", "count", (Row("ours", figure([0.0]), claim=Claim(0)),), digits=0)


def test_a_table_as_text() -> None:
    assert report.as_text(TABLE).splitlines() == [
        "greeting: CPU per greeting",
        "                               µs           × nginx   lost     claim",
        "nginx            20.0 [10.0-30.0]",
        "ours             27.0 [11.0-30.0]  1.10 [0.90-1.50]      0  ≤ 1.25 ×  holds",
        "theirs  2,000.0 [1,000.0-3,000.0]            100.00  1,234  ≤ 2.00 ×  MISSED",
    ]
    assert report.as_text(PLAIN).splitlines() == [
        "idle: wake-ups",
        "      count  claim",
        "ours      0    ≤ 0  holds",
    ]
    assert report.as_text(RATE).splitlines() == [
        "rate: clients",
        "           /s     claim",
        "ours  9,000.0  ≥ 10,000  MISSED",
    ]


def test_the_verdict_names_what_was_missed() -> None:
    assert report.verdict([TABLE, PLAIN, RATE]).splitlines() == [
        "2 of 4 claims hold.",
        "missed: greeting, theirs: 100.00, claimed ≤ 2.00 ×",
        "missed: rate, ours: 9,000.00, claimed ≥ 10,000",
    ]


def test_the_claims_are_one_table() -> None:
    assert report.claims([TABLE, PLAIN, RATE]).splitlines() == [
        "claim     row        found  limit",
        "greeting  ours        1.10  ≤ 1.25 × nginx  holds",
        "greeting  theirs    100.00  ≤ 2.00 × nginx  MISSED",
        "idle      ours        0.00  ≤ 0 count       holds",
        "rate      ours    9,000.00  ≥ 10,000 /s     MISSED",
    ]


def test_json_says_the_same() -> None:
    said = json.loads(json.dumps(report.as_json({"date": "today"}, [TABLE, PLAIN], {"nginx": "not here"})))
    assert (said["schema"], said["machine"]) == (report.SCHEMA, {"date": "today"})
    assert said["left_out"] == {"nginx": "not here"}
    first, second = said["tables"]
    assert (first["name"], first["base"], first["unit"]) == ("greeting", "nginx", "µs")
    ours = first["rows"][1]
    assert ours["value"] == {"median": 27.0, "min": 11.0, "max": 30.0, "samples": [11.0, 30.0, 27.0]}
    assert ours["ratio"]["median"] == 1.1
    assert ours["claim"] == {"limit": 1.25, "at_least": False, "found": 1.1, "holds": True}
    assert ours["extras"] == {"lost": 0}
    assert (second["base"], second["rows"][0]["ratio"]) == (None, None)


def test_the_header_aligns_its_facts() -> None:
    assert report.header({"date": "today", "machine": "a fast one"}) == "date     today\nmachine  a fast one"


def test_the_facts_of_this_machine(tmp_path: Path) -> None:
    facts = Bench(tmp_path).facts()
    assert all(facts.values())
    wanted = "date machine kernel load python openssl uvloop greeter nginx haproxy compiler pinning"
    assert list(facts) == wanted.split()
    assert "%" in machine.Disturbance().share()


# -- the command


def test_list_names_every_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(groups.GROUPS)
    assert all(len(line.split()) > 3 and line.endswith(".") for line in lines)
    assert set(groups.GROUPS) == {module.name for module in pkgutil.iter_modules(groups.__path__)}


def test_a_quick_run_leaves_out_what_takes_a_minute_unless_it_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def note(name: str, _: Bench) -> list[Table]:
        ran.append(name)
        return []

    monkeypatch.setattr(groups, "run", note)
    assert main([]) == 0
    assert ran == list(groups.GROUPS)
    assert "not measured: load_memory" not in capsys.readouterr().out
    ran.clear()
    assert main(["--quick"]) == 0
    assert ran == [name for name in groups.GROUPS if name not in groups.LONG]
    assert "not measured: load_memory: it takes a minute" in capsys.readouterr().out
    ran.clear()
    assert main(["--quick", "--only", "load_memory"]) == 0
    assert ran == ["load_memory"]


@pytest.mark.parametrize("arguments", [["--only", "nothing"], ["--rounds", "0"], ["--clients", "many"]])
def test_what_was_typed_wrong(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert arguments[1] in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_found_out_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--json", str(tmp_path / "missing" / "file")]) == 1
    assert "cannot measure: " in capsys.readouterr().err


def test_a_group_runs(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    options = ["--quick", "--only", "startup", "--rounds", "1", "--json", str(file)]
    command = [sys.executable, "-m", "tests.benchmarks", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("date  ")
    said = json.loads(file.read_text())
    assert [table["name"] for table in said["tables"]] == ["import", "command", "command_socket"]
    for table in said["tables"]:
        assert f"\n{table['name']}: {table['title']}\n" in done.stdout
        assert table["base"] in [row["name"] for row in table["rows"]]
        assert all(len(row["value"]["samples"]) == 1 for row in table["rows"])
    assert " of 2 claims hold." in done.stdout


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_compiler), False])
def test_the_load_tester_is_measured_beside_a_bare_client(
    compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(Bench, "programs", "no C compiler")
    monkeypatch.setattr(Bench, "size", lambda *_: 500)
    cost, rate = load_cost.run(Bench(tmp_path, rounds=1))
    assert [row.name for row in cost.rows] == [row.name for row in rate.rows]
    base, ours = cost.rows
    assert base.name == cost.base == ("C" if compiled else "Python") + " epoll client"
    # A client in Python says nothing about the limit, which is one of C.
    assert ours.claim == (Claim(load_cost.LIMIT) if compiled else None)
    assert [len(row.value.samples) for row in cost.rows] == [1, 1]  # of so few, the cost may be anything
    assert all(row.value.low > 0 for row in rate.rows)
    assert [row.claim for row in rate.rows] == [None, Claim(load_cost.LEAST_RATE, at_least=True)]


def test_a_load_that_lost_anybody_is_none_to_judge_by() -> None:
    text = json.dumps({"greeted": 9, "seconds": 2.0})
    assert load_cost._rate(text, 9) == 4.5
    with pytest.raises(SystemExit, match="9 of 10 clients were greeted"):
        load_cost._rate(text, 10)


def test_memory_of_a_short_load_and_of_a_long_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_memory, "SECONDS", (0.2, 0.4))
    monkeypatch.setattr(load_memory, "RATE", 100)
    (table,) = load_memory.run(Bench(tmp_path))
    assert [row.name for row in table.rows] == ["greeter load for 0.2 s", "greeter load for 0.4 s"]
    assert all(10 < row.value.low < 200 for row in table.rows)
    assert [row.claim for row in table.rows] == [None, Claim(load_memory.LIMIT)]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A run of one round of 100, on asyncio alone."""
    monkeypatch.setattr(Bench, "size", lambda *_: 100)
    bench = Bench(tmp_path, rounds=1)
    bench.loops = ("asyncio",)
    return bench


OURS = [servers.greeter_name(path, "asyncio") for path in servers.PATHS]
DOCUMENTED = f"{servers.PATTERN}, asyncio"


def claims_of(table: Table) -> dict[str, float]:
    return {row.name: row.claim.limit for row in table.rows if row.claim is not None}


def none_is_lost(table: Table) -> bool:
    return all(
        row.extras["lost"] == 0 and 0 < row.extras["p50 µs"] <= row.extras["p99 µs"] for row in table.rows
    )


def without_haproxy(bench: Bench) -> dict[str, str]:
    return {servers.HAPROXY: bench.haproxy} if isinstance(bench.haproxy, str) else {}


def test_greetings_of_callables(small: Bench) -> None:
    *tables, threads = async_greeting.run(small)
    assert [table.name for table in tables] == ["async_at_once", "async_5_ms", "thread_5_ms"]
    there = [] if isinstance(small.nginx, str) else [servers.NGINX]
    for table, kind in zip(tables, async_greeting.KINDS, strict=True):
        last = [servers.THREADS] if kind.threads_limit else []
        assert [row.name for row in table.rows] == [*there, *OURS, DOCUMENTED, *last]
        assert none_is_lost(table)
        assert claims_of(table) == ({OURS[0]: kind.limit} if there and kind.limit else {})
    assert (threads.name, threads.base) == ("thread_5_ms_threads", servers.THREADS)
    assert [row.name for row in threads.rows] == [servers.THREADS, OURS[0]]
    assert claims_of(threads) == {OURS[0]: async_greeting.KINDS[-1].threads_limit}
    assert small.left_out == {}


@needs_compiler
def test_the_direct_path_is_held_against_a_floor_that_loses_no_client(small: Bench) -> None:
    tables = {table.name: table for table in groups.run("greeting", small)}
    assert list(tables) == ["greeting", "greeting_floor", "wait"]
    floor = tables["greeting_floor"]
    assert [row.name for row in floor.rows] == [servers.FLOOR, OURS[0]]
    assert claims_of(floor) == {OURS[0]: 1.3}
    assert none_is_lost(floor)


def test_greetings_of_a_megabyte(small: Bench) -> None:
    whole, beside = large_greeting.run(small)
    there = [] if isinstance(small.nginx, str) else [servers.NGINX]
    assert [row.name for row in whole.rows] == [*there, *OURS, DOCUMENTED]
    assert none_is_lost(whole)
    assert [row.name for row in beside.rows] == [DOCUMENTED, OURS[0]]
    assert claims_of(beside) == {OURS[0]: large_greeting.LIMIT}
    assert small.left_out == {}


def test_greetings_of_several_workers(small: Bench) -> None:
    (table,) = workers.run(small)
    names = [f"{OURS[0]}, 1 worker", f"{OURS[0]}, 2 workers", f"{OURS[0]}, 4 workers"]
    assert [row.name for row in table.rows] == names
    assert claims_of(table) == dict(zip(names[1:], workers.LIMITS.values(), strict=True))
    assert none_is_lost(table)


def test_greetings_behind_a_proxy_header(small: Bench) -> None:
    tables = proxy.run(small)
    assert [table.name for table in tables] == ["proxy_v1", "proxy_v2"]
    there = [] if isinstance(small.nginx, str) else [servers.NGINX]
    proxies = [*there, *([] if without_haproxy(small) else [servers.HAPROXY])]
    for table in tables:
        assert [row.name for row in table.rows] == [*proxies, *OURS]
        assert none_is_lost(table)
        assert claims_of(table) == ({OURS[0]: proxy.LIMIT} if there else {})
    assert small.left_out == without_haproxy(small)


def test_proxy_headers() -> None:
    assert proxy.version_1("192.0.2.1", 4711) == b"PROXY TCP4 192.0.2.1 127.0.0.1 4711 9999\r\n"
    assert proxy.version_2("192.0.2.1", 4711) == bytes.fromhex(
        "0d0a0d0a000d0a515549540a 21 11 000c c0000201 7f000001 1267 270f"
    )


def test_greetings_over_tls(small: Bench) -> None:
    if isinstance(small.tls_load, str):
        pytest.skip(small.tls_load)
    (table,) = tls.run(small)
    there = [] if isinstance(small.nginx, str) else [servers.NGINX]
    proxies = [*there, *([] if without_haproxy(small) else [servers.HAPROXY])]
    assert [row.name for row in table.rows] == [*proxies, *OURS, DOCUMENTED]
    assert none_is_lost(table)
    assert claims_of(table) == ({OURS[0]: tls.LIMIT} if there else {})
    assert small.left_out == without_haproxy(small)


def test_clients_that_send_first_are_not_lost_by_greeter(small: Bench) -> None:
    for table in speak_first.run(small):
        promised = [*OURS, *(f"{name}, async greeting" for name in OURS)]
        assert claims_of(table) == dict.fromkeys(promised, 0)
        assert all(row.holds for row in table.rows if row.name in promised)
        assert [row.value.high for row in table.rows if row.name == servers.FLOOR] in ([], [0])
        # It can tell: the primer closes while what the client sent is unread.
        assert next(row.extras["reset"] for row in table.rows if row.name == "primer's loop") > 0


def test_memory_of_a_held_client(small: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "FIRST", 100)
    ratios, absolute = memory.run(small)
    assert [row.name for row in ratios.rows] == OURS
    assert claims_of(ratios) == {OURS[0]: memory.LIMIT}
    assert [row.name for row in absolute.rows] == OURS[:1]
    assert claims_of(absolute) == {OURS[0]: memory.LIMIT_BYTES}
    assert absolute.rows[0].value == ratios.rows[0].value


@needs_compiler
@pytest.mark.parametrize("share", [100, 30])
def test_very_many_clients_that_are_held(share: int, small: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "MOST_FROM_ONE", share)
    small.clients = 90
    monkeypatch.setattr(scale, "DRAIN_SECONDS", 0.3)
    used, cpu, seconds, lost = scale.run(small)
    assert [table.name for table in (used, cpu, seconds, lost)] == [
        "scale_memory",
        "scale_cpu",
        "scale_seconds",
        "scale_lost",
    ]
    assert lost.title == "clients lost or not counted, 90 clients held by 2 workers"
    assert claims_of(cpu) == {OURS[0]: scale.LIMIT}
    assert claims_of(lost) == dict.fromkeys((row.name for row in lost.rows), 0)
    assert all(row.holds for row in lost.rows)
    assert all(row.value.low >= 0 for row in seconds.rows)
    _, released, cut_off = lost.rows
    others = released.extras["accepted"] - 90  # probes, and the greetings that are measured
    assert released.extras == {
        "greeted": 90 + others, "accepted": 90 + others, "failed": 0, "workers killed": 0, "exit code": 0
    }  # fmt: skip
    assert cut_off.extras == {**released.extras, "greeted": others, "failed": 90}
    assert small.left_out == {}


@needs_compiler
def test_clients_that_a_stop_loses_are_found(small: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    small.clients = 50
    start = scale._start
    # The stop that is to wait for the release does not wait for it.
    monkeypatch.setattr(scale, "_start", lambda *args, drain: start(*args, drain=0.2))
    monkeypatch.setattr(
        scale, "_wait_for_stop", lambda service: service.server.process.wait_for_end(PATIENCE)
    )
    lost = scale.run(small)[-1]
    assert [(row.value.low, row.holds) for row in lost.rows] == [(0, True), (100, False), (0, True)]


def test_more_clients_than_memory_are_left_out(small: Bench) -> None:
    small.clients = 10**12
    assert scale.run(small) == []
    assert "need more memory than the " in small.left_out["scale"] or "hold.c" in small.left_out["scale"]


# -- server CPU time per greeting


class Scripted:
    """A process and its load: each run uses so much CPU time, and greets so many."""

    def __init__(self, *script: tuple[float, int]) -> None:
        self._script = list(script)
        self._used = 0.0
        self.totals: list[int] = []

    def cpu_seconds(self) -> float:
        return self._used

    settled_cpu_seconds = cpu_seconds

    def run(self, total: int) -> Outcome:
        self.totals.append(total)
        seconds, greeted = self._script.pop(0)
        self._used += seconds
        return Outcome(greeted, 0, 0, total - greeted, 0, 0, 2.0, 1.0, 1.0)


class ScriptedLoad:
    """The load of several of them, by their ports."""

    def __init__(self, *processes: Scripted) -> None:
        self.ports: list[int] = []
        self._processes = processes

    def run(self, port: int, *, at_once: int, total: int) -> Outcome:
        assert at_once == costs.AT_ONCE
        self.ports.append(port)
        return self._processes[port].run(total)


@pytest.mark.parametrize("first", [servers.NGINX, servers.FLOOR])
def test_costs_are_compared_round_by_round(first: str, tmp_path: Path) -> None:
    # One to warm up, whose cost counts for nothing, and two rounds.
    base = Scripted((9.0, 25), (0.001, 100), (0.002, 100))
    ours = Scripted((9.0, 25), (0.003, 100), (0.002, 50))
    load: Any = ScriptedLoad(base, ours)
    processes: list[Any] = [base, ours]
    up = [Server(name, port, processes[port]) for port, name in enumerate((first, OURS[0]))]
    effort = costs.Effort(greetings=(100, 0), rounds=(2, 0), seconds=60)
    found = costs.compare(Bench(tmp_path), up, load, effort)
    assert (base.totals, ours.totals) == ([25, 100, 100],) * 2
    assert load.ports == [0, 1, 0, 1, 1, 0]
    table = found.table("name", "title", {OURS[0]: 2.6})
    assert (table.name, table.base) == ("name", first)
    assert table.title == "title, 2 rounds of 100 greetings, 200 clients at a time"
    beside, row = table.rows
    assert beside.value.samples == pytest.approx((10, 20))
    assert row.value.samples == pytest.approx((30, 40))
    assert row.ratio is not None
    assert row.ratio.samples == pytest.approx((3, 2))
    assert row.extras == {"greetings/s": 37.5, "p50 µs": 1.0, "p99 µs": 1.0, "lost": 50}
    # The claim is about nginx, and is judged beside nothing else.
    assert row.holds is (True if first == servers.NGINX else None)
    # A claim about another row is judged beside that row, if it is up.
    (other,) = found.beside(OURS[0], "name", "title", {first: 0.3})
    assert (other.base, claims_of(other)) == (OURS[0], {first: 0.3})
    assert other.rows[1].judged == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert found.beside("absent", "name", "title", {first: 0.3}) == []


def test_the_base_is_nginx_or_what_comes_next_to_it() -> None:
    process: Any = None

    def base(*names: str) -> str:
        return servers.base_of([Server(name, 0, process) for name in names])

    assert base("ours", servers.NGINX, servers.FLOOR) == servers.NGINX
    assert base("ours", DOCUMENTED, servers.FLOOR) == servers.FLOOR
    assert base("ours", DOCUMENTED) == DOCUMENTED
    assert base("ours", "theirs") == "ours"


# -- rounds and servers


def test_rounds_end_when_their_time_is_over_but_not_if_so_many_were_asked_for(tmp_path: Path) -> None:
    assert list(Bench(tmp_path).rounds(5, 2, seconds=60)) == [0, 1, 2, 3, 4]
    assert list(Bench(tmp_path, quick=True).rounds(5, 2, seconds=60)) == [0, 1]
    assert list(Bench(tmp_path).rounds(5, 2, seconds=-1)) == [0]
    assert list(Bench(tmp_path, rounds=3).rounds(5, 2, seconds=-1)) == [0, 1, 2]


def test_each_round_begins_with_another_one() -> None:
    assert [rotated("abc", number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]
    assert (counted(1, "round"), counted(2, "round")) == ("1 round", "2 rounds")


def primer(port: int) -> list[str]:
    return [sys.executable, str(PROGRAMS / "primer.py"), str(port)]


def test_a_server_is_up_greets_is_measured_and_is_stopped(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with bench.serving([Contender("primer", primer, ours=True)]) as (server,):
        before = server.process.settled_cpu_seconds()
        outcome = Load(None, bench.other).run(server.port, at_once=5, total=50)
        assert server.process.settled_cpu_seconds() > before
        assert (outcome.greeted, outcome.lost) == (50, 0)
        assert 0 < outcome.p50_us <= outcome.p99_us
        assert outcome.rate > 0
        switches = server.process.switches()
        assert server.process.switches() == switches  # it sleeps in accept()
        assert server.process.resident_bytes() > 1_000_000
        assert server.process.descriptors() >= 4
        (pid,) = server.process.family
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_is_measured_has_a_processor_of_its_own(tmp_path: Path) -> None:
    measured, other = processors()
    mine = os.sched_getaffinity(0)
    process = Process([sys.executable, "-c", "input()"], tmp_path / "log", measured)
    try:
        (pid,) = process.family
        assert os.sched_getaffinity(pid) == (mine if measured is None else {measured})
    finally:
        process.stop()
    assert os.sched_getaffinity(0) == mine
    assert measured is None or measured != other


def test_a_process_counts_with_its_descendants(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'], stdin=open(sys.argv[1]))"
    )
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = Process([sys.executable, "-c", code, str(fifo)], tmp_path / "log", None)
    try:
        with fifo.open("w"):  # returns when the parent has opened it, and is about to start its child
            end = time.monotonic() + PATIENCE
            while len(process.family) < 2:
                del process.family
                assert time.monotonic() < end
    finally:
        process.stop()


def test_a_program_is_run_to_its_end(tmp_path: Path) -> None:
    busy = "import time\nwhile time.process_time() < 0.1: pass\nprint('done')"
    ended = run_to_end([sys.executable, "-c", busy], None)
    assert ended.output == "done\n"
    assert ended.cpu_seconds >= 0.1
    with pytest.raises(WouldNotStart, match="ended with status 7"):
        run_to_end([sys.executable, "-c", "raise SystemExit(7)"], None)
    with pytest.raises(WouldNotStart, match="ended with status -9"):
        run_to_end([sys.executable, "-c", "import signal; signal.pause()"], None, patience=0.05)


@pytest.mark.parametrize("ours", [True, False])
def test_a_server_that_does_not_start(ours: bool, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    code = "import sys; print('first', flush=True); sys.exit('no such module')"
    contender = Contender("broken", lambda _port: [sys.executable, "-c", code], ours=ours)
    if ours:
        with pytest.raises(WouldNotStart, match=r"^no such module$"), bench.serving([contender]):
            pass
    else:
        with bench.serving([contender]) as up:
            assert up == []
        assert bench.left_out == {"broken": "would not start: no such module"}


def test_options_of_the_environment_do_not_reach_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREETER_LISTEN", "nowhere")
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    monkeypatch.setenv("PYTHONPATH", "kept")
    found = environment()
    assert "GREETER_LISTEN" not in found
    assert "PYTHONASYNCIODEBUG" not in found
    assert (found["PYTHONPATH"], found["PATH"]) == ("kept", os.environ["PATH"])


# -- the load


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> str:
    assert COMPILER is not None
    return compile_c("load", tmp_path_factory.mktemp("load"), COMPILER)


@pytest.fixture(params=["python", pytest.param("c", marks=needs_compiler)])
def make_load(request: pytest.FixtureRequest) -> Callable[..., Load]:
    """Make the load in either language, from what clients send first."""
    program = None if request.param == "python" else request.getfixturevalue("compiled")
    return lambda *payloads: Load(program, None, payloads)


Treatment = tuple["Callable[[socket.socket, bytes], bytes]", bytes]


def orderly(client: socket.socket, greeting: bytes) -> bytes:
    """Everything, the end of stream, and whatever the client says until its end."""
    client.sendall(greeting)
    client.shutdown(socket.SHUT_WR)
    return b"".join(iter(lambda: client.recv(4096), b""))


def reset(client: socket.socket, greeting: bytes) -> bytes:
    client.sendall(greeting)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return b""


class OneByOne:
    """A server that treats so many clients so, one after the other; ``said`` has what each of them said."""

    def __init__(self) -> None:
        self.said: list[bytes] = []
        self._sock = socket.create_server(("127.0.0.1", 0))
        self._sock.settimeout(PATIENCE)
        self._thread: threading.Thread | None = None

    def start(self, *treatments: Treatment) -> int:
        """Serve; returns the port."""
        self._thread = threading.Thread(target=self._serve, args=treatments)
        self._thread.start()
        port: int = self._sock.getsockname()[1]
        return port

    def _serve(self, *treatments: Treatment) -> None:
        for treat, greeting in treatments:
            client, _ = self._sock.accept()
            with client:
                self.said.append(treat(client, greeting))

    def stop(self) -> None:
        if self._thread is not None:
            self._thread.join(PATIENCE)
        self._sock.close()


@pytest.fixture
def server() -> Iterator[OneByOne]:
    server = OneByOne()
    yield server
    server.stop()


@pytest.mark.parametrize("size", [0, 18, 5000])
def test_every_client_ends_in_one_class(make_load: Callable[..., Load], size: int, server: OneByOne) -> None:
    treatments = [(orderly, GREETING)] * 3 + [(orderly, GREETING[:5])] * 2 + [(orderly, b"")] + [(reset, b"")]
    treatments += [(orderly, GREETING + b"!"), (orderly, GREETING.upper()), (orderly, b"!")]
    load = make_load(b"x" * size)
    found = load.run(server.start(*treatments), at_once=2, total=len(treatments))
    assert (found.greeted, found.short, found.empty, found.reset) == (3, 2, 1, 1)
    assert (found.wrong, found.failed) == (3, 0)
    assert found.lost == 7
    assert 0 < found.p50_us <= found.p99_us < found.seconds * 1e6
    server.stop()
    assert server.said == [b"x" * size] * 6 + [b""] + [b"x" * size] * 3


def test_clients_take_turns_in_what_they_send(make_load: Callable[..., Load], server: OneByOne) -> None:
    payloads = [b"first", bytes(range(256)), b"third"]
    found = make_load(*payloads).run(server.start(*[(orderly, GREETING)] * 7), at_once=1, total=7)
    assert found.greeted == 7
    server.stop()
    # In turn, and any of them may be the first.
    begin = payloads.index(server.said[0])
    assert server.said == [payloads[(begin + number) % 3] for number in range(7)]


def test_a_reset_after_the_greeting_is_a_loss(make_load: Callable[..., Load], server: OneByOne) -> None:
    found = make_load().run(server.start((reset, GREETING)), at_once=1, total=1)
    assert (found.greeted, found.reset) == (0, 1)


@pytest.mark.parametrize("size", [0, 18])
def test_clients_of_a_port_without_a_server_fail(make_load: Callable[..., Load], size: int) -> None:
    with socket.socket() as sock:  # bound, so that no other program can have the port
        sock.bind(("127.0.0.1", 0))
        found = make_load(b"x" * size).run(sock.getsockname()[1], at_once=2, total=5)
    assert (found.greeted, found.failed, found.p99_us) == (0, 5, 0.0)


def test_a_load_that_fails_says_why() -> None:
    with pytest.raises(SystemExit, match="the load failed: "):
        Load(None, None).run(-1, at_once=1, total=1)


@needs_compiler
@pytest.mark.parametrize("name", ["load", "load_tls", "floor", "hold"])
def test_c_compiles_without_a_warning(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    assert COMPILER is not None
    if name == "load_tls":
        request.getfixturevalue("compiled_tls")
    assert compile_c(name, tmp_path, COMPILER, "-Werror") == str(tmp_path / name)


# -- the load over TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    made = make_certificate(tmp_path_factory.mktemp("certificate"))
    if isinstance(made, str):
        pytest.skip(made)
    return made


@pytest.fixture(scope="module")
def compiled_tls(tmp_path_factory: pytest.TempPathFactory) -> str:
    if COMPILER is None:
        pytest.skip("there is no C compiler")
    try:
        return compile_c("load_tls", tmp_path_factory.mktemp("load_tls"), COMPILER)
    except WouldNotStart as error:
        pytest.skip(f"libssl-dev: {error}")


@pytest.fixture
def tls_load(compiled_tls: str, certificate: Certificate) -> TLSLoad:
    return TLSLoad(compiled_tls, None, certificate.cert)


@pytest.fixture
def tls_context(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.cert, certificate.key)
    return context


def over_tls(
    context: ssl.SSLContext, *, close_notify: bool = True, reset: bool = False
) -> Callable[[socket.socket, bytes], bytes]:
    """Make the handshake, send the greeting, end as told; what "the client said" is its TLS version."""

    def treat(client: socket.socket, greeting: bytes) -> bytes:
        with context.wrap_socket(client, server_side=True) as sock:
            sock.sendall(greeting)
            said = f"{sock.version()}, {'resumed' if sock.session_reused else 'full'}".encode()
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif close_notify:
                sock.unwrap()  # which waits for the client's
            return said

    return treat


def test_every_client_over_tls_ends_in_one_class(
    tls_load: TLSLoad, tls_context: ssl.SSLContext, server: OneByOne
) -> None:
    orderly, cut = over_tls(tls_context), over_tls(tls_context, close_notify=False)
    treatments = [
        *[(orderly, GREETING)] * 3,
        *[(orderly, GREETING[:5]), (cut, GREETING[:5]), (cut, GREETING)],
        *[(orderly, b""), (cut, b"")],
        *[(orderly, GREETING + b"!"), (cut, GREETING.upper())],
        (over_tls(tls_context, reset=True), GREETING),
    ]
    found = tls_load.run(server.start(*treatments), at_once=2, total=len(treatments))
    assert (found.greeted, found.short, found.empty, found.reset) == (3, 3, 2, 1)
    assert (found.wrong, found.failed, found.lost) == (2, 0, 8)
    assert 0 < found.p50_us <= found.p99_us < found.seconds * 1e6
    server.stop()
    assert server.said == [b"TLSv1.3, full"] * len(treatments)


def test_a_client_over_tls_verifies_the_certificate_and_wants_tls_1_3(
    compiled_tls: str, tls_load: TLSLoad, tls_context: ssl.SSLContext, server: OneByOne, tmp_path: Path
) -> None:
    def refused(client: socket.socket, _: bytes) -> bytes:
        with pytest.raises(ssl.SSLError) as error, tls_context.wrap_socket(client, server_side=True) as sock:
            sock.recv(1)  # in TLS 1.3 the server's handshake is over before the client has its certificate
        return error.value.reason.encode()

    other = make_certificate(tmp_path)
    assert isinstance(other, Certificate)
    port = server.start((refused, b""), (refused, b""))
    assert TLSLoad(compiled_tls, None, other.cert).run(port, at_once=1, total=1).failed == 1
    tls_context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert tls_load.run(port, at_once=1, total=1).failed == 1
    server.stop()
    assert server.said == [b"TLSV1_ALERT_UNKNOWN_CA", b"UNSUPPORTED_PROTOCOL"]


def test_clients_over_tls_of_a_port_without_a_server_fail(tls_load: TLSLoad) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert tls_load.run(sock.getsockname()[1], at_once=2, total=5).failed == 5


def test_many_clients_over_tls_at_once(tls_load: TLSLoad, certificate: Certificate, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    context = ssl.create_default_context(cafile=certificate.cert)
    pattern = servers.patterns(bench, "--tls", str(certificate.cert), str(certificate.key))[0]
    with bench.serving([replace(pattern, ours=True)], probe=partial(greets, context=context)) as (up,):
        found = tls_load.run(up.port, at_once=50, total=200)
    assert (found.greeted, found.lost) == (200, 0)


def test_tls_is_left_out_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'openssl/err.h: no such file' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    bench = Bench(tmp_path)
    bench.certificate = Certificate(tmp_path, tmp_path)
    assert tls.run(bench) == []
    reason = (
        "load_tls.c does not compile (on Debian: apt-get install libssl-dev): openssl/err.h: no such file"
    )
    assert bench.left_out == {"tls": reason}
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CC", "")
    assert Bench(tmp_path).certificate == "no openssl program, to make a certificate"
    assert Bench(tmp_path).tls_load == "no C compiler, and the load in Python has no TLS"


def test_a_compiler_that_does_not_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'stdio.h: no such file' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    bench = Bench(tmp_path)
    assert bench.facts()["compiler"] == (
        f"{broken} does not compile: stdio.h: no such file; so the load is in Python, and there is no C floor"
    )


# -- nginx


@pytest.fixture
def fake_nginx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Nginx | str]:
    """Find an nginx that says of itself what it is told to."""

    def find(says: str) -> Nginx | str:
        program = tmp_path / "nginx"
        program.write_text(f"#!/bin/sh\necho '{says}' >&2\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr("tests.benchmarks.nginx._MODULE_FOLDERS", ())
        return find_nginx()

    return find


def test_nginx_with_the_stream_module_built_in(fake_nginx: Any, tmp_path: Path) -> None:
    found = fake_nginx("nginx version: nginx/1.2.3\nconfigure arguments: --with-stream --with-x")
    assert found == Nginx(str(tmp_path / "nginx"), "1.2.3", "")


def test_nginx_whose_stream_module_is_a_file(fake_nginx: Any, tmp_path: Path) -> None:
    says = f"nginx version: nginx/1.2.3\nconfigure arguments: --modules-path={tmp_path} --with-stream=dynamic"
    assert fake_nginx(says) == "1.2.3 has no stream module (on Debian: apt-get install libnginx-mod-stream)"
    module = tmp_path / "ngx_stream_module.so"
    module.touch()
    assert fake_nginx(says) == Nginx(str(tmp_path / "nginx"), "1.2.3", str(module))


def test_no_nginx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_args, **_options: None)
    assert str(find_nginx()).startswith("not installed")


@pytest.mark.parametrize("log", [False, True])
def test_nginx_greets_and_writes_into_its_folder_only(log: bool, tmp_path: Path) -> None:
    found = find_nginx()
    if isinstance(found, str):
        pytest.skip(f"nginx: {found}")
    contender = Contender("nginx", lambda port: found.command(port, tmp_path, access_log=log), ours=True)
    with Bench(tmp_path).serving([contender]) as (server,):
        assert len(server.process.family) == 2
        for pid in server.process.family:
            assert os.stat(f"/proc/{pid}").st_uid == os.geteuid()
    written = "".join(path.read_text() for path in tmp_path.glob("*.access.log"))
    assert written.startswith("Got a connection from ('127.0.0.1', ") == log
    config = next(tmp_path.glob("*.conf")).read_text()
    assert config.count(str(tmp_path)) == 2 + log


@pytest.mark.parametrize("header", [proxy.version_1, proxy.version_2])
def test_nginx_believes_a_proxy_header(header: Callable[[str, int], bytes], tmp_path: Path) -> None:
    found = find_nginx()
    if isinstance(found, str):
        pytest.skip(f"nginx: {found}")
    contender = Contender(
        "nginx", lambda port: found.command(port, tmp_path, access_log=True, proxy=True), ours=True
    )
    with Bench(tmp_path).serving([contender], probe=listens) as (server,):
        assert greets(server.port, header("192.0.2.1", 4711))
        assert not greets(server.port, b"GET / HTTP/1.0\r\n\r\n")
    written = "".join(path.read_text() for path in tmp_path.glob("*.access.log"))
    assert "Got a connection from ('192.0.2.1', 4711)" in written


def test_nginx_greets_over_tls(certificate: Certificate, tmp_path: Path) -> None:
    found = find_nginx()
    if isinstance(found, str):
        pytest.skip(f"nginx: {found}")
    contender = Contender(
        "nginx", lambda port: found.command(port, tmp_path, certificate=certificate), ours=True
    )
    context = ssl.create_default_context(cafile=certificate.cert)
    with Bench(tmp_path).serving([contender], probe=listens) as (server,):
        assert greets(server.port, context=context)
        assert not greets(server.port, b"not a ClientHello\r\n")
        assert not greets(server.port, context=ssl.create_default_context())  # it trusts others


def test_nginx_greets_with_a_large_greeting(tmp_path: Path) -> None:
    found = find_nginx()
    if isinstance(found, str):
        pytest.skip(f"nginx: {found}")
    contender = Contender("nginx", lambda port: found.command(port, tmp_path, times=4_000), ours=True)
    with Bench(tmp_path).serving([contender], probe=listens) as (server,):
        assert greets(server.port, times=4_000)


# -- HAProxy


def test_haproxy_greets_behind_a_proxy_header_and_over_tls(certificate: Certificate, tmp_path: Path) -> None:
    found = find_haproxy()
    if isinstance(found, str):
        pytest.skip(f"HAProxy: {found}")
    plain = Contender("plain", lambda port: found.command(port, tmp_path, proxy=True), ours=True)
    over_tls = Contender(
        "TLS", lambda port: found.command(port, tmp_path, certificate=certificate), ours=True
    )
    context = ssl.create_default_context(cafile=certificate.cert)
    with Bench(tmp_path).serving([plain, over_tls], probe=listens) as (first, second):
        assert greets(first.port, proxy.version_1("192.0.2.1", 4711))
        assert greets(first.port, proxy.version_2("192.0.2.1", 4711))
        assert not greets(first.port, b"GET / HTTP/1.0\r\n\r\n")
        assert greets(second.port, context=context)
        assert not greets(second.port, context=ssl.create_default_context())  # it trusts others


def test_haproxy_without_lua_cannot_greet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "haproxy"
    program.write_text("#!/bin/sh\necho 'HAProxy version 1.2.3 2026/01/01'\necho 'Feature list : -LUA'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_haproxy() == "1.2.3 was built without Lua"
    monkeypatch.setattr("shutil.which", lambda *_args, **_options: None)
    assert str(find_haproxy()).startswith("not installed")


def test_the_machines_own_nginx_is_found_where_packages_put_it() -> None:
    if shutil.which("nginx") is None:
        pytest.skip("there is no nginx on the PATH")
    assert not str(find_nginx()).startswith("not installed")
