"""The programs of ``python -m tests.services``: how real services greet, in their documented way.

Each gets a port of the loopback and a temporary folder, and runs in a session of its own. Nothing is
installed: a program that is not there is left out, with the reason.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import ssl
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trustme

from greeter.conformance.profiles import PROFILES, Profile
from tests.benchmarks.nginx import Nginx, find_nginx
from tests.conftest import ROOT
from tests.support.lossy_peers import compiled

if TYPE_CHECKING:
    from collections.abc import Callable

    from greeter.core.proxy_protocol import ProxyVersion

_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"

DATAGRAMS = """
import asyncio, sys

class Greet(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        self.transport.sendto(b"Thank you for connecting\\n", address)

async def main():
    await asyncio.get_running_loop().create_datagram_endpoint(
        Greet, local_addr=("0.0.0.0", int(sys.argv[1]))
    )
    await asyncio.Future()

asyncio.run(main())
"""

ASYNCIO = """
import asyncio, sys

async def greet(reader, writer):
    writer.write(b"Thank you for connecting\\n")
    await writer.drain()
    writer.close()
    await writer.wait_closed()

async def main():
    server = await asyncio.start_server(greet, "127.0.0.1", int(sys.argv[1]))
    async with server:
        await server.serve_forever()

if sys.argv[2:] == ["uvloop"]:
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""

BLOCKING = """
import socket, sys

server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", int(sys.argv[1])))
server.listen(5)
while True:
    client, address = server.accept()
    client.send(b"Thank you for connecting\\n")
    client.close()
"""

THREADS = """
import socketserver, sys

class Greet(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"Thank you for connecting\\n")

socketserver.ThreadingTCPServer.allow_reuse_address = True
with socketserver.ThreadingTCPServer(("127.0.0.1", int(sys.argv[1])), Greet) as server:
    server.serve_forever()
"""

NODE = """
require("net").createServer(socket => {
  socket.on("error", () => {});
  socket.end("Thank you for connecting\\n");
}).listen(Number(process.argv[2]), "127.0.0.1");
"""

WSGI = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "25")])
    return [b"Thank you for connecting\\n"]
"""

_NGINX = """\
{load_module}daemon off; worker_processes 1; {user}
pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
{block}
"""
_NGINX_STREAM = 'stream {{ server {{ listen 127.0.0.1:{port}; return "Thank you for connecting\\n"; }} }}'
_NGINX_UDP = 'stream {{ server {{ listen {port} udp; return "Thank you for connecting\\n"; }} }}'
_NGINX_HTTP = """\
http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
server {{ listen 127.0.0.1:{port}; return 200 "Thank you for connecting\\n"; }} }}
"""

_HAPROXY = """\
global
    maxconn 4000
    {lua}
defaults
    timeout client 10s
    timeout connect 5s
    timeout server 10s
frontend greeting
    bind 127.0.0.1:{port}
    {rules}
"""
_HAPROXY_LUA = """
core.register_service("greet", "tcp", function(applet)
    applet:send("Thank you for connecting\\n")
end)
"""

_XINETD = """\
service daytime
{{
    type = INTERNAL UNLISTED
    id = daytime-dgram
    socket_type = dgram
    protocol = udp
    port = {port}
    user = root
    wait = yes
    cps = 100000 1
    per_source = UNLIMITED
    instances = UNLIMITED
}}
"""

_SSHD = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/key
PidFile none
UsePAM no
"""


class Missing(Exception):
    """A program is not installed, or cannot be run by this user."""


@dataclass(frozen=True)
class Prepared:
    """A service that is ready to start.

    Attributes:
        command: What runs it, in the foreground.
        version: The version of the program.
        profile: What a client says.
        proxy_protocol: The version of the PROXY header that it expects; None without.
        reload: The signal that reloads it; "" without a reload.
        stop: The signal that stops it in order.
        tls: What its clients trust; None without TLS.
        datagrams: True if it answers datagrams.
    """

    command: list[str]
    version: str
    profile: Profile = PROFILES["raw"]
    proxy_protocol: ProxyVersion | None = None
    reload: str = ""
    stop: str = "TERM"
    tls: ssl.SSLContext | None = None
    datagrams: bool = False


RAW, HTTP, SSH = PROFILES["raw"], PROFILES["http"], PROFILES["ssh"]


def _installed(name: str) -> str:
    path = shutil.which(name, path=_PATH)
    if path is None:
        raise Missing(f"{name} is not installed")
    return path


