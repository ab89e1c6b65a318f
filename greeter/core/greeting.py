"""What to say to a client: a Greeting turns a Peer into bytes.

The law: whatever can be wrong is found when a Greeting is made, not when the first client comes, and
text that came from outside never reaches anything stronger than ``string.Template``.

A greeting is text (a template: ``$host $port $hostname $time $count``, and ``$$`` for a dollar), bytes
(sent as they are), or a callable, sync or async, that gets the Peer and returns ``str`` or ``bytes``.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from string import Template
from typing import TYPE_CHECKING, Literal, TypeAlias

from greeter.errors import ConfigError, GreetingError

if TYPE_CHECKING:
    import socket

DEFAULT_GREETING = "Thank you for connecting"
VARIABLES = ("host", "port", "hostname", "time", "count")


@dataclass(frozen=True, slots=True)
class Peer:
    """The client, as a greeting sees it.

    ``host`` and ``port`` are the client's (for a Unix socket: its name, mostly empty, and 0);
    ``server`` is the address that it connected to, as in ``127.0.0.1:9999``; ``hostname`` is this
    machine's name; ``time`` is when it was accepted, in seconds since the epoch; ``count`` is 1 for
    the first client of this server, and each worker of a service counts its own. ``tls_version`` is as
    in ``TLSv1.3``, and empty without TLS; ``tls_subject`` names the client's certificate, as in
    ``CN=alice,O=Example``.
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
    """A greeting, checked and ready to be rendered.

    ``source`` is text, bytes, a callable or another Greeting. A sync callable runs in a thread, so that
    a slow one holds up nobody else; ``quick=True`` declares that it never waits, and lets it run in the
    event loop at once. Raises ConfigError for text with an unknown ``$name`` and for what is none of
    these.

    ``fixed`` is the bytes when they are the same for every client, else None. ``kind`` is ``"fixed"``,
    ``"template"``, ``"sync"`` or ``"async"``.
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
            raise ConfigError(f"a greeting is text, bytes or a callable, not {type(source).__name__}")

    def __repr__(self) -> str:
        return f"<Greeting {self.kind}{' quick' if self.quick else ''}>"

    def render(self, peer: Peer) -> bytes:
        """The bytes for ``peer``, of any greeting but an async one.

        Raises GreetingError when a callable raises or returns something else; the cause is chained.
        """
        if self.fixed is not None:
            return self.fixed
        if self._template is not None:
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
            # In a context of its own: what it sets must not reach the callable of the next client.
            value = contextvars.copy_context().run(self._call, peer)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit(), say, is not for one client to call
            raise callable_error(error) from error
        if inspect.isawaitable(value):
            if inspect.iscoroutine(value):
                value.close()
            raise GreetingError("the greeting callable returned an awaitable; declare it with async def")
        return _encode(value)

    async def render_async(self, peer: Peer) -> bytes:
        """The bytes for ``peer``, of an async greeting. Raises as ``render`` does.

        What is neither an Exception nor SystemExit passes through: a cancellation, say.
        """
        assert self._call is not None
        try:
            value = await self._call(peer)  # type: ignore[misc]  # kind is "async": it gave an awaitable
        except (Exception, SystemExit) as error:
            raise callable_error(error) from error
        return _encode(value)


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
    """Also true for an object with an async ``__call__`` and for a functools.partial of either."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  # the method itself is wanted, to look at it
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


def callable_error(error: BaseException) -> GreetingError:
    """The GreetingError for what a callable raised, which may be one already."""
    if isinstance(error, GreetingError):
        return error
    message = f": {error}" if str(error) else ""
    return GreetingError(f"the greeting callable raised {type(error).__name__}{message}")
