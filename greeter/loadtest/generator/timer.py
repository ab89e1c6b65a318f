"""A timer that is precise to about 50 µs.

The timers of event loops have a resolution of 1 ms (uvloop rounds delays to it, asyncio waits in it). At 400
arrivals per second, that is an error of half an interval, which would count as latency. A timerfd (Linux)
is a descriptor that the loop waits for like a socket, with a resolution of a microsecond and without
spinning. Other systems use the timer of the loop.

Invariants:

- At most one callback is pending: for the earliest time that was set since the last callback.
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
    """struct itimerspec of timerfd_settime(2): an interval (0 here) and the time of the first expiration."""

    _fields_ = [
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    ]


_TIMER_ABSTIME = 1  # TFD_TIMER_ABSTIME


class PreciseTimer:
    """Calls back once at a time of ``time.monotonic()``.

    Args:
        loop: the running event loop.
        callback: called in the loop.
    """

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
        """Call back at ``when``, or at once if that has passed.

        An earlier time replaces the one that is set. A later one is ignored, which saves a system call: the
        callback then comes early, and must check the time and set the timer again.

        Args:
            when: a time of ``time.monotonic()``, in seconds.
        """
        if self._when <= when:
            return
        self._when = when
        if self._fd is not None:
            whole = int(when)
            # 0 would disarm the timer. A time in the past expires at once.
            self._spec.value_s, self._spec.value_ns = whole, int((when - whole) * 1e9) or 1
            self._settime(self._fd, _TIMER_ABSTIME, ctypes.byref(self._spec), None)
            return
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop.call_later(max(0.0, when - time.monotonic()), self._on_fire)

    def close(self) -> None:
        """Do not call back any more, and close the descriptor."""
        if self._handle is not None:
            self._handle.cancel()
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    def _on_fire(self) -> None:
        if self._fd is not None:
            os.read(self._fd, 8)  # the number of expirations; the descriptor is readable until it is read
        self._when, self._handle = inf, None
        self._callback()


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)  # os.timerfd_create is new in Python 3.13; that of libc dates from 2008


def _timerfd() -> int | None:
    """Create a timerfd on the clock of ``time.monotonic()``. Returns None if the system has none."""
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_long) != 8:
        return None
    fd = _libc().timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    return fd if fd >= 0 else None
