"""nginx as a greeter: the stream module's ``return``, which is what an operator would take instead of us.

The law: it runs as whoever starts the benchmark, on the loopback, and writes nowhere but into our
temporary folder. Its module is looked for where nginx itself says that its modules are.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Where a package may have put a program that is not on everybody's PATH.
_SBIN = ("/usr/sbin", "/usr/local/sbin", "/usr/local/nginx/sbin")
_MODULE = "ngx_stream_module.so"
_MODULE_FOLDERS = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules")

_CONFIG = """\
{load_module}daemon off;
worker_processes 1;
{user}pid {folder}/{name}.pid;
error_log {folder}/{name}.error.log;
events {{ worker_connections 4096; multi_accept on; }}
stream {{
    log_format greeted "Got a connection from ('$remote_addr', $remote_port)";
    access_log {access_log};
    server {{ listen 127.0.0.1:{port} backlog=4096; return "Thank you for connecting"; }}
}}
"""


@dataclass(frozen=True)
class Nginx:
    """An nginx that can greet: the program, its version, and its stream module ("" if it is built in)."""

    program: str
    version: str
    module: str

    def command(self, port: int, folder: Path, *, access_log: bool) -> list[str]:
        """Write a configuration into ``folder``; returns the command that serves by it."""
        name = f"nginx-{port}"
        config = folder / f"{name}.conf"
        # Batched like ours; unbuffered would be a write for each client.
        log = f"{folder}/{name}.access.log greeted buffer=64k flush=100ms" if access_log else "off"
        # Only root may, and then must, say whose process the worker is.
        user = f"user {pwd.getpwuid(0).pw_name};\n" if os.geteuid() == 0 else ""
        config.write_text(
            _CONFIG.format(
                load_module=f"load_module {self.module};\n" if self.module else "",
                user=user,
                folder=folder,
                name=name,
                access_log=log,
                port=port,
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
