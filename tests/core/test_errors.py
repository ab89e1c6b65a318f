"""The exceptions: base classes, messages, attributes, and pickling."""

from __future__ import annotations

import copy
import errno
import inspect
import os
import pickle
import re
import socket
import ssl

import pytest

from greeter import errors
from greeter.errors import (
    ConfigError,
    ConnectFailed,
    GreeterError,
    GreetFailed,
    GreetingError,
    GreetReset,
    GreetTimeout,
    ListenFailed,
    MissingExtra,
    NoGreeting,
    ProxyProtocolError,
    ReplyTooLarge,
    UnexpectedGreeting,
    os_error_text,
)

REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 1)")
PUBLIC = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, GreeterError) and not name.startswith("_")
}
ONE_OF_EACH: list[tuple[GreeterError, str]] = [
    (GreeterError("it went wrong"), "it went wrong"),
    (ConfigError("x is wrong"), "x is wrong"),
    (
        MissingExtra("--loop uvloop", "uvloop"),
        "--loop uvloop needs an optional package: pip install '.[uvloop]' in greeter's source tree",
    ),
    (ListenFailed("127.0.0.1:1", REFUSED), "cannot listen on 127.0.0.1:1: connection refused"),
    (ListenFailed("fd:0", "not a stream socket"), "cannot listen on fd:0: not a stream socket"),
    (GreetingError("the greeting callable raised"), "the greeting callable raised"),
    (ProxyProtocolError("no such family", 5), "no such family"),
    (GreetFailed("not greeted"), "not greeted"),
    (ConnectFailed("127.0.0.1:1", REFUSED), "cannot connect to 127.0.0.1:1: connection refused"),
    (ConnectFailed("x:1", "not a host name"), "cannot connect to x:1: not a host name"),
    (GreetTimeout("x:1", "connect", 5.0), "x:1: no connection within 5 s"),
    (GreetTimeout("x:1", "first byte", 0.5), "x:1: connected, but no greeting within 0.5 s"),
    (
        GreetTimeout("x:1", "end", 10, b"220"),
        "x:1: '220' came, but no end of the greeting within 10 s",
    ),
    (GreetTimeout("x:1", "handshake", 5.0), "x:1: connected, but no TLS handshake within 5 s"),
    (
        UnexpectedGreeting("x:1", b"220", b"421 b\xc3\xbcsy \xff\x1b\r\n"),
        "x:1: the greeting '421 büsy \\\\xff\\x1b' does not contain '220'",
    ),
    (
        UnexpectedGreeting("x:1", b"220", b"x" * 200),
        f"x:1: the greeting '{'x' * 80}'... (200 bytes) does not contain '220'",
    ),
    (GreetReset("x:1"), "x:1: connection reset before the greeting"),
    (GreetReset("x:1", b"220-a\n"), "x:1: connection reset before the greeting ended"),
    (NoGreeting("x:1"), "x:1: closed without a greeting"),
    (NoGreeting("x:1", b"220-a\n"), "x:1: closed before the greeting ended (6 bytes received)"),
    (ReplyTooLarge("x:1", 4, b"abcd"), "x:1: the greeting is longer than 4 bytes"),
]
BUILT_INS = {
    ConfigError: ValueError,
    MissingExtra: ImportError,
    ListenFailed: OSError,
    ProxyProtocolError: ValueError,
    ConnectFailed: OSError,
    GreetTimeout: TimeoutError,
    GreetReset: ConnectionResetError,
    NoGreeting: ConnectionError,
    ReplyTooLarge: ValueError,
    UnexpectedGreeting: ValueError,
}


def case_id(case: tuple[GreeterError, str]) -> str:
    return f"{type(case[0]).__name__}: {case[1]}"


@pytest.mark.parametrize(("error", "line"), ONE_OF_EACH, ids=map(case_id, ONE_OF_EACH))
def test_the_message_is_one_complete_line(error: GreeterError, line: str) -> None:
    assert str(error) == line
    assert isinstance(error, GreeterError)


def test_the_table_has_every_public_error() -> None:
    assert {type(error) for error, _ in ONE_OF_EACH} == set(PUBLIC.values())


@pytest.mark.parametrize(("error", "built_in"), BUILT_INS.items())
def test_each_error_is_a_built_in_exception(error: type[Exception], built_in: type[Exception]) -> None:
    assert issubclass(error, built_in)


def test_the_tree_in_the_docstring_is_complete() -> None:
    drawn = re.findall(r"^ *[│ ]*[├└]── (\w+)(?:\((\w+)\))?", errors.__doc__ or "", re.MULTILINE)
    assert {name for name, _ in drawn} == PUBLIC.keys() - {"GreeterError"}
    for name, built_in in drawn:
        assert not built_in or built_in in {base.__name__ for base in PUBLIC[name].__mro__}


def test_an_error_without_a_message_shows_its_class() -> None:
    assert str(GreeterError()) == "GreeterError"


def test_system_errors_have_the_errno_of_their_cause() -> None:
    for error in (ListenFailed("x:1", REFUSED), ConnectFailed("x:1", REFUSED)):
        assert (error.errno, error.strerror) == (errno.ECONNREFUSED, REFUSED.strerror)
    assert ListenFailed("x:1", "its text").errno is None
    assert ListenFailed("x:1", REFUSED).endpoint == ConnectFailed("x:1", REFUSED).target == "x:1"


def test_attributes_of_the_other_errors() -> None:
    timeout = GreetTimeout("x:1", "end", 2.0, b"22")
    assert (timeout.target, timeout.phase, timeout.seconds, timeout.received) == ("x:1", "end", 2.0, b"22")
    large = ReplyTooLarge("x:1", 2, b"22")
    assert (large.target, large.limit, large.received) == ("x:1", 2, b"22")
    for cut in (GreetReset("x:1", b"22"), NoGreeting("x:1", b"22")):
        assert (cut.target, cut.received) == ("x:1", b"22")
    assert GreetReset("x:1").received == NoGreeting("x:1").received == b""
    assert MissingExtra("a chart", "report").extra == "report"
    assert (ProxyProtocolError("no", 7).offset, ProxyProtocolError("no").offset) == (7, 0)


@pytest.mark.parametrize("error", [error for error, _ in ONE_OF_EACH], ids=map(case_id, ONE_OF_EACH))
def test_errors_survive_pickling_and_copying(error: GreeterError) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)
        for name in ("errno", "strerror"):
            assert getattr(again, name, None) == getattr(error, name, None)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.EADDRINUSE, "anything"), "address already in use"),
        (REFUSED, "connection refused"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "name or service not known"),
        (socket.gaierror(8, "A positive number elsewhere"), "a positive number elsewhere"),
        (
            ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)"),
            "wrong version number",
        ),
        (ConnectionAbortedError("SSL handshake is taking longer"), "SSL handshake is taking longer"),
        (ConnectionResetError(), "ConnectionResetError"),
    ],
)
def test_os_error_text_is_the_text_of_the_library_that_numbered_the_error(error: OSError, text: str) -> None:
    assert os_error_text(error) == text


def test_os_error_text_of_every_errno() -> None:
    for code in errno.errorcode:
        text = os.strerror(code)
        assert os_error_text(OSError(code, "")).lower() == text.lower()
