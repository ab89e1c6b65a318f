"""Fixtures: every coroutine test runs on every loop, every server on port 0, every wait on an event."""

from __future__ import annotations

import asyncio
import compileall
import contextlib
import gc
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from greeter.system.fdlimit import raise_fd_limit
from tests.support.shims import NoCompilerError, compile_shim

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

ROOT = Path(__file__).parent.parent
# A hung test fails. Alone, no test takes a tenth of this; beside other work, it may be several times that.
PATIENCE = 90.0
# Files that wait for long, or start many processes, each of which takes a moment.
LONG = (
    "test_checks",
    "test_engine",
    "test_fault_matrix",
    "test_multi_process",
    "test_supervisor",
    "test_stop",
    "test_service",
    "test_loadcommand",
    "test_examples",
    "test_conformance",
    "test_check_run",
)

# An example takes as long as the machine lets it.
settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")

raise_fd_limit()
# A shell starts what runs in its background with SIGINT ignored, which commands inherit, and heed.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    # Hundreds of tests start a command. Without byte code (PYTHONDONTWRITEBYTECODE), each would compile anew.
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(ROOT / "greeter", quiet=2)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The processes that run the tests: none for tests that are named, one per core and two more for all.

    Tests wait for other processes as much as they compute, so that more of them keep the cores busy.
    """
    if config.args_source is config.ArgsSource.ARGS:
        return 0
    return len(os.sched_getaffinity(0)) + 2


def leaves_out_thorough(config: pytest.Config) -> bool:
    """Whether thorough tests are left out: they run if they are named, or chosen by a marker."""
    if hasattr(config, "workerinput"):
        return bool(config.workerinput["leaves_out_thorough"])
    return config.args_source is not config.ArgsSource.ARGS and not config.option.markexpr


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["leaves_out_thorough"] = leaves_out_thorough(node.config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no process begins one as the others end."""
    if leaves_out_thorough(config):
        left_out = [item for item in items if item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]

    def place(item: pytest.Item) -> int:
        if item.get_closest_marker("one_interpreter"):
            return 0
        return 1 if item.path.stem in LONG else 2

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Keep what was collected from the garbage collector: looking through it takes a quarter of a second."""
    gc.collect()
    gc.freeze()


# For a test of what runs in another process, which has a loop of its own.
one_loop = pytest.mark.asyncio(loop_factories=["asyncio"])


def asyncio_debug_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 10.0
    return loop


def loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio_debug_loop}
    with contextlib.suppress(ImportError):
        import uvloop

        factories["uvloop"] = uvloop.new_event_loop
    return factories


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return loop_factories()


def open_fds() -> dict[str, str]:
    """The open descriptors of this process and what they are."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


@pytest_asyncio.fixture
async def no_fd_leak() -> AsyncIterator[None]:
    """No descriptor is left open by what runs in between."""
    # uvloop opens some for itself when it first makes a stream and a thread.
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    server.close()
    await asyncio.to_thread(int)
    before = open_fds()
    yield
    loop = asyncio.get_running_loop()
    end = loop.time() + 5.0
    while left := {fd: what for fd, what in open_fds().items() if fd not in before}:
        if loop.time() > end:
            raise AssertionError(f"left open: {left}")
        gc.collect()
        await asyncio.sleep(0)  # a transport closes its socket in the loop's next turn


def without_coverage() -> dict[str, str]:
    """The environment of a process in which no coverage is measured, as it would be of every Python."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


class Process:
    """A greeter command that runs in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []  # of stderr, as they came
        self.address = ""

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    async def line_with(self, text: str) -> str:
        """The first line of stderr, old or new, with ``text`` in it."""
        for line in self.lines:
            if text in line:
                return line
        assert self.process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            while raw := await self.process.stderr.readline():
                self.lines.append(raw.decode().removesuffix("\n"))
                if text in self.lines[-1]:
                    return self.lines[-1]
        raise AssertionError(f"no line with {text!r} in {self.lines}")

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, read the log to its end, return the exit code."""
        self.process.send_signal(number)
        return await self.ended()

    async def ended(self) -> int:
        assert self.process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            rest = await self.process.stderr.read()
            self.lines += rest.decode().splitlines()
            return await self.process.wait()


@contextlib.asynccontextmanager
async def greeter_process(
    *args: str,
    ready: str = "Listening on ",
    pass_fds: tuple[int, ...] = (),
    env: dict[str, str] | None = None,
) -> AsyncIterator[Process]:
    """``greeter ARGS`` in its own process, entered when its log has a line with ``ready``."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "greeter",
        *args,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        pass_fds=pass_fds,
        env={**os.environ, **(env or {})},
    )
    process = Process(child)
    try:
        if ready:
            line = await process.line_with(ready)
            process.address = line.partition(ready)[2].split(" ")[0]
        yield process
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        with contextlib.suppress(asyncio.LimitOverrunError):
            await child.communicate()


async def run_greeter(*args: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run a command that ends by itself: exit code, stdout, stderr."""
    async with greeter_process(*args, ready="", env=env) as process:
        async with asyncio.timeout(PATIENCE):
            out, err = await process.process.communicate()
        assert process.process.returncode is not None
        return process.process.returncode, out.decode(), err.decode()


@pytest.fixture(params=["direct", "streams"])
def accept(request: pytest.FixtureRequest) -> str:
    """The accept path."""
    return str(request.param)


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/support/faults.c, compiled."""
    try:
        return compile_shim("faults.c", tmp_path_factory.mktemp("faults"))
    except NoCompilerError as error:
        pytest.skip(str(error))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many faults were injected, and survived, whichever file they are in."""
    survived = total = 0
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            if "fault" in getattr(report, "keywords", ()):
                survived, total = survived + (outcome == "passed"), total + 1
            for name, value in getattr(report, "user_properties", ()):
                if name == "faults":  # of many rows of the matrix
                    survived, total = survived + value[0], total + value[1]
    if total:
        terminalreporter.write_line(f"faults survived {survived} of {total}")