def _first_number(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+\w*", done.stdout + done.stderr)
    return found[0] if found else "?"


def _script(code: str, folder: Path, port: int, *args: str) -> list[str]:
    file = folder / "service.py"
    file.write_text(code)
    return [sys.executable, str(file), str(port), *args]


def _python(code: str) -> Callable[[Path, int], Prepared]:
    def prepare(folder: Path, port: int) -> Prepared:
        return Prepared(_script(code, folder, port), sys.version.split()[0])

    return prepare


def _uvloop(folder: Path, port: int) -> Prepared:
    try:
        version = importlib.metadata.version("uvloop")
    except importlib.metadata.PackageNotFoundError as error:
        raise Missing("uvloop is not installed") from error
    return Prepared(_script(ASYNCIO, folder, port, "uvloop"), version)


def _lingering(folder: Path, port: int) -> Prepared:
    program = compiled(folder)
    if program is None:
        raise Missing("gcc is not installed")
    return Prepared([program, str(port)], _first_number("gcc", "-dumpfullversion"))


def _node(folder: Path, port: int) -> Prepared:
    node, file = _installed("node"), folder / "service.js"
    file.write_text(NODE)
    return Prepared([node, str(file), str(port)], _first_number(node, "--version"))


def _nginx(block: str, profile: Profile) -> Callable[[Path, int], Prepared]:
    def prepare(folder: Path, port: int) -> Prepared:
        found = find_nginx()
        if not isinstance(found, Nginx):
            raise Missing(f"nginx: {found}")
        config, stream = folder / "nginx.conf", block is not _NGINX_HTTP
        config.write_text(
            _NGINX.format(
                load_module=f"load_module {found.module};" if stream and found.module else "",
                user="user root;" if os.geteuid() == 0 else "",
                folder=folder,
                block=block.format(port=port, folder=folder),
            )
        )
        command = [found.program, "-c", str(config), "-p", str(folder)]
        datagrams = block is _NGINX_UDP
        return Prepared(command, found.version, profile, reload="HUP", stop="QUIT", datagrams=datagrams)

    return prepare


def _haproxy(rules: str, profile: Profile) -> Callable[[Path, int], Prepared]:
    def prepare(folder: Path, port: int) -> Prepared:
        program = _installed("haproxy")
        (folder / "greet.lua").write_text(_HAPROXY_LUA)
        lua = f"lua-load {folder}/greet.lua" if "lua" in rules else ""
        (folder / "haproxy.cfg").write_text(_HAPROXY.format(port=port, lua=lua, rules=rules))
        command = [program, "-W", "-f", str(folder / "haproxy.cfg")]
        return Prepared(command, _first_number(program, "-v"), profile, reload="USR2", stop="USR1")

    return prepare


def _sshd(folder: Path, port: int) -> Prepared:
    program = _installed("sshd")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # its folder for the separation of privileges
    key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")]
    subprocess.run(key, check=True)
    (folder / "config").write_text(_SSHD.format(port=port, folder=folder))
    command = [program, "-D", "-e", "-f", str(folder / "config")]
    return Prepared(command, _first_number("ssh", "-V"), SSH, reload="HUP")


def _asyncio_datagrams(folder: Path, port: int) -> Prepared:
    return Prepared(_script(DATAGRAMS, folder, port), sys.version.split()[0], datagrams=True)


def _xinetd(folder: Path, port: int) -> Prepared:
    program = _installed("xinetd")
    (folder / "xinetd.conf").write_text(_XINETD.format(port=port))
    command = [program, "-dontfork", "-f", str(folder / "xinetd.conf"), "-pidfile", str(folder / "own.pid")]
    return Prepared(command, _first_number(program, "-version"), reload="HUP", datagrams=True)


def _socat(folder: Path, port: int) -> Prepared:
    program = _installed("socat")
    (folder / "greeting").write_text("Thank you for connecting\n")
    command = [program, f"UDP-RECVFROM:{port},fork", f"SYSTEM:cat {folder}/greeting"]
    return Prepared(command, _first_number(program, "-V"), datagrams=True)


def _gunicorn(folder: Path, port: int) -> Prepared:
    program = _installed("gunicorn")
    (folder / "hello.py").write_text(WSGI)
    command = [program, "--chdir", str(folder), "--bind", f"127.0.0.1:{port}", "hello:app"]
    return Prepared(command, _first_number(program, "--version"), HTTP, reload="HUP")


def _greeter(
    *args: str,
    proxy_protocol: ProxyVersion | None = None,
    tls: bool = False,
    listen: str = "127.0.0.1",
) -> Callable[[Path, int], Prepared]:
    def prepare(folder: Path, port: int) -> Prepared:
        command = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "greeter", "serve", "--no-access-log"]
        command += ["--listen", f"{listen}:{port}", *args]
        context = None
        if tls:
            authority, context = trustme.CA(), ssl.create_default_context()
            authority.configure_trust(context)
            authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "pem")
            command += ["--tls-cert", str(folder / "pem"), "--tls-key", str(folder / "pem")]
        version = importlib.metadata.version("greeter")
        datagrams = listen.startswith("udp:")
        return Prepared(command, version, RAW, proxy_protocol, reload="HUP", tls=context, datagrams=datagrams)

    return prepare


SERVICES: dict[str, Callable[[Path, int], Prepared]] = {
    "greeter": _greeter(),
    "greeter, streams": _greeter("--accept", "streams"),
    "greeter, 2 workers": _greeter("--workers", "2"),
    "greeter, PROXY header": _greeter("--proxy-protocol", "--proxy-from", "127.0.0.0/8", proxy_protocol="v1"),
    "greeter, TLS": _greeter(tls=True),
    "a lingering close in C, gcc": _lingering,
    "haproxy, Lua `applet:send`": _haproxy("mode tcp\n    tcp-request content use-service lua.greet", RAW),
    "node, `socket.end(text)`": _node,
    "nginx stream `return`": _nginx(_NGINX_STREAM, RAW),
    "asyncio, as documented": _python(ASYNCIO),
    "uvloop, the same": _uvloop,
    "socketserver, threads": _python(THREADS),
    "a blocking loop": _python(BLOCKING),
    "OpenSSH": _sshd,
    "nginx http `return`": _nginx(_NGINX_HTTP, HTTP),
    "haproxy `http-request return`": _haproxy(
        "mode http\n    http-request return status 200 content-type text/plain string Thank-you\\n", HTTP
    ),
    "gunicorn, sync": _gunicorn,
}
DATAGRAM_SERVICES: dict[str, Callable[[Path, int], Prepared]] = {
    "greeter, datagrams": _greeter(listen="udp:0.0.0.0"),
    "greeter, datagrams, 2 workers": _greeter("--workers", "2", listen="udp:0.0.0.0"),
    "nginx stream `return`, udp": _nginx(_NGINX_UDP, RAW),
    "xinetd `daytime`, udp, limits raised": _xinetd,
    "asyncio, datagram endpoint": _asyncio_datagrams,
    "socat `UDP-RECVFROM,fork`": _socat,
}
