"""``greeter serve`` in a process of its own: signals, log, endpoints, greetings, reloads."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from greeter import Endpoint, greet
from greeter.config.loading import load_server_config
from greeter.config.options import ServeOptions
from greeter.service.logs import FLUSH_SECONDS
from greeter.system.signals import SAME_REQUEST_SECONDS
from greeter.system.tls import client_context
from tests.conftest import PATIENCE, ROOT, Process, greeter_process, loop_factories, one_loop, run_greeter
from tests.support.service_peers import (
    LONG_STOP_DELAY,
    children,
    crowd,
    lines_with,
    metric,
    running,
    started_by_init,
)
from tests.system.test_listeners import needs_ipv6

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HELLO = b"Thank you for connecting"
AS_ROOT = "warning: running as root, which greeting needs only for ports below 1024"

# The loop under test is that of the service, not that of the test.
pytestmark = one_loop


def serving(*args: str, **options: Any) -> contextlib.AbstractAsyncContextManager[Process]:
    return greeter_process("serve", "--listen", "127.0.0.1:0", *args, **options)


def log_of(server: Process) -> list[str]:
    """The log, without what is about the machine: the warning about root, and the limit on connections."""
    return [line for line in server.lines if line != AS_ROOT and not line.startswith("At most ")]


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), PATIENCE)


def access_line(client: socket.socket) -> str:
    """The access log line of a client."""
    return f"Got a connection from {client.getsockname()}"


@pytest.fixture
def app(tmp_path: Path) -> Any:
    """Write a module of greetings; returns the options and the environment that serve one of them."""

    def write(text: str, name: str) -> tuple[list[str], dict[str, str]]:
        (tmp_path / "service_app.py").write_text(text)
        return ["--app", f"service_app:{name}"], {"PYTHONPATH": str(tmp_path)}

    return write


NEVER = "import asyncio\nasync def never(peer):\n    await asyncio.Event().wait()\n"


# -- signals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", list(loop_factories()))
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_drains_and_exits_with_0(number: signal.Signals, loop: str) -> None:
    async with serving("--loop", loop, "--accept", "streams") as server:
        with connect(server.port) as client:
            assert client.recv(99) == HELLO
            line = access_line(client)
        assert await server.stop(number) == 0
    assert log_of(server) == [
        f"Listening on {server.address} ({loop}, streams)",
        line,
        f"{number.name}: stopping: no new clients, finishing open connections",
        "Stopped: 1 greeted of 1 accepted, 0 failed",
    ]
    assert (AS_ROOT in server.lines) == (os.geteuid() == 0)
    with pytest.raises(ConnectionRefusedError):
        connect(server.port)


async def test_a_pending_client_is_greeted_before_the_exit(app: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    args, env = app(
        "import asyncio, pathlib\n"
        "async def slow(peer):\n"
        f"    while not pathlib.Path({str(gate)!r}).exists():\n"
        "        await asyncio.sleep(0.01)\n"
        "    return 'at last'\n",
        "slow",
    )
    async with serving(*args, env=env) as server:
        with connect(server.port) as client:
            await server.line_with("Got a connection")
            server.process.send_signal(signal.SIGTERM)
            await server.line_with("stopping: no new clients, finishing open connections")
            gate.touch()
            assert client.recv(99) == b"at last"
        assert await server.ended() == 0
    assert log_of(server)[-1] == "Stopped: 1 greeted of 1 accepted, 0 failed"


async def test_a_second_signal_a_second_later_exits_at_once(app: Any) -> None:
    args, env = app(NEVER, "never")
    async with serving(*args, "--drain-timeout", "60", env=env) as server:
        with connect(server.port):
            await server.line_with("Got a connection")
            server.process.send_signal(signal.SIGTERM)
            await server.line_with("SIGTERM: stopping: no new clients, finishing open connections")
            await asyncio.sleep(SAME_REQUEST_SECONDS)
            assert await server.stop(signal.SIGINT) == 130
    assert log_of(server)[-1] == "warning: SIGINT again: exiting at once"


async def test_the_drain_deadline_aborts_open_connections(app: Any) -> None:
    args, env = app(NEVER, "never")
    async with serving(*args, "--drain-timeout", "0.2", env=env) as server:
        with connect(server.port) as client:
            await server.line_with("Got a connection")
            assert await server.stop() == 0
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
    assert "warning: aborted 1 connection at the drain deadline" in log_of(server)
    assert log_of(server)[-1] == "Stopped: 0 greeted of 1 accepted, 1 failed"


STUBBORN = """
import asyncio, contextlib, threading

