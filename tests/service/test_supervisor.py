"""The supervisor with real worker processes: restart, replacement, retirement, and no client is lost."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import select
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from greeter import Endpoint, GreeterError, greet
from greeter.core.stats import ACCEPTED, GREETED
from greeter.server.timeouts import PAUSE_SECONDS
from greeter.service import worker_process
from greeter.service.backoff import Backoff
from greeter.service.channel import PARENT_GONE
from greeter.service.snapshot import AggregateStats, Counters
from greeter.service.supervisor import Supervisor
from greeter.service.worker_process import WorkerFailed
from greeter.system.listeners import Listener, open_listeners
from tests.conftest import PATIENCE, ROOT, loop_factories, one_loop
from tests.support.peers import connect, read_to_end, stand_still, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

COMMAND = [sys.executable, "-m", "tests.support.small_worker"]

# Processes start slowly, so only what depends on the event loop of the parent is tested on both loops.
pytestmark = [pytest.mark.usefixtures("in_root"), one_loop]
on_both_loops = pytest.mark.asyncio(loop_factories=list(loop_factories()))


@pytest.fixture
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def listener() -> Iterator[Listener]:
    (opened,) = open_listeners([Endpoint.parse("127.0.0.1:0")])
    yield opened
    opened.close()


def port_of(listener: Listener) -> int:
    assert isinstance(listener.endpoint.port, int)
    return listener.endpoint.port


@contextlib.asynccontextmanager
async def supervising(listener: Listener, count: int = 2, **options: Any) -> AsyncIterator[Supervisor]:
    defaults: dict[str, Any] = {"command": COMMAND, "task": {}, "ready_timeout": PATIENCE}
    supervisor = Supervisor(listeners=[listener], count=count, **(defaults | options))
    async with asyncio.timeout(PATIENCE):
        await supervisor.start()
    try:
        yield supervisor
    finally:
        async with asyncio.timeout(PATIENCE):
            await supervisor.stop(PATIENCE / 2)


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# -- start and exit --------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.usefixtures("no_fd_leak")
async def test_workers_greet_report_and_leave() -> None:
    (listener,) = open_listeners([Endpoint.parse("127.0.0.1:0")])
    exited: list[int] = []
    async with supervising(listener, 2, on_exit=exited.append) as supervisor:
        pids = supervisor.pids
        assert len(set(pids)) == 2
        replies = await asyncio.gather(*(greet(port=port_of(listener)) for _ in range(8)))
        assert [reply.data for reply in replies] == [b"hello"] * 8
        reports = await supervisor.stats()
        assert sum(Counters.from_json(report).greeted for report in reports) == 8
        assert await supervisor.stop(PATIENCE)
        assert sorted(exited) == sorted(pids)
        assert await supervisor.stats() == []
    assert not any(map(exists, pids))
    assert supervisor.restarts == 0
    listener.close()


async def test_a_worker_is_a_direct_child_with_its_sockets_and_nothing_else(listener: Listener) -> None:
    with socket.socket() as other:
        other.set_inheritable(True)
        async with supervising(listener, 1) as supervisor:
            (pid,) = supervisor.pids
            with open(f"/proc/{pid}/stat") as file:  # noqa: ASYNC230  # procfs is not a disk
                parent, group = map(int, file.read().rpartition(")")[2].split()[1:3])
            assert parent == os.getpid()
            assert group == pid  # Ctrl-C in the terminal does not reach it
            theirs = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            assert os.readlink(f"/proc/self/fd/{listener.sock.fileno()}") in theirs
            assert os.readlink(f"/proc/self/fd/{other.fileno()}") not in theirs
            assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull


# -- pauses of this process --------------------------------------------------------------------------------


@on_both_loops
async def test_a_worker_that_became_ready_during_a_pause_is_not_killed(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = Supervisor(COMMAND, [listener], 1, task={}, ready_timeout=0.6)
    starting = asyncio.create_task(supervisor.start())
    await until(lambda: bool(supervisor._workers), "it is started")
    channel = supervisor._workers[0]._channel._sock
    assert select.select([channel], [], [], PATIENCE)[0], "it is ready"
    stand_still(0.6 + 1.5 * PAUSE_SECONDS)
    await starting
    assert await supervisor.stop(PATIENCE)
    assert errors(caplog) == []


@on_both_loops
async def test_a_worker_that_exited_during_a_pause_is_not_killed(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervising(listener, 1) as supervisor:
        pid = supervisor.pids[0]
        pidfd = os.pidfd_open(pid)
        stopping = asyncio.create_task(supervisor.stop(0.6))
        await until(lambda: supervisor._workers[0]._deadline is not None, "it is told to stop")
        assert select.select([pidfd], [], [], PATIENCE)[0], "it has exited"
        os.close(pidfd)
        stand_still(0.6 + 1.5 * PAUSE_SECONDS)
        assert await stopping
    assert errors(caplog) == []


async def test_a_worker_has_longer_to_exit_the_more_connections_it_holds(listener: Listener) -> None:
    async with supervising(listener, 1) as supervisor:
        (worker,) = supervisor._workers
        assert (await greet(port=port_of(listener))).data == b"hello"
        worker._block[ACCEPTED] += 30_000
        before = asyncio.get_running_loop().time()
        worker.retire(0.1)
        assert worker._deadline is not None
        assert before + 29 < worker._deadline._due < asyncio.get_running_loop().time() + 31
        worker._block[ACCEPTED] -= 30_000


# -- sudden exits ----------------------------------------------------------------------------------------


async def connect_queued(listener: Listener, count: int) -> list[socket.socket]:
    return [await connect(port_of(listener)) for _ in range(count)]


@on_both_loops
@pytest.mark.usefixtures("no_fd_leak")
async def test_a_killed_worker_is_replaced_and_no_queued_client_is_reset(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (listener,) = open_listeners([Endpoint.parse("127.0.0.1:0")])
    async with supervising(listener) as supervisor:
        victim, other = supervisor.pids
        for pid in (victim, other):
            os.kill(pid, signal.SIGSTOP)
        clients = await connect_queued(listener, 20)
        os.kill(victim, signal.SIGKILL)
        os.kill(other, signal.SIGCONT)
        for client in clients:
            outcome = await read_to_end(client)
            assert (outcome.data, outcome.reset) == (b"hello", False)
        await until(lambda: victim not in supervisor.pids, "it is replaced")
        assert supervisor.pids[1] == other
        assert supervisor.restarts == 1
    assert errors(caplog) == [f"worker {victim} was killed by SIGKILL: starting another in 0.1 s"]
    listener.close()


async def test_queued_clients_wait_while_all_workers_are_replaced(listener: Listener) -> None:
    async with supervising(listener) as supervisor:
        for pid in supervisor.pids:
            os.kill(pid, signal.SIGSTOP)
        clients = await connect_queued(listener, 10)
        before = supervisor.pids
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        for client in clients:
            outcome = await read_to_end(client)
            assert (outcome.data, outcome.reset) == (b"hello", False)
        await until(lambda: not set(before) & set(supervisor.pids), "both are replaced")


async def test_a_crash_loop_is_delayed_by_the_backoff(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervising(listener, 1, task={"mode": "crash"}) as supervisor:
        await until(lambda: supervisor.restarts == 3, "it crashes again and again")
        await supervisor.stop()
    # If the stop comes late, there may be another worker that exits.
    lines = [line.partition(" ")[2].partition(" ")[2] for line in errors(caplog)[:3]]
    assert lines == [f"exited with code 3: starting another in {delay} s" for delay in (0.1, 0.2, 0.4)]


async def test_a_replacement_that_does_not_become_ready_is_retried(
    listener: Listener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    needed = tmp_path / "needed"
    needed.touch()
    async with supervising(listener, 1, task={"needs": str(needed)}) as supervisor:
        (pid,) = supervisor.pids
        needed.unlink()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: supervisor.restarts == 2, "the first replacement fails")
        needed.touch()
        assert (await greet(port=port_of(listener), timeout=PATIENCE)).data == b"hello"
    first, second, *_ = errors(caplog)
    assert first == f"worker {pid} was killed by SIGKILL: starting another in 0.1 s"
    assert second.endswith(
        "exited with code 3 (no greeting today) before it was ready: starting another in 0.2 s"
    )


@on_both_loops
async def test_a_worker_that_does_not_respond_is_replaced(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[int] = []
    async with supervising(listener, on_stats=lambda pid, _: answers.append(pid)) as supervisor:
        silent, other = (worker.pid for worker in supervisor._workers)
        os.kill(silent, signal.SIGSTOP)
        supervisor.kill_unresponsive()
        await until(lambda: other in answers, "the other worker reports")
        assert errors(caplog) == []
        supervisor.kill_unresponsive()
        supervisor._workers[0].kill_unresponsive()  # it is killed only once
        await until(lambda: silent not in supervisor.pids, "it is replaced")
        assert other in supervisor.pids
    assert errors(caplog) == [
        f"worker {silent} does not respond: killed",
        f"worker {silent} was killed by SIGKILL: starting another in 0.1 s",
    ]


async def test_a_report_that_arrived_while_the_parent_was_stalled_counts(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervising(listener, 1) as supervisor:
        (worker,) = supervisor._workers
        supervisor.kill_unresponsive()
        select.select([worker._channel._sock], [], [], PATIENCE)  # the loop does not see it
        supervisor.kill_unresponsive()
        await supervisor.stats()
        assert supervisor.restarts == 0
    assert errors(caplog) == []


async def test_a_retiring_worker_is_not_killed_as_unresponsive(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervising(listener, 1) as supervisor:
        (worker,) = supervisor._workers
        os.kill(worker.pid, signal.SIGSTOP)
        supervisor.kill_unresponsive()
        worker.retire(PATIENCE)
        supervisor.kill_unresponsive()
        os.kill(worker.pid, signal.SIGCONT)
        assert await worker.exited == 0
    assert not [line for line in errors(caplog) if "does not respond" in line]


async def test_a_worker_that_sends_an_invalid_message_is_replaced(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervising(listener, 1, task={"mode": "nonsense"}) as supervisor:
        (pid,) = supervisor.pids
        await until(lambda: supervisor.restarts == 1, "it is killed")
    assert errors(caplog)[:2] == [
        f"worker {pid} sent an invalid message: b'not JSON': killed",
        f"worker {pid} was killed by SIGKILL: starting another in 0.1 s",
    ]


async def test_the_backoff_doubles_up_to_its_maximum() -> None:
    backoff = Backoff()
    assert [backoff.next() for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    backoff.reset()
    assert backoff.next() == 0.1


async def test_a_worker_that_served_long_enough_resets_the_backoff(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("greeter.service.supervisor.HEALTHY_SECONDS", 0.0)
    async with supervising(listener, 1, task={"mode": "crash"}) as supervisor:
        await until(lambda: supervisor.restarts == 2, "it crashes again")
    assert all(line.endswith("starting another in 0.1 s") for line in errors(caplog))


PARENT = """
import asyncio, sys
from greeter import Endpoint
from greeter.system.listeners import open_listeners
from greeter.service.supervisor import Supervisor

