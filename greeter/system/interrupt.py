"""SIGINT handling of the command line: Ctrl-C exits with 130, at any time and without a traceback.

Invariants:

- Only commands change the SIGINT handler. The library never does.
- Until a command has something to clean up, Ctrl-C ends the process immediately. After
  ``restore_keyboard_interrupt()`` it raises KeyboardInterrupt, as asyncio expects.
- This module imports next to nothing, so that it can be loaded first.
"""

import os

INTERRUPTED = 130  # the exit status: 128 + SIGINT, as shells report it

try:
    import signal
except KeyboardInterrupt:  # importing signal imports enum, which takes most of the time here
    os._exit(INTERRUPTED)


def exit_on_interrupt() -> None:
    """Let Ctrl-C end the process immediately, unless SIGINT is ignored or has another handler."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def restore_keyboard_interrupt() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, if ``exit_on_interrupt()`` is in force."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit(*_: object) -> None:
    # An exception would propagate through half-loaded modules, and some code prints it and continues.
    os._exit(INTERRUPTED)
