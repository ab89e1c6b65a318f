"""What Ctrl-C does to a command: it ends it with 130, at whatever moment it comes, and without a traceback.

The law: a command touches the signal, the library never does. Until there is something to be left in order,
Ctrl-C ends the process then and there; from then on it is KeyboardInterrupt, as asyncio expects it. Loading
this costs next to nothing, so that it can come first.
"""

import os

INTERRUPTED = 130  # 128 and SIGINT, as a shell counts

try:
    import signal
except KeyboardInterrupt:  # it loads enum, which is most of what is loaded here
    os._exit(INTERRUPTED)


def exit_on_interrupt() -> None:
    """Let Ctrl-C end the process, unless whoever started it had Ctrl-C ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def restore_keyboard_interrupt() -> None:
    """Let it be KeyboardInterrupt again, if it is ``exit_on_interrupt`` that is in force."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(*_: object) -> None:
    # An exception would pass through half-loaded modules, and some places print it and go on.
    os._exit(INTERRUPTED)
