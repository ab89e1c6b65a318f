"""nginx as a greeter: the stream module's ``return``, which an operator would use in the place of greeter.

Invariants:
- It runs as the user that starts the benchmark, on the loopback, and writes into the given folder only.
- Its stream module is looked for where ``nginx -V`` says that modules are.
- A directive that this nginx lacks makes it not start, and the benchmark then reports its error line.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.benchmarks.certificate import Certificate

# Where a package may have put a program that is not on every user's PATH.
_SBIN = ("/usr/sbin", "/usr/local/sbin", "/usr/local/nginx/sbin")
_MODULE = "ngx_stream_module.so"
_MODULE_FOLDERS = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules")

_GREETING = "Thank you for connecting"
_CONFIG = """\
{load_module}daemon off;
worker_processes 1;
{user}pid {folder}/{name}.pid;
error_log {folder}/{name}.error.log;
events {{ worker_connections 4096; multi_accept on; }}
stream {{
    log_format greeted "Got a connection from ('$remote_addr', $remote_port)";
    access_log {access_log};
    server {{
        listen 127.0.0.1:{port}{parameters};
        {directives}return "{greeting}";
    }}
}}
"""
# nginx takes at most about 4,000 bytes as a parameter, so a large greeting is made of variables.
_LARGE = 'set $hundred "{hundred}"; set $many "{many}"; '

# It believes the header, as a greeter with --proxy-from does.
_PROXY = "set_real_ip_from 127.0.0.0/8; "
# The same protocols as greeter; all else is nginx's default.
_TLS = "ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {cert}; ssl_certificate_key {key}; "


@dataclass(frozen=True)
class Nginx:
    """An nginx that can greet: the program, its version, and its stream module ("" if it is built in)."""

    program: str
    version: str
    module: str

    def command(
        self,
        port: int,
        folder: Path,
        *,
        access_log: bool = False,
        proxy: bool = False,
        datagrams: bool = False,
        certificate: Certificate | None = None,
        times: int = 1,
    ) -> list[str]:
        """Write a configuration into ``folder``; returns the command that serves by it.

        Args:
            port: The port to listen on, on 127.0.0.1.
            folder: Where the configuration and everything that nginx writes goes.
            access_log: Write a line for each client.
            proxy: Connections begin with a PROXY header.
            datagrams: Answer datagrams, and serve no streams.
            certificate: Serve TLS with it.
            times: The greeting is the usual one so many times: once, or a multiple of 2,000.
        """
        name = f"nginx-{port}"
        config = folder / f"{name}.conf"
        # Batched like ours; unbuffered would be a write for each client.
        log = f"{folder}/{name}.access.log greeted buffer=64k flush=100ms" if access_log else "off"
        greeting, large = _GREETING, ""
        if times > 1:
            large = _LARGE.format(hundred=_GREETING * 100, many="$hundred" * 20)
            greeting = "$many" * (times // 2_000)
        # Only root may, and then must, name the user of the worker process.
        user = f"user {pwd.getpwuid(0).pw_name};\n" if os.geteuid() == 0 else ""
        config.write_text(
            _CONFIG.format(
                load_module=f"load_module {self.module};\n" if self.module else "",
                user=user,
                folder=folder,
                name=name,
                access_log=log,
                port=port,
                parameters=(" udp" if datagrams else " backlog=4096")
                + " proxy_protocol" * proxy
                + " ssl" * (certificate is not None),
                greeting=greeting,
                directives=large
                + _PROXY * proxy
                + (_TLS.format(cert=certificate.cert, key=certificate.key) if certificate else ""),
            )
        )
        return [self.program, "-p", str(folder), "-c", str(config), "-e", f"{folder}/{name}.error.log"]


def find_nginx() -> Nginx | str:
    """The machine's nginx, or why there is none that can greet."""
    program = shutil.which("nginx") or shutil.which("nginx", path=os.pathsep.join(_SBIN))
    if program is None:
        return "not installed (on Debian: apt-get install nginx-light libnginx-mod-stream)"
    done = subprocess.run([program, "-V"], capture_output=True, text=True, timeout=10, check=False)
    built = done.stdout + done.stderr
    found = re.search(r"nginx/(\S+)", built)
    version = found[1] if found else "of an unknown version"
    if re.search(r"--with-stream(?=\s|$)", built):
        return Nginx(program, version, "")
    folders = re.findall(r"--modules-path=(\S+)", built) + list(_MODULE_FOLDERS)
    for folder in folders:
        if (Path(folder) / _MODULE).is_file():
            return Nginx(program, version, str(Path(folder) / _MODULE))
    return f"{version} has no stream module (on Debian: apt-get install libnginx-mod-stream)"
