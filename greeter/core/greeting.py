"""The greeting text: a Greeting renders the bytes to send to a Peer.

A greeting is one of:

- text: a template with the variables ``$host $port $hostname $time $count``, and ``$$`` for a dollar,
- bytes: sent unchanged,
- a callable, sync or async, that takes the Peer and returns ``str`` or ``bytes``.

Invariants:

- An invalid template raises when the Greeting is made, not when the first client connects.
- Text from configuration is substituted by ``string.Template`` only, which evaluates no expressions. Values
  that a client supplies are never parsed as a template.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from string import Template
from typing import TYPE_CHECKING, Literal, NoReturn, TypeAlias

from greeter.errors import ConfigError, GreetingError

if TYPE_CHECKING:
    import socket

DEFAULT_GREETING = "Thank you for connecting"
VARIABLES = ("host", "port", "hostname", "time", "count")


@dataclass(frozen=True, slots=True)
class Peer:
    """A connected client, as a greeting sees it.

    Attributes:
        host: The client's address. For a Unix socket, its name, which is usually empty.
        port: The client's port; 0 for a Unix socket.
        family: The address family of the connection.
        server: The address that the client connected to, as in ``127.0.0.1:9999``. For a datagram, it is that
            of the server's socket, as in ``udp:0.0.0.0:9999``.
        hostname: The host name of this machine.
        time: When the connection was accepted, or the datagram received, in seconds since the epoch.
        count: The number of the connection, from 1 on; datagrams have numbers of their own. Each worker of a
            service counts its own.
        tls_version: As in ``TLSv1.3``; empty without TLS.
        tls_subject: The subject of the client's certificate, as in ``CN=alice,O=Example``; empty without one.
    """

    host: str
    port: int
    family: socket.AddressFamily
    server: str = ""
    hostname: str = ""
    time: float = 0.0
    count: int = 0
    tls_version: str = ""
    tls_subject: str = ""

    def __str__(self) -> str:
        return repr((self.host, self.port))


Text: TypeAlias = str | bytes
GreetingCallable: TypeAlias = Callable[[Peer], Text] | Callable[[Peer], Awaitable[Text]]
GreetingSource: TypeAlias = "Greeting | Text | GreetingCallable"


class Greeting:
    """A validated greeting.

    Args:
        source: Text, bytes, a callable or another Greeting.
        quick: A sync callable runs in a thread, so a slow one does not block the event loop. True declares
            that it never blocks, and runs it in the event loop. An async callable cannot be quick.

    Raises:
        ConfigError: The text has an unknown ``$name`` or cannot be encoded, ``source`` has another type, or
            ``quick`` is set for an async callable.

    Attributes:
        fixed: The bytes if they are the same for every client, else None.
        kind: ``"fixed"``, ``"template"``, ``"sync"`` or ``"async"``.
        quick: True if rendering never blocks.
    """

    __slots__ = ("_call", "_template", "fixed", "kind", "quick")

    kind: Literal["fixed", "template", "sync", "async"]
    quick: bool

    def __init__(self, source: GreetingSource = DEFAULT_GREETING, *, quick: bool = False) -> None:
        self.fixed: bytes | None = None
        self._template: Template | None = None
        self._call: Callable[[Peer], object] | None = None
        if isinstance(source, Greeting):
            self.fixed, self._template, self._call = source.fixed, source._template, source._call
            self.kind, self.quick = source.kind, source.quick or quick
        elif isinstance(source, str):
            self._template = Template(source)
            _check_template(self._template)
            _check_encodable(source)
            if "$" in source.replace("$$", ""):
                self.kind, self.quick = "template", True
            else:
                self.fixed = _encode(self._template.substitute())
                self.kind, self.quick = "fixed", True
        elif isinstance(source, (bytes, bytearray, memoryview)):
            self.fixed, self.kind, self.quick = bytes(source), "fixed", True
        elif callable(source):
            self._call = source
            self.kind = "async" if _is_async(source) else "sync"
            if quick and self.kind == "async":
                raise ConfigError("an async greeting cannot be quick: it has to be awaited")
            self.quick = quick
        else:
            raise ConfigError(f"a greeting must be text, bytes or a callable, not {type(source).__name__}")

    def __repr__(self) -> str:
        return f"<Greeting {self.kind}{' quick' if self.quick else ''}>"

    def render(self, peer: Peer) -> bytes:
        """Render the greeting for ``peer``; for every ``kind`` except ``"async"``.

        Returns:
            The bytes to send.

        Raises:
            GreetingError: The callable raised, or returned neither ``str`` nor ``bytes``. The cause is
                chained.
        """
        if self.fixed is not None:
            return self.fixed
        if self._template is not None:
            from datetime import UTC, datetime  # slow to import, and few greetings need it

            values = {
                "host": peer.host,
                "port": peer.port,
                "hostname": peer.hostname,
                "time": datetime.fromtimestamp(peer.time, UTC).isoformat(timespec="seconds")[:-6] + "Z",
                "count": peer.count,
            }
            return _encode(self._template.substitute(values))
        assert self._call is not None
        try:
            # In a context of its own: a context variable that it sets must not leak into the next call.
            value = contextvars.copy_context().run(self._call, peer)
            if inspect.isawaitable(value):
                if inspect.iscoroutine(value):
                    value.close()
                raise GreetingError("the greeting callable returned an awaitable; declare it with async def")
            return _encode(
                value
            )  # runs code of the callable's too, if it returned an object of its own class
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # including SystemExit: one greeting must not end the process
            raise_callable_error(error)

    async def render_async(self, peer: Peer) -> bytes:
        """Render the greeting for ``peer``; for ``kind`` ``"async"``.

        Returns:
            The bytes to send.

        Raises:
            GreetingError: The callable raised an Exception or SystemExit, or returned neither ``str`` nor
                ``bytes``. The cause is chained. Other exceptions, such as CancelledError, propagate.
        """
        assert self._call is not None
        try:
            value = await self._call(peer)  # type: ignore[misc]  # kind is "async": it returned an awaitable
            return _encode(value)
        except (Exception, SystemExit) as error:
            raise_callable_error(error)


def _check_template(template: Template) -> None:
    if not template.is_valid():
        at = next(m for m in template.pattern.finditer(template.template) if m["invalid"] is not None).start()
        raise ConfigError(f"greeting has a lone $ in {template.template[at:][:20]!r}; write $$ for a dollar")
    for name in template.get_identifiers():
        if name not in VARIABLES:
            known = " ".join("$" + name for name in VARIABLES)
            raise ConfigError(
                f"greeting has the unknown name ${name}; known are {known}, and $$ for a dollar"
            )


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"greeting {text[:20]!r} cannot be encoded as UTF-8: {error.reason}") from None


def _is_async(function: Callable[..., object]) -> bool:
    """Return True for an async function, an object with an async ``__call__``, or a partial of either."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  # inspected, not called
    )


def _encode(value: object) -> bytes:
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise GreetingError(f"the greeting is not encodable as UTF-8: {error.reason}") from error
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise GreetingError(f"the greeting callable returned {type(value).__name__}, not str or bytes")


def raise_callable_error(error: BaseException) -> NoReturn:
    """Raise the GreetingError for an exception that a greeting callable raised."""
    raise callable_error(error)  # without "from": a GreetingError keeps the cause that it has


def callable_error(error: BaseException) -> GreetingError:
    """Return the GreetingError for an exception that a greeting callable raised, which is its cause."""
    try:
        text = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException:  # it has no text then
        text = ""
    else:
        if isinstance(error, GreetingError):
            return error
    message = f": {text}" if text else ""
    made = GreetingError(f"the greeting callable raised {type(error).__name__}{message}")
    made.__cause__ = error
    return made
