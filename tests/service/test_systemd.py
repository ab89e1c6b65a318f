"""Sockets from systemd and notifications to it, with a real datagram socket and a real activator."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import socket
import sys
import time
from typing import TYPE_CHECKING

import pytest

from greeter import ConfigError, Endpoint, greet
from greeter.config.options import ServeOptions
from greeter.service.systemd import FIRST_FD, Notifier, claim_sockets, listen_fds, unclaimed_sockets
from tests.conftest import PATIENCE, ROOT, one_loop
from tests.support.service_peers import HELLO, started_by_init

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE = str(os.getpid())
ELSEWHERE = str(os.getpid() + 1)


# -- sockets ---------------------------------------------------------------------------------------------


PROLOGUE = """
import os
from greeter import ConfigError
from greeter.service.systemd import listen_fds
os.environ["LISTEN_PID"] = str(os.getpid())
"""


async def in_a_process(program: str, socks: list[socket.socket], **variables: str) -> str:
    """What ``program`` prints in a process that inherits ``socks``, from descriptor 3 on."""
    fds = [sock.fileno() for sock in socks]
    moves = "".join(f"os.dup2({fd}, {FIRST_FD + index})\n" for index, fd in enumerate(fds))
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROLOGUE + moves + program),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        pass_fds=fds,
        env={**os.environ, **variables},
    )
    async with asyncio.timeout(PATIENCE):
        out, _ = await child.communicate()
    assert child.returncode == 0
    return out.decode().strip()


SHOW = """
try:
    found = listen_fds()
    print(found, [os.get_inheritable(fd) for fd in found], [n for n in os.environ if n.startswith("LISTEN_")])
except ConfigError as error:
    print(error)
