from __future__ import annotations

import errno

import pytest

from greeter.loadtest.plan.outcome import ANSWERED, FAILURE_CLASSES, GREETED, connect_failure


def test_the_classes_of_failures_are_the_documented_ones() -> None:
    assert set(FAILURE_CLASSES) == {
        "connect_refused",
        "connect_timeout",
        "connect_error",
        "connected_no_greeting",
        "greeting_timeout",
        "reset",
        "empty",
        "unexpected_greeting",
        "too_large",
        "tls_error",
        "no_reply",
        "refused",
        "local_exhausted",
    }
    assert all(FAILURE_CLASSES.values()), "each has a description"


def test_answered_is_an_orderly_close_or_a_complete_greeting() -> None:
    assert {GREETED, "empty", "unexpected_greeting"} == ANSWERED


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (errno.ECONNREFUSED, "connect_refused"),
        (errno.ETIMEDOUT, "connect_timeout"),
        (errno.EHOSTUNREACH, "connect_error"),
        (errno.ENETUNREACH, "connect_error"),
        (errno.ENOENT, "connect_error"),
        (errno.EACCES, "connect_error"),
        (errno.EMFILE, "local_exhausted"),
        (errno.ENFILE, "local_exhausted"),
        (errno.ENOBUFS, "local_exhausted"),
        (errno.ENOMEM, "local_exhausted"),
        (errno.EADDRNOTAVAIL, "local_exhausted"),
        (errno.EADDRINUSE, "local_exhausted"),
        (errno.EAGAIN, "local_exhausted"),
        (0, "connect_error"),
    ],
)
def test_each_error_of_connect_has_one_class(code: int, outcome: str) -> None:
    assert connect_failure(code) == outcome
