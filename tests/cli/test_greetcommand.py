"""``greeter greet``: what is said and expected, several targets, and what its lines and objects tell."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from tests.cli.test_cli import HELLO, _bare_environment, error_of, process, refused, run, serving
from tests.conftest import PATIENCE, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["_bare_environment", "refused", "run"]  # fixtures


@contextlib.contextmanager
def peer(behave: Callable[[socket.socket], object], clients: int = 1) -> Iterator[str]:
    """A server that calls ``behave`` with the socket of each client; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as sock:

        def serve() -> None:
            for _ in range(clients):
                client, _ = sock.accept()
                with client, contextlib.suppress(OSError):
                    behave(client)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{sock.getsockname()[1]}"
        thread.join(PATIENCE)


def stays_connected(data: bytes) -> Callable[[socket.socket], object]:
    """Send ``data``, and wait until the client closes."""

    def behave(client: socket.socket) -> None:
        client.sendall(data)
        while client.recv(65536):
            pass

    return behave


@contextlib.contextmanager
def connected(data: bytes) -> Iterator[str]:
    """A connection on which ``data`` has come already, and that stays open; yields its endpoint."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        yield f"fd:{theirs.fileno()}"


@contextlib.contextmanager
def datagram_peer(answers: int, reply: bytes = b"Hello\n") -> Iterator[str]:
    """A socket that does not answer the first datagram, then answers so many; yields its endpoint."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(PATIENCE)

        def serve() -> None:
            for number in range(answers + 1):
                _, source = sock.recvfrom(65536)
                if number:
                    sock.sendto(reply, source)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"udp:127.0.0.1:{sock.getsockname()[1]}"
        thread.join(PATIENCE)


# -- what is said and expected ----------------------------------------------------------------------------


def test_a_refusal_in_words_fails_what_is_expected(run: Any) -> None:
    data = b"421 too many connections\r\n"
    with serving(data, data, data) as address:
        assert run("greet", address)[0] == 0
        line = f"{address}: the greeting '421 too many connections' does not contain '220'"
        assert error_of(run("greet", address, "--expect", "220")) == (1, line)
        assert run("greet", address, "--expect", "421")[:2] == (0, "421 too many connections\n")


def test_bytes_and_a_header_are_sent_first(run: Any) -> None:
    def echo(client: socket.socket) -> None:
        data = b""
        while not data.endswith(b"\xff\n"):
            data += client.recv(1000)
        client.sendall(data)

    with peer(echo, 2) as address:
        assert run("greet", address, "--send", r"QUIT\t\xff\n")[1] == "QUIT\t\\xff\n"
        port = address.rpartition(":")[2]
        shown = run("greet", address, "--proxy-protocol", "v1", "--send", r"\xff\n", "--until", "line")[1]
        assert shown.startswith("PROXY TCP4 127.0.0.1 127.0.0.1 ")
        assert shown.endswith(f" {port}\n")


def test_the_variable_of_serve_is_not_an_option_of_greet(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREETER_PROXY_PROTOCOL", "true")
    with serving(HELLO.encode()) as address:
        assert run("greet", address)[:2] == (0, HELLO + "\n")


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        (b"SSH-2.0-x\r\n", "--until line"),
        (b"220 here\r\n", "--until line"),
        (b"220-here\r\n220 ready\r\n", "--until reply"),
        (b"login: ", "--until idle:1s"),
    ],
)
def test_a_service_that_stays_connected_is_told_how_to_end(run: Any, data: bytes, advice: str) -> None:
    with connected(data) as address:
        code, line = error_of(run("greet", address, "--timeout", "50ms"))
    assert code == 1
    came = repr(data.decode().rstrip("\r\n"))
    assert line == f"{address}: {came} came, but no end of the greeting within 0.05 s; {advice} ends it"
    with peer(stays_connected(data)) as address:
        option, value = advice.replace("1s", "50ms").split()
        assert run("greet", address, option, value)[0] == 0


def test_a_silent_service_may_speak_tls_or_wait(run: Any) -> None:
    with connected(b"") as address:
        line = f"{address}: connected, but no greeting within 0.05 s; a service that speaks TLS needs --tls"
        more = ", one that waits for its client --send"
        assert error_of(run("greet", address, "--timeout", "0.05")) == (1, line + more)
        assert error_of(run("greet", address, "--timeout", "50ms", "--send", "x"))[0] == 1


