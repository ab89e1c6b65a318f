"""One alarm for one moment, to some 50 µs.

The law: a load generator is as good as its clock. Loops keep time in milliseconds (uvloop rounds a delay
to them, asyncio waits in them), so a schedule of 400 arrivals per second would be kept to half an arrival
and the response times would be ours. A timerfd (Linux) is a clock that a loop can wait for as it waits for
a socket, to the microsecond and without spinning. Elsewhere the loop's own timer has to do.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle
    from collections.abc import Callable


class _Itimerspec(ctypes.Structure):
    """struct itimerspec of timerfd_settime(2): an interval (none here), and the first moment."""

    _fields_ = [
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    ]


_TIMER_ABSTIME = 1  # TFD_TIMER_ABSTIME


class PreciseTimer:
    """Calls ``callback`` once at the moment set last, of ``time.monotonic()``."""

    def __init__(self, loop: AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop, self._callback = loop, callback
        self._handle: TimerHandle | None = None
        self._when = inf
        self._fd = _timerfd()
        if self._fd is not None:
            self._spec = _Itimerspec()
            self._settime = _libc().timerfd_settime
            loop.add_reader(self._fd, self._on_fire)

    def set(self, when: float) -> None:
        """Ring at ``when``, at once if that has passed, and no longer at the moment that was set before.

        A later moment than the one that is set costs nothing: the alarm rings early, once, and whoever
        rings sets it again. The caller has to look at the time anyway.
        """
        if self._when <= when:
            return
        self._when = when
        if self._fd is not None:
            whole = int(when)
            # A moment of zero would disarm it, and one in the past rings at once.
            self._spec.value_s, self._spec.value_ns = whole, int((when - whole) * 1e9) or 1
            self._settime(self._fd, _TIMER_ABSTIME, ctypes.byref(self._spec), None)
            return
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop.call_later(max(0.0, when - time.monotonic()), self._on_fire)

    def close(self) -> None:
        """Ring no more."""
        if self._handle is not None:
            self._handle.cancel()
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    def _on_fire(self) -> None:
        if self._fd is not None:
            os.read(self._fd, 8)  # how often it rang; until this is read, the descriptor stays readable
        self._when, self._handle = inf, None
        self._callback()


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)  # os.timerfd_create is there from Python 3.13 on, libc's since 2008


def _timerfd() -> int | None:
    """A new timerfd on the clock of ``time.monotonic()``, or None where there is none."""
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_long) != 8:
        return None
    fd = _libc().timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    return fd if fd >= 0 else None
