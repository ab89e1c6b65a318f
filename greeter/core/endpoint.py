"""Endpoints: where to listen or connect, as a value that is parsed from text and formatted back to it.

Invariants:

- Parsing resolves nothing. A host or service name stays a name until a socket is opened, so
  ``localhost:qotd`` is valid even where the service qotd is unknown.
- ``Endpoint.parse(str(endpoint)) == endpoint``.

===================  =====================================================================
``HOST:PORT``        a host name, a dotted IPv4 address, or an integer address (2130706433)
``[::1]:PORT``       an IPv6 address, in brackets
``:PORT``            all interfaces, IPv4 and IPv6, on one port
``unix:/run/x.sock`` a Unix socket
``unix:@name``       an abstract Unix socket (Linux)
``udp:HOST:PORT``    datagrams; the host as above, in brackets or empty
``fd:N``             a socket inherited by this process, as descriptor N, of either type
``fd:NAME``          a socket of systemd, by its name (FileDescriptorName= in systemd.socket(5))
===================  =====================================================================

PORT is a number or a service name. Listening on port 0 lets the kernel choose a free port. A TCP endpoint
whose host has the name of a kind is written with brackets: ``[unix]:80``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from greeter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 9999
DEFAULT_ENDPOINT = f"{DEFAULT_HOST}:{DEFAULT_PORT}"

# sun_path has 108 bytes, one of which is the NUL that ends a path or starts an abstract name (unix(7)).
UNIX_PATH_MAX = 107
# The scheme, the user and the authority of a URL (RFC 3986 3.2).
_URL = r"(?i)(?!unix:)[a-z][a-z0-9+.-]*://(?:[^/?#@]*@)?(\[[^]/]*\]|[^:/?#]*)(:[0-9]+)?"
# RFC 6335 5.1: letters, digits and inner single hyphens, at most 15, at least one letter.
_SERVICE = r"(?=[0-9-]*[A-Za-z])[A-Za-z0-9]+(-[A-Za-z0-9]+)*"
# A name of sd_listen_fds_with_names(3), of those that cannot be taken for a number.
_FD_NAME = r"[A-Za-z_][A-Za-z0-9_.@-]{0,254}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address to listen on or connect to.

    Attributes:
        kind: ``"tcp"``, ``"unix"``, ``"udp"`` or ``"fd"``. The fields of the other kinds have their default.
        host: TCP and UDP: a host name or an address; empty for all interfaces.
        port: TCP and UDP: a port number, or a service name if it is a string.
        path: Unix: the path of the socket; an abstract name begins with a NUL.
        fd: The number of an inherited descriptor; -1 if it has a name.
        name: The name of a socket of systemd. The service resolves it to a number.
    """

    kind: Literal["tcp", "unix", "udp", "fd"]
    host: str = ""
    port: int | str = 0
    path: str = ""
    fd: int = -1
    name: str = ""

    def __post_init__(self) -> None:
        if self.kind not in ("tcp", "unix", "udp", "fd"):
            kind = f"must be 'tcp', 'unix', 'udp' or 'fd', not {self.kind!r}"
            raise ConfigError(f"the kind of an endpoint {kind}; Endpoint.parse() reads text")
        _check_type("host", self.host, str)
        _check_type("port", self.port, int, str)
        _check_type("path", self.path, str)
        _check_type("fd", self.fd, int)

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Parse the text of an endpoint.

        Args:
            text: One of the forms in the module's table, such as ``"127.0.0.1:25"`` or ``"unix:/path"``.

        Returns:
            The endpoint. Nothing is resolved.

        Raises:
            ConfigError: The text is malformed. The message quotes it.
        """
        _check_type("text", text, str)
        return _named(text, _parse, text)

    @classmethod
    def tcp(cls, host: str | int | None = DEFAULT_HOST, port: int | str = DEFAULT_PORT) -> Endpoint:
        """Return a TCP endpoint.

        Args:
            host: A host name or an address. ``None`` and ``""`` mean all interfaces; an integer is an IPv4
                address.
            port: A port number or a service name.

        Raises:
            ConfigError: The host or the port is malformed.
        """
        _check_host_and_port(host, port)
        return _named(f"{host}:{port}", _internet, "tcp", host, port)

    @classmethod
    def udp(cls, host: str | int | None = DEFAULT_HOST, port: int | str = DEFAULT_PORT) -> Endpoint:
        """Return an endpoint for datagrams. Arguments and errors are those of ``tcp``."""
        _check_host_and_port(host, port)
        return _named(f"udp:{host}:{port}", _internet, "udp", host, port)

    @classmethod
    def unix(cls, path: str) -> Endpoint:
        """Return a Unix endpoint.

        Args:
            path: The path of a socket. ``@name``, or a NUL and the name, is an abstract one.

        Raises:
            ConfigError: The path is empty, too long, or cannot be encoded.
        """
        _check_type("path", path, str)
        return _named(f"unix:{path}", _unix, path)

    @classmethod
    def inherited(cls, fd: int | str) -> Endpoint:
        """Return the endpoint of a socket that this process inherited.

        Args:
            fd: The number of its descriptor, or the name of a socket of systemd.

        Raises:
            ConfigError: ``fd`` is neither.
        """
        _check_type("fd", fd, int, str)
        return _named(f"fd:{fd}", _inherited, fd)

    @classmethod
    def target(
        cls, target: str | int | Endpoint | None = DEFAULT_HOST, port: int | str | None = None
    ) -> Endpoint:
        """Return the endpoint that a client's target and port stand for.

        ==================================  ==========================================
        an Endpoint                         that endpoint
        a string, with ``port``             a host name or an address
        a bare address, or a string         a host on port 9999
        without a colon
        any other string                    the text of an endpoint, see ``parse``
        an integer; None                    an IPv4 address; all interfaces, see ``tcp``
        ==================================  ==========================================

        Args:
            target: As in the table.
            port: A port number or a service name; only together with a host.

        Returns:
            The endpoint. Nothing is resolved.

        Raises:
            ConfigError: The target or the port is malformed or has the wrong type, or a port is given with
                an endpoint.
        """
        if not isinstance(target, str | int | Endpoint | None) or isinstance(target, bool):
            raise ConfigError(
                f"a target must be a string, an integer or an Endpoint, not {type(target).__name__}"
            )
        if not isinstance(port, int | str | None) or isinstance(port, bool):
            raise ConfigError(f"a port must be an integer or a string, not {type(port).__name__}")
        whole = isinstance(target, Endpoint) or (isinstance(target, str) and not _is_host(target))
        if whole and port is not None:
            raise ConfigError(f"port {port!r} requires a host, and {str(target)!r} is not one")
        if isinstance(target, Endpoint):
            return target
        if whole:
            found = cls.parse(str(target))
            if found.name:
                raise ConfigError(f"endpoint {target!r} has no descriptor number, as in fd:3")
            return found
        return cls.tcp(target, DEFAULT_PORT if port is None else port)

    @property
    def abstract(self) -> bool:
        """True for an abstract Unix socket, which has a name but no file (unix(7))."""
        return self.path.startswith("\0")

    def require_stream(self, what: str) -> None:
        """Raise ConfigError for an endpoint for datagrams.

        Args:
            what: What needs a stream, as the error calls it.
        """
        if self.kind == "udp":
            raise ConfigError(f"{what} needs a stream, and {self} is an endpoint for datagrams")

    def __str__(self) -> str:
        if self.kind == "unix":
            return "unix:@" + self.path[1:] if self.abstract else "unix:" + self.path
        if self.kind == "fd":
            return f"fd:{self.name or self.fd}"
        brackets = ":" in self.host or (self.kind == "tcp" and self.host in ("unix", "udp", "fd"))
        address = f"[{self.host}]:{self.port}" if brackets else f"{self.host}:{self.port}"
        return "udp:" + address if self.kind == "udp" else address


def host_name(text: str) -> str:
    """Return ``text`` if it is a valid host name for TLS.

    Raises:
        ConfigError: It cannot be encoded as a host name, or has more than 255 bytes.
    """
    try:
        encoded = text.encode("idna")
    except UnicodeError:
        encoded = b""
    # OpenSSL takes neither a longer one (TLSEXT_MAXLEN_host_name) nor a NUL.
    if not 0 < len(encoded) <= 255 or b"\0" in encoded:
        raise ConfigError(f"{text!r} is not a host name")
    return text


def _is_host(text: str) -> bool:
    """Return True for an address or a name without a port, False for the text of an endpoint."""
    if text.count(":") < 2:
        return ":" not in text
    from ipaddress import IPv6Address  # slow to import, and needed for few targets

    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def _check_host_and_port(host: object, port: object) -> None:
    if host is not None:
        _check_type("host", host, str, int)
    _check_type("port", port, int, str)


def _check_type(name: str, value: object, *types: type) -> None:
    if not isinstance(value, types) or isinstance(value, bool):
        wanted = " or ".join("an integer" if kind is int else "a string" for kind in types)
        raise ConfigError(f"the {name} of an endpoint must be {wanted}, not {value!r}")


def _named(text: str, read: Callable[..., Endpoint], *parts: object) -> Endpoint:
    """Return ``read(*parts)``, with ``text`` at the start of every error message."""
    try:
        return read(*parts)
    except ConfigError as error:
        raise ConfigError(f"endpoint {text!r} {error}") from None


def _parse(text: str) -> Endpoint:
    if url := re.match(_URL, text):
        host, port = url.groups()
        raise ConfigError(f"is a URL; write {host}{port or ':PORT'}")
    if text.startswith("unix:"):
        return _unix(text[5:])
    if text.startswith("fd:"):
        return _inherited(text[3:])
    kind: Literal["tcp", "udp"] = "udp" if text.startswith("udp:") else "tcp"
    scheme = "udp:" if kind == "udp" else ""
    host, colon, port = text.removeprefix(scheme).rpartition(":")
    if not colon:
        raise ConfigError(f"has no port, as in {scheme}localhost:9999")
    if text.endswith("]"):
        raise ConfigError(f"has no port, as in {scheme}[::1]:9999")
    if host == "[]":
        raise ConfigError("has no address between its brackets; for every interface, omit them")
    if host.startswith("[") and host.endswith("]"):
        return _internet(kind, host[1:-1], port)
    if ":" in host:
        raise ConfigError(f"has an IPv6 address without brackets, as in {scheme}[::1]:9999")
    return _internet(kind, host, port)


def _internet(kind: Literal["tcp", "udp"], host: str | int | None, port: int | str) -> Endpoint:
    if isinstance(host, int):
        if not 0 <= host <= 0xFFFFFFFF:
            raise ConfigError(f"has the integer address {host}, which is not a 32-bit number")
        host = ".".join(str(byte) for byte in host.to_bytes(4, "big"))
    host = host or ""
    if any(c in "[]/@" or c.isspace() or not c.isprintable() for c in host):
        raise ConfigError(f"has invalid characters in host name {host!r}")
    if any(not label or len(label) > 63 for label in host.removesuffix(".").split(".")) and host:
        raise ConfigError(f"has an invalid host name, {host!r}")
    return Endpoint(kind, host=host, port=_port(port))


def _unix(path: str) -> Endpoint:
    if path.startswith("@"):
        path = "\0" + path[1:]
    if path in ("", "\0"):
        raise ConfigError("has no path")
    if "\0" in path[1:]:
        raise ConfigError("has a NUL in its path")
    try:
        size = len(path.encode(errors="surrogateescape"))  # as the kernel will see it (PEP 383)
    except UnicodeEncodeError:
        raise ConfigError("has a path that cannot be encoded") from None
    if size > UNIX_PATH_MAX:
        raise ConfigError(f"has a path longer than {UNIX_PATH_MAX} bytes")
    return Endpoint("unix", path=path)


def _inherited(fd: int | str) -> Endpoint:
    text = str(fd)
    if re.fullmatch(_FD_NAME, text):
        return Endpoint("fd", name=text)
    if not (text.isascii() and text.isdigit() and len(text) <= 10) or int(text) > 0x7FFFFFFF:
        raise ConfigError("has no descriptor number or name, as in fd:3 or fd:web")
    return Endpoint("fd", fd=int(text))


def _port(port: int | str) -> int | str:
    text = str(port)
    if text.isascii() and text.isdigit():
        digits = text.lstrip("0") or "0"
        if len(digits) > 5 or int(digits) > 65535:
            raise ConfigError(f"has port {text[:20]}, which is not in 0-65535")
        return int(digits)
    if len(text) > 15 or not re.fullmatch(_SERVICE, text):
        raise ConfigError(f"has neither a port number nor a service name in {text!r}")
    return text
