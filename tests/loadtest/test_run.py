"""``load`` as a whole, and runs against servers with known latencies."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time

import pytest

import greeter.loadtest
from greeter.errors import ConfigError, ConnectFailed, MissingExtra
from greeter.loadtest import LoadPlan, LoadReport, Snapshot, Threshold, load
from greeter.loadtest.report.verdict import notes
from tests.support.loadtest_peers import (
    GREETING,
    checked,
    greet,
    never_accepting,
    refused_endpoint,
    serving,
    wait_for_close,
)


@pytest.fixture(params=[False, True], ids=["in this loop", "in a process"])
def isolate(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.usefixtures("no_fd_leak")
async def test_a_plan_results_in_a_report(isolate: bool) -> None:
    seen: list[tuple[int, int]] = []

    def on_snapshot(snapshot: Snapshot) -> None:
        seen.append((snapshot.attempted, snapshot.greeted))

    async with serving(greet) as target:
        limit = Threshold.parse("errors:count<1")
        plan = LoadPlan(target, rate=300, duration=0.2, expect="Thank you", thresholds=[limit])
        report = checked(await load(plan, on_snapshot=on_snapshot, isolate=isolate))
    assert report.target == target
    greeted = report.connections["greeted"]
    assert greeted + report.connections["unstarted"] == 60
    assert seen[-1] == (greeted, greeted)
    assert report.passed
    assert report.exit_code == (98 if report.generator["saturated"] else 0)  # saturated on a busy machine
    assert report.address == target
    texts = [{"text": GREETING.decode(), "count": greeted}] if greeted else []  # none after a pause
    assert report.greetings == {"texts": texts, "others": 0}
    assert report.plan == plan.to_dict()
    assert report.started_at.endswith("Z")
    assert "ListenOverflows" in report.kernel
    assert report.environment["sysctl"]
    assert any("shared this machine" in note for note in report.notes)


@pytest.mark.usefixtures("no_fd_leak")
async def test_stop_ends_a_run_with_a_report(isolate: bool) -> None:
    async with serving(wait_for_close) as target:
        stop = asyncio.Event()
        running = asyncio.create_task(load(LoadPlan(target, duration=60.0), stop=stop, isolate=isolate))
        asyncio.get_running_loop().call_later(0.25, stop.set)
        report = checked(await running)
    assert report.exit_code == 130
    assert report.connections["attempted"] == 0
    assert report.duration_s < 10


@pytest.mark.usefixtures("no_fd_leak")
async def test_cancelling_a_run_releases_its_resources(isolate: bool) -> None:
    async with serving(wait_for_close) as target:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.25):
                await load(LoadPlan(target, duration=60.0), isolate=isolate)


async def test_workers_share_a_run() -> None:
    async with serving(greet) as target:
        report = checked(await load(LoadPlan(target, count=50, connections=4, workers=2)))
    assert report.connections["greeted"] == 50
    assert len(report.generator["cpu_percent"]) == 2


async def test_errors_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConnectFailed, match=r"no-such-host\.invalid:1"):
        await load(LoadPlan("no-such-host.invalid:1"))
    with pytest.raises(ConfigError, match="connections do not fit"):
        await load(LoadPlan(connections=2_000_000_000))
    monkeypatch.setitem(sys.modules, "hdrh", None)
    with pytest.raises(MissingExtra, match=r"pip install '\.\[load\]' in greeter's source tree"):
        await load(LoadPlan())


async def test_a_target_that_refuses_every_connection() -> None:
    report = checked(await load(LoadPlan(refused_endpoint(), count=100)))
    assert report.exit_code == 1
    assert report.verdict == "Nothing was greeted; 100 failed: connect_refused (Connection refused)."


def test_the_public_names_are_exported() -> None:
    for name in ("LoadPlan", "LoadReport", "Snapshot", "Stage", "Threshold", "load", "parse_stage"):
        assert name in greeter.loadtest.__all__
        assert hasattr(greeter.loadtest, name)


# -- servers with known latencies


def ms(report: LoadReport, phase: str, stat: str) -> float:
    figure = report.latency_us[phase][stat]
    assert figure is not None
    return figure / 1000


async def test_the_figures_match_a_server_with_known_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    """98 % take 5 ms, 1.5 % 50 ms, 0.5 % 200 ms, of a clock that only the server advances; 1 % are empty."""
    number, now = itertools.count(), time.monotonic()
    monkeypatch.setattr("greeter.loadtest.generator.engine.monotonic", lambda: now)

    async def slow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal now
        n = next(number)
        now += 0.2 if n % 200 == 7 else 0.05 if n % 200 in (20, 90, 160) else 0.005
        if n % 100 != 55:
            writer.write(GREETING)

    async with serving(slow) as target:
        known = checked(await load(LoadPlan(target, count=400, connections=1)))
    assert known.connections["attempted"] == 400
    assert known.errors["empty"] == 4
    for phase in ("service", "response", "first_byte"):
        found = [ms(known, phase, stat) for stat in ("p50", "p99", "p99.9")]
        assert found == pytest.approx([5, 50, 200], rel=0.001)


# Greets, and stands still for a second when its hundredth client has connected; then it says for how long.
STALLING = """
import asyncio, time
count = 0
async def greet(_, writer):
    global count
    count += 1
    if count == 100:
        began = time.monotonic()
        time.sleep(1)
        print(time.monotonic() - began, flush=True)
    writer.write(b"hello")
    writer.close()