def thread(peer):
    threading.Event().wait()

async def task(peer):
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
"""


@pytest.mark.parametrize("name", ["thread", "task"])
async def test_a_callable_that_never_returns_does_not_delay_the_exit(
    name: str, app: Any, accept: str
) -> None:
    args, env = app(STUBBORN, name)
    async with serving(*args, "--drain-timeout", "0.1", "--accept", accept, env=env) as server:
        with connect(server.port):
            await server.line_with("Got a connection")
            assert await server.stop() == 0
    assert log_of(server)[-2:] == [
        "Stopped: 0 greeted of 1 accepted, 1 failed",
        "warning: leaving a greeting callable that does not return",
    ]


# -- the log ---------------------------------------------------------------------------------------------


async def test_a_log_line_is_written_without_further_events() -> None:
    async with serving() as server:
        with connect(server.port) as client:
            assert await server.line_with("Got a") == access_line(client)
        assert await server.stop() == 0


async def test_lines_are_complete_and_in_order() -> None:
    expected = []
    async with serving() as server:
        for _ in range(100):
            with connect(server.port) as client:
                assert client.recv(99) == HELLO
                expected.append(access_line(client))
        assert await server.stop() == 0
    assert [line for line in server.lines if line.startswith("Got")] == expected
    assert log_of(server)[-1] == "Stopped: 100 greeted of 100 accepted, 0 failed"


async def test_no_line_is_lost_or_broken_under_load(accept: str) -> None:
    received: Counter[str] = Counter()

    def whole(data: bytes, port: int) -> bool:
        received[f"127.0.0.1:{port}"] += 1
        return data == HELLO

    async with serving("--log-format", "json", "--accept", accept, ready='"address": "') as server:
        port = int(json.loads(await server.line_with('"listening"'))["address"].rpartition(":")[2])
        async with crowd(port, whole=whole) as clients:
            await lines_with(server, '"event": "connection"', 1000)
            assert await server.stop() == 0
            clients.give_up()
    assert clients.lost == []
    entries = [json.loads(line) for line in server.lines]
    assert Counter(entry["peer"] for entry in entries if entry.get("event") == "connection") == received
    times = [entry["time"] for entry in entries]
    assert times == sorted(times)
    total = clients.greeted
    assert entries[-1]["message"] == f"Stopped: {total} greeted of {total} accepted, 0 failed"


async def test_json_lines(tmp_path: Path, app: Any) -> None:
    args, env = app("def broken(peer):\n    raise ValueError('two\\nlines \\x1b[31m')\n", "broken")
    args += ["--listen", f"unix:{tmp_path}/x", "--log-format", "json", "--loop", "asyncio"]
    async with serving(*args, env=env, ready='"listening", "address": "127') as server:
        found = json.loads(await server.line_with('"listening"'))
        assert found.pop("time")
        address = found.pop("address")
        assert found == {
            "level": "info",
            "pid": server.pid,
            "event": "listening",
            "loop": "asyncio",
            "path": "direct",
            "workers": 1,
            "message": f"Listening on {address} (asyncio, direct)",
        }
        with connect(int(address.rpartition(":")[2])) as client:
            assert client.recv(99) == b""
            name = "{}:{}".format(*client.getsockname())
        assert not (await greet(path=f"{tmp_path}/x")).data
        assert await server.stop() == 0
    entries = [json.loads(line) for line in server.lines]
    assert [entry["peer"] for entry in entries if entry.get("event") == "connection"] == [name, ""]
    assert [entry["event"] for entry in entries if "event" in entry][-2:] == ["stopping", "stopped"]
    (reason,) = {entry["reason"] for entry in entries if entry.get("event") == "stopping"}
    assert reason == "SIGTERM"
    assert any(
        "raised ValueError: two\nlines \x1b[31m" in entry["message"]
        for entry in entries
        if "message" in entry
    )


async def test_a_failing_greeting_is_one_line(app: Any) -> None:
    args, env = app("def broken(peer):\n    raise ValueError('two\\nlines \\x1b[31m')\n", "broken")
    async with serving(*args, env=env) as server:
        with connect(server.port) as client:
            assert client.recv(99) == b""
            name = str(client.getsockname())
        line = await server.line_with("warning: (")
        assert await server.stop() == 0
    assert name in line
    assert "raised ValueError: two\\nlines \\x1b[31m" in line


async def test_the_access_log_can_be_turned_off() -> None:
    async with serving("--no-access-log") as server:
        assert (await greet(port=server.port)).data == HELLO
        assert await server.stop() == 0
    assert not any("Got a connection" in line for line in server.lines)
    assert log_of(server)[-1] == "Stopped: 1 greeted of 1 accepted, 0 failed"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket for a service to inherit. Its port is known before the service starts."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


async def test_lines_below_the_log_level_are_not_written(listener: socket.socket) -> None:
    fd = listener.fileno()
    async with greeter_process(
        "serve", "--listen", f"fd:{fd}", "--log-level", "warning", ready="", pass_fds=(fd,)
    ) as server:
        assert (await greet(port=listener.getsockname()[1])).data == HELLO
        assert await server.stop() == 0
    assert log_of(server) == []


# What systemd does for a service with a socket: descriptor 3 and two variables (sd_listen_fds(3)).
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""


def start(listener: socket.socket, *args: str, activated: bool = False) -> subprocess.Popen[str]:
    """A service whose stderr is a short pipe, which only the test may read."""
    fd = str(listener.fileno())
    command = [sys.executable, "-m", "greeter", "serve", *args]
    if activated:
        command = [sys.executable, "-c", ACTIVATE, fd, *command]
    else:
        command += ["--listen", f"fd:{fd}"]
    return subprocess.Popen(
        command, cwd=ROOT, pass_fds=(int(fd),), stderr=subprocess.PIPE, text=True, pipesize=4096
    )


async def test_a_log_without_a_reader_does_not_block_the_service(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    port = listener.getsockname()[1]
    greeted = 0
    with start(listener, "--log-format", "json") as service:
        end = loop.time() + 5 * FLUSH_SECONDS  # so that the log is written while clients still connect
        while greeted < 500 or loop.time() < end:
            replies = await asyncio.gather(*(greet(port=port) for _ in range(20)))
            assert all(reply.data == HELLO for reply in replies)
            greeted += len(replies)
        # The service waits for a reader for a second before it exits. With a long pipe, it needs none.
        assert service.stderr is not None
        fcntl.fcntl(service.stderr, fcntl.F_SETPIPE_SZ, 1 << 20)
        service.send_signal(signal.SIGTERM)
        _, log = await asyncio.to_thread(service.communicate, None, PATIENCE)
    assert service.returncode == 0
    entries = [json.loads(line) for line in log.splitlines()]
    assert sum(entry.get("event") == "connection" for entry in entries) == greeted
    assert entries[-1]["event"] == "stopped"


async def test_a_closed_log_pipe_does_not_stop_the_service(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with start(listener) as service:
        assert service.stderr is not None
        service.stderr.close()
        for _ in range(3):
            assert (await greet(port=port)).data == HELLO
        service.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(service.wait, PATIENCE) == 0


# -- endpoints -------------------------------------------------------------------------------------------


async def test_several_endpoints_at_once(tmp_path: Path) -> None:
    abstract = f"unix:@greeter-test-service-{os.getpid()}"
    texts = [f"unix:{tmp_path}/x", abstract]
    async with serving(*(arg for text in texts for arg in ("--listen", text))) as server:
        for text in (server.address, *texts):
            assert await server.line_with(f"Listening on {text} (")
            assert (await greet(Endpoint.parse(text))).data == HELLO
        assert await server.stop() == 0
    assert not (tmp_path / "x").exists()
    assert "Got a connection from 'unix:'" in server.lines


@needs_ipv6
async def test_the_empty_host_is_both_families_on_one_port() -> None:
    async with greeter_process("serve", "--listen", ":0", ready="Listening on [::]:") as server:
        port = int(server.address)
        await server.line_with(f"Listening on 0.0.0.0:{port} (")
        assert (await greet("127.0.0.1", port)).data == HELLO
        assert (await greet("::1", port)).data == HELLO
        assert await server.stop() == 0
    clients = [line for line in server.lines if line.startswith("Got")]
    assert re.fullmatch(r"Got a connection from \('127.0.0.1', \d+\)", clients[0])
    assert re.fullmatch(r"Got a connection from \('::1', \d+\)", clients[1])


async def test_an_inherited_socket_outlives_the_service(listener: socket.socket) -> None:
    fd, port = listener.fileno(), listener.getsockname()[1]
    for _ in range(2):
        async with greeter_process("serve", "--listen", f"fd:{fd}", pass_fds=(fd,)) as server:
            assert server.address == f"127.0.0.1:{port}"
            assert (await greet(port=port)).data == HELLO
            assert await server.stop() == 0
        with connect(port) as client:  # it waits in the accept queue for the next server, here the test
            accepted, address = listener.accept()
            assert address == client.getsockname()
            accepted.close()


async def test_a_socket_file_is_replaced_when_stale_and_kept_when_live(tmp_path: Path) -> None:
    path = f"{tmp_path}/x"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    async with greeter_process("serve", "--listen", f"unix:{path}") as server:
        assert (await greet(path=path)).data == HELLO
        code, _, err = await run_greeter("serve", "--listen", f"unix:{path}", "--log-level", "error")
        assert (code, err) == (1, f"greeter: cannot listen on unix:{path}: address already in use\n")
        assert (await greet(path=path)).data == HELLO
        assert await server.stop() == 0
    assert not os.listdir(tmp_path)


# -- greetings -------------------------------------------------------------------------------------------


async def test_a_greeting_from_a_file_is_sent_byte_for_byte(tmp_path: Path) -> None:
    data = b"$host\r\n\xff\0" + os.urandom(300_000)
    (tmp_path / "greeting").write_bytes(data)
    async with serving("--greeting-file", f"{tmp_path}/greeting") as server:
        assert (await greet(port=server.port, max_bytes=len(data))).data == data
        assert await server.stop() == 0


async def test_a_template_from_the_environment(tmp_path: Path) -> None:
    async with serving(env={"GREETER_GREETING": "$host $count $hostname $$"}) as server:
        for count in (1, 2):
            reply = await greet(port=server.port)
            assert str(reply) == f"127.0.0.1 {count} {socket.gethostname()} $"
        assert await server.stop() == 0


async def test_an_app_from_the_file(app: Any, tmp_path: Path) -> None:
    _, env = app("def text(peer):\n    return f'{peer.host} to {peer.server}'\n", "text")
    file = tmp_path / "greeter.toml"
    file.write_text(
        "app = 'service_app:text'\nlisten = '127.0.0.1:0'\nloop = 'asyncio'\naccess-log = false\n"
    )
    async with greeter_process("serve", "--config", str(file), env=env) as server:
        assert str(await greet(port=server.port)) == f"127.0.0.1 to {server.address}"
        assert await server.stop() == 0
    assert "(asyncio, direct)" in log_of(server)[0]


async def test_each_greeting_option_makes_its_kind_of_greeting(tmp_path: Path) -> None:
    (tmp_path / "greeting").write_bytes(b"from a file")
    assert load_server_config(ServeOptions()).greeting.fixed == HELLO
    assert load_server_config(ServeOptions(greeting="$count")).greeting.kind == "template"
    assert (
        load_server_config(ServeOptions(greeting_file=tmp_path / "greeting")).greeting.fixed == b"from a file"
    )
    assert load_server_config(ServeOptions(app="json:dumps")).greeting.kind == "sync"


# -- SIGHUP ----------------------------------------------------------------------------------------------


async def test_sighup_applies_a_new_greeting(tmp_path: Path) -> None:
    file = tmp_path / "greeting"
    file.write_text("old")
    async with serving("--greeting-file", str(file)) as server:
        assert str(await greet(port=server.port)) == "old"
        file.write_text("new")
        server.process.send_signal(signal.SIGHUP)
        assert await server.line_with("Reloaded")
        assert str(await greet(port=server.port)) == "new"
        assert await server.stop() == 0


async def test_sighup_reads_the_file_again_and_names_what_needs_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "greeter.toml"
    file.write_text("greeting = 'old'\nbacklog = 5\n")
    async with serving("--config", str(file)) as server:
        file.write_text("greeting = 'new'\nbacklog = 6\nlisten = ':1'\n")
        server.process.send_signal(signal.SIGHUP)
        assert await server.line_with("Reloaded")
        assert str(await greet(port=server.port)) == "new"
        assert await server.stop() == 0
    warnings = [line for line in log_of(server) if line.startswith("warning: ")]
    # The command line overrides the endpoint of the file, so the endpoint has not changed.
    assert warnings == ["warning: --backlog has changed, which takes effect with a restart"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("greeting = '$user'", "greeting has the unknown name $user"),
        ("greting = 'new'", "unknown key 'greting'; did you mean 'greeting'?"),
        ("greeting-file = '/no/such'", "cannot read the greeting file '/no/such': no such file or directory"),
    ],
)
async def test_a_failed_reload_changes_nothing(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "greeter.toml"
    file.write_text("greeting = 'old'\n")
    async with serving("--config", str(file)) as server:
        file.write_text(text)
        server.process.send_signal(signal.SIGHUP)
        line = await server.line_with("reload failed")
        assert line.startswith("error: reload failed, the old configuration stays: ")
        assert why in line
        assert str(await greet(port=server.port)) == "old"
        assert await server.stop() == 0


# -- stop delay, TLS and systemd -------------------------------------------------------------------------


async def test_the_stop_delay_serves_on_before_the_drain(app: Any, tmp_path: Path) -> None:
    args, env = app(LONG_STOP_DELAY, "hello")
    over = tmp_path / "over"
    async with serving("--stop-delay", "0.123", *args, env={**env, "OVER": str(over)}) as server:
        server.process.send_signal(signal.SIGTERM)
        await server.line_with("SIGTERM: serving for another 0.123 s")
        assert (await greet(port=server.port)).data == HELLO
        over.touch()
        assert await server.ended() == 0
    assert log_of(server)[-2:] == [
        "SIGTERM: stopping: no new clients, finishing open connections",
        "Stopped: 1 greeted of 1 accepted, 0 failed",
    ]


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_healthz_is_503_while_no_client_is_served(workers: str, tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    path = tmp_path / "metrics"

    async def health(page: str = "healthz") -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(f"GET /{page} HTTP/1.0\r\n\r\n".encode())
        async with asyncio.timeout(PATIENCE):
            response = await reader.read()
        writer.close()
        head, _, body = response.partition(b"\r\n\r\n")
        return head.partition(b" ")[2][:4] + body

    async def healthy() -> None:
        """Wait until a worker responds in time, for which it needs a processor."""
        async with asyncio.timeout(PATIENCE):
            while (found := await health()) != b"200 ok\n":
                assert found == b"503 no worker responds\n"

    async def workers_that_hang(server: Process) -> None:
        for pid in children(server.pid):
            os.kill(pid, signal.SIGSTOP)
        assert await health() == b"503 no worker responds\n"
        assert await health("livez") == b"200 ok\n", "not yet"
        for pid in children(server.pid):
            os.kill(pid, signal.SIGCONT)
        await healthy()

    args = ("--stop-delay", "600", "--workers", workers, "--metrics", f"unix:{path}", "--unix-mode", "604")
    async with serving(*args) as server:
        assert path.stat().st_mode & 0o777 == 0o604
        await healthy()
        assert await health("livez") == b"200 ok\n"
        if workers == "2":
            await workers_that_hang(server)
        server.process.send_signal(signal.SIGTERM)
        await server.line_with("serving for another 600 s")
        assert await health() == b"503 stopping\n"
        assert await health("livez") == b"200 ok\n"
        assert (await greet(port=server.port)).data == HELLO
        await asyncio.sleep(SAME_REQUEST_SECONDS)
        assert await server.stop() == 130


async def test_serve_and_greet_over_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(f"{tmp_path}/ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(f"{tmp_path}/cert.pem")
    async with serving("--tls-cert", f"{tmp_path}/cert.pem") as server:
        target = f"localhost:{server.port}"
        assert await run_greeter("greet", target, "--tls", "--tls-ca", f"{tmp_path}/ca.pem") == (
            0,
            HELLO.decode() + "\n",
            "",
        )
        code, out, err = await run_greeter("greet", target, "--tls")
        assert (code, out) == (1, "")
        assert err.startswith(f"greeter: cannot connect to {target}: certificate verify failed: ")
        assert await server.stop() == 0


async def test_tls_removed_by_a_reload_is_served_until_a_restart(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    certificate, file = tmp_path / "cert.pem", tmp_path / "greeter.toml"
    authority = trustme.CA()
    authority.cert_pem.write_to_path(f"{tmp_path}/ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    file.write_text(f"tls-cert = '{certificate}'")
    async with serving("--config", str(file), "--metrics", "127.0.0.1:0") as server:
        expiry = await metric(server, "greeter_certificate_expiry_seconds")
        file.write_text("greeting = 'new'")
        certificate.unlink()
        server.process.send_signal(signal.SIGHUP)
        await server.line_with("Reloaded")
        context = client_context(tmp_path / "ca.pem")
        assert str(await greet(port=server.port, ssl=context)) == "new"
        assert await metric(server, "greeter_certificate_expiry_seconds") == expiry
        assert await server.stop() == 0
    assert "warning: --tls-cert has changed, which takes effect with a restart" in server.lines


async def test_an_explicit_endpoint_overrides_sockets_of_systemd(listener: socket.socket) -> None:
    """Even if it is the default endpoint."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # the port may be in use already, which is equivalent
            stack.enter_context(socket.create_server(("127.0.0.1", 9999)))
        for args in (["--listen", "127.0.0.1:9999"], []):
            env = {"GREETER_LISTEN": "127.0.0.1:9999"} if not args else {}
            async with started_by_init("serve", *args, sockets=(listener,), env=env, ready="") as service:
                assert await service.ended() == 1
            assert service.lines == [
                "warning: no option names the sockets fd:3 of systemd: closed",
                "greeter: cannot listen on 127.0.0.1:9999: address already in use",
            ]
        code, _, err = await run_greeter("serve")
        assert (code, err) == (1, "greeter: cannot listen on 127.0.0.1:9999: address already in use\n")


