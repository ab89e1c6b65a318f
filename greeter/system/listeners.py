"""Listening sockets: opening, accepting from and closing them.

Invariants:

- Opening is all or nothing: an error closes every socket that was opened.
- The file of a Unix socket is removed by the listener that created it, and by no other.
- Every listening socket of the server is created or adopted here.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import select
import socket
import struct
from array import array
from typing import TYPE_CHECKING, Any

from greeter.core.endpoint import Endpoint
from greeter.core.server_config import BACKLOG
from greeter.errors import ListenFailed, os_error_text
from greeter.system.binding import bind_internet
from greeter.system.datagram_socket import dropped_datagrams
from greeter.system.socket_files import file_id, remove_stale, turn_in_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

logger = logging.getLogger("greeter")

# accept(2): errors of one connection that failed in the queue, or that a firewall rejected. accept() can be
# called again at once.
TRANSIENT_ACCEPT_ERRORS = frozenset(
    (errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR, errno.ENETDOWN, errno.EHOSTDOWN)
    + (errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.ENOPROTOOPT)
)

# How long TCP handshakes have to complete after a stop begins, in seconds. A round trip on the loopback or in
# a data centre is far shorter.
HANDSHAKE_GRACE = 0.05

INTERNET = ("tcp", "udp")  # kinds of endpoints

_AF_UNIX = getattr(socket, "AF_UNIX", None)  # not on Windows
_SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>; not in the socket module
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter of <linux/filter.h>: code, jt, jf, k
_PROGRAM = struct.Struct("@HP")  # struct sock_fprog: the number of instructions, and their address


class Listener:
    """A listening socket, or one that datagrams are received on.

    Attributes:
        sock: The socket, non-blocking.
        endpoint: Its actual address; the port is never 0.
        address: The text of ``endpoint``.
        inherited: True for a socket that was not created here. Its file, if any, is never removed.
        family: The address family of the socket.
        accept_fd: Accepts a connection and returns its descriptor (blocking) and address. Raises the error of
            accept(2).
    """

    def __init__(self, sock: socket.socket, endpoint: Endpoint, *, inherited: bool = False) -> None:
        self.sock = sock
        self.endpoint = endpoint
        self.address = str(endpoint)
        self.inherited = inherited
        self.family = sock.family
        # socket.accept() is a wrapper of _accept() that costs one more system call. It is the fallback for a
        # Python without _accept().
        self.accept_fd: Callable[[], tuple[int, Any]] = getattr(sock, "_accept", self._accept_documented)
        if sock.family == _AF_UNIX:
            self._accept_any = self.accept_fd
            self.accept_fd = self._accept_unix
        self._file: tuple[int, int] | None = None
        self._dropped = 0
        if not inherited and endpoint.kind == "unix" and not endpoint.abstract:
            self._file = file_id(endpoint.path)
        sock.setblocking(False)

    def __repr__(self) -> str:
        return f"<Listener {self.address}{' inherited' if self.inherited else ''}>"

    def listen(self, backlog: int) -> None:
        """Start listening. An inherited socket already listens, and keeps its backlog.

        Args:
            backlog: The length of the accept queue.

        Raises:
            OSError: The address is in use, for example.
        """
        if not self.inherited:
            self.sock.listen(backlog)

    def dropped(self) -> int:
        """Return how many datagrams the kernel has dropped before they could be received.

        After the socket is closed, it is as many as at the last call before.
        """
        if self.endpoint.kind == "udp":
            with contextlib.suppress(OSError):
                self._dropped = dropped_datagrams(self.sock)
        return self._dropped

    def has_clients(self) -> bool:
        """Return whether a client is in the accept queue, or a datagram in the receive buffer."""
        if self.sock.fileno() < 0:  # it is closed
            return False
        poll = select.poll()  # not select(2), which takes no descriptor above 1023
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))

    def _accept_documented(self) -> tuple[int, Any]:
        sock, address = self.sock.accept()
        return sock.detach(), address

    def _accept_unix(self) -> tuple[int, Any]:
        try:
            return self._accept_any()
        except OSError as error:
            if error.errno == errno.EINVAL:  # refuse_connections() was called, and the queue is empty
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
            raise

    def reject_new_handshakes(self, *, last: bool = False) -> bool:
        """Prevent new TCP handshakes, while those in progress complete.

        A classic BPF program on the listening socket drops segments with SYN set (socket(7),
        SO_ATTACH_FILTER). The client's kernel retries, and is refused once the socket is closed. For a Unix
        socket, the path is removed; ``refuse_connections`` does the rest.

        Args:
            last: An inherited socket may be in use by other processes, so it is left unchanged unless this is
                True.

        Returns:
            True if new connections are prevented now, or can be by ``refuse_connections``. Datagrams have no
            connections.
        """
        if self.endpoint.kind == "udp" or (self.inherited and not last):
            return False
        self.remove_file()
        if self.sock.family not in (socket.AF_INET, socket.AF_INET6):
            return True
        # Nothing is imported for this: at a stop, there may be no descriptor to read a module with.
        # Load the byte of the TCP flags. Drop the segment if SYN is set, else keep all of it.
        drop_syn = ((0x30, 0, 0, 13), (0x45, 1, 0, 0x02), (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0))
        instructions = array("B", b"".join(_INSTRUCTION.pack(*instruction) for instruction in drop_syn))
        program = _PROGRAM.pack(len(drop_syn), instructions.buffer_info()[0])
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        except OSError:
            return False
        return True

    def refuse_connections(self) -> None:
        """Refuse new connections to a Unix socket, also an abstract one; those in the queue stay there.

        shutdown(2) with SHUT_RD does that: connect(2) fails with ECONNREFUSED, and accept(2) with EINVAL once
        the queue is empty. The socket is readable from now on, so nothing may watch it.
        """
        if self.family == _AF_UNIX:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RD)

    def remove_file(self) -> None:
        """Remove the socket's file, if it is still the one that this listener created."""
        file, self._file = self._file, None
        try:
            if file is not None and file_id(self.endpoint.path) == file:
                os.unlink(self.endpoint.path)
        except FileNotFoundError:
            pass
        except OSError as error:  # its directory was replaced, or its permissions changed
            logger.warning("cannot remove %s: %s", self.endpoint.path, os_error_text(error))

    def close(self) -> None:
        """Close the socket and remove its file. The kernel resets the connections in the accept queue."""
        self.remove_file()
        self.sock.close()


