"""HAProxy as a greeter: a service in Lua that sends the greeting, in TCP mode.

Invariants:
- HAProxy by itself forwards what another server says. This is the only way in which it greets clients itself.
- It runs as the user that starts the benchmark, in the foreground, in one thread, on the loopback, and reads
  and writes in the given folder only.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.benchmarks.certificate import Certificate

# Where a package may have put a program that is not on every user's PATH.
_SBIN = "/usr/sbin:/usr/local/sbin"

_LUA = """\
core.register_service("greet", "tcp", function(applet) applet:send("Thank you for connecting") end)
"""
_CONFIG = """\
global
    nbthread 1
    maxconn 4096
    lua-load {lua}
defaults
    mode tcp
    timeout client 10s
frontend greet
    bind 127.0.0.1:{port} backlog 4096{parameters}
    tcp-request content use-service lua.greet
"""


@dataclass(frozen=True)
class HAProxy:
    """An HAProxy that can greet: the program, and its version."""

    program: str
    version: str

    def command(
        self, port: int, folder: Path, *, proxy: bool = False, certificate: Certificate | None = None
    ) -> list[str]:
        """Write a configuration into ``folder``; returns the command that serves by it.

        Args:
            port: The port to listen on, on 127.0.0.1.
            folder: Where everything goes.
            proxy: Connections begin with a PROXY header.
            certificate: Serve TLS with it.
        """
        lua, config = folder / f"haproxy-{port}.lua", folder / f"haproxy-{port}.cfg"
        lua.write_text(_LUA)
        parameters = " accept-proxy" * proxy
        if certificate is not None:
            both = folder / f"haproxy-{port}.pem"
            both.write_text(certificate.cert.read_text() + certificate.key.read_text())
            # The same protocols as greeter; all else is HAProxy's default.
            parameters += f" ssl crt {both} ssl-min-ver TLSv1.2"
        config.write_text(_CONFIG.format(lua=lua, port=port, parameters=parameters))
        return [self.program, "-f", str(config), "-db"]


def find_haproxy() -> HAProxy | str:
    """The machine's HAProxy, or why there is none that can greet."""
    program = shutil.which("haproxy") or shutil.which("haproxy", path=_SBIN)
    if program is None:
        return "not installed (on Debian: apt-get install haproxy)"
    done = subprocess.run([program, "-vv"], capture_output=True, text=True, timeout=10, check=False)
    found = re.search(r"version (\d[\w.]*)", done.stdout)
    version = found[1] if found else "of an unknown version"
    if "USE_LUA=1" not in done.stdout and "+LUA" not in done.stdout:
        return f"{version} was built without Lua"
    return HAProxy(program, version)
