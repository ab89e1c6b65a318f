"""SIGINT and SIGTERM of the command line: they end a command at any time, with 130 and 143 and no traceback.

Invariants:

- Only commands change signal handlers. The library never does.
- Until a command has something to clean up, SIGINT and SIGTERM end the process immediately. After
  ``restore_keyboard_interrupt()``, SIGINT raises KeyboardInterrupt, as asyncio expects.
- A signal ends the process by an exit, not by its default action: as the first process of a container (PID 1)
  it has no default actions, and the kernel drops a signal without a handler (pid_namespaces(7)).
- SIGINT that is ignored at the start stays ignored: a shell ignores it in background commands.
- This module imports next to nothing, so that it can be loaded first.
"""

import os

INTERRUPTED = 130  # the exit status: 128 + SIGINT, as shells report it
TERMINATED = 143  # 128 + SIGTERM

try:
    import signal
except KeyboardInterrupt:  # importing signal imports enum, which takes most of the time here
    os._exit(INTERRUPTED)


TYPE_CHECKING = False  # without an import of typing
if TYPE_CHECKING:
    from collections.abc import Iterable


def take_signals() -> None:
    """Install the handlers of a command.

    SIGINT and SIGTERM end the process immediately. SIGUSR1 and SIGUSR2, which would kill it, do nothing.
    """
    exit_on_interrupt()
    _replace_default(signal.SIGTERM, _exit)
    for name in ("SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):  # not on Windows
            _replace_default(getattr(signal, name), ignore)


def exit_on_interrupt() -> None:
    """Let Ctrl-C end the process immediately, unless SIGINT is ignored or has another handler."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def restore_keyboard_interrupt() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, if ``exit_on_interrupt()`` is in force."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ignore(*_: object) -> None:
    """Do nothing: a signal handler. A child process does not inherit it, as it would SIG_IGN."""


def ignore_at_exit(numbers: "Iterable[int]") -> None:
    """Ignore signals while the interpreter exits, which resets handlers but leaves SIG_IGN in force."""
    import atexit

    atexit.register(_ignore_all, tuple(numbers))


def _ignore_all(numbers: "Iterable[int]") -> None:
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def _replace_default(number: int, handler: object) -> None:
    if signal.getsignal(number) is signal.SIG_DFL:
        signal.signal(number, handler)  # type: ignore[arg-type]  # a handler


def _exit(number: int = 2, *_: object) -> None:
    # An exception would propagate through half-loaded modules, and some code prints it and continues.
    os._exit(128 + number)
