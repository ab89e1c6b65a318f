"""Listening sockets: opening, errors, and that every descriptor and file is cleaned up."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import re
import select
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from greeter import Endpoint, ListenFailed
from greeter.system import binding, socket_files
from greeter.system.listeners import Listener, adopt, open_listeners
from tests.conftest import PATIENCE, ROOT, open_fds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")


@pytest.fixture(autouse=True)
def _same_fds() -> Iterator[None]:
    before = open_fds()
    yield
    if open_fds() != before:
        gc.collect()
    assert open_fds() == before


@pytest.fixture
def listen(_same_fds: None) -> Iterator[Callable[..., list[Listener]]]:
    """open_listeners() for texts. The listeners are closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def start(*texts: str, **options: Any) -> list[Listener]:
            opened = open_listeners([Endpoint.parse(text) for text in texts], **options)
            for listener in opened:
                stack.callback(listener.close)
            return opened

        yield start


def connect(listener: Listener) -> socket.socket:
    sock = socket.socket(listener.sock.family)
    sock.connect(listener.sock.getsockname())
    return sock


def accept(listener: Listener) -> tuple[socket.socket, Any] | None:
    """Accept a connection. Return its socket and address, or None if there is none."""
    try:
        fd, address = listener.accept_fd()
    except BlockingIOError:
        return None
    return socket.socket(fileno=fd), address


def greets(listener: Listener) -> bool:
    """Return True if a client can connect and receives what the accepted socket sends."""
    with connect(listener) as client:
        select.select([listener.sock], [], [], PATIENCE)
        accepted = accept(listener)
        assert accepted is not None
        sock, address = accepted
        assert isinstance(address, tuple) == (client.family != socket.AF_UNIX)
        if isinstance(address, tuple):
            assert address[:2] == client.getsockname()[:2]
        sock.send(b"hi")
        sock.close()
        return client.recv(9) == b"hi"


def open_error(*texts: str, **options: Any) -> ListenFailed:
    with pytest.raises(ListenFailed) as caught:
        open_listeners([Endpoint.parse(text) for text in texts], **options)
    assert str(caught.value).startswith("cannot listen on ")
    return caught.value


# -- TCP -------------------------------------------------------------------------------------------------


def test_port_0_is_replaced_by_the_chosen_port(listen: Any) -> None:
    (listener,) = listen("127.0.0.1:0")
    port = listener.sock.getsockname()[1]
    assert port > 0
    assert listener.endpoint == Endpoint.tcp("127.0.0.1", port)
    assert (listener.address, listener.inherited) == (f"127.0.0.1:{port}", False)
    assert repr(listener) == f"<Listener 127.0.0.1:{port}>"
    assert listener.sock.getblocking() is False
    assert accept(listener) is None
    assert greets(listener)


@pytest.mark.parametrize("host", ["localhost", "2130706433", "0x7f.1"])
def test_a_name_and_a_number_are_resolved(listen: Any, host: str) -> None:
    opened = listen(f"{host}:0")
    assert len({listener.endpoint.port for listener in opened}) == 1
    assert {listener.endpoint.host for listener in opened} <= {"127.0.0.1", "::1"}
    assert all(greets(listener) for listener in opened)


@needs_ipv6
def test_the_empty_host_is_both_families_on_one_port(listen: Any) -> None:
    opened = listen(":0")
    assert [listener.sock.family for listener in opened] == [socket.AF_INET6, socket.AF_INET]
    assert {listener.endpoint.host for listener in opened} == {"::", "0.0.0.0"}
    (port,) = {listener.endpoint.port for listener in opened}
    for listener, host in zip(opened, ("::1", "127.0.0.1"), strict=True):
        with socket.create_connection((host, port)) as client:
            accepted = accept(listener)  # each family has its own socket and addresses
            assert accepted is not None
            assert accepted[1][:2] == client.getsockname()[:2]
            accepted[0].close()


@needs_ipv6
def test_an_ipv6_socket_accepts_ipv6_only(listen: Any) -> None:
    (listener,) = listen("[::1]:0")
    assert listener.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
    assert listener.address == f"[::1]:{listener.endpoint.port}"
    assert greets(listener)


def test_several_endpoints_at_once(listen: Any, tmp_path: Path) -> None:
    opened = listen("127.0.0.1:0", "127.0.0.1:0", f"unix:{tmp_path}/x")
    assert len({listener.address for listener in opened}) == 3
    assert all(greets(listener) for listener in opened)


