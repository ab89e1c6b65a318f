"""Services of other authors on free ports of the loopback: OpenSSH, Postfix, vsftpd, nginx.

Each is a context manager that yields the endpoint, with a configuration of its own in a temporary folder. A
service that is not installed, or that cannot be started by this user, skips the test with the reason.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.benchmarks.nginx import find_nginx
from tests.conftest import PATIENCE
from tests.support.free_ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

_SBIN = "/usr/sbin:/usr/local/sbin:/usr/lib/postfix/sbin"

_SSHD = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/key
PidFile none
UsePAM no
MaxStartups 5
"""

_POSTFIX = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
daemon_directory = {daemons}
command_directory = /usr/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = mail.example
mydestination =
mynetworks = 192.0.2.1/32
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
local_recipient_maps =
smtpd_peername_lookup = no
smtpd_client_event_limit_exceptions =
smtpd_client_connection_rate_limit = {rate_limit}
postscreen_greet_wait = 1s
postscreen_cache_map =
maillog_file = /dev/stdout
"""
_POSTFIX_MASTER = """\
127.0.0.1:{port} inet n - n - {listener}
smtpd pass - - n - - smtpd
anvil unix - - n - 1 anvil
proxymap unix - - n - - proxymap
rewrite unix - - n - - trivial-rewrite
dnsblog unix - - n - 0 dnsblog
tlsproxy unix - - n - 0 tlsproxy
postlog unix-dgram n - n - 1 postlogd
"""

_VSFTPD = """\
listen=YES
listen_address=127.0.0.1
listen_port={port}
background=NO
anonymous_enable=YES
seccomp_sandbox=NO
secure_chroot_dir={folder}/empty
max_per_ip=3
"""


@contextlib.contextmanager
def sshd() -> Iterator[str]:
    """OpenSSH with ``MaxStartups 5``: of the connections that have not logged in, it refuses the sixth."""
    program = _program("sshd", "openssh-server")
    with _folder() as folder:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True)
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # its folder for the separation of privileges
        port = free_port()
        (folder / "config").write_text(_SSHD.format(port=port, folder=folder))
        with _running([program, "-D", "-e", "-f", str(folder / "config")], folder, port) as endpoint:
            yield endpoint


@contextlib.contextmanager
def postfix(listener: str = "smtpd", rate_limit: int = 0) -> Iterator[str]:
    """Postfix.

    Args:
        listener: ``- smtpd``, or ``1 postscreen``, which sends a first line, and the greeting after a second.
        rate_limit: how many connections of a client it accepts in a minute; 0 for any number.
    """
    program = _program("master", "postfix")
    if os.geteuid() != 0:
        pytest.skip("Postfix is started by root")
    with _folder() as folder:
        port = free_port()
        owners = {
            "data": "postfix",
            "queue/private": "postfix",
            "queue/public": "postfix",
            "queue/pid": "root",
        }
        for name, user in owners.items():
            (folder / name).mkdir(parents=True)
            shutil.chown(folder / name, user)
        daemons = Path(program).parent
        (folder / "main.cf").write_text(
            _POSTFIX.format(folder=folder, daemons=daemons, rate_limit=rate_limit)
        )
        (folder / "master.cf").write_text(_POSTFIX_MASTER.format(port=port, listener=listener))
        # Not `postfix start-fg`: its checks take seconds, and it leaves the session.
        with _running([program, "-d", "-c", str(folder)], folder, port) as endpoint:
            yield endpoint


@contextlib.contextmanager
def vsftpd() -> Iterator[str]:
    """A vsftpd that refuses the fourth connection of an address."""
    program = _program("vsftpd", "vsftpd")
    if os.geteuid() != 0:
        pytest.skip("vsftpd is started by root")
    with _folder() as folder:
        (folder / "empty").mkdir()
        port = free_port()
        (folder / "config").write_text(_VSFTPD.format(port=port, folder=folder))
        with _running([program, str(folder / "config")], folder, port) as endpoint:
            yield endpoint


@contextlib.contextmanager
def nginx() -> Iterator[str]:
    """An nginx whose stream module greets: it closes without reading what the client sent."""
    found = find_nginx()
    if isinstance(found, str):
        pytest.skip(f"nginx: {found}")
    with _folder() as folder:
        port = free_port()
        with _running(found.command(port, folder), folder, port) as endpoint:
            yield endpoint


def _program(name: str, package: str) -> str:
    path = shutil.which(name) or shutil.which(name, path=_SBIN)
    if path is None:
        pytest.skip(f"{name} is not installed (on Debian: apt-get install {package})")
    return path


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder that other users, such as that of Postfix, can enter."""
    with tempfile.TemporaryDirectory(prefix="greeter-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@contextlib.contextmanager
def _running(command: list[str], folder: Path, port: int) -> Iterator[str]:
    """Run a service in a session of its own, from when it accepts a connection on."""
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            _wait_until_it_accepts(port, process, log)
            yield f"127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait_until_it_accepts(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.05)
    pytest.fail(f"{process.args!r} does not serve: {log.read_text(errors='replace')}")
