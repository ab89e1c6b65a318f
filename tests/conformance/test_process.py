"""What is done to the tested process is undone, also when this one dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from greeter.conformance.dial import Dial
from greeter.conformance.process import (
    listening_pid,
    parent,
    room_for,
    run_command,
    runnable_seconds,
    serving_pids,
    standing_still,
)
from greeter.errors import ConfigError
from tests.conftest import PATIENCE, ROOT
from tests.support.lossy_peers import blocking_loop
from tests.support.peers import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


@pytest.fixture
def sleeper() -> Iterator[int]:
    code = "import time; print(flush=True); time.sleep(300)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


async def test_a_stopped_process_goes_on(sleeper: int) -> None:
    with standing_still([sleeper]):
        await until(lambda: state(sleeper) == "T", "it stands still")
    await until(lambda: state(sleeper) == "S", "it goes on")


async def test_a_stopped_process_goes_on_after_our_death(sleeper: int) -> None:
    code = (
        "import sys, time\nfrom greeter.conformance.process import standing_still\n"
        f"with standing_still([{sleeper}]):\n    print(flush=True)\n    time.sleep(300)\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as ours:  # noqa: ASYNC220  # moments
        assert ours.stdout is not None
        try:
            await asyncio.to_thread(ours.stdout.readline)
            await until(lambda: state(sleeper) == "T", "it stands still")
        finally:
            ours.kill()
    await until(lambda: state(sleeper) == "S", "it goes on")


async def test_a_lowered_limit_is_raised_again(sleeper: int) -> None:
    before = resource.prlimit(sleeper, resource.RLIMIT_NOFILE)
    opened = max(map(int, os.listdir(f"/proc/{sleeper}/fd"))) + 1
    with room_for(sleeper, 5) as limit:
        assert limit == opened + 5
        assert resource.prlimit(sleeper, resource.RLIMIT_NOFILE) == (limit, before[1])
    assert resource.prlimit(sleeper, resource.RLIMIT_NOFILE) == before


def test_a_process_that_is_never_idle_is_told_from_one_that_is(sleeper: int) -> None:
    code = "import time; end = time.monotonic() + 300\nwhile time.monotonic() < end: pass"
    # However little a busy machine lets it run: what it waits for counts as well.
    with subprocess.Popen(["nice", "-n", "19", sys.executable, "-c", code]) as busy:

        def once_it_runs() -> tuple[list[float], float]:
            """What both used, and when: the kernel counts a wait when it ends."""
            last, end = runnable_seconds(busy.pid), time.monotonic() + PATIENCE
            while runnable_seconds(busy.pid) == last:
                assert time.monotonic() < end
                time.sleep(0.001)
            return [runnable_seconds(pid) for pid in (busy.pid, sleeper)], time.monotonic()

        try:
            time.sleep(0.2)
            before, begin = once_it_runs()
            time.sleep(0.5)
            after, end = once_it_runs()
        finally:
            busy.kill()
    assert after[0] - before[0] > (end - begin) / 2
    assert after[1] - before[1] < (end - begin) / 5


def test_a_limit_counts_the_free_descriptors_below_it() -> None:
    code = (
        "import os, time\nos.dup2(0, 200)\nprint(flush=True)\ninput()\n"
        "try:\n    [os.dup(0) for _ in range(6)]\nexcept OSError:\n    print('full', flush=True)\ninput()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        with room_for(process.pid, 5) as limit:
            assert limit < 200
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "full\n"
            assert set(map(int, os.listdir(f"/proc/{process.pid}/fd"))) == {*range(limit), 200}
        process.kill()


async def test_only_the_process_that_listens_is_taken() -> None:
    async with blocking_loop() as service:
        dial = Dial(2, ("127.0.0.1", service.port), 1.0)
        assert serving_pids(dial, service.pid) == [service.pid]
        assert listening_pid(dial) == service.pid
        assert parent(service.pid) == os.getpid()
        assert serving_pids(dial, os.getpid()) == [os.getpid(), service.pid]
        with pytest.raises(ConfigError, match="process 1 does not listen at the target"):
            serving_pids(dial, 1)


async def test_a_command_says_why_it_failed() -> None:
    assert await run_command("exit 0") == ""
    assert await run_command("echo no such unit >&2; exit 3") == "exit code 3: no such unit"


async def test_a_command_that_does_not_return_is_ended_with_what_it_started() -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        # The shell's child keeps the pipe open for as long as it lives.
        said = await run_command(f"exec 2>/proc/{os.getpid()}/fd/{write}; sleep 300 & wait", seconds=0.5)
    finally:
        os.close(write)
    assert said == "did not return within 0.5 s"
    assert await asyncio.to_thread(os.read, read, 1) == b""
    os.close(read)


def test_a_watcher_is_not_stopped_by_the_signal_of_a_terminal(sleeper: int) -> None:
    with contextlib.suppress(KeyboardInterrupt), standing_still([sleeper]):
        signal.raise_signal(signal.SIGINT)
    assert state(sleeper) != "T"


async def test_a_command_may_leave_a_service_behind(tmp_path: Path) -> None:
    # The service keeps the descriptors of the command.
    file = tmp_path / "pid"
    try:
        assert await run_command(f"sleep 300 & echo $! > {file}", seconds=PATIENCE) == ""
    finally:
        os.kill(int(file.read_text()), signal.SIGKILL)