async def test_a_client_is_logged_when_it_is_admitted(tmp_path: Path) -> None:
    """Before its TLS handshake; a rejected client is not logged as admitted."""

    def events(server: Process) -> list[tuple[str, str | None]]:
        found = [json.loads(line) for line in server.lines]
        kept = ("connection", "failed", "rejected")
        return [(e["event"], e.get("reason", e.get("peer"))) for e in found if e.get("event") in kept]

    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(f"{tmp_path}/cert.pem")
    json_log = {"ready": '"address": "', "env": {"GREETER_LOG_FORMAT": "json"}}
    async with serving("--tls-cert", f"{tmp_path}/cert.pem", **json_log) as server:
        port = int(json.loads(server.lines[-1])["address"].rpartition(":")[2])
        with connect(port) as client:
            client.sendall(b"no ClientHello\r\n")
            peer = f"127.0.0.1:{client.getsockname()[1]}"
            await server.line_with("no TLS handshake")
        assert await server.stop() == 0
    assert events(server) == [("connection", peer), ("failed", "tls")]
    async with serving("--deny", "127.0.0.0/8", **json_log) as server:
        with connect(int(json.loads(server.lines[-1])["address"].rpartition(":")[2])):
            await server.line_with("rejected clients")
        assert await server.stop() == 0
    assert events(server) == [("rejected", "denied")]


