"""Workers as processes: they die, are replaced and leave, and no client notices."""

from __future__ import annotations

import asyncio
import contextlib
import errno
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
from greeter.service.channel import PARENT_GONE
from greeter.service.snapshot import Snapshot, Totals
from greeter.service.supervisor import Backoff, Supervisor
from greeter.service.worker_process import WorkerFailed
from greeter.system.listeners import Listener, open_listeners
from tests.conftest import PATIENCE, ROOT, loop_factories
from tests.support.peers import connect, read_to_end, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

COMMAND = [sys.executable, "-m", "tests.support.worker_process"]

# What depends on the parent's loop is tested on both of them; a process is slow to start.
pytestmark = [pytest.mark.usefixtures("in_root"), pytest.mark.asyncio(loop_factories=["asyncio"])]
on_both_loops = pytest.mark.asyncio(loop_factories=list(loop_factories()))


@pytest.fixture
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def door() -> Iterator[Listener]:
    (listener,) = open_listeners([Endpoint.parse("127.0.0.1:0")])
    yield listener
    listener.close()


def port_of(door: Listener) -> int:
    assert isinstance(door.endpoint.port, int)
    return door.endpoint.port


@contextlib.asynccontextmanager
async def working(door: Listener, count: int = 2, **options: Any) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(
        options.pop("command", COMMAND), [door], count, task=options.pop("task", {}), **options
    )
    async with asyncio.timeout(PATIENCE):
        await supervisor.start()
    try:
        yield supervisor
    finally:
        async with asyncio.timeout(PATIENCE):
            await supervisor.stop(5.0)


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# -- a quiet life ----------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.usefixtures("no_fd_leak")
async def test_workers_greet_report_and_leave() -> None:
    (door,) = open_listeners([Endpoint.parse("127.0.0.1:0")])
    left: list[int] = []
    async with working(door, 2, on_left=left.append) as supervisor:
        pids = supervisor.pids
        assert len(set(pids)) == 2
        replies = await asyncio.gather(*(greet(port=port_of(door)) for _ in range(8)))
        assert [reply.data for reply in replies] == [b"hello"] * 8
        reports = await supervisor.stats()
        assert sum(Snapshot.from_json(report).greeted for report in reports) == 8
        assert await supervisor.stop(PATIENCE)
        assert sorted(left) == sorted(pids)
        assert await supervisor.stats() == []
    assert not any(map(exists, pids))
    assert supervisor.restarts == 0
    door.close()


async def test_a_worker_is_a_direct_child_with_its_sockets_and_nothing_else(door: Listener) -> None:
    with socket.socket() as other:
        other.set_inheritable(True)
        async with working(door, 1) as supervisor:
            (pid,) = supervisor.pids
            with open(f"/proc/{pid}/stat") as file:  # noqa: ASYNC230  # it is not on a disk
                parent, group = map(int, file.read().rpartition(")")[2].split()[1:3])
            assert parent == os.getpid()
            assert group == pid  # a Ctrl-C in the terminal is not for it
            theirs = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            assert os.readlink(f"/proc/self/fd/{door.sock.fileno()}") in theirs
            assert os.readlink(f"/proc/self/fd/{other.fileno()}") not in theirs
            assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull


# -- sudden death ----------------------------------------------------------------------------------------


async def queue_up(door: Listener, count: int) -> list[socket.socket]:
    return [await connect(port_of(door)) for _ in range(count)]


