"""Services that lose clients in a known way, for the checks to find, and one in C that loses none.

Each is a program of its own, so that its faults are its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


GREETING = b"Thank you for connecting"

# Accepts, sends and closes, one client after the other.
BLOCKING = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=int(sys.argv[2]))
print(server.getsockname()[1], flush=True)
while True:
    sock, _ = server.accept()
    try:
        sock.sendall(b"Thank you for connecting")
    except OSError:
        pass
    sock.close()
"""

# A lingering close in C, with one thread: it loses clients only when it is stopped.
LINGERING = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX 4000
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    static struct pollfd fds[MAX];
    static double due[MAX];
    static char discarded[65536];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int count = 1, yes = 1, server = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    address.sin_port = htons(argc > 1 ? atoi(argv[1]) : 0);
    if (bind(server, (struct sockaddr *)&address, size) || listen(server, 2048)) return 1;
    getsockname(server, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    fds[0] = (struct pollfd){server, POLLIN, 0};
    for (;;) {
        poll(fds, count, count > 1 ? 20 : -1);
        for (int i = count - 1; i > 0; i--) {
            ssize_t got = fds[i].revents ? read(fds[i].fd, discarded, sizeof discarded) : 1;
            if (got == 0 || (got < 0 && errno != EAGAIN) || now() > due[i]) {
                close(fds[i].fd);
                fds[0].fd = server;
                fds[i] = fds[--count];
                due[i] = due[count];
            }
        }
        while (count < MAX) {
            int sock = accept4(server, NULL, NULL, SOCK_NONBLOCK);
            if (sock < 0) {
                if (errno == EMFILE) fds[0].fd = -1;  // until a client has left
                break;
            }
            send(sock, "Thank you for connecting", 24, MSG_NOSIGNAL);
            shutdown(sock, SHUT_WR);
            due[count] = now() + 2;
            fds[count++] = (struct pollfd){sock, POLLIN, 0};
        }
    }
}
"""


class Peer:
    """A program that prints its port."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.pid, self.port = process.pid, port
        self.target = f"127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def peer(*command: str) -> AsyncIterator[Peer]:
    """Run a program that prints its port when it listens."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = await process.stdout.readline()
        yield Peer(process, int(line))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def blocking_loop(port: int = 0, backlog: int = 128) -> contextlib.AbstractAsyncContextManager[Peer]:
    """A loop that accepts, sends and closes."""
    return peer(sys.executable, "-c", BLOCKING, str(port), str(backlog))


def compiled(folder: Path) -> str | None:
    """Compile the lingering close in C. Returns the program; None without a compiler."""
    if shutil.which("gcc") is None:
        return None
    source, program = folder / "lingering.c", folder / "lingering"
    source.write_text(LINGERING)
    subprocess.run(["gcc", "-O1", "-o", str(program), str(source)], check=True)
    return str(program)
