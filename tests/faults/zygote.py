"""A process that has imported greeter, and forks for each service, so that a start costs no imports.

It is started with faults.c. A line of its input has the arguments, the environment and the fault of a
service; it answers with the process ID, and later the exit code.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.support.fault_plan import Plan

# What a service with every option imports.
MODULES = (
    "asyncio",
    "ctypes",
    "encodings.idna",
    "greeter.cli.cli",
    "greeter.core.admission",
    "greeter.core.proxy_protocol",
    "greeter.core.tls_session",
    "greeter.server.datagrams",
    "greeter.service.multi_process",
    "greeter.service.prometheus",
    "greeter.service.startup",
    "h11",
    "prometheus_client",
    "ssl",
    "tempfile",
)


PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_parent() -> None:
    """Let this process end when its parent does, whatever ends that."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def become(request: dict[str, Any]) -> None:
    """Become the service that ``request`` describes."""
    end_with_parent()
    log = os.open(request["log"], os.O_WRONLY)
    null = os.open(os.devnull, os.O_RDWR)
    for fd, target in ((null, 0), (null, 1), (log, 2)):
        os.dup2(fd, target)
    os.close(log)
    os.close(null)
    os.environ.update(request["env"])
    sys.argv = ["greeter", *request["arguments"]]
    sys.path.insert(0, os.environ["FAULTS_DIR"])
    ctypes.CDLL(None).faults_open()
    if fault := request["fault"]:
        plan = Plan(Path(os.environ["FAULTS_FILE"]))
        plan.arm(fault["call"], fault["error"], 1, skip=fault["number"] - 1)
        plan.close()
    from greeter.__main__ import main

    main()


def main() -> None:
    end_with_parent()
    for module in MODULES:
        importlib.import_module(module)
    with contextlib.suppress(ImportError):
        importlib.import_module("uvloop")
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            become(json.loads(line))
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