async def main():
    (listener,) = open_listeners([Endpoint.parse("127.0.0.1:0")])
    task = {"leaves": sys.argv[1]}
    supervisor = Supervisor([sys.executable, "-m", "tests.support.small_worker"], [listener], 2, task=task)
    await supervisor.start()
    print(listener.endpoint.port, *supervisor.pids, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def exit_of(pid: int) -> None:
    """Wait until a process that is not a child of this one has exited."""
    gone = asyncio.Event()
    pidfd = os.pidfd_open(pid)
    asyncio.get_running_loop().add_reader(pidfd, gone.set)
    async with asyncio.timeout(PATIENCE):
        await gone.wait()
    asyncio.get_running_loop().remove_reader(pidfd)
    os.close(pidfd)


async def test_workers_drain_and_exit_when_their_parent_is_killed(tmp_path: Path) -> None:
    reasons_file = tmp_path / "reasons_file"
    reasons_file.touch()
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, str(reasons_file)), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    async with asyncio.timeout(PATIENCE):
        port, *pids = map(int, (await parent.stdout.readline()).split())
    client = await connect(port)
    assert await asyncio.get_running_loop().sock_recv(client, 5) == b"hello"
    exits = asyncio.gather(*map(exit_of, pids))
    parent.kill()
    outcome = await read_to_end(client)  # the open connection is closed without a reset
    assert (outcome.data, outcome.reset) == (b"", False)
    await exits
    await parent.wait()
    assert reasons_file.read_text() == f"{PARENT_GONE}\n" * 2