"""


@pytest.fixture
def two() -> Iterator[list[socket.socket]]:
    """Two sockets with high descriptors."""
    import fcntl

    made = []
    for _ in range(2):
        with socket.socket() as sock:
            made.append(socket.socket(fileno=fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 60)))
    yield made
    for sock in made:
        sock.close()


async def test_sockets_have_names_and_are_not_inheritable(two: list[socket.socket]) -> None:
    shown = await in_a_process(SHOW, two, LISTEN_FDS="2", LISTEN_FDNAMES="web:admin")
    assert shown == "{3: 'web', 4: 'admin'} [False, False] []"


async def test_sockets_without_names_are_unknown(two: list[socket.socket]) -> None:
    shown = await in_a_process(SHOW, two, LISTEN_FDS="2", LISTEN_PIDFDID="77")
    assert shown == "{3: 'unknown', 4: 'unknown'} [False, False] []"


async def test_a_wrong_number_of_names_is_an_error(two: list[socket.socket]) -> None:
    shown = await in_a_process(SHOW, two, LISTEN_FDS="2", LISTEN_FDNAMES="web")
    assert shown == "LISTEN_FDNAMES='web' does not name 2 sockets"


async def test_a_descriptor_that_is_not_open_is_an_error(two: list[socket.socket]) -> None:
    shown = await in_a_process(SHOW, two, LISTEN_FDS="999999999999999999")
    assert re.fullmatch(r"LISTEN_FDS=9+: descriptor \d+: bad file descriptor", shown)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": HERE},
        {"LISTEN_PID": ELSEWHERE, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"},
        {"LISTEN_PID": HERE, "LISTEN_FDS": "0", "LISTEN_FDNAMES": ""},
    ],
)
def test_variables_for_another_process_are_removed(
    environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    environ["OTHER"] = "stays"
    warned = environ.get("LISTEN_FDS") == "1"
    pid = environ.get("LISTEN_PID", "not set")
    assert listen_fds(environ) == {}
    assert environ == {"OTHER": "stays"}
    line = f"the 1 sockets of LISTEN_FDS are ignored: LISTEN_PID is {pid}, and this process is {HERE}"
    assert caplog.messages == [line] * warned


NAMES = {3: "web", 4: "admin", 5: "web"}


@pytest.mark.parametrize(
    ("listen", "metrics", "claimed", "left"),
    [
        ([], None, ([], None), [3, 4, 5]),
        (["fd:web"], None, (["fd:3", "fd:5"], None), [4]),
        (["fd:web"], "fd:admin", (["fd:3", "fd:5"], "fd:4"), []),
        ([], "fd:4", ([], "fd:4"), [3, 5]),
        (["fd:9", ":1"], ":2", (["fd:9", ":1"], ":2"), [3, 4, 5]),
    ],
)
def test_a_socket_has_one_use(
    listen: list[str], metrics: str | None, claimed: tuple[list[str], str | None], left: list[int]
) -> None:
    options = claim_sockets(options_of(listen, metrics), NAMES)
    assert ([str(endpoint) for endpoint in options.listen], metrics and str(options.metrics)) == claimed
    assert [endpoint.fd for endpoint in unclaimed_sockets(options, NAMES)] == left


def options_of(listen: list[str], metrics: str | None) -> ServeOptions:
    return ServeOptions(
        listen=tuple(map(Endpoint.parse, listen)),
        metrics=None if metrics is None else Endpoint.parse(metrics),
    )


@pytest.mark.parametrize(
    ("listen", "metrics", "message"),
    [
        (["fd:3"], "fd:3", "descriptor 3 is named twice: --listen fd:3 and --metrics fd:3"),
        (["fd:web", "fd:5"], None, "descriptor 5 is named twice: --listen fd:web and --listen fd:5"),
        ([], "fd:web", "--metrics fd:web: 2 sockets have this name"),
        (["fd:x"], None, "--listen fd:x: systemd has passed no socket of this name (admin, web)"),
    ],
)
def test_a_socket_that_cannot_be_claimed_is_an_error(
    listen: list[str], metrics: str | None, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        claim_sockets(options_of(listen, metrics), NAMES)
    assert str(caught.value) == message


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("name", ["fd:4", "fd:metrics"])
@one_loop
async def test_a_socket_for_metrics_gets_no_greetings(workers: str, name: str) -> None:
    pytest.importorskip("prometheus_client")
    with socket.create_server(("127.0.0.1", 0)) as web, socket.create_server(("127.0.0.1", 0)) as other:
        args = ("serve", "--metrics", name, "--workers", workers, "--no-access-log")
        env = {"LISTEN_FDNAMES": "web:metrics"}
        async with started_by_init(*args, sockets=(web, other), env=env) as service:
            for _ in range(10):
                reader, writer = await asyncio.open_connection(*other.getsockname())
                writer.write(b"GET /livez HTTP/1.0\r\n\r\n")
                assert (await reader.read(5)) == b"HTTP/"
                writer.close()
            assert (await greet(port=web.getsockname()[1])).data == HELLO
            assert await service.stop() == 0
        assert "Stopped: 1 greeted of 1 accepted, 0 failed" in service.lines


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"LISTEN_PID": "me", "LISTEN_FDS": "1"}, "LISTEN_PID='me' is not a number"),
        ({"LISTEN_PID": HERE, "LISTEN_FDS": "-1"}, "LISTEN_FDS='-1' is not a number"),
        ({"LISTEN_PID": HERE, "LISTEN_FDS": "9" * 99}, f"LISTEN_FDS='{'9' * 40}' is not a number"),
    ],
)
def test_a_variable_that_is_not_a_number_is_an_error(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        listen_fds(environ)
    assert str(caught.value) == message
    assert environ == {}


ACTIVATE = shutil.which("systemd-socket-activate")
SERVE_ONE = """
import os, socket
from greeter.service.systemd import listen_fds
(fd, name), = listen_fds().items()
with socket.socket(fileno=fd) as listener:
    client, _ = listener.accept()
    with client:
        client.sendall(f"{name} {fd} {os.get_inheritable(fd)} {'LISTEN_FDS' in os.environ}".encode())
"""


@pytest.mark.skipif(ACTIVATE is None, reason="systemd-socket-activate is not installed")
async def test_a_real_activator_passes_its_socket(tmp_path: Path) -> None:
    assert ACTIVATE is not None
    path = f"{tmp_path}/listener"
    activator = await asyncio.create_subprocess_exec(
        ACTIVATE,
        *("-l", path, "--fdname=greeting", "-E", "PYTHONPATH", sys.executable, "-c", SERVE_ONE),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert activator.stderr is not None
        async with asyncio.timeout(PATIENCE):
            while b"Listening on" not in (line := await activator.stderr.readline()):
                assert line, "the activator did not listen"
            reader, writer = await asyncio.open_unix_connection(path)
            assert await reader.read() == b"greeting 3 False False"
            writer.close()
            assert await activator.wait() == 0
    finally:
        if activator.returncode is None:
            activator.kill()
        await activator.communicate()


# -- notifications ---------------------------------------------------------------------------------------


class Manager:
    """The receiving end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.settimeout(PATIENCE)
        self.sock.bind("\0" + address[1:] if address.startswith("@") else address)

    def receive(self) -> list[str]:
        return self.sock.recv(4096).decode().split("\n")


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = f"{tmp_path}/notify" if request.param == "path" else f"@greeter-test-notify-{os.getpid()}"
    manager = Manager(address)
    yield manager
    manager.sock.close()


