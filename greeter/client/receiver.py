"""Receives a greeting: its bytes, where it ends, and when.

Invariants:

- ``done`` resolves once: at the end of the greeting or of the stream, at an error, when the size limit is
  exceeded, or when the deadline has passed.
- A process that was stopped finds its deadline passed and the greeting unread. What had come in time is
  received first.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from greeter.client.arguments import Exchange


class Receiver(ABC):
    """What one connection has received.

    Attributes:
        done: Resolves at the end.
        end: The index after the greeting's last byte, when it is known.
        error: The error that ended the stream, if one did.
        connected: When the connection was complete, as a time of ``perf_counter()``.
        first_byte: When the first bytes were received, likewise.
        last_byte: When the last bytes were received, if a pause ends the greeting; otherwise 0.
        timed_out: True if the deadline ended it.
        truncated: True if TLS ended without close_notify.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._data = bytearray()
        self._limit = exchange.max_bytes
        self._until = exchange.until
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()
        self.end: int | None = None
        self.error: Exception | None = None
        self.connected = 0.0
        self.first_byte: float | None = None
        self.last_byte = 0.0
        self.timed_out = self.truncated = False

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    @abstractmethod
    def _after_last_read(self, function: Callable[..., object], *args: Any) -> None:
        """Receive what is there, and then call ``function``."""

    def receive(self, data: bytes) -> None:
        """Take bytes of the stream, and find out whether the greeting ends with them."""
        held = self._data
        if self.first_byte is None:
            self.first_byte = perf_counter()
            if self._until.idle:
                self._loop.call_later(self._until.idle, self._check_idle)
        if self._until.idle:
            self.last_byte = perf_counter()
        seen = len(held)
        held += data
        if self.end is None:
            self.end = self._until.end(held, seen)
        if self.end is not None or len(held) > self._limit:
            self.finish()

    def finish(self) -> None:
        """End the reception."""
        if not self.done.done():
            self.done.set_result(None)

    def expire(self) -> None:
        """Tell that the deadline has passed."""
        if not self.done.done():
            self._after_last_read(self._time_out)

    def reply(self) -> bytes:
        """Return the bytes received, up to the end of the greeting."""
        return bytes(self._data[: self.end])

    @property
    def incomplete(self) -> bool:
        """True for a greeting that the end of the stream does not complete."""
        return self.end is None and bool(self._data) and not self._until.ended_by_eof(self._data)

    def _time_out(self) -> None:
        if not self.done.done():
            self.timed_out = True
            self.finish()

    def _check_idle(self) -> None:
        """End the greeting if its last byte is old enough, or look again when it can be."""
        if self.done.done():
            return
        rest = self.last_byte + self._until.idle - perf_counter()
        if rest > 0:
            self._loop.call_later(rest, self._check_idle)
        else:
            self._after_last_read(self._end_if_idle, self.last_byte)

    def _end_if_idle(self, last_byte: float) -> None:
        if self.done.done():
            return
        if self.last_byte != last_byte:
            self._check_idle()
            return
        self.end = len(self._data)
        self.finish()