def open_listeners(
    endpoints: Iterable[Endpoint], *, backlog: int = BACKLOG, unix_mode: int | None = None
) -> list[Listener]:
    """Listen on every endpoint, or on none. Resolving a name blocks.

    Args:
        endpoints: Where to listen. A host with several addresses, such as the empty host, gives one listener
            for each of them, all on the same port. An inherited descriptor is duplicated and stays open.
        backlog: The length of the accept queue.
        unix_mode: The permissions of the files of Unix sockets; None for those that the umask leaves.

    Returns:
        The listeners, in the order of the endpoints.

    Raises:
        ListenFailed: An endpoint cannot be listened on. Every socket was closed.
    """
    opened: dict[int, list[Listener]] = {}  # by the place of the endpoint
    try:
        # Names first: resolving a name may take long, and a Unix socket listens at once.
        for place, endpoint in sorted(enumerate(endpoints), key=lambda each: each[1].kind not in INTERNET):
            if endpoint.kind in INTERNET:
                opened[place] = _open_internet(endpoint)
            elif endpoint.kind == "unix":
                opened[place] = [_open_unix(endpoint, backlog, unix_mode)]
            else:
                opened[place] = [_open_inherited(endpoint, backlog)]
        for listener in itertools.chain(*opened.values()):
            if listener.endpoint.kind == "tcp":
                try:
                    listener.listen(backlog)
                except OSError as error:
                    raise ListenFailed(listener.address, error) from error
    except BaseException:
        for listener in itertools.chain(*opened.values()):
            listener.close()
        raise
    return [listener for place in sorted(opened) for listener in opened[place]]