@pytest.fixture
def notifier(manager: Manager) -> Iterator[Notifier]:
    notifier = Notifier(manager.address)
    yield notifier
    notifier.close()


def test_each_notification_has_its_message(manager: Manager, notifier: Notifier) -> None:
    notifier.ready("serving on 127.0.0.1:9999")
    assert manager.receive() == ["READY=1", "STATUS=serving on 127.0.0.1:9999"]
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    first, second = manager.receive()
    assert first == "RELOADING=1"
    name, _, usec = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(usec) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.stopping()
    assert manager.receive() == ["STOPPING=1"]
    notifier.watchdog()
    assert manager.receive() == ["WATCHDOG=1"]
    notifier.close()
    notifier.stopping()
    manager.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.receive()


def test_no_reload_is_reported_after_a_stop(manager: Manager, notifier: Notifier) -> None:
    notifier.stopping()
    notifier.reloading()
    notifier.ready("serving on 127.0.0.1:9999")  # the end of a reload
    notifier.status("two clients are left")
    assert [manager.receive() for _ in range(2)] == [["STOPPING=1"], ["STATUS=two clients are left"]]


def test_a_status_cannot_forge_another_assignment(manager: Manager, notifier: Notifier) -> None:
    notifier.status("from 'x'\nSTOPPING=1\r\nWATCHDOG=trigger\N{LINE SEPARATOR}ä \udcff")
    assert manager.receive() == ["STATUS=from 'x' STOPPING=1 WATCHDOG=trigger ä \\udcff"]


def test_a_notifier_without_a_socket_sends_nothing() -> None:
    notifier = Notifier.from_environment({})
    assert notifier.watchdog_interval is None
    notifier.ready("")
    notifier.watchdog()
    notifier.close()


def test_the_variables_are_read_and_removed(manager: Manager) -> None:
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": HERE, "X": "y"}
    notifier = Notifier.from_environment(environ)
    assert environ == {"X": "y"}
    assert notifier.watchdog_interval == 1.5
    notifier.watchdog()
    assert manager.receive() == ["WATCHDOG=1"]
    notifier.close()


@pytest.mark.parametrize(
    ("variables", "interval"),
    [
        ({"WATCHDOG_USEC": "20000000"}, 10.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": ELSEWHERE}, None),
        ({"WATCHDOG_USEC": "0", "WATCHDOG_PID": HERE}, None),
        ({"WATCHDOG_PID": HERE}, None),
        ({"WATCHDOG_USEC": "20000000", "NOTIFY_SOCKET": ""}, None),
    ],
)
def test_the_watchdog_interval_is_half_of_its_timeout(
    variables: dict[str, str], interval: float | None
) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": "/nowhere", **variables})
    assert notifier.watchdog_interval == interval
    notifier.close()


def test_a_watchdog_timeout_that_is_not_a_number_is_an_error() -> None:
    with pytest.raises(ConfigError, match="^WATCHDOG_USEC='soon' is not a number$"):
        Notifier.from_environment({"WATCHDOG_USEC": "soon"})


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_outage_of_systemd_is_one_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = f"{tmp_path}/notify"
    notifier = Notifier(path)
    for _ in range(3):
        notifier.watchdog()  # ENOENT
    manager = Manager(path)
    notifier.watchdog()
    assert manager.receive() == ["WATCHDOG=1"]
    manager.sock.close()
    for _ in range(3):
        notifier.watchdog()  # ECONNREFUSED: the file exists, but no socket
    notifier.close()
    assert warnings(caplog) == [
        f"cannot notify systemd at {path!r}: no such file or directory",
        f"cannot notify systemd at {path!r}: connection refused",
    ]


def test_a_full_socket_does_not_block(
    manager: Manager, notifier: Notifier, caplog: pytest.LogCaptureFixture
) -> None:
    sent = 0
    while not warnings(caplog):
        notifier.status(f"message {sent} {'x' * 2000}")
        sent += 1
        assert sent < 100_000
    notifier.watchdog()
    (line,) = warnings(caplog)
    assert line == f"cannot notify systemd at {manager.address!r}: resource temporarily unavailable"
    assert manager.receive()[0].startswith("STATUS=message 0 ")


@pytest.mark.parametrize("address", ["vsock:2:1234", "/" + "x" * 200])
def test_an_unusable_address_is_one_log_line(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    notifier = Notifier(address)
    notifier.ready("")
    notifier.close()
    assert len(warnings(caplog)) == 1
