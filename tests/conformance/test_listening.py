"""The listening socket as the kernel tells of it."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from greeter.conformance.listening import inodes, listening, owners

if TYPE_CHECKING:
    from pathlib import Path


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


def test_the_process_of_a_unix_socket_is_found(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    for name in (path, f"\0{path}"):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(name)
            assert inodes(socket.AF_UNIX, name) == []  # it does not listen yet
            server.listen()
            assert inodes(socket.AF_UNIX, name) == [os.fstat(server.fileno()).st_ino]
            assert owners(*inodes(socket.AF_UNIX, name)) == [os.getpid()]
    assert listening(socket.AF_UNIX, path) is None


def test_every_socket_of_a_shared_port_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as first:
        address = first.getsockname()
        with socket.create_server(address, reuse_port=True) as second:
            numbers = {os.fstat(sock.fileno()).st_ino for sock in (first, second)}
            assert set(inodes(socket.AF_INET, address)) == numbers


def test_no_process_has_a_socket_that_is_none() -> None:
    assert owners() == []
