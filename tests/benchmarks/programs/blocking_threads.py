"""A server of 32 threads: each accepts a client, blocks for 5 ms, sends and closes.

Invariants:
- It does nothing else, so what it costs is the least that a blocking callable costs in Python.

usage: blocking_threads.py PORT
"""

from __future__ import annotations

import socket
import sys
import threading
import time

THREADS = 32
SECONDS = 0.005

listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096)


def serve() -> None:
    while True:
        client, _ = listener.accept()
        time.sleep(SECONDS)
        client.send(b"Thank you for connecting")
        client.close()


for _ in range(THREADS - 1):
    threading.Thread(target=serve, daemon=True).start()
serve()
