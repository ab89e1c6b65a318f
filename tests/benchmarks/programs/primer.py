"""The blocking server of every socket primer: one client at a time, a line for each.

Invariants:
- It does nothing else. Only its listen backlog is longer than a primer's: a full one would measure the
  kernel's retries.

usage: primer.py PORT
"""

from __future__ import annotations

import socket
import sys

listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096)
while True:
    client, address = listener.accept()
    print("Got a connection from", address)
    client.send(b"Thank you for connecting")
    client.close()
