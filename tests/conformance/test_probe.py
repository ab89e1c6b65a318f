"""The client of the checks, against sockets whose other end the test has."""

from __future__ import annotations

import asyncio
import socket

import pytest

from greeter.conformance.dial import Dial
from greeter.conformance.findings import Ending
from greeter.conformance.probe import Ended, Probe
from greeter.core.replies import Until

pytestmark = pytest.mark.usefixtures("no_fd_leak")


@pytest.mark.parametrize("until", ["eof", "line", "idle:60s"])
@pytest.mark.parametrize("came", [b"hello\n", b""])
async def test_after_a_pause_what_came_before_the_deadline_is_read(came: bytes, until: str) -> None:
    class Paused(Probe):
        async def _until_readable(self) -> None:
            if came:
                server.sendall(came)
            server.shutdown(socket.SHUT_WR)
            self._deadline = asyncio.get_running_loop().time()
            raise TimeoutError

    with socket.create_server(("127.0.0.1", 0)) as listener:
        dial = Dial(socket.AF_INET, listener.getsockname(), timeout=60, until=Until.parse(until))
        async with Paused(dial) as probe:
            await probe.open()
            server, _ = listener.accept()
            with server:
                assert await probe.finish() is (Ending.GREETED if came else Ending.LOST)


async def test_after_a_pause_a_greeting_goes_on() -> None:
    """The pause that ends a greeting is one of the service, not of this process."""

    class Paused(Probe):
        async def _read(self) -> None:
            if self.data == b"hi":
                server.sendall(b" there")
                server.shutdown(socket.SHUT_WR)
                self.data += b"-"
                raise TimeoutError
            await super()._read()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        dial = Dial(socket.AF_INET, listener.getsockname(), timeout=60, until=Until.parse("idle:60s"))
        async with Paused(dial) as probe:
            await probe.open()
            server, _ = listener.accept()
            with server:
                server.sendall(b"hi")
                assert await probe.finish() is Ending.GREETED
            assert probe.data == b"hi- there"


async def test_a_service_that_says_nothing_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with Probe(Dial(socket.AF_INET, listener.getsockname(), timeout=0.05)) as probe:
            await probe.open()
            with pytest.raises(Ended) as caught:
                await probe.finish()
            assert caught.value.ending is Ending.SILENT