# -- stopping --------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_worker_that_does_not_exit_in_time_is_killed(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervising(listener, 2, task={"mode": "stubborn"}) as supervisor:
        pids = supervisor.pids
        assert await supervisor.stop(0.1) is False
    assert not any(map(exists, pids))
    # One that waited for a processor for most of that time has somewhat longer, so it may be the second.
    assert sorted(errors(caplog)) == sorted(f"worker {pid} did not exit within 0.1 s: killed" for pid in pids)


async def test_a_worker_that_waited_for_a_processor_has_so_much_longer_to_exit_once(
    listener: Listener, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter((1.0, 1.3))  # when it is told to stop, and at its deadline
    monkeypatch.setattr(worker_process, "starved_seconds", lambda _: next(readings))
    async with supervising(listener, 1, task={"mode": "stubborn"}) as supervisor:
        (pid,) = supervisor.pids
        began = asyncio.get_running_loop().time()
        assert await supervisor.stop(0.2) is False
        assert asyncio.get_running_loop().time() - began >= 0.5
    assert errors(caplog) == [f"worker {pid} did not exit within 0.2 s: killed"]
    assert next(readings, None) is None


async def test_the_time_for_which_a_process_waits_for_a_processor() -> None:
    if not os.access("/proc/self/schedstat", os.R_OK):
        pytest.skip("the kernel has no schedstat")
    core = min(os.sched_getaffinity(0))
    spin = f"import os; os.sched_setaffinity(0, {{{core}}}); print(flush=True)\nwhile True: pass"
    spinning = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", spin, stdout=asyncio.subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        for process in spinning:
            assert process.stdout is not None
            await process.stdout.readline()

        def waited() -> list[float]:
            return [worker_process.starved_seconds(process.pid) for process in spinning]

        before = waited()
        await until(
            lambda: all(b - a > 0.02 for a, b in zip(before, waited(), strict=True)), "both have waited"
        )
    finally:
        for process in spinning:
            process.kill()
            await process.communicate()
    assert worker_process.starved_seconds(spinning[0].pid) == 0.0  # it is gone


async def test_a_stop_finishes_the_open_connections(listener: Listener) -> None:
    async with supervising(listener) as supervisor:
        clients = [await connect(port_of(listener)) for _ in range(4)]
        for client in clients:
            assert await asyncio.get_running_loop().sock_recv(client, 5) == b"hello"
        stopping = asyncio.create_task(supervisor.stop(PATIENCE))
        for client in clients:
            outcome = await read_to_end(client)
            assert (outcome.data, outcome.reset) == (b"", False)
        assert await stopping


async def test_a_stop_of_all_processes_is_led_by_the_parent(listener: Listener) -> None:
    async with supervising(listener) as supervisor:
        client = await connect(port_of(listener))
        assert await asyncio.get_running_loop().sock_recv(client, 5) == b"hello"
        for pid in supervisor.pids:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                os.kill(pid, number)
        assert (await greet(port=port_of(listener))).data == b"hello"
        client.close()
        assert await supervisor.stop()
        assert supervisor.restarts == 0


async def test_a_stop_waits_for_pending_handshakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greeter.service.supervisor.HANDSHAKE_GRACE", 0.2)
    loop = asyncio.get_running_loop()
    path = f"{tmp_path}/x"
    (listener,) = open_listeners([Endpoint.unix(path)])
    async with supervising(listener, 1) as supervisor:
        (pid,) = supervisor.pids
        os.kill(pid, signal.SIGSTOP)
        begin = loop.time()
        with socket.socket(socket.AF_UNIX) as early:
            early.connect(path)
            early.setblocking(False)
            stopping = asyncio.create_task(supervisor.stop(PATIENCE))
            await until(lambda: not os.access(path, os.F_OK), "no new client can connect")
            assert not stopping.done()
            os.kill(pid, signal.SIGCONT)
            assert await loop.sock_recv(early, 5) == b"hello"
        assert await stopping
        assert loop.time() - begin >= 0.2
    listener.close()


async def test_an_inherited_listener_keeps_accepting_after_a_stop(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No handshake is reset, so there is no wait for any.
    monkeypatch.setattr("greeter.service.supervisor.HANDSHAKE_GRACE", 10 * PATIENCE)
    with listener.sock.dup():  # as systemd keeps it
        listener.inherited = True
        async with supervising(listener, 1) as supervisor:
            assert await supervisor.stop()
            (await connect(port_of(listener))).close()


@pytest.mark.usefixtures("no_fd_leak")
async def test_a_killed_worker_keeps_its_counts_and_what_it_had_is_aborted() -> None:
    (listener,) = open_listeners([Endpoint.parse("127.0.0.1:0")])
    totals = AggregateStats()
    async with supervising(
        listener,
        1,
        task={"mode": "stall"},
        on_stats=lambda pid, stats: totals.update(pid, Counters.from_json(stats)),
        on_exit=totals.retire,
    ) as supervisor:
        with contextlib.ExitStack() as held:
            for _ in range(3):
                held.enter_context(await connect(port_of(listener)))
            await counted(supervisor, 3, ACCEPTED)
            (before,) = await supervisor.stats()
            assert before["accepted"] == 3
            os.kill(supervisor.pids[0], signal.SIGKILL)
            await until(lambda: bool(totals.total().failed), "the exit is noticed")
    total = totals.total()
    assert (total.accepted, total.greeted, total.failed["aborted"], total.open) == (3, 0, 3, 0)
    listener.close()


async def test_a_worker_that_exited_leaves_no_descriptor_behind(listener: Listener) -> None:
    """Also before the garbage collector runs, which takes hours in an idle parent."""
    async with supervising(listener, 1) as supervisor:
        before = len(os.listdir("/proc/self/fd"))
        gc.disable()
        try:
            for _ in range(2):
                await supervisor.replace_all({})
                await until(lambda: len(supervisor._workers) == 1, "the old one has exited")
            assert len(os.listdir("/proc/self/fd")) == before
        finally:
            gc.enable()


async def counted(supervisor: Supervisor, clients: int, word: int = GREETED) -> None:
    """Wait until the first worker has counted so many as greeted, say, which is after they were."""
    block = supervisor._workers[0]._block
    await until(lambda: block[word] == clients, "they are counted")


async def test_counts_that_were_never_reported_survive_a_kill(listener: Listener) -> None:
    found: list[dict[str, Any]] = []
    async with supervising(listener, 1, on_stats=lambda _, stats: found.append(stats)) as supervisor:
        for _ in range(5):
            assert (await greet(port=port_of(listener))).data == b"hello"
        await counted(supervisor, 5)
        assert found == []
        os.kill(supervisor.pids[0], signal.SIGKILL)
        await until(lambda: bool(found), "the exit is noticed")
        assert (found[0]["accepted"], found[0]["greeted"], found[0]["bytes_sent"]) == (5, 5, 25)


async def test_the_counters_of_a_stalled_worker_are_up_to_date(listener: Listener) -> None:
    async with supervising(listener, 1) as supervisor:
        assert (await greet(port=port_of(listener))).data == b"hello"
        await counted(supervisor, 1)
        assert [stats["greeted"] for stats in await supervisor.stats()] == [1]
        assert (await greet(port=port_of(listener))).data == b"hello"
        await counted(supervisor, 2)
        os.kill(supervisor.pids[0], signal.SIGSTOP)
        try:
            assert [stats["greeted"] for stats in await supervisor.stats(timeout=0.01)] == [2]
        finally:
            os.kill(supervisor.pids[0], signal.SIGCONT)


async def test_the_last_report_is_processed_after_the_exit(listener: Listener) -> None:
    received: list[int] = []
    async with supervising(
        listener, 1, on_stats=lambda _pid, stats: received.append(stats["greeted"])
    ) as supervisor:
        assert (await greet(port=port_of(listener))).data == b"hello"
        asyncio.get_running_loop().remove_reader(supervisor._workers[0]._channel._sock.fileno())
        assert await supervisor.stop()
    assert received == [1, 1]  # the report, and the counters in shared memory


async def test_a_stop_while_a_worker_starts(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    async with supervising(listener, 1) as supervisor:
        (pid,) = supervisor.pids
        os.kill(pid, signal.SIGKILL)
        await until(lambda: supervisor._workers == [] and supervisor.restarts == 1, "it has exited")
        await until(lambda: supervisor._workers != [], "another one is starting")
        assert await supervisor.stop()
        assert supervisor._workers == []


@pytest.mark.parametrize("then", ["replace_all", "stop"])
async def test_a_worker_that_is_starting_in_place_of_a_dead_one_drains(listener: Listener, then: str) -> None:
    """Before its message that it serves arrives, it can have accepted clients."""
    async with supervising(listener, 1) as supervisor:
        os.kill(supervisor.pids[0], signal.SIGKILL)
        await until(lambda: supervisor._workers == [] and supervisor.restarts == 1, "it has exited")
        await until(lambda: supervisor._workers != [], "another one is starting")
        (starting,) = supervisor._workers
        await getattr(supervisor, then)()
        assert await starting.exited == 0


async def test_kill_ends_serving_and_retiring_workers(listener: Listener) -> None:
    async with supervising(listener, 1, task={"mode": "stubborn"}, retire_timeout=PATIENCE) as supervisor:
        await supervisor.replace_all({})
        old, new = supervisor._workers
        supervisor.kill()
        assert await old.exited == await new.exited == -signal.SIGKILL


async def test_no_worker_is_started_after_a_stop(listener: Listener) -> None:
    async with supervising(listener, 1) as supervisor:
        await supervisor.stop()
        with pytest.raises(WorkerFailed, match="no worker is started during a stop"):
            await supervisor.replace_all()
        assert supervisor._workers == []


# -- failed starts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "task", "message"),
    [
        (2, {"mode": "fail"}, r"worker \d+ exited with code 3 \(no greeting today\) before it was ready"),
        (1, {"mode": "never ready"}, r"worker \d+ was not ready within 0.5 s"),
        (1, [], r"worker \d+ exited with code 1 before it was ready"),
    ],
)
@pytest.mark.usefixtures("no_fd_leak", "capfd")  # the last one prints a traceback
async def test_a_failed_start_leaves_no_process(
    count: int, task: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    (listener,) = open_listeners([Endpoint.parse("127.0.0.1:0")])
    timeout = 0.5 if "never" in str(task) else PATIENCE
    supervisor = Supervisor(COMMAND, [listener], count, task=task, ready_timeout=timeout)
    with pytest.raises(GreeterError, match=f"^{message}$"):
        await supervisor.start()
    assert supervisor._workers == []
    assert errors(caplog) == []
    listener.close()


async def test_a_missing_command_is_an_error(listener: Listener) -> None:
    supervisor = Supervisor(["/nowhere/python"], [listener], 2)
    with pytest.raises(WorkerFailed, match="^cannot start '/nowhere/python': no such file or directory$"):
        await supervisor.start()


class FailingPopen:
    """subprocess.Popen, which fails with an error for a number of calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, times: int) -> None:
        self.number, self.times = number, times
        self._popen = subprocess.Popen
        monkeypatch.setattr(subprocess, "Popen", self)

    def __call__(self, *args: Any, **options: Any) -> subprocess.Popen[bytes]:
        if self.times:
            self.times -= 1
            raise OSError(self.number, os.strerror(self.number))
        return self._popen(*args, **options)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
@pytest.mark.usefixtures("no_fd_leak")
async def test_a_spawn_error_that_passes_is_retried(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (listener,) = open_listeners([Endpoint.parse("127.0.0.1:0")])
    FailingPopen(monkeypatch, number, 2)
    async with supervising(listener, 1):
        assert (await greet(port=port_of(listener))).data == b"hello"
    why = os.strerror(number)
    assert errors(caplog) == [
        f"cannot start a worker ({why[0].lower() + why[1:]}): trying again in {delay} s"
        for delay in (0.1, 0.2)
    ]
    listener.close()


async def test_a_spawn_error_that_lasts_fails_the_start(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    FailingPopen(monkeypatch, errno.EAGAIN, 1000)
    supervisor = Supervisor(COMMAND, [listener], 1, ready_timeout=0.15)
    with pytest.raises(WorkerFailed, match="^no worker could be started within 0.15 s$"):
        await supervisor.start()


async def test_a_cancelled_start_leaves_no_process(listener: Listener) -> None:
    supervisor = Supervisor(COMMAND, [listener], 2, task={"mode": "never ready"})
    starting = asyncio.create_task(supervisor.start())
    await until(lambda: len(supervisor._workers) == 2, "both have started")
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert supervisor._workers == []


# -- replacement, one by one -----------------------------------------------------------------------------


@on_both_loops
@pytest.mark.usefixtures("no_fd_leak")
async def test_replacing_all_under_load_loses_and_miscounts_no_client() -> None:
    (listener,) = open_listeners([Endpoint.parse("127.0.0.1:0")])
    totals = AggregateStats()
    seen: list[int] = []

    def on_stats(pid: int, stats: dict[str, Any]) -> None:
        totals.update(pid, Counters.from_json(stats))

    async def client() -> None:
        while not done.is_set():
            received.append((await greet(port=port_of(listener))).data)

    async def heard(greeting: bytes) -> None:
        await until(lambda: greeting in received, f"a client hears {greeting!r}")

    received: list[bytes] = []
    done = asyncio.Event()
    async with supervising(
        listener, task={"greeting": "old"}, on_stats=on_stats, on_exit=totals.retire
    ) as supervisor:
        clients = [asyncio.create_task(client()) for _ in range(8)]
        await heard(b"old")
        for turn in range(2):
            before = supervisor.pids
            await supervisor.replace_all({"greeting": f"new {turn}"})
            await heard(b"new %d" % turn)
            assert not set(before) & set(supervisor.pids)
            await supervisor.stats()
            seen.append(totals.total().greeted)
        done.set()
        await asyncio.gather(*clients)
        assert (await greet(port=port_of(listener))).data == b"new 1"
        await until(lambda: len(supervisor._workers) == 2, "the old workers have exited")
        await supervisor.stats()
        assert totals.total().greeted == len(received) + 1
        assert set(received) == {b"old", b"new 0", b"new 1"}
        assert supervisor.restarts == 0
        await supervisor.stop()
        assert totals.total().greeted == len(received) + 1
        assert totals.total().open == 0
    assert seen == sorted(seen)
    listener.close()


async def test_a_failed_replacement_keeps_the_old_workers(listener: Listener) -> None:
    async with supervising(listener, task={"greeting": "old"}) as supervisor:
        before = supervisor.pids
        with pytest.raises(WorkerFailed, match="no greeting today"):
            await supervisor.replace_all({"mode": "fail"})
        assert supervisor.pids == before
        assert supervisor.restarts == 0
        assert (await greet(port=port_of(listener))).data == b"old"
        for pid in before:  # later replacements have the old task too
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not set(before) & set(supervisor.pids), "both are replaced")
        assert (await greet(port=port_of(listener))).data == b"old"


async def fail_half_way(supervisor: Supervisor, file: Path, task: dict[str, Any]) -> None:
    """Replace two workers, the second of which does not find the ``file`` that the first has taken."""
    before = supervisor.pids
    with pytest.raises(WorkerFailed, match="no greeting today"):
        await supervisor.replace_all(task | {"takes": str(file)})
    assert supervisor.pids[0] != before[0]
    assert supervisor.pids[1] == before[1]


async def test_a_replacement_that_fails_half_way_is_rolled_back(
    listener: Listener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervising(listener, task={"greeting": "old"}) as supervisor:
        (tmp_path / "file").touch()
        await fail_half_way(supervisor, tmp_path / "file", {"greeting": "new"})
        await until(lambda: len(supervisor._workers) == 2, "the replaced workers have exited")
        assert supervisor.restarts == 0
        for stopped in supervisor.pids:  # so that each of them serves alone
            os.kill(stopped, signal.SIGSTOP)
            try:
                assert (await greet(port=port_of(listener))).data == b"old"
            finally:
                os.kill(stopped, signal.SIGCONT)
    assert errors(caplog) == []


async def test_a_failed_rollback_is_logged(
    listener: Listener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    needs = tmp_path / "old"
    needs.touch()
    async with supervising(listener, task={"needs": str(needs)}) as supervisor:
        needs.rename(tmp_path / "new")
        await fail_half_way(supervisor, tmp_path / "new", {})
        first, second = supervisor.pids
        await until(lambda: len(supervisor._workers) == 2, "the replaced worker has exited")
        needs.touch()
        os.kill(first, signal.SIGKILL)  # its replacement has the old task
        await until(lambda: first not in supervisor.pids, "it is replaced")
        assert second in supervisor.pids
    kept, exited = errors(caplog)
    assert kept.startswith(f"worker {first} keeps the new configuration: worker ")
    assert kept.endswith(" exited with code 3 (no greeting today) before it was ready")
    assert exited == f"worker {first} was killed by SIGKILL: starting another in 0.1 s"


async def test_a_replaced_worker_that_does_not_exit_is_killed(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervising(listener, 1, task={"mode": "stubborn"}, retire_timeout=0.1) as supervisor:
        (old,) = supervisor.pids
        await supervisor.replace_all({})
        await until(lambda: len(supervisor._workers) == 1, "it is killed")
        assert supervisor.restarts == 0
    assert errors(caplog) == [f"worker {old} did not exit within 0.1 s: killed"]


async def test_a_worker_killed_while_it_retires_is_logged(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervising(listener, 1, task={"mode": "stubborn"}, retire_timeout=PATIENCE) as supervisor:
        (old,) = supervisor.pids
        await supervisor.replace_all({})
        os.kill(old, signal.SIGKILL)  # as the kernel does when it is out of memory
        await until(lambda: len(supervisor._workers) == 1, "it is gone")
        assert supervisor.restarts == 0
    assert errors(caplog) == [f"worker {old} was killed by SIGKILL while it was retiring"]


async def test_the_timeout_of_a_stop_also_applies_to_replaced_workers(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervising(listener, 1, task={"mode": "stubborn"}, retire_timeout=PATIENCE) as supervisor:
        (old,) = supervisor.pids
        await supervisor.replace_all({})
        deadline = supervisor._workers[0]._deadline
        assert await supervisor.stop(0.2) is False
        assert deadline is not None
        assert deadline.cancelled()
    # On a busy machine, the new worker may need longer than that too.
    assert f"worker {old} did not exit within 0.2 s: killed" in errors(caplog)


async def test_a_worker_that_dies_during_its_replacement_is_logged(
    listener: Listener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervising(listener, 1, task={"greeting": "old"}) as supervisor:
        (old,) = supervisor.pids
        dying = supervisor._workers[0].exited
        task = {"greeting": "new", "awaits": str(tmp_path / "go")}
        replacing = asyncio.create_task(supervisor.replace_all(task))
        await until(lambda: len(supervisor._workers) == 2, "another one is starting")
        os.kill(old, signal.SIGKILL)
        await until(dying.done, "the exit is noticed")
        (tmp_path / "go").touch()
        await replacing
        assert supervisor.restarts == 1
        assert errors(caplog) == [f"worker {old} was killed by SIGKILL: already replaced"]
        (new,) = supervisor.pids
        assert new != old
        os.kill(new, signal.SIGKILL)  # a later replacement has the new task
        assert (await greet(port=port_of(listener), timeout=PATIENCE)).data == b"new"


# -- reports ---------------------------------------------------------------------------------------------


async def test_a_stalled_worker_does_not_delay_the_reports(listener: Listener) -> None:
    async with supervising(listener) as supervisor:
        await greet(port=port_of(listener))
        assert len(await supervisor.stats()) == 2
        os.kill(supervisor.pids[0], signal.SIGSTOP)
        try:
            for _ in range(2):
                reports = await supervisor.stats(0.05)
                assert sum(report["greeted"] for report in reports) == 1
        finally:
            os.kill(supervisor.pids[0], signal.SIGCONT)
        reports = await supervisor.stats()
        assert sum(report["greeted"] for report in reports) == 1


async def test_an_invalid_report_is_one_log_line(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    def on_stats(_pid: int, _stats: dict[str, Any]) -> None:
        raise ValueError("too new")

    async with supervising(listener, 1, on_stats=on_stats) as supervisor:
        (pid,) = supervisor.pids
        await supervisor.stats(PATIENCE)
    expected = f"worker {pid} sent invalid stats: ValueError('too new')"
    assert errors(caplog) == [expected] * 3  # the requested report, the last one, and the counters


async def test_a_worker_that_dies_before_it_reports_is_not_waited_for(listener: Listener) -> None:
    async with supervising(listener, 1) as supervisor:
        (pid,) = supervisor.pids
        os.kill(pid, signal.SIGSTOP)
        requesting = asyncio.create_task(supervisor.stats(PATIENCE))
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        assert await requesting == []


# -- health ----------------------------------------------------------------------------------------------


async def test_one_worker_that_responds_is_enough(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greeter.service.health.RESPONSE_TIMEOUT", PATIENCE)
    async with supervising(listener, 2) as supervisor:
        assert supervisor.ready_count == 2
        os.kill(supervisor.pids[0], signal.SIGSTOP)
        assert await supervisor.health.unready() == ""
        assert await supervisor.health.unready() == ""
        os.kill(supervisor.pids[0], signal.SIGCONT)


async def test_workers_that_do_not_respond_are_not_ready_and_some_time_later_not_alive(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greeter.service.health.RESPONSE_TIMEOUT", 0.1)
    loop = asyncio.get_running_loop()
    async with supervising(listener, 2) as supervisor:
        for pid in supervisor.pids:
            os.kill(pid, signal.SIGSTOP)
        assert await supervisor.health.unready() == "no worker responds"
        # Once it was asked, it counts from then on: so a service that is not asked need not do anything.
        monkeypatch.setattr("greeter.service.health.ALIVE_SECONDS", 0.4)
        asked = loop.time()
        assert await supervisor.health.not_alive() == ""
        problem = ""
        while not problem:
            problem = await supervisor.health.not_alive()
            await asyncio.sleep(0)
        assert problem == "for 0.4 s, no worker responds"
        assert loop.time() >= asked + 0.4
        monkeypatch.setattr("greeter.service.health.RESPONSE_TIMEOUT", PATIENCE)
        asking = asyncio.create_task(supervisor.health.not_alive())
        await asyncio.sleep(0)
        for pid in supervisor.pids:
            os.kill(pid, signal.SIGCONT)
        assert await asking == "", "a service that was paused as a whole gets its time to respond"
        assert await supervisor.health.unready() == ""


async def test_without_a_worker_it_is_not_ready_and_some_time_later_not_alive(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greeter.service.health.RESPONSE_TIMEOUT", PATIENCE)
    async with supervising(listener, 2) as supervisor:
        monkeypatch.setattr(Backoff, "next", lambda _: PATIENCE)
        first, second = supervisor.pids
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.ready_count == 1, "its exit is noticed")
        assert await supervisor.health.unready() == ""
        os.kill(second, signal.SIGKILL)
        await until(lambda: supervisor.ready_count == 0, "its exit is noticed")
        assert await supervisor.health.unready() == "no worker is ready"
        assert await supervisor.health.not_alive() == ""
        monkeypatch.setattr("greeter.service.health.ALIVE_SECONDS", 0.0)
        assert await supervisor.health.not_alive() == "for 0 s, no worker is ready"


async def test_replacements_that_fail_do_not_count_as_alive(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greeter.service.health.ALIVE_SECONDS", 0.2)
    monkeypatch.setattr(Backoff, "next", lambda _: 0.02)
    loop = asyncio.get_running_loop()
    async with supervising(listener, 1) as supervisor:
        (pid,) = supervisor.pids
        supervisor._command = ["false"]
        os.kill(pid, signal.SIGKILL)
        await until(lambda: supervisor.ready_count == 0, "its exit is noticed")
        since, problem = loop.time(), ""
        while not problem:
            problem = await supervisor.health.not_alive()
            await asyncio.sleep(0)
        assert problem == "for 0.2 s, no worker is ready"
        assert loop.time() <= since + PATIENCE / 2
        await until(lambda: supervisor.restarts > 2, "others have failed")


async def test_a_worker_that_is_told_to_leave_is_not_ready(listener: Listener) -> None:
    async with supervising(listener, 1) as supervisor:
        stopping = asyncio.create_task(supervisor.stop(PATIENCE))
        await until(lambda: supervisor.ready_count == 0, "it is told to leave")
        assert await supervisor.health.unready() == "no worker is ready"
        assert await stopping


# -- a system without pidfd ------------------------------------------------------------------------------


@on_both_loops
async def test_an_exit_is_noticed_without_pidfd(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def pidfd_open(_pid: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    async with supervising(listener, 1) as supervisor:
        (pid,) = supervisor.pids
        os.kill(pid, 63)
        await until(lambda: supervisor.pids != (pid,), "it is replaced")
        assert (await greet(port=port_of(listener))).data == b"hello"
        assert await supervisor.stop(PATIENCE)
    # 63 is a real-time signal, which has no name.
    assert errors(caplog) == [f"worker {pid} was killed by signal 63: starting another in 0.1 s"]