def test_a_resolver_that_hangs_does_not_delay_the_failure() -> None:
    hanging = (
        "import socket, threading; socket.getaddrinfo = lambda *_, **__: threading.Event().wait()\n"
        "from greeter.cli import cli; raise SystemExit(cli.run())"
    )
    command = (sys.executable, "-c", hanging, "greet", "name.example:9", "--timeout", "0.1")
    found = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT)
    assert (found.returncode, found.stderr) == (1, "greeter: name.example:9: no connection within 0.1 s\n")


def test_a_plain_service_does_not_speak_tls(run: Any) -> None:
    with peer(stays_connected(b"220 here\r\n")) as address:
        line = f"cannot connect to {address}: the server does not speak TLS"
        assert error_of(run("greet", address, "--tls")) == (1, line)
    with peer(stays_connected(b"")) as address:
        line = f"{address}: connected, but no TLS handshake within 0.5 s; "
        advice = "a service that does not speak TLS needs no --tls"
        assert error_of(run("greet", address, "--tls", "--timeout", "500ms")) == (1, line + advice)


def test_tls_without_close_notify_is_an_error_that_shows_what_came(run: Any, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    def cut(client: socket.socket) -> None:
        session = context.wrap_socket(client, server_side=True)
        session.sendall(b"220 half a gree")
        os.close(session.detach())

    with peer(cut, 2) as address:
        options = ["--tls", "--tls-ca", str(tmp_path / "ca.pem")]
        code, out, err = run("greet", address, *options)
        assert (code, out) == (1, "220 half a gree\n")
        assert err.startswith(f"greeter: {address}: the TLS stream ended without close_notify")
        code, out, _ = run("greet", address, *options, "--json")
        assert (code, json.loads(out)["truncated"]) == (1, True)


# -- what is printed --------------------------------------------------------------------------------------


def test_what_a_terminal_hides_is_escaped(run: Any) -> None:
    with serving("a\u202eb\u200bc\u2028d\ue000\x1b[2J\n".encode()) as address:
        assert run("greet", address)[1] == "a\\u202eb\\u200bc\\u2028d\\ue000\\x1b[2J\n"


def test_a_binary_greeting_is_shown_as_hex(run: Any) -> None:
    data = b"J\0\0\0\n5.5.5-10.11.6-M\xe9"
    with serving(data, data) as address:
        assert run("greet", address) == (
            0,
            "00000000  4a 00 00 00 0a 35 2e 35  2e 35 2d 31 30 2e 31 31  |J....5.5.5-10.11|\n"
            "00000010  2e 36 2d 4d e9                                    |.6-M.|\n",
            "",
        )
        found = json.loads(run("greet", address, "--json")[1])
    assert base64.b64decode(found["data_base64"]) == data


def test_json_has_base64_only_where_it_is_needed(run: Any) -> None:
    with serving("grüße\0".encode()) as address:
        assert "data_base64" not in json.loads(run("greet", address, "--json")[1])


# -- several targets --------------------------------------------------------------------------------------


def test_each_target_has_a_line(run: Any, refused: str) -> None:
    with serving(b"220-here\r\n220 \x1b[2Jready\r\n") as one, serving(b"") as two:
        code, out, err = run("greet", one, refused, two)
    assert (code, out) == (1, f"{one}: 220-here\\r\\n220 \\x1b[2Jready\n")
    assert sorted(err.splitlines()) == sorted(
        [
            f"greeter: cannot connect to {refused}: connection refused",
            f"greeter: {two}: closed without a greeting",
        ]
    )
    with serving(b"here\n") as one, serving(b"there\n") as two:
        assert run("greet", one, two)[0] == 0


def test_each_target_has_an_object(run: Any, refused: str) -> None:
    with serving(b"here\n") as address:
        code, out, err = run("greet", address, refused, "--json")
    found = {line["target"]: line for line in map(json.loads, out.splitlines())}
    assert (code, err, set(found)) == (1, "", {address, refused})
    assert found[address]["greeting"] == "here\n"
    assert found[refused] == {
        "target": refused,
        "error": f"cannot connect to {refused}: connection refused",
        "class": "ConnectFailed",
    }


def test_targets_from_a_file_and_from_stdin(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "targets"
    with serving(b"one\n", b"one\n") as one, serving(b"two\n", b"two\n") as two:
        file.write_text(f"# hosts\n\n  {one}  \n")
        code, out, err = run("greet", two, "--targets", str(file), "--limit", "1")
        assert (code, out, err) == (0, f"{two}: two\n{one}: one\n", "")
        done = process("greet", "--targets", "-", "--json", input=f"{one}\n{two}\n")
        assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"h:1\nhttp://h:2/\n", "line 2: endpoint 'http://h:2/' is a URL; write h:2"),
        (b"h:1\nh\n", "line 2: endpoint 'h' has no port"),
        (b"\xff:1\n", "not UTF-8"),
        (b"\n#\n", "no targets in"),
    ],
)
def test_a_wrong_file_of_targets_is_a_usage_error(run: Any, tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "targets").write_bytes(data)
    code, line = error_of(run("greet", "--targets", str(tmp_path / "targets")))
    assert code == 2
    assert why in line


