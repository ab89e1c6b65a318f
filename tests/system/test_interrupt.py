"""SIGINT and SIGTERM end a command at any time, without a traceback. The library installs no handler."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from greeter.system import interrupt
from tests.conftest import PATIENCE, ROOT, without_coverage

if TYPE_CHECKING:
    from collections.abc import Iterator

# Runs greeter, and sends itself a signal when it begins to import a module, or at the end of the process.
INTERRUPTED = """
import atexit, os, runpy, signal, sys
when = sys.argv.pop(1)
number = int(sys.argv.pop(1))
def interrupt():
    os.kill(os.getpid(), number)
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == when:
            interrupt()
if when == "the end":
    atexit.register(interrupt)
sys.meta_path.insert(0, Finder)
runpy.run_module("greeter", run_name="__main__", alter_sys=True)
"""
SERVE = ("serve", "--listen", "127.0.0.1:0")


def interrupted(
    when: str, *args: str, before: str = "", number: int = signal.SIGINT, wrapper: tuple[str, ...] = ()
) -> tuple[int, bytes]:
    """The exit code and the stderr of a command."""
    command = [*wrapper, sys.executable, "-c", before + INTERRUPTED, when, str(int(number)), *args]
    # Where coverage is measured in subprocesses, it has a handler of SIGTERM before the command begins.
    env = without_coverage()
    done = subprocess.run(
        command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=PATIENCE
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("when", "args"),
    [
        ("greeter.cli.cli", ["--version"]),
        ("click", ["--version"]),
        ("greeter.config.options", ["--version"]),
        ("asyncio", ["greet"]),
        ("greeter.client", ["greet"]),
        ("greeter.service.startup", SERVE),
        ("greeter.server", SERVE),
        ("greeter.loadtest.report.saved", ["report", "none.json"]),
        ("the end", ["--version"]),
        ("the end", ["greet", "fd:999"]),
    ],
)
def test_ctrl_c_exits_without_a_traceback(when: str, args: tuple[str, ...]) -> None:
    code, stderr = interrupted(when, *args)
    assert code == interrupt.INTERRUPTED
    assert stderr in (b"", b"greeter: cannot connect to fd:999: bad file descriptor\n")


@pytest.mark.parametrize("when", ["greeter.cli.cli", "click", "greeter.service.startup"])
def test_sigterm_exits_before_a_service_is_loaded(when: str) -> None:
    assert interrupted(when, *SERVE, number=signal.SIGTERM) == (interrupt.TERMINATED, b"")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, interrupt.TERMINATED), (signal.SIGINT, interrupt.INTERRUPTED)]
)
def test_a_signal_ends_the_first_process_of_a_container(number: int, code: int) -> None:
    """It has no default actions: a signal that nothing handles is dropped (pid_namespaces(7))."""
    unshare = ("unshare", "--fork", "--pid", "--kill-child")
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare(1) and the permission to make a PID namespace")
    assert interrupted("click", *SERVE, number=number, wrapper=unshare) == (code, b"")


def test_an_ignored_sigint_stays_ignored() -> None:
    """A shell ignores SIGINT in the commands that it starts in the background."""
    ignored = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    assert interrupted("click", "--version", before=ignored) == (0, b"")


def test_importing_greeter_keeps_the_handler() -> None:
    code = """
import signal
before = signal.getsignal(signal.SIGINT)
import greeter, greeter.__main__, greeter.cli.cli
greeter.serve
assert signal.getsignal(signal.SIGINT) is before is signal.default_int_handler
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=PATIENCE).returncode == 0


@pytest.fixture
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("handler")
def test_another_handler_is_kept() -> None:
    def other_handler(*_: object) -> None: ...

    signal.signal(signal.SIGINT, other_handler)
    interrupt.exit_on_interrupt()
    assert signal.getsignal(signal.SIGINT) is other_handler
    interrupt.restore_keyboard_interrupt()
    assert signal.getsignal(signal.SIGINT) is other_handler
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt.exit_on_interrupt()
    assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    interrupt.restore_keyboard_interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