def test_a_port_in_use(listen: Any) -> None:
    (listener,) = listen("127.0.0.1:0")
    error = open_error(listener.address)
    assert str(error) == f"cannot listen on {listener.address}: address already in use"
    assert (error.errno, error.endpoint) == (errno.EADDRINUSE, listener.address)
    # Both endpoints can be bound before either listens, so listen() fails.
    listener.close()
    assert open_error(listener.address, listener.address).errno == errno.EADDRINUSE


def test_a_port_is_free_again_at_once(listen: Any) -> None:
    (listener,) = listen("127.0.0.1:0")
    with connect(listener) as client:
        accepted = accept(listener)
        assert accepted is not None
        accepted[0].close()  # this side closes first, and is in TIME_WAIT
        assert client.recv(1) == b""
    listener.close()
    listen(listener.address)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("192.0.2.1:0", "cannot assign requested address"),
        ("127.0.0.1:nosuchservice", "(servname not supported|service not|unrecognized service)"),
        ("nosuchhost.invalid:0", "(name or service not known|temporary failure|no address)"),
        ("xn--é:0", "not a host name"),
    ],
)
def test_an_address_that_cannot_be_resolved_or_bound(text: str, why: str) -> None:
    assert re.match(f"cannot listen on {re.escape(text)}: {why}", str(open_error(text)))


