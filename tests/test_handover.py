"""A descriptor becomes a transport: without a task, and on a loop that takes sockets proper only too."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from greeter.handover import Descriptor, Handover
from tests.conftest import PATIENCE


class Guest(asyncio.Protocol):
    """Greets and closes."""

    def __init__(self) -> None:
        self.made = 0
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.made += 1
        transport.write(b"hello")
        transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


def is_uvloop() -> bool:
    return type(asyncio.get_running_loop()).__module__.partition(".")[0] == "uvloop"


async def greeted_over(hand_over: Handover) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        guest = Guest()
        hand_over(ours.detach(), socket.AF_UNIX, guest)
        assert guest.made == 0  # in a later turn
        async with asyncio.timeout(PATIENCE):
            assert await guest.lost is None
        assert theirs.recv(100) == b"hello"
        assert theirs.recv(100) == b""
        assert guest.made == 1


@pytest.mark.usefixtures("no_fd_leak")
async def test_a_descriptor_gets_a_transport() -> None:
    hand_over = Handover(asyncio.get_running_loop())
    await greeted_over(hand_over)
    if is_uvloop():  # it still takes what is no socket
        assert hand_over._wrap is Descriptor


@pytest.mark.usefixtures("no_fd_leak")
@pytest.mark.parametrize("refusal", [TypeError, AttributeError, ValueError])
async def test_a_uvloop_that_wants_sockets_gets_them(refusal: type[Exception]) -> None:
    """It is asked once only."""
    loop = asyncio.get_running_loop()
    refused = []

    class Strict:
        async def connect_accepted_socket(self, factory: Any, sock: Any) -> Any:
            if not isinstance(sock, socket.socket):
                refused.append(sock)
                raise refusal
            return await loop.connect_accepted_socket(factory, sock)

    Strict.__module__ = "uvloop"
    hand_over = Handover(Strict())  # type: ignore[arg-type]  # all of a loop that it needs
    await greeted_over(hand_over)
    await greeted_over(hand_over)
    assert len(refused) == 1