async def main():
    server = await asyncio.start_server(greet, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@pytest.mark.thorough
async def test_the_stall_of_a_server_appears_in_the_response_times() -> None:
    """The server stands still from about 0.5 s to 1.5 s of a run of 2.5 s."""
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STALLING, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    try:
        target = f"127.0.0.1:{int(await server.stdout.readline())}"
        plan = LoadPlan(target, rate=200, duration=2.5, connections=50, timeout=60.0)
        report = checked(await load(plan, isolate=True))
        stalled = 1000 * float(await server.stdout.readline())
    finally:
        server.kill()
        await server.communicate()
    assert report.connections["attempted"] + report.connections["unstarted"] == 500
    assert ms(report, "response", "max") > stalled - 20, "one is due every 5 ms"
    assert ms(report, "response", "p90") > stalled / 2, "two fifths of them were due while it stood still"
    assert ms(report, "service", "p50") < stalled / 2, "at most 50 were open during the stall"
    noted = [note for note in notes(report.to_dict()) if note.endswith(" of the run: the server stalled")]
    assert noted or report.generator["stopped_s"], "unless the generator was stopped too, by a busy machine"
    assert report.exit_code == 0 or report.generator["saturated"]


@pytest.mark.thorough
@pytest.mark.one_interpreter
async def test_a_busy_machine_alone_makes_no_run_invalid() -> None:
    """Two processes for each core compute. Starts are late, but the limit on errors stands."""
    spinning = [sys.executable, "-c", "while True: pass"]
    cores = range(2 * len(os.sched_getaffinity(0)))
    busy = [await asyncio.create_subprocess_exec(*spinning) for _ in cores]
    try:
        async with serving(greet) as target:
            limits = [Threshold.parse("errors:rate<1%"), Threshold.parse("connections:failed<1")]
            plan = LoadPlan(target, rate=300, duration=1.0, thresholds=limits)
            report = checked(await load(plan, isolate=True))
    finally:
        for process in busy:
            process.kill()
            await process.wait()
    missing = report.generator["unstarted_with_free_slots"]
    nothing = not report.connections["attempted"]  # after a pause of the machine: without a rate of errors
    assert report.exit_code == (99 if nothing else 98 if missing > 3 else 0), report.verdict
    assert report.errors == dict.fromkeys(report.errors, 0)


async def test_a_full_queue_never_counts_as_a_greeting() -> None:
    with never_accepting(backlog=5) as (_, target):
        plan = LoadPlan(target, count=30, connections=30, timeout=0.2, connect_timeout=0.1)
        report = checked(await load(plan))
    assert report.connections["greeted"] == 0
    assert report.errors["connected_no_greeting"] >= 6
    assert report.errors["connected_no_greeting"] + report.errors["connect_timeout"] == 30
    assert report.exit_code == 1


async def test_a_rate_beyond_the_generator_is_reported() -> None:
    # With free slots, only the generator can be the cause of being late. A refusal frees its slot at once.
    report = checked(await load(LoadPlan(refused_endpoint(), rate=300_000, duration=0.3)))
    assert report.exit_code == 98
    assert report.generator["saturated"]
    assert " The generator was saturated: " in report.verdict
    assert report.connections["attempted"] + report.connections["unstarted"] == 90_000


async def test_other_tasks_of_the_loop_still_run() -> None:
    iterations = 0

    async def other() -> None:
        nonlocal iterations
        while True:
            iterations += 1
            await asyncio.sleep(0.001)

    async with serving(greet) as target:
        task = asyncio.create_task(other())
        began = time.process_time()  # not of a clock that goes on while other processes run
        await load(LoadPlan(target, duration=0.2))
        computed = time.process_time() - began
        task.cancel()
    assert iterations > 10 * computed, "a closed loop at full speed lets other tasks run"