@on_both_loops
@pytest.mark.usefixtures("no_fd_leak")
async def test_a_killed_worker_is_replaced_and_nobody_queued_is_reset(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (door,) = open_listeners([Endpoint.parse("127.0.0.1:0")])
    async with working(door) as supervisor:
        victim, other = supervisor.pids
        for pid in (victim, other):
            os.kill(pid, signal.SIGSTOP)
        clients = await queue_up(door, 20)
        os.kill(victim, signal.SIGKILL)
        os.kill(other, signal.SIGCONT)
        for client in clients:
            outcome = await read_to_end(client)
            assert (outcome.data, outcome.reset) == (b"hello", False)
        await until(lambda: victim not in supervisor.pids, "it is replaced")
        assert supervisor.pids[1] == other
        assert supervisor.restarts == 1
    assert errors(caplog) == [f"worker {victim} was killed by SIGKILL: starting another in 0.1 s"]
    door.close()


async def test_when_all_are_killed_the_queue_waits_for_the_next(door: Listener) -> None:
    async with working(door) as supervisor:
        for pid in supervisor.pids:
            os.kill(pid, signal.SIGSTOP)
        clients = await queue_up(door, 10)
        before = supervisor.pids
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        for client in clients:
            outcome = await read_to_end(client)
            assert (outcome.data, outcome.reset) == (b"hello", False)
        await until(lambda: not set(before) & set(supervisor.pids), "both are replaced")


async def test_a_crash_loop_backs_off(door: Listener, caplog: pytest.LogCaptureFixture) -> None:
    async with working(door, 1, task={"mode": "crash"}) as supervisor:
        await until(lambda: supervisor.restarts == 3, "it crashes again and again")
        await supervisor.stop()
    lines = [line.partition(" ")[2].partition(" ")[2] for line in errors(caplog)]
    assert lines == [f"exited with code 3: starting another in {delay} s" for delay in (0.1, 0.2, 0.4)]


async def test_a_replacement_that_does_not_come_up_is_tried_again(
    door: Listener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    needed = tmp_path / "needed"
    needed.touch()
    async with working(door, 1, task={"needs": str(needed)}) as supervisor:
        (pid,) = supervisor.pids
        needed.unlink()
        os.kill(pid, signal.SIGTERM)
        await until(lambda: supervisor.restarts == 2, "the first replacement fails")
        needed.touch()
        assert (await greet(port=port_of(door))).data == b"hello"
    first, second, *_ = errors(caplog)
    assert first == f"worker {pid} was killed by SIGTERM: starting another in 0.1 s"
    assert second.endswith(
        "exited with code 3 (no greeting today) before it was ready: starting another in 0.2 s"
    )


@on_both_loops
async def test_a_worker_that_does_not_answer_is_replaced(
    door: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[int] = []
    async with working(door, on_stats=lambda pid, _: answers.append(pid)) as supervisor:
        silent, other = (child.pid for child in supervisor._children)
        os.kill(silent, signal.SIGSTOP)
        supervisor.end_silence()
        await until(lambda: other in answers, "the other answers")
        assert errors(caplog) == []
        supervisor.end_silence()
        supervisor._children[0].end_silence()  # it is killed once only
        await until(lambda: silent not in supervisor.pids, "it is replaced")
        assert other in supervisor.pids
    assert errors(caplog) == [
        f"worker {silent} does not answer: killed",
        f"worker {silent} was killed by SIGKILL: starting another in 0.1 s",
    ]


async def test_answers_that_came_while_the_parent_was_away_count(
    door: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(door, 1) as supervisor:
        (child,) = supervisor._children
        supervisor.end_silence()
        select.select([child._channel._sock], [], [], PATIENCE)  # the loop does not see it
        supervisor.end_silence()
        await supervisor.stats()
        assert supervisor.restarts == 0
    assert errors(caplog) == []


async def test_a_worker_that_leaves_has_its_own_deadline(
    door: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(door, 1) as supervisor:
        (child,) = supervisor._children
        os.kill(child.pid, signal.SIGSTOP)
        supervisor.end_silence()
        child.retire(PATIENCE)
        supervisor.end_silence()
        os.kill(child.pid, signal.SIGCONT)
        assert await child.gone == 0
    assert not [line for line in errors(caplog) if "does not answer" in line]


async def test_a_worker_that_talks_nonsense_is_replaced(
    door: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(door, 1, task={"mode": "nonsense"}) as supervisor:
        (pid,) = supervisor.pids
        await until(lambda: supervisor.restarts == 1, "it is killed")
    assert errors(caplog)[:2] == [
        f"worker {pid} sent what is no message: b'not JSON': killed",
        f"worker {pid} was killed by SIGKILL: starting another in 0.1 s",
    ]


async def test_the_back_off_doubles_to_a_bound() -> None:
    backoff = Backoff()
    assert [backoff.next() for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    backoff.reset()
    assert backoff.next() == 0.1


async def test_a_long_and_healthy_life_begins_a_new_series(
    door: Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("greeter.service.supervisor.HEALTHY_SECONDS", 0.0)
    async with working(door, 1, task={"mode": "crash"}) as supervisor:
        await until(lambda: supervisor.restarts == 2, "it crashes again")
    assert all(line.endswith("starting another in 0.1 s") for line in errors(caplog))


PARENT = """
import asyncio, sys
from greeter import Endpoint
from greeter.system.listeners import open_listeners
from greeter.service.supervisor import Supervisor

async def main():
    (door,) = open_listeners([Endpoint.parse("127.0.0.1:0")])
    task = {"leaves": sys.argv[1]}
    supervisor = Supervisor([sys.executable, "-m", "tests.support.worker_process"], [door], 2, task=task)
    await supervisor.start()
    print(door.endpoint.port, *supervisor.pids, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def death_of(pid: int) -> None:
    """Wait until a process that is not our child is gone."""
    gone = asyncio.Event()
    pidfd = os.pidfd_open(pid)
    asyncio.get_running_loop().add_reader(pidfd, gone.set)
    async with asyncio.timeout(PATIENCE):
        await gone.wait()
    asyncio.get_running_loop().remove_reader(pidfd)
    os.close(pidfd)


async def test_workers_leave_when_their_parent_is_killed(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.touch()
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, str(notes)), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    async with asyncio.timeout(PATIENCE):
        port, *pids = map(int, (await parent.stdout.readline()).split())
    inside = await connect(port)
    assert await asyncio.get_running_loop().sock_recv(inside, 5) == b"hello"
    deaths = asyncio.gather(*map(death_of, pids))
    parent.kill()
    outcome = await read_to_end(inside)  # whoever is inside is still seen off in order
    assert (outcome.data, outcome.reset) == (b"", False)
    await deaths
    await parent.wait()
    assert notes.read_text() == f"{PARENT_GONE}\n" * 2


# -- the end ---------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_worker_that_does_not_leave_is_killed(
    door: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(door, 2, task={"mode": "stubborn"}) as supervisor:
        pids = supervisor.pids
        assert await supervisor.stop(0.1) is False
    assert not any(map(exists, pids))
    assert errors(caplog) == [f"worker {pid} was not gone within 0.1 s: killed" for pid in pids]


async def test_a_stop_finishes_with_everybody_inside(door: Listener) -> None:
    async with working(door) as supervisor:
        inside = [await connect(port_of(door)) for _ in range(4)]
        for client in inside:
            assert await asyncio.get_running_loop().sock_recv(client, 5) == b"hello"
        stopping = asyncio.create_task(supervisor.stop(PATIENCE))
        for client in inside:
            outcome = await read_to_end(client)
            assert (outcome.data, outcome.reset) == (b"", False)
        assert await stopping


async def test_the_door_is_closed_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greeter.service.supervisor.HANDSHAKE_GRACE", 0.2)
    loop = asyncio.get_running_loop()
    path = f"{tmp_path}/x"
    (door,) = open_listeners([Endpoint.unix(path)])
    async with working(door, 1) as supervisor:
        (pid,) = supervisor.pids
        os.kill(pid, signal.SIGSTOP)
        begin = loop.time()
        with socket.socket(socket.AF_UNIX) as early:
            early.connect(path)
            early.setblocking(False)
            stopping = asyncio.create_task(supervisor.stop(PATIENCE))
            await until(lambda: not os.access(path, os.F_OK), "nobody new comes in")
            assert not stopping.done()
            os.kill(pid, signal.SIGCONT)
            assert await loop.sock_recv(early, 5) == b"hello"
        assert await stopping
        assert loop.time() - begin >= 0.2
    door.close()


async def test_a_door_that_others_serve_too_is_left_open(
    door: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "greeter.service.supervisor.HANDSHAKE_GRACE", 10 * PATIENCE
    )  # for handshakes that nobody resets
    door.inherited = True
    async with working(door, 1) as supervisor:
        assert await supervisor.stop()
        (await connect(port_of(door))).close()


async def test_the_last_report_is_heard_however_late(door: Listener) -> None:
    heard: list[int] = []
    async with working(door, 1, on_stats=lambda _pid, stats: heard.append(stats["greeted"])) as supervisor:
        assert (await greet(port=port_of(door))).data == b"hello"
        asyncio.get_running_loop().remove_reader(supervisor._children[0]._channel._sock.fileno())
        assert await supervisor.stop()
    assert heard == [1]


async def test_a_stop_while_a_worker_is_on_its_way(door: Listener, caplog: pytest.LogCaptureFixture) -> None:
    async with working(door, 1) as supervisor:
        (pid,) = supervisor.pids
        os.kill(pid, signal.SIGKILL)
        await until(lambda: supervisor._children == [] and supervisor.restarts == 1, "it has died")
        await until(lambda: supervisor._children != [], "another is on its way")
        assert await supervisor.stop()
        assert supervisor._children == []


async def test_a_parent_that_is_in_a_hurry_kills_them_all(door: Listener) -> None:
    async with working(door, 1, task={"mode": "stubborn"}, retire_timeout=PATIENCE) as supervisor:
        await supervisor.replace_all({})
        old, new = supervisor._children
        supervisor.kill()
        assert await old.gone == await new.gone == -signal.SIGKILL


async def test_none_is_started_after_the_end(door: Listener) -> None:
    async with working(door, 1) as supervisor:
        await supervisor.stop()
        with pytest.raises(WorkerFailed, match="no worker is started while they are being stopped"):
            await supervisor.replace_all()
        assert supervisor._children == []


# -- a start that fails ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "task", "message"),
    [
        (2, {"mode": "fail"}, r"worker \d+ exited with code 3 \(no greeting today\) before it was ready"),
        (1, {"mode": "never ready"}, r"worker \d+ was not ready within 0.5 s"),
        (1, [], r"worker \d+ exited with code 1 before it was ready"),
    ],
)
@pytest.mark.usefixtures("no_fd_leak", "capfd")  # the last one leaves a traceback
async def test_a_start_that_fails_leaves_nothing(
    count: int, task: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    (door,) = open_listeners([Endpoint.parse("127.0.0.1:0")])
    timeout = 0.5 if "never" in str(task) else PATIENCE
    supervisor = Supervisor(COMMAND, [door], count, task=task, ready_timeout=timeout)
    with pytest.raises(GreeterError, match=f"^{message}$"):
        await supervisor.start()
    assert supervisor._children == []
    assert errors(caplog) == []
    door.close()


async def test_a_command_that_is_not_there(door: Listener) -> None:
    supervisor = Supervisor(["/nowhere/python"], [door], 2)
    with pytest.raises(WorkerFailed, match="^cannot start '/nowhere/python': no such file or directory$"):
        await supervisor.start()


class Busy:
    """A system that cannot fork for a while."""

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
async def test_a_system_that_is_busy_is_asked_again(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (door,) = open_listeners([Endpoint.parse("127.0.0.1:0")])
    Busy(monkeypatch, number, 2)
    async with working(door, 1):
        assert (await greet(port=port_of(door))).data == b"hello"
    why = os.strerror(number)
    assert errors(caplog) == [
        f"cannot start a worker ({why[0].lower() + why[1:]}): trying again in {delay} s"
        for delay in (0.1, 0.2)
    ]
    door.close()


async def test_a_system_that_stays_busy(door: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    Busy(monkeypatch, errno.EAGAIN, 1000)
    supervisor = Supervisor(COMMAND, [door], 1, ready_timeout=0.15)
    with pytest.raises(WorkerFailed, match="^no worker could be started within 0.15 s$"):
        await supervisor.start()


async def test_a_cancelled_start_leaves_nothing(door: Listener) -> None:
    supervisor = Supervisor(COMMAND, [door], 2, task={"mode": "never ready"})
    starting = asyncio.create_task(supervisor.start())
    await until(lambda: len(supervisor._children) == 2, "they are on their way")
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert supervisor._children == []


# -- one after the other ---------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.usefixtures("no_fd_leak")
async def test_replacing_all_under_load_loses_nobody_and_counts_everybody() -> None:
    (door,) = open_listeners([Endpoint.parse("127.0.0.1:0")])
    totals = Totals()
    seen: list[int] = []

    def on_stats(pid: int, stats: dict[str, Any]) -> None:
        totals.update(pid, Snapshot.from_json(stats))

    async def client() -> list[bytes]:
        words = []
        while not done.is_set():
            words.append((await greet(port=port_of(door))).data)
        return words

    done = asyncio.Event()
    async with working(
        door, task={"greeting": "old"}, on_stats=on_stats, on_left=totals.retire
    ) as supervisor:
        clients = [asyncio.create_task(client()) for _ in range(8)]
        for turn in range(2):
            before = supervisor.pids
            await supervisor.replace_all({"greeting": f"new {turn}"})
            assert not set(before) & set(supervisor.pids)
            await supervisor.stats()
            seen.append(totals.total().greeted)
        done.set()
        heard = [word for words in await asyncio.gather(*clients) for word in words]
        assert (await greet(port=port_of(door))).data == b"new 1"
        await until(lambda: len(supervisor._children) == 2, "the old ones are gone")
        await supervisor.stats()
        assert totals.total().greeted == len(heard) + 1
        assert set(heard) == {b"old", b"new 0", b"new 1"}
        assert supervisor.restarts == 0
        await supervisor.stop()
        assert totals.total().greeted == len(heard) + 1
        assert totals.total().open == 0
    assert seen == sorted(seen)
    door.close()


async def test_a_replacement_that_fails_leaves_the_old_ones(door: Listener) -> None:
    async with working(door, task={"greeting": "old"}) as supervisor:
        before = supervisor.pids
        with pytest.raises(WorkerFailed, match="no greeting today"):
            await supervisor.replace_all({"mode": "fail"})
        assert supervisor.pids == before
        assert supervisor.restarts == 0
        assert (await greet(port=port_of(door))).data == b"old"
        for pid in before:  # and whoever comes later has the old task too
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not set(before) & set(supervisor.pids), "both are replaced")
        assert (await greet(port=port_of(door))).data == b"old"


async def fail_half_way(supervisor: Supervisor, file: Path, task: dict[str, Any]) -> None:
    """Replace two workers, of whom the second one does not find the ``file``."""
    before = supervisor.pids
    replacing = asyncio.create_task(supervisor.replace_all(task | {"needs": str(file)}))
    await until(lambda: supervisor.pids[0] != before[0], "the first one is replaced")
    os.unlink(file)
    with pytest.raises(WorkerFailed, match="no greeting today"):
        await replacing
    assert supervisor.pids[1] == before[1]


async def test_a_replacement_that_fails_half_way_is_taken_back(
    door: Listener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(door, task={"greeting": "old"}) as supervisor:
        (tmp_path / "file").touch()
        await fail_half_way(supervisor, tmp_path / "file", {"greeting": "new"})
        await until(lambda: len(supervisor._children) == 2, "those that were replaced are gone")
        assert supervisor.restarts == 0
        for stopped in supervisor.pids:  # each of them alone
            os.kill(stopped, signal.SIGSTOP)
            try:
                assert (await greet(port=port_of(door))).data == b"old"
            finally:
                os.kill(stopped, signal.SIGCONT)
    assert errors(caplog) == []


async def test_what_cannot_be_taken_back_is_said(
    door: Listener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    needs = tmp_path / "old"
    needs.touch()
    async with working(door, task={"needs": str(needs)}) as supervisor:
        needs.rename(tmp_path / "new")
        await fail_half_way(supervisor, tmp_path / "new", {})
        first, second = supervisor.pids
        assert len(supervisor._children) == 2
        needs.touch()
        os.kill(first, signal.SIGKILL)  # the next one has the old task
        await until(lambda: first not in supervisor.pids, "it is replaced")
        assert second in supervisor.pids
    said, died = errors(caplog)
    assert said.startswith(f"worker {first} keeps the new configuration: worker ")
    assert said.endswith(" exited with code 3 (no greeting today) before it was ready")
    assert died == f"worker {first} was killed by SIGKILL: starting another in 0.1 s"


async def test_a_replaced_worker_that_does_not_leave_is_killed(
    door: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(door, 1, task={"mode": "stubborn"}, retire_timeout=0.1) as supervisor:
        (old,) = supervisor.pids
        await supervisor.replace_all({})
        await until(lambda: len(supervisor._children) == 1, "it is killed")
        assert supervisor.restarts == 0
    assert errors(caplog) == [f"worker {old} was not gone within 0.1 s: killed"]


async def test_a_worker_that_is_killed_while_it_leaves_is_named(
    door: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(door, 1, task={"mode": "stubborn"}, retire_timeout=PATIENCE) as supervisor:
        (old,) = supervisor.pids
        await supervisor.replace_all({})
        os.kill(old, signal.SIGKILL)  # by whoever is short of memory
        await until(lambda: len(supervisor._children) == 1, "it is gone")
        assert supervisor.restarts == 0
    assert errors(caplog) == [f"worker {old} was killed by SIGKILL while it was leaving"]


async def test_a_stop_does_not_wait_for_those_that_were_replaced_longer_than_for_others(
    door: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(door, 1, task={"mode": "stubborn"}, retire_timeout=PATIENCE) as supervisor:
        (old,) = supervisor.pids
        await supervisor.replace_all({})
        deadline = supervisor._children[0]._deadline
        assert await supervisor.stop(0.2) is False
        assert deadline is not None
        assert deadline.cancelled()
    assert errors(caplog) == [f"worker {old} was not gone within 0.2 s: killed"]


async def test_a_worker_that_dies_while_it_is_replaced(
    door: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(door, 1, task={"greeting": "old"}) as supervisor:
        (old,) = supervisor.pids
        replacing = asyncio.create_task(supervisor.replace_all({"greeting": "new"}))
        await until(lambda: len(supervisor._children) == 2, "another is on its way")
        os.kill(old, signal.SIGKILL)
        await replacing
        assert supervisor.restarts == 1
        assert errors(caplog) == [f"worker {old} was killed by SIGKILL: another has taken its place"]
        (new,) = supervisor.pids
        assert new != old
        os.kill(new, signal.SIGKILL)  # and whoever comes later has the new task
        assert (await greet(port=port_of(door))).data == b"new"


# -- reports ---------------------------------------------------------------------------------------------


async def test_a_worker_that_is_stuck_does_not_hold_up_the_report(door: Listener) -> None:
    async with working(door) as supervisor:
        await greet(port=port_of(door))
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


async def test_reports_that_cannot_be_used_are_one_line(
    door: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    def on_stats(_pid: int, _stats: dict[str, Any]) -> None:
        raise ValueError("too new")

    async with working(door, 1, on_stats=on_stats) as supervisor:
        (pid,) = supervisor.pids
        await supervisor.stats()
    expected = f"worker {pid}: its stats are of no use: ValueError('too new')"
    assert errors(caplog) == [expected, expected]  # asked for, and its last


async def test_a_worker_that_dies_instead_of_reporting(door: Listener) -> None:
    async with working(door, 1) as supervisor:
        (pid,) = supervisor.pids
        os.kill(pid, signal.SIGSTOP)
        asking = asyncio.create_task(supervisor.stats(PATIENCE))
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        assert await asking == []


# -- a system without pidfd ------------------------------------------------------------------------------


@on_both_loops
async def test_a_death_is_noticed_without_pidfd(
    door: Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def pidfd_open(_pid: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    async with working(door, 1) as supervisor:
        (pid,) = supervisor.pids
        os.kill(pid, 63)
        await until(lambda: supervisor.pids != (pid,), "it is replaced")
        assert (await greet(port=port_of(door))).data == b"hello"
        assert await supervisor.stop(PATIENCE)
    # 63 is a real-time signal, which has no name.
    assert errors(caplog) == [f"worker {pid} was killed by signal 63: starting another in 0.1 s"]
