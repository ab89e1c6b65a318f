"""Every error greeter raises: one clear line for people, fields for programs.

Each is also the built-in that a caller already catches::

    GreeterError(Exception)
    ├── ConfigError(ValueError)          a value that can be checked before anything starts
    │   └── MissingExtra(ImportError)    an optional package that is not installed
    ├── ListenFailed(OSError)            an endpoint that cannot be listened on
    ├── GreetingError                    a greeting callable that failed, for one client
    ├── ProxyProtocolError(ValueError)   a PROXY header that breaks the grammar
    └── GreetFailed                      the client was not greeted
        ├── ConnectFailed(OSError)         … because it could not connect
        ├── GreetTimeout(TimeoutError)     … because a deadline passed
        ├── GreetReset(ConnectionResetError)  … because the peer reset the connection
        ├── NoGreeting(ConnectionError)    … because the peer closed too early
        └── ReplyTooLarge(ValueError)      … because the reply would not end

The message of an error is complete: the command line prints it behind ``greeter: ``.
"""

from __future__ import annotations

import os
import re
from typing import Any

# The frame that OpenSSL's errors come in: "[SSL: CODE] words (_ssl.c:1006)".
_SSL_FRAME = re.compile(r"^\[[^]]*\] | \(_ssl\.c:\d+\)$")


class GreeterError(Exception):
    """The root: ``except GreeterError`` catches whatever greeter raises on purpose."""

    def __str__(self) -> str:
        # OSError would put its "[Errno N]" in the place of our line.
        return str(self.args[0]) if self.args else type(self).__name__

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors travel between processes. Python's way would call __init__ with the finished line.
        system = {"errno": self.errno, "strerror": self.strerror} if isinstance(self, OSError) else {}
        return _restore, (type(self), self.args, system | vars(self))


def _restore(cls: type[GreeterError], args: tuple[object, ...], fields: dict[str, object]) -> GreeterError:
    error = cls.__new__(cls)
    error.args = args
    for name, value in fields.items():
        setattr(error, name, value)
    return error


class ConfigError(GreeterError, ValueError):
    """A value that is wrong before anything starts; the message names it."""


class MissingExtra(ConfigError, ImportError):
    """An optional package is needed and not installed.

    ``extra`` is the name to install, as in ``pip install '.[extra]'`` in greeter's source tree.
    """

    def __init__(self, feature: str, extra: str) -> None:
        install = f"pip install '.[{extra}]' in greeter's source tree"
        super().__init__(f"{feature} needs an optional package: {install}")
        self.extra = extra


def reason(error: OSError) -> str:
    """The operating system's words for ``error``, in the lower case of the middle of a sentence."""
    code = error.errno
    # The resolver (module socket) and OpenSSL number their errors themselves; some errors have no number.
    if code is not None and code > 0 and type(error).__module__ not in ("socket", "ssl"):
        text = os.strerror(code)
    else:
        text = _SSL_FRAME.sub("", error.strerror or str(error))
    if not text:
        return type(error).__name__
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


class _SystemFailure(GreeterError, OSError):
    """What the operating system refused: ``errno`` and ``strerror`` are its own, where it gave them."""

    def __init__(self, what: str, cause: OSError | str) -> None:
        super().__init__(f"{what}: {cause if isinstance(cause, str) else reason(cause)}")
        if isinstance(cause, OSError):
            self.errno, self.strerror = cause.errno, cause.strerror


class ListenFailed(_SystemFailure):
    """An endpoint cannot be listened on: in use, not ours, not permitted, not resolvable.

    ``endpoint`` is its text; ``errno`` and ``strerror`` as the system gave them.
    """

    def __init__(self, endpoint: str, cause: OSError | str) -> None:
        super().__init__(f"cannot listen on {endpoint}", cause)
        self.endpoint = endpoint


class GreetingError(GreeterError):
    """A greeting callable raised or returned neither ``str`` nor ``bytes``; it cost one client."""


class ProxyProtocolError(GreeterError, ValueError):
    """Bytes that are no PROXY header. ``offset`` is where the grammar was left, in bytes."""

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.offset = offset


class GreetFailed(GreeterError):
    """The root of what ``greet()`` and ``open_connection()`` raise at run time.

    ``target`` is the endpoint's text.
    """

    target: str


class ConnectFailed(GreetFailed, _SystemFailure):
    """No connection: refused, unreachable, not resolvable, or no TLS agreed.

    ``errno`` and ``strerror`` as the system gave them.
    """

    def __init__(self, target: str, cause: OSError | str) -> None:
        super().__init__(f"cannot connect to {target}", cause)
        self.target = target


class GreetTimeout(GreetFailed, TimeoutError):
    """A deadline passed.

    ``phase`` is ``"connect"``, ``"first byte"`` (connected, yet not one byte came) or ``"end"`` (the
    greeting began and did not end); ``seconds`` is the limit; ``received`` what had come by then.
    """

    def __init__(self, target: str, phase: str, seconds: float, received: bytes = b"") -> None:
        what = {
            "connect": "no connection",
            "first byte": "connected, but no greeting",
            "end": f"the greeting did not end ({len(received)} bytes came)",
        }[phase]
        super().__init__(f"{target}: {what} within {seconds:g} s")
        self.target, self.phase, self.seconds, self.received = target, phase, seconds, received


class GreetReset(GreetFailed, ConnectionResetError):
    """The peer reset the connection before its greeting was complete.

    ``received`` is what had come by then; of what ``open_connection()`` reads, asyncio may have lost some.
    ``greet()`` raises this without a byte and for a reply of several lines that lacks its last one. Any
    other greeting it returns, with ``reset`` set.
    """

    def __init__(self, target: str, received: bytes = b"") -> None:
        super().__init__(f"{target}: connection reset before the greeting" + " ended" * bool(received))
        self.target, self.received = target, received


class NoGreeting(GreetFailed, ConnectionError):
    """The peer closed the connection without a greeting, or in the middle of a reply of several lines.

    ``received`` is what had come by then. Without a byte, ``greet()`` returns an empty Reply instead.
    """

    def __init__(self, target: str, received: bytes = b"") -> None:
        came = f"before the greeting ended ({len(received)} bytes came)" if received else "without a greeting"
        super().__init__(f"{target}: closed {came}")
        self.target, self.received = target, received


class ReplyTooLarge(GreetFailed, ValueError):
    """The reply passed ``limit`` bytes; ``received`` is its beginning, exactly that long."""

    def __init__(self, target: str, limit: int, received: bytes) -> None:
        super().__init__(f"{target}: the greeting is longer than {limit} bytes")
        self.target, self.limit, self.received = target, limit, received
