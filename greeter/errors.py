"""The exceptions of greeter. Each has a one-line message, and its details as attributes.

Each is also a subclass of the built-in exception for its kind of error::

    GreeterError(Exception)
    ├── ConfigError(ValueError)          an invalid value, found before anything starts
    │   └── MissingExtra(ImportError)    an optional package that is not installed
    ├── ListenFailed(OSError)            an endpoint that cannot be listened on
    ├── GreetingError                    a greeting callable that failed, for one client
    ├── ProxyProtocolError(ValueError)   an invalid PROXY header
    └── GreetFailed                      no greeting was received
        ├── ConnectFailed(OSError)         … because connecting failed
        ├── GreetTimeout(TimeoutError)     … because a deadline passed
        ├── GreetReset(ConnectionResetError)  … because the peer reset the connection
        ├── NoGreeting(ConnectionError)    … because the peer closed too early
        ├── ReplyTooLarge(ValueError)      … because the reply exceeded its size limit
        └── UnexpectedGreeting(ValueError) … because the reply lacks what was expected

Invariants:

- The message is complete and one line. The command line prints it after ``greeter: ``.
- Every error can be pickled, with its attributes.
"""

from __future__ import annotations

import os
import re
from typing import Any

# What surrounds the text of an OpenSSL error: "[SSL: CODE] text (_ssl.c:1006)".
_SSL_FRAME = r"^\[[^]]*\] | \(_ssl\.c:\d+\)$"


class GreeterError(Exception):
    """The base class of every exception that greeter raises deliberately."""

    def __str__(self) -> str:
        # OSError.__str__() would return "[Errno N] ..." instead of our message.
        return str(self.args[0]) if self.args else type(self).__name__

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors are sent between processes. The default would call __init__ with the finished message.
        system = {"errno": self.errno, "strerror": self.strerror} if isinstance(self, OSError) else {}
        return _restore, (type(self), self.args, system | vars(self))


def _excerpt(data: bytes) -> str:
    """Return the beginning of ``data`` as quoted text on one line."""
    text = repr(data[:80].rstrip(b"\r\n").decode(errors="backslashreplace"))
    return text if len(data) <= 80 else f"{text}... ({len(data)} bytes)"


def _restore(cls: type[GreeterError], args: tuple[object, ...], fields: dict[str, object]) -> GreeterError:
    error = cls.__new__(cls)
    error.args = args
    for name, value in fields.items():
        setattr(error, name, value)
    return error


class ConfigError(GreeterError, ValueError):
    """An argument or option is invalid. It is raised before anything starts; the message quotes the value."""


class MissingExtra(ConfigError, ImportError):
    """A feature needs an optional package that is not installed.

    Attributes:
        extra: The extra to install, as in ``pip install '.[extra]'`` in greeter's source tree.
    """

    def __init__(self, feature: str, extra: str) -> None:
        install = f"pip install '.[{extra}]' in greeter's source tree"
        super().__init__(f"{feature} needs an optional package: {install}")
        self.extra = extra


def os_error_text(error: OSError) -> str:
    """Return the operating system's text for ``error``, in lower case, for use within a sentence."""
    code = error.errno
    # The numbers of resolver errors (module socket) and OpenSSL errors are not errno values.
    if code is not None and code > 0 and type(error).__module__ not in ("socket", "ssl"):
        text = os.strerror(code)
    else:
        text = re.sub(_SSL_FRAME, "", error.strerror or str(error))
    if not text:
        return type(error).__name__
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


class _SystemFailure(GreeterError, OSError):
    """A failed system call. ``errno`` and ``strerror`` are those of ``cause``, if it is an OSError."""

    def __init__(self, what: str, cause: OSError | str) -> None:
        super().__init__(f"{what}: {cause if isinstance(cause, str) else os_error_text(cause)}")
        if isinstance(cause, OSError):
            self.errno, self.strerror = cause.errno, cause.strerror


class ListenFailed(_SystemFailure):
    """An endpoint cannot be listened on: in use, not a local address, not permitted, not resolvable.

    Attributes:
        endpoint: The endpoint's text.
        errno: The number of the system's error, or None.
        strerror: The text of the system's error, or None.
    """

    def __init__(self, endpoint: str, cause: OSError | str) -> None:
        super().__init__(f"cannot listen on {endpoint}", cause)
        self.endpoint = endpoint