def adopt(sock: socket.socket, text: str = "", *, backlog: int = BACKLOG) -> Listener:
    """Make a Listener of a bound socket. The Listener owns the socket, but not its file, if it has one.

    Args:
        sock: A bound stream socket, or a bound UDP socket.
        text: How errors call the socket. The default is ``fd:N``.
        backlog: The length of the accept queue, if the socket does not listen yet.

    Raises:
        ListenFailed: It cannot be listened on. The caller still owns the socket.
    """
    text = text or f"fd:{sock.fileno()}"
    try:
        datagrams = sock.type == socket.SOCK_DGRAM and sock.family != _AF_UNIX
        if sock.type != socket.SOCK_STREAM and not datagrams:
            raise ListenFailed(text, "neither a stream socket nor a UDP socket")
        if sock.family not in (socket.AF_INET, socket.AF_INET6, _AF_UNIX):
            raise ListenFailed(text, f"a socket of the family {_family_name(sock)}, neither TCP nor Unix")
        if _is_connected(sock):
            how = "" if datagrams else ", as systemd passes it with Accept=yes (use Accept=no)"
            raise ListenFailed(text, f"a connected socket{how}")
        name = sock.getsockname()
        if isinstance(name, tuple):
            host, port = name[:2]
            if port == 0:
                raise ListenFailed(text, "not bound to a port")
            endpoint = Endpoint("udp" if datagrams else "tcp", host=host, port=port)
        else:
            path = name if isinstance(name, str) else name.decode(errors="surrogateescape")
            endpoint = Endpoint("unix", path=path)
        if not datagrams and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.listen(backlog)
    except ListenFailed:
        raise
    except OSError as error:
        raise ListenFailed(text, error) from error
    return Listener(sock, endpoint, inherited=True)


def _family_name(sock: socket.socket) -> str:
    """Return the name of an address family, as in ``AF_VSOCK``; its number if Python has no name for it."""
    return sock.family.name if isinstance(sock.family, socket.AddressFamily) else str(sock.family)


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:  # ENOTCONN
        return False
    return True


def close_inherited(endpoints: Iterable[Endpoint]) -> None:
    """Close the descriptors of inherited sockets, whose duplicates are in use: see ``open_listeners``.

    For a process that owns its descriptors. A listening socket lives until its last descriptor is closed, so
    that clients would connect to one that nothing accepts from.

    Args:
        endpoints: The endpoints that were opened. Those that are not inherited are skipped.
    """
    for endpoint in endpoints:
        if endpoint.kind != "fd":
            continue
        if endpoint.fd > 2:
            os.close(endpoint.fd)
            continue
        null = os.open(os.devnull, os.O_RDWR)  # a standard stream: see standard_streams.py
        os.dup2(null, endpoint.fd)
        os.close(null)


def _open_inherited(endpoint: Endpoint, backlog: int) -> Listener:
    text = str(endpoint)
    if endpoint.name:
        raise ListenFailed(text, "only greeter serve knows the sockets of systemd by their names")
    try:
        fd = os.dup(endpoint.fd)
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            raise
    except OSError as error:
        raise ListenFailed(text, error) from error
    try:
        return adopt(sock, text, backlog=backlog)
    except ListenFailed:
        sock.close()
        raise


def _open_internet(endpoint: Endpoint) -> list[Listener]:
    socks = bind_internet(endpoint)
    try:
        names = [sock.getsockname() for sock in socks]
        return [
            Listener(sock, Endpoint(endpoint.kind, host=name[0], port=name[1]))
            for sock, name in zip(socks, names, strict=True)
        ]
    except OSError as error:  # ENOBUFS (getsockname(2))
        for sock in socks:
            sock.close()
        raise ListenFailed(str(endpoint), error) from error


def _open_unix(endpoint: Endpoint, backlog: int, mode: int | None) -> Listener:
    path = endpoint.path
    try:
        if endpoint.abstract:
            return _bind_unix(endpoint, backlog)
        with turn_in_directory(path):
            remove_stale(path)
            return _bind_unix(endpoint, backlog, mode)
    except FileExistsError as error:
        raise ListenFailed(str(endpoint), "the file exists and is not a socket") from error
    except OSError as error:
        raise ListenFailed(str(endpoint), error) from error


def _bind_unix(endpoint: Endpoint, backlog: int, mode: int | None = None) -> Listener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(endpoint.path)
    except BaseException:
        sock.close()
        raise
    listener = Listener(sock, endpoint)
    try:
        if mode is not None:
            os.chmod(
                endpoint.path, mode
            )  # before listen(), so that no client can connect with the wrong mode
        listener.listen(backlog)  # at once: until then, another service takes the file for a stale one
    except BaseException:
        listener.close()
        raise
    return listener