async def test_greet_presents_a_client_certificate(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(f"{tmp_path}/ca.pem")
    leaf = authority.issue_cert("localhost")
    leaf.private_key_and_cert_chain_pem.write_to_path(f"{tmp_path}/both.pem")
    leaf.private_key_pem.write_to_path(f"{tmp_path}/key.pem")
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(f"{tmp_path}/cert.pem", append=True)
    ca = f"{tmp_path}/ca.pem"
    async with serving("--tls-cert", f"{tmp_path}/both.pem", "--tls-client-ca", ca) as server:
        command = ("greet", f"localhost:{server.port}", "--tls", "--tls-ca", ca)
        greeted = (0, HELLO.decode() + "\n", "")
        assert await run_greeter(*command, "--tls-cert", f"{tmp_path}/both.pem") == greeted
        pair = ("--tls-cert", f"{tmp_path}/cert.pem", "--tls-key", f"{tmp_path}/key.pem")
        assert await run_greeter(*command, *pair) == greeted
        assert (await run_greeter(*command))[0] == 1
        assert await server.stop() == 0


async def test_a_socket_from_systemd_is_served(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with start(listener, activated=True) as service:
        assert (await greet(port=port)).data == HELLO
        service.send_signal(signal.SIGTERM)
        _, log = await asyncio.to_thread(service.communicate, None, PATIENCE)
    assert service.returncode == 0
    assert f"Listening on 127.0.0.1:{port} (" in log


# -- accept queues ---------------------------------------------------------------------------------------


IN_A_NAMESPACE = ("unshare", "--net", "--map-root-user", "sh", "-c")


@pytest.mark.one_interpreter
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(("backlog", "said"), [("128", False), ("129", True)])
async def test_a_backlog_that_the_kernel_shortens_is_told(
    backlog: str, said: bool, workers: str, tmp_path: Path
) -> None:
    limit = "echo 128 > /proc/sys/net/core/somaxconn"
    command = [*IN_A_NAMESPACE, limit]
    if (await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)).returncode:
        pytest.skip("no network namespace can be made")
    program = f'{limit} && exec "$0" -m greeter "$@"'
    args = ("serve", "--listen", f"unix:{tmp_path}/socket", "--backlog", backlog, "--workers", workers)
    async with running(*IN_A_NAMESPACE, program, sys.executable, *args) as server:
        server.process.terminate()
        assert await server.process.wait() == 0
    text = (
        "warning: net.core.somaxconn allows accept queues of 128 connections, less than the 129 of --backlog"
    )
    assert (text in server.lines) is said
