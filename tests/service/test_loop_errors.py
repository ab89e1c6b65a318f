"""What is logged of the errors that an event loop reports."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from greeter.service.loop_errors import log_loop_errors
from tests.conftest import loop_factories

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator


@pytest.fixture(params=loop_factories().values(), ids=list(loop_factories()))
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    factory: Callable[[], asyncio.AbstractEventLoop] = request.param
    loop = factory()
    log_loop_errors(loop)
    yield loop
    loop.close()


def report(loop: asyncio.AbstractEventLoop, number: int) -> None:
    error = OSError(number, os.strerror(number))
    loop.call_exception_handler({"message": "from a callback", "exception": error})


def test_an_error_of_the_system_is_one_line(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        report(loop, errno.ENOMEM)
    assert [record.message for record in caplog.records] == ["the event loop failed: cannot allocate memory"]
    assert caplog.records[0].exc_info is None


def test_what_a_client_did_to_its_connection_is_no_error_of_the_loop(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED):
        report(loop, number)
    assert caplog.records == []


def test_after_the_loop_is_closed_nothing_is_logged(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    """By then, the log may be closed too."""
    loop.close()
    report(loop, errno.ENOMEM)
    assert caplog.records == []
