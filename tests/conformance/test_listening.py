"""The listening socket as the kernel tells of it."""

from __future__ import annotations

import os
import socket

import pytest

from greeter.conformance.listening import listening, owners


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_listening_socket_is_found_with_its_accept_queue(family: socket.AddressFamily) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family, backlog=77) as server:
        address = server.getsockname()
        with socket.create_connection(address[:2]):
            found = listening(family, address)
            assert found is not None
            assert (found.backlog, found.queued) == (77, 1)
            assert found.inode == os.fstat(server.fileno()).st_ino
            assert owners(found.inode) == [os.getpid()]
    assert listening(family, address) is None


def test_a_wildcard_socket_serves_both_families() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        found = listening(socket.AF_INET, ("127.0.0.1", server.getsockname()[1]))
        assert found is not None
        assert found.inode == os.fstat(server.fileno()).st_ino


def test_a_unix_socket_is_not_looked_for() -> None:
    assert listening(socket.AF_UNIX, "/run/nothing") is None