# -- real services ----------------------------------------------------------------------------------------


@pytest.mark.one_interpreter
def test_openssh_refuses_in_words_above_its_limit(run: Any, tmp_path: Path) -> None:
    sshd, keygen = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin"), shutil.which("ssh-keygen")
    if sshd is None or keygen is None:
        pytest.skip("needs OpenSSH (sshd, ssh-keygen)")
    subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    (tmp_path / "config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {tmp_path}/key\nPidFile none\nMaxStartups 5\nUsePAM no\n"
    )
    os.makedirs("/run/sshd", exist_ok=True)
    server = subprocess.Popen([sshd, "-D", "-f", tmp_path / "config", "-E", tmp_path / "log"])
    try:
        address = f"127.0.0.1:{port}"
        code, out, _ = run("greet", address, "--until", "line", "--expect", "SSH-", "--wait", "20")
        if code:
            pytest.skip(f"sshd does not run here: {(tmp_path / 'log').read_text()}")
        assert out.startswith("SSH-2.0-OpenSSH")
        code, line = error_of(run("greet", address, "--timeout", "1"))
        assert (code, line.endswith("; --until line ends it")) == (1, True)
        # Connections that hold the places of clients that have not logged in.
        with contextlib.ExitStack() as stack:
            end, held = time.monotonic() + PATIENCE, 0
            while held < 5:  # until the clients before are forgotten, some are refused
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
                held += sock.recv(4) == b"SSH-"
                assert time.monotonic() < end
            code, out, err = run("greet", address, address, "--until", "line", "--expect", "SSH-")
        assert (code, out) == (1, "")
        assert err.count("'Exceeded MaxStartups' does not contain 'SSH-'") == 2
    finally:
        server.terminate()
        server.wait(PATIENCE)


# -- datagrams --------------------------------------------------------------------------------------------


def test_a_datagram_is_sent_again_and_json_says_how_often(run: Any) -> None:
    with datagram_peer(2) as target:
        code, out, err = run("greet", target, "--json")
        assert (code, err) == (0, "")
        found = json.loads(out)
        assert (found["target"], found["greeting"], found["attempts"]) == (target, "Hello\n", 2)
        assert run("greet", target) == (0, "Hello\n", "")


def test_a_service_for_datagrams_that_is_silent_or_not_there(run: Any) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        target = f"udp:127.0.0.1:{silent.getsockname()[1]}"
        # The second is sent after half a second, and a third would be after another whole one.
        line = f"{target}: no reply to 2 datagrams within 1.4 s"
        assert error_of(run("greet", target, "--timeout", "1.4")) == (1, line)
    line = f"cannot connect to {target}: connection refused"
    assert error_of(run("greet", target)) == (1, line)


def test_an_empty_datagram_is_no_greeting(run: Any) -> None:
    with datagram_peer(1, b"") as target:
        assert error_of(run("greet", target)) == (1, f"{target}: replied without a greeting")


@pytest.mark.parametrize("option", [("--tls",), ("--until", "line"), ("--proxy-protocol", "v1")])
def test_an_option_that_needs_a_stream(run: Any, option: tuple[str, ...]) -> None:
    line = f"{option[0]} needs a stream, and udp:h:1 is an endpoint for datagrams"
    for targets in (("udp:h:1",), ("h:1", "udp:h:1")):
        assert error_of(run("greet", *targets, *option)) == (2, line)


@pytest.mark.parametrize(
    ("target", "option", "line"),
    [
        ("unix:/x", "--tls", "--tls to unix:/x needs --server-name, the name to verify"),
        ("fd:7", "--wait=1", "--wait cannot be combined with fd:7"),
    ],
)
def test_an_option_that_a_target_does_not_allow(run: Any, target: str, option: str, line: str) -> None:
    for targets in ((target,), ("h:1", target)):
        assert error_of(run("greet", *targets, option)) == (2, line)