def test_an_error_closes_every_socket(listen: Any, tmp_path: Path) -> None:
    (taken,) = listen("127.0.0.1:0")
    before = open_fds()
    error = open_error(
        "127.0.0.1:0", f"unix:{tmp_path}/x", f"unix:@greeter-test-{os.getpid()}", taken.address
    )
    assert error.endpoint == taken.address
    assert open_fds() == before
    assert not (tmp_path / "x").exists()
    assert greets(taken)


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[int, str]) -> None:
    """Let the resolver return these addresses for every name."""

    def getaddrinfo(_host: object, port: int, **_: object) -> list[Any]:
        return [(family, socket.SOCK_STREAM, 0, "", (host, port)) for family, host in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_all_addresses_of_a_name_share_the_port(listen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, (socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.2"))
    one, two = listen("name:0")
    assert one.endpoint.port == two.endpoint.port
    assert (one.endpoint.host, two.endpoint.host) == ("127.0.0.1", "127.0.0.2")
    assert greets(one)
    assert greets(two)


def test_addresses_of_other_machines_are_skipped(listen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    unsupported = (socket.AF_IPX, "no such family")
    elsewhere = (socket.AF_INET, "192.0.2.1")
    resolve_to(monkeypatch, unsupported, elsewhere, (socket.AF_INET, "127.0.0.1"))
    (listener,) = listen("name:0")
    assert listener.endpoint.host == "127.0.0.1"
    resolve_to(monkeypatch, unsupported)
    assert open_error("name:0").errno == errno.EAFNOSUPPORT
    resolve_to(monkeypatch, unsupported, elsewhere)
    assert open_error("name:0").errno == errno.EADDRNOTAVAIL
    resolve_to(monkeypatch)
    assert str(open_error("name:0")) == "cannot listen on name:0: cannot assign requested address"


def test_one_address_in_use_closes_the_others(listen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (taken,) = listen("127.0.0.2:0")
    resolve_to(monkeypatch, (socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.2"))
    before = open_fds()
    assert open_error(f"name:{taken.endpoint.port}").errno == errno.EADDRINUSE
    assert open_fds() == before


def test_a_chosen_port_that_is_taken_for_the_next_family_is_chosen_again(
    listen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, (socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.2"))
    bind_all = binding._bind_all
    tries = []

    def unlucky(addresses: Any, kind: Any) -> list[socket.socket]:
        tries.append(addresses)
        if len(tries) < lucky:
            raise OSError(errno.EADDRINUSE, "taken")
        return bind_all(addresses, kind)

    monkeypatch.setattr(binding, "_bind_all", unlucky)
    lucky = binding.PORT_TRIES
    assert len(listen("name:0")) == 2
    assert len(tries) == binding.PORT_TRIES
    tries.clear()
    lucky += 1
    assert open_error("name:0").errno == errno.EADDRINUSE
    tries.clear()
    open_error("name:9")  # a fixed port is not replaced
    assert len(tries) == 1


# -- accept ----------------------------------------------------------------------------------------------


def test_accept_without_the_private_method(listen: Any) -> None:
    (listener,) = listen("127.0.0.1:0")
    listener.accept_fd = listener._accept_documented
    assert accept(listener) is None
    assert greets(listener)


def test_the_backlog_is_the_length_of_the_queue(listen: Any, tmp_path: Path) -> None:
    (listener,) = listen(f"unix:{tmp_path}/x", backlog=3)
    assert queue_length(listener) == 4  # the kernel accepts one more than the backlog


def test_a_socket_for_datagrams_has_no_handshakes_to_reject(listen: Any) -> None:
    (listener,) = listen("udp:127.0.0.1:0")
    assert not listener.reject_new_handshakes(last=True)
    listener.refuse_connections()
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.sendto(b"\xff" * 20, listener.sock.getsockname())  # a segment of TCP would have its SYN set
        assert listener.sock.recv(100) == b"\xff" * 20


def queue_length(listener: Listener) -> int:
    """Return how many clients can connect to a Unix socket before connect() would block."""
    with contextlib.ExitStack() as stack:
        waiting = 0
        with contextlib.suppress(BlockingIOError):
            while waiting < 20:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(listener.endpoint.path)
                waiting += 1
    return waiting


# -- rejecting new handshakes ----------------------------------------------------------------------------


def test_reject_new_handshakes_keeps_connections_in_the_queue(listen: Any) -> None:
    (listener,) = listen("127.0.0.1:0")
    with connect(listener) as early, socket.socket() as late:
        if not listener.reject_new_handshakes():
            pytest.skip("this system has no SO_ATTACH_FILTER")
        late.setblocking(False)
        assert late.connect_ex(listener.sock.getsockname()) == errno.EINPROGRESS
        accepted = accept(listener)
        assert accepted is not None
        assert accepted[1] == early.getsockname()
        assert accept(listener) is None
        listener.close()
        # The client's kernel retries after a second and finds the port closed: it never connected.
        assert select.select([], [late], [], PATIENCE)[1]
        assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
        accepted[0].send(b"hi")
        accepted[0].close()
        assert early.recv(9) == b"hi"


def test_reject_new_handshakes_removes_the_path_of_a_unix_socket(listen: Any, tmp_path: Path) -> None:
    (listener,) = listen(f"unix:{tmp_path}/x")
    with connect(listener):
        assert listener.reject_new_handshakes()
        assert not os.listdir(tmp_path)
        accepted = accept(listener)
        assert accepted is not None
        accepted[0].close()


def test_reject_new_handshakes_does_not_change_a_shared_socket(listen: Any) -> None:
    (original,) = listen("127.0.0.1:0")
    (inherited,) = listen(f"fd:{original.sock.fileno()}")
    assert not inherited.reject_new_handshakes()
    assert greets(original)


def test_reject_new_handshakes_returns_false_on_an_error(listen: Any) -> None:
    (listener,) = listen("127.0.0.1:0")
    listener.close()
    assert not listener.reject_new_handshakes()


# -- Unix sockets ----------------------------------------------------------------------------------------


def test_the_file_of_a_unix_socket_exists_while_its_listener_does(listen: Any, tmp_path: Path) -> None:
    (listener,) = listen(f"unix:{tmp_path}/x", unix_mode=0o640)
    mode = (tmp_path / "x").stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o640
    assert greets(listener)
    listener.close()
    listener.close()  # closing twice is allowed
    assert not os.listdir(tmp_path)


def test_a_stale_socket_file_is_replaced(listen: Any, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/x")
        dead.listen()
    (listener,) = listen(f"unix:{tmp_path}/x")
    assert greets(listener)


def test_a_live_socket_is_never_replaced(listen: Any, tmp_path: Path) -> None:
    (live,) = listen(f"unix:{tmp_path}/x")
    error = open_error(f"unix:{tmp_path}/x")
    assert str(error) == f"cannot listen on unix:{tmp_path}/x: address already in use"
    accepted = accept(live)  # the probe whether it is in use
    assert accepted is not None
    accepted[0].close()
    assert greets(live)


def test_a_live_socket_with_a_full_queue_is_never_replaced(listen: Any, tmp_path: Path) -> None:
    (live,) = listen(f"unix:{tmp_path}/x", backlog=1)
    with connect(live), connect(live):
        assert open_error(f"unix:{tmp_path}/x").errno == errno.EADDRINUSE
    assert (tmp_path / "x").exists()


def test_a_starting_service_keeps_its_unix_socket(
    listen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resolving a name takes long, and a second service starts meanwhile."""
    path = f"unix:{tmp_path}/x"
    resolve, errors = socket.getaddrinfo, []

    def slow(*args: Any, **options: Any) -> Any:
        if os.path.exists(f"{tmp_path}/x"):
            errors.append(open_error(path).errno)
        return resolve(*args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    unix, tcp = listen(path, "127.0.0.1:0")
    assert (unix.address, tcp.endpoint.kind) == (path, "tcp")
    assert greets(unix)
    assert errors in ([], [errno.EADDRINUSE])


# It is slow between bind(2) and listen(2).
STARTERS = """
import os, sys, time
os.chmod = lambda *_: time.sleep(0.2)
from greeter.system import socket_files
from greeter.system.listeners import open_listeners
from greeter import Endpoint, ListenFailed
socket_files.TURN_TIMEOUT = float(sys.argv[2])
sys.stdin.readline()
try:
    open_listeners([Endpoint.parse(sys.argv[1])], unix_mode=0o600)
    print("listening", flush=True)
except ListenFailed as error:
    print(error.strerror, flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("stale_file", [False, True])
def test_of_services_that_start_at_once_one_has_the_unix_socket(tmp_path: Path, stale_file: bool) -> None:
    """Also where a stale socket is: its inode number may be that of the new one."""
    path = f"{tmp_path}/x"
    if stale_file:
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(path)
    command = [sys.executable, "-c", STARTERS, f"unix:{path}", str(PATIENCE)]
    starters = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for line in ("start", "end"):
        for starter in starters:
            assert starter.stdin is not None
            print(line, file=starter.stdin, flush=True)
        if line == "start":
            said = [starter.stdout.readline().strip() for starter in starters if starter.stdout]
    for starter in starters:
        starter.communicate(timeout=PATIENCE)
    assert sorted(said) == [os.strerror(errno.EADDRINUSE)] * 2 + ["listening"]


def test_a_turn_that_another_program_keeps_is_not_waited_for(
    listen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_files, "TURN_TIMEOUT", 0.01)
    with socket_files.turn_in_directory(f"{tmp_path}/x"):
        (listener,) = listen(f"unix:{tmp_path}/x")
        assert greets(listener)


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_a_file_that_is_not_a_socket_is_kept(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    assert (
        str(open_error(f"unix:{path}"))
        == f"cannot listen on unix:{path}: the file exists and is not a socket"
    )
    assert path.is_symlink() or path.exists()


def test_a_socket_of_another_type_is_kept(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(f"{tmp_path}/x")
        assert open_error(f"unix:{tmp_path}/x").errno == errno.EPROTOTYPE
    assert (tmp_path / "x").exists()


def test_a_missing_directory(tmp_path: Path) -> None:
    assert str(open_error(f"unix:{tmp_path}/no/x")).endswith("/no/x: no such file or directory")


def test_a_file_that_cannot_be_removed_is_logged(
    listen: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "d").mkdir()
    (listener,) = listen(f"unix:{tmp_path}/d/x")
    (tmp_path / "d").rename(tmp_path / "moved")
    (tmp_path / "d").touch()  # not a directory any more
    listener.close()
    assert caplog.messages == [f"cannot remove {tmp_path}/d/x: not a directory"]


def test_a_file_that_replaced_ours_is_not_removed(listen: Any, tmp_path: Path) -> None:
    (listener,) = listen(f"unix:{tmp_path}/x")
    os.rename(tmp_path / "x", tmp_path / "kept")  # so that its inode is not reused
    (tmp_path / "x").write_text("another file")
    listener.close()
    assert sorted(os.listdir(tmp_path)) == ["kept", "x"]


def test_a_file_that_was_already_removed_is_not_an_error(listen: Any, tmp_path: Path) -> None:
    (listener,) = listen(f"unix:{tmp_path}/x")
    (tmp_path / "x").unlink()
    listener.close()


def test_a_mode_that_cannot_be_set_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chmod(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(os, "chmod", chmod)
    error = open_error(f"unix:{tmp_path}/x", unix_mode=0o600)
    assert str(error) == f"cannot listen on unix:{tmp_path}/x: operation not permitted"
    assert not os.listdir(tmp_path)


def test_a_stale_file_that_was_replaced_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{tmp_path}/x"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(path)
    stale.close()
    identity = socket_files.file_id
    seen: list[object] = []

    def changing(path: str) -> Any:
        seen.append(path)
        return identity(path) if len(seen) == 1 else (0, len(seen))

    monkeypatch.setattr(socket_files, "file_id", changing)
    assert open_error(f"unix:{path}").errno == errno.EADDRINUSE  # the file was kept, so bind() fails
    assert os.path.exists(path)


@pytest.mark.parametrize("mode", [None, 0o600])
def test_an_abstract_name_has_no_file(listen: Any, mode: int | None) -> None:
    name = f"greeter-test-{os.getpid()}"
    (listener,) = listen(f"unix:@{name}", unix_mode=mode)
    assert listener.address == f"unix:@{name}"
    assert greets(listener)
    assert open_error(f"unix:@{name}").errno == errno.EADDRINUSE
    listener.close()
    listen(f"unix:@{name}")


@pytest.mark.parametrize("name", ["@greeter-test-{pid}", "{here}/x"])
def test_refused_connections_leave_the_queue_as_it_is(listen: Any, tmp_path: Path, name: str) -> None:
    (listener,) = listen("unix:" + name.format(here=tmp_path, pid=os.getpid()))
    with socket.socket(socket.AF_UNIX) as queued, socket.socket(socket.AF_UNIX) as late:
        queued.connect(listener.endpoint.path)
        listener.refuse_connections()
        with pytest.raises(ConnectionRefusedError):
            late.connect(listener.endpoint.path)
        fd, _ = listener.accept_fd()
        os.close(fd)
        with pytest.raises(BlockingIOError):
            listener.accept_fd()


# -- inherited sockets -----------------------------------------------------------------------------------


def test_an_inherited_socket_is_not_changed(listen: Any, tmp_path: Path) -> None:
    for text in ("127.0.0.1:0", f"unix:{tmp_path}/x", f"unix:@greeter-test-{os.getpid()}"):
        (original,) = listen(text)
        (inherited,) = listen(f"fd:{original.sock.fileno()}", backlog=1)
        assert inherited.inherited
        assert inherited.address == original.address
        assert repr(inherited) == f"<Listener {original.address} inherited>"
        assert greets(inherited)
        inherited.close()
        assert greets(original)  # the socket is open and its file is there


def test_an_inherited_socket_keeps_its_queue(listen: Any, tmp_path: Path) -> None:
    (original,) = listen(f"unix:{tmp_path}/x", backlog=3)
    listen(f"fd:{original.sock.fileno()}", backlog=9)
    assert queue_length(original) == 4


def test_an_inherited_bound_socket_starts_listening(listen: Any) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        (listener,) = listen(f"fd:{bound.fileno()}")
        assert greets(listener)


ACCEPTED = "a connected socket, as systemd passes it with Accept=yes"


def test_a_socket_of_another_family_is_named() -> None:
    try:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        sock.bind((socket.VMADDR_CID_ANY, 29_998))
    except (OSError, AttributeError):
        pytest.skip("this kernel has no vsock(7)")
    with sock:
        sock.listen()
        why = "a socket of the family AF_VSOCK, neither TCP nor Unix"
        assert str(open_error(f"fd:{sock.fileno()}")) == f"cannot listen on fd:{sock.fileno()}: {why}"


def test_descriptors_that_cannot_be_listened_on() -> None:
    reading, writing = os.pipe()
    udp, udp_client, unix_datagrams, unbound, bare_unix = (
        socket.socket(type=socket.SOCK_DGRAM),
        socket.socket(type=socket.SOCK_DGRAM),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        socket.socket(),
        socket.socket(socket.AF_UNIX),
    )
    udp_client.connect(("127.0.0.1", 9))
    connected, other = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    try:
        for fd, why in (
            (reading, "socket operation on non-socket"),
            (udp.fileno(), "not bound to a port"),
            (udp_client.fileno(), "a connected socket"),
            (unix_datagrams.fileno(), "neither a stream socket nor a UDP socket"),
            (unbound.fileno(), "not bound to a port"),
            (bare_unix.fileno(), "invalid argument"),
            (connected.fileno(), f"{ACCEPTED} (use Accept=no)"),
            (accepted.fileno(), f"{ACCEPTED} (use Accept=no)"),
        ):
            before = open_fds()
            assert str(open_error(f"fd:{fd}")) == f"cannot listen on fd:{fd}: {why}"
            assert open_fds() == before
    finally:
        for sock in (udp, udp_client, unix_datagrams, unbound, bare_unix, connected, other, client, accepted):
            sock.close()
        os.close(reading)
        os.close(writing)
    assert str(open_error(f"fd:{reading}")) == f"cannot listen on fd:{reading}: bad file descriptor"


def test_adopt_names_the_socket_and_does_not_close_it_on_an_error() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as udp:
        with pytest.raises(ListenFailed, match=f"cannot listen on fd:{udp.fileno()}: not bound to a port"):
            adopt(udp)
        assert udp.fileno() >= 0
    with socket.socket() as closed:
        pass
    with pytest.raises(ListenFailed, match="cannot listen on fd:-1: bad file descriptor"):
        adopt(closed)