class GreetingError(GreeterError):
    """A greeting callable raised, or returned neither ``str`` nor ``bytes``. It fails one connection only."""


class ProxyProtocolError(GreeterError, ValueError):
    """A PROXY header is invalid.

    Attributes:
        offset: The offset of the first wrong byte.
    """

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.offset = offset


class GreetFailed(GreeterError):
    """The base class of what ``greet()`` and ``open_connection()`` raise if they receive no greeting.

    Attributes:
        target: The endpoint's text.
    """

    target: str


class ConnectFailed(GreetFailed, _SystemFailure):
    """Connecting failed: refused, unreachable, not resolvable, or the TLS handshake failed.

    It also failed if the peer speaks TLS on a connection without it, or the other way round.

    Attributes:
        target: The endpoint's text.
        errno: The number of the system's error, or None.
        strerror: The text of the system's error, or None.
    """

    def __init__(self, target: str, cause: OSError | str) -> None:
        super().__init__(f"cannot connect to {target}", cause)
        self.target = target


class GreetTimeout(GreetFailed, TimeoutError):
    """A deadline passed.

    Attributes:
        target: The endpoint's text.
        phase: ``"connect"``, ``"handshake"`` (of TLS), ``"first byte"`` (connected, but no byte was received)
            or ``"end"`` (the greeting began and did not end). Of a service for datagrams, ``"reply"``.
        seconds: The limit, in seconds.
        received: The bytes received before the deadline.
        attempts: How many datagrams were sent; 1 on a stream.
    """

    def __init__(
        self, target: str, phase: str, seconds: float, received: bytes = b"", *, attempts: int = 1
    ) -> None:
        what = {
            "connect": "no connection",
            "handshake": "connected, but no TLS handshake",
            "first byte": "connected, but no greeting",
            "end": f"{_excerpt(received)} came, but no end of the greeting",
            "reply": f"no reply to {attempts} datagram{'s' * (attempts > 1)}",
        }[phase]
        super().__init__(f"{target}: {what} within {seconds:g} s")
        self.target, self.phase, self.seconds, self.received = target, phase, seconds, received
        self.attempts = attempts


class GreetReset(GreetFailed, ConnectionResetError):
    """The peer reset the connection before the greeting was complete.

    ``greet()`` raises this if it received no byte, or the greeting is not complete. Any other greeting it
    returns, with ``Reply.reset`` set.

    Attributes:
        target: The endpoint's text.
        received: The bytes received before the reset. With ``open_connection()``, some may be missing:
            asyncio discards unread bytes.
    """

    def __init__(self, target: str, received: bytes = b"") -> None:
        super().__init__(f"{target}: connection reset before the greeting" + " ended" * bool(received))
        self.target, self.received = target, received


class NoGreeting(GreetFailed, ConnectionError):
    """The peer closed the connection without a greeting, or in the middle of one; or its datagram is empty.

    If it received no byte, ``greet()`` returns an empty Reply instead, except with ``wait`` or ``expect``.

    Attributes:
        target: The endpoint's text.
        received: The bytes received before the end of the stream.
    """

    def __init__(self, target: str, received: bytes = b"") -> None:
        when = (
            f"before the greeting ended ({len(received)} bytes received)"
            if received
            else "without a greeting"
        )
        # A datagram has no end but its own.
        super().__init__(f"{target}: {'replied' if target.startswith('udp:') else 'closed'} {when}")
        self.target, self.received = target, received


class ReplyTooLarge(GreetFailed, ValueError):
    """The greeting is longer than ``limit`` bytes.

    Attributes:
        target: The endpoint's text.
        limit: The limit, in bytes.
        received: The first ``limit`` bytes of the greeting.
    """

    def __init__(self, target: str, limit: int, received: bytes) -> None:
        super().__init__(f"{target}: the greeting is longer than {limit} bytes")
        self.target, self.limit, self.received = target, limit, received


class UnexpectedGreeting(GreetFailed, ValueError):
    """The greeting does not contain what was expected, such as ``421 too many connections`` without ``220``.

    Attributes:
        target: The endpoint's text.
        expected: What the greeting should contain.
        received: The greeting.
    """

    def __init__(self, target: str, expected: bytes, received: bytes) -> None:
        super().__init__(f"{target}: the greeting {_excerpt(received)} does not contain {_excerpt(expected)}")
        self.target, self.expected, self.received = target, expected, received
