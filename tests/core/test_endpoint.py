"""Endpoints: tables of valid and invalid text, and the round trip through text."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greeter import ConfigError, Endpoint
from greeter.core.endpoint import DEFAULT_ENDPOINT, UNIX_PATH_MAX, host_name

VALID = [
    ("127.0.0.1:9999", Endpoint("tcp", "127.0.0.1", 9999)),
    ("localhost:qotd", Endpoint("tcp", "localhost", "qotd")),
    ("LOCALHOST:0", Endpoint("tcp", "LOCALHOST", 0)),
    ("example.org.:80", Endpoint("tcp", "example.org.", 80)),
    ("2130706433:9999", Endpoint("tcp", "2130706433", 9999)),
    ("under_score:1", Endpoint("tcp", "under_score", 1)),
    ("bücher.example:1", Endpoint("tcp", "bücher.example", 1)),
    (":9999", Endpoint("tcp", "", 9999)),
    ("[::1]:9999", Endpoint("tcp", "::1", 9999)),
    ("[fe80::1%eth0]:65535", Endpoint("tcp", "fe80::1%eth0", 65535)),
    ("[::ffff:127.0.0.1]:http-alt", Endpoint("tcp", "::ffff:127.0.0.1", "http-alt")),
    ("h:00080", Endpoint("tcp", "h", 80)),
    ("h:" + "0" * 5000, Endpoint("tcp", "h", 0)),
    ("h:123456789012a", Endpoint("tcp", "h", "123456789012a")),
    ("unix:/run/x.sock", Endpoint("unix", path="/run/x.sock")),
    ("unix:relative", Endpoint("unix", path="relative")),
    ("unix:./@file", Endpoint("unix", path="./@file")),
    ("unix:/with:colon and space", Endpoint("unix", path="/with:colon and space")),
    ("unix:/not-\udcff-utf8", Endpoint("unix", path="/not-\udcff-utf8")),
    ("unix:@name", Endpoint("unix", path="\0name")),
    ("unix:@@", Endpoint("unix", path="\0@")),
    ("unix:" + "x" * UNIX_PATH_MAX, Endpoint("unix", path="x" * UNIX_PATH_MAX)),
    ("udp:127.0.0.1:9999", Endpoint("udp", "127.0.0.1", 9999)),
    ("udp:localhost:qotd", Endpoint("udp", "localhost", "qotd")),
    ("udp:[::1]:0", Endpoint("udp", "::1", 0)),
    ("udp:[fe80::1%eth0]:1", Endpoint("udp", "fe80::1%eth0", 1)),
    ("udp::9999", Endpoint("udp", "", 9999)),
    ("udp:2130706433:1", Endpoint("udp", "2130706433", 1)),
    ("udp:udp:1", Endpoint("udp", "udp", 1)),
    ("udp:unix:1", Endpoint("udp", "unix", 1)),
    ("[udp]:9999", Endpoint("tcp", "udp", 9999)),
    ("[unix]:http", Endpoint("tcp", "unix", "http")),
    ("[fd]:3", Endpoint("tcp", "fd", 3)),
    ("UDP:9999", Endpoint("tcp", "UDP", 9999)),
    ("fd:0", Endpoint("fd", fd=0)),
    ("fd:2147483647", Endpoint("fd", fd=2147483647)),
    ("fd:web", Endpoint("fd", name="web")),
    ("fd:greeter.socket", Endpoint("fd", name="greeter.socket")),
]
INVALID = [
    ("", "no port"),
    ("localhost", "no port"),
    ("unix", "no port"),
    ("::1:9999", "without brackets"),
    ("a:b:1", "without brackets"),
    ("[::1]", "has no port, as in [::1]:9999"),
    ("udp:[::1]", "has no port, as in udp:[::1]:9999"),
    ("[]:80", "no address between its brackets"),
    ("udp:[]:80", "no address between its brackets"),
    ("[::1:9999", "without brackets"),
    ("x]:1", "invalid characters in host name 'x]'"),
    ("a b:1", "invalid characters in host name 'a b'"),
    ("a/b:1", "invalid characters in host name"),
    ("user@host:1", "invalid characters in host name"),
    ("a\nb:1", "invalid characters in host name"),
    ("a\x1b[2Jb:1", "invalid characters in host name"),
    ("\udcff:1", "invalid characters in host name"),
    ("a..b:1", "invalid host name, 'a..b'"),
    (".:1", "invalid host name"),
    ("x" * 64 + ".org:1", "invalid host name"),
    ("h:", "neither a port number nor a service name in ''"),
    ("h:-1", "neither a port number"),
    ("h:1.5", "neither a port number"),
    ("h:+1", "neither a port number"),
    ("h: 1", "neither a port number"),
    ("h:٣", "neither a port number"),  # a digit for Python, but not for the resolver
    ("h:a--b", "neither a port number"),
    ("h:a-", "neither a port number"),
    ("h:sixteen-letters-", "neither a port number"),
    ("h:1-2", "neither a port number"),
    ("h:65536", "port 65536, which is not in 0-65535"),
    ("h:" + "9" * 5000, "port 99999999999999999999, which is not in"),
    ("unix:", "no path"),
    ("unix:@", "no path"),
    ("unix:a\0b", "a NUL in its path"),
    ("unix:@a\0b", "a NUL in its path"),
    ("unix:/\ud800", "a path that cannot be encoded"),
    ("unix:" + "x" * (UNIX_PATH_MAX + 1), "a path longer than 107 bytes"),
    ("unix:" + "é" * 54, "a path longer than 107 bytes"),
    ("unix:@" + "x" * UNIX_PATH_MAX, "a path longer than 107 bytes"),
    ("udp:", "no port, as in udp:localhost:9999"),
    ("udp:9999", "no port, as in udp:localhost:9999"),
    ("udp:::1:9999", "without brackets, as in udp:[::1]:9999"),
    ("udp:udp:h:1", "without brackets"),
    ("udp:h:", "neither a port number nor a service name in ''"),
    ("udp:h:65536", "port 65536, which is not in 0-65535"),
    ("udp:a b:1", "invalid characters in host name 'a b'"),
    ("udp:@name:1", "invalid characters in host name '@name'"),
    ("fd:", "no descriptor number"),
    ("fd:-1", "no descriptor number"),
    ("fd:x:y", "no descriptor number or name"),
    ("fd:a b", "no descriptor number or name"),
    ("fd:" + "x" * 256, "no descriptor number or name"),
    ("fd:2147483648", "no descriptor number"),
    ("fd:" + "1" * 5000, "no descriptor number"),
    ("fd:²", "no descriptor number"),
]


def shown(value: object) -> str:
    return ascii(value)[:40]


@pytest.mark.parametrize(("text", "endpoint"), VALID, ids=shown)
def test_parse_valid_text(text: str, endpoint: Endpoint) -> None:
    assert Endpoint.parse(text) == endpoint
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(("text", "why"), INVALID, ids=shown)
def test_parse_invalid_text_names_the_text_and_the_error(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Endpoint.parse(text)
    assert str(caught.value).startswith(f"endpoint {text!r} has ")
    assert why in str(caught.value)


def test_the_default_endpoint() -> None:
    assert Endpoint.parse(DEFAULT_ENDPOINT) == Endpoint.tcp() == Endpoint("tcp", "127.0.0.1", 9999)


@pytest.mark.parametrize(
    ("host", "port", "text"),
    [
        (None, 1, ":1"),
        ("", "1", ":1"),
        ("::1", "http", "[::1]:http"),
        (2130706433, 9999, "127.0.0.1:9999"),
        (0, 0, "0.0.0.0:0"),
        (0xFFFFFFFF, 1, "255.255.255.255:1"),
    ],
)
def test_tcp_accepts_hosts_and_ports_of_the_socket_module(
    host: str | int | None, port: int | str, text: str
) -> None:
    assert str(Endpoint.tcp(host, port)) == text
    assert str(Endpoint.udp(host, port)) == f"udp:{text}"


TARGETS: list[tuple[Any, Any, str]] = [
    # a host with a port argument
    ("localhost", 25, "localhost:25"),
    ("127.0.0.1", "25", "127.0.0.1:25"),
    ("::1", "smtp", "[::1]:smtp"),
    ("fe80::1%eth0", 0, "[fe80::1%eth0]:0"),
    ("::ffff:127.0.0.1", 25, "[::ffff:127.0.0.1]:25"),
    ("", 25, ":25"),
    (None, 25, ":25"),
    (2130706433, 25, "127.0.0.1:25"),
    ("2130706433", 25, "2130706433:25"),
    # a host alone
    ("localhost", None, "localhost:9999"),
    ("mail.example.", None, "mail.example.:9999"),
    ("127.0.0.1", None, "127.0.0.1:9999"),
    ("::1", None, "[::1]:9999"),
    ("::", None, "[::]:9999"),
    ("fd::1", None, "[fd::1]:9999"),  # an address, not a descriptor
    ("fe80::1%eth0", None, "[fe80::1%eth0]:9999"),
    ("unix-host", None, "unix-host:9999"),
    ("", None, ":9999"),
    (None, None, ":9999"),
    (2130706433, None, "127.0.0.1:9999"),
    # the text of an endpoint
    ("127.0.0.1:9871", None, "127.0.0.1:9871"),
    ("localhost:smtp", None, "localhost:smtp"),
    ("[::1]:25", None, "[::1]:25"),
    (":25", None, ":25"),
    ("unix:/run/x.sock", None, "unix:/run/x.sock"),
    ("unix:/with:colons:in it", None, "unix:/with:colons:in it"),
    ("unix:@name", None, "unix:@name"),
    ("fd:3", None, "fd:3"),
    ("udp:127.0.0.1:17", None, "udp:127.0.0.1:17"),
    ("udp:[::1]:17", None, "udp:[::1]:17"),
    ("udp::17", None, "udp::17"),
    ("udp", None, "[udp]:9999"),  # a host
    ("udp", 17, "[udp]:17"),
    # an Endpoint
    (Endpoint.tcp("::1", 25), None, "[::1]:25"),
    (Endpoint.unix("@name"), None, "unix:@name"),
    (Endpoint.inherited(3), None, "fd:3"),
    (Endpoint.udp("::1", 17), None, "udp:[::1]:17"),
]
INVALID_TARGETS: list[tuple[Any, Any, str]] = [
    (Endpoint.tcp("h", 1), 1, "port 1 requires a host, and 'h:1' is not one"),
    (Endpoint.unix("/x"), 0, "port 0 requires a host, and 'unix:/x' is not one"),
    ("h:1", 1, "port 1 requires a host, and 'h:1' is not one"),
    ("[::1]:25", "smtp", "port 'smtp' requires a host, and '[::1]:25' is not one"),
    (":25", 25, "port 25 requires a host, and ':25' is not one"),
    ("unix:/x", 1, "port 1 requires a host, and 'unix:/x' is not one"),
    ("udp:h:1", 1, "port 1 requires a host, and 'udp:h:1' is not one"),
    ("udp:h", None, "endpoint 'udp:h' has no port, as in udp:localhost:9999"),
    ("fd:3", 1, "port 1 requires a host, and 'fd:3' is not one"),
    ("1:2:3", 1, "port 1 requires a host, and '1:2:3' is not one"),
    ("1:2:3", None, "endpoint '1:2:3' has an IPv6 address without brackets"),
    ("::1:99999", None, "endpoint '::1:99999' has an IPv6 address without brackets"),
    ("unix:", None, "endpoint 'unix:' has no path"),
    ("fd:x", None, "endpoint 'fd:x' has no descriptor number"),
    ("h:", None, "endpoint 'h:' has neither a port number nor a service name in ''"),
    ("a b", None, "endpoint 'a b:9999' has invalid characters in host name 'a b'"),
    ("a/b", None, "endpoint 'a/b:9999' has invalid characters in host name 'a/b'"),
    ("h", "", "endpoint 'h:' has neither a port number nor a service name in ''"),
    ("h", 65536, "endpoint 'h:65536' has port 65536, which is not in 0-65535"),
    ("h", -1, "endpoint 'h:-1' has neither a port number nor a service name in '-1'"),
    (-1, None, "endpoint '-1:9999' has the integer address -1, which is not a 32-bit number"),
    (b"h:1", None, "a target must be a string, an integer or an Endpoint, not bytes"),
    (True, None, "a target must be a string, an integer or an Endpoint, not bool"),
    (1.5, None, "a target must be a string, an integer or an Endpoint, not float"),
    (["h"], None, "a target must be a string, an integer or an Endpoint, not list"),
    (("h", 1), None, "a target must be a string, an integer or an Endpoint, not tuple"),
    ("h", 25.0, "a port must be an integer or a string, not float"),
    ("h", True, "a port must be an integer or a string, not bool"),
    ("h", b"25", "a port must be an integer or a string, not bytes"),
    ("h", [25], "a port must be an integer or a string, not list"),
]


@pytest.mark.parametrize(("target", "port", "text"), TARGETS, ids=shown)
def test_a_target_is_an_endpoint_its_text_or_a_host(target: Any, port: Any, text: str) -> None:
    endpoint = Endpoint.target(target, port)
    assert str(endpoint) == text
    assert Endpoint.parse(text) == endpoint == Endpoint.target(endpoint)


@pytest.mark.parametrize(("target", "port", "why"), INVALID_TARGETS, ids=shown)
def test_an_invalid_target_is_an_error_of_one_line(target: Any, port: Any, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Endpoint.target(target, port)
    assert str(caught.value).startswith(why)


def test_the_default_target_is_the_default_endpoint() -> None:
    assert str(Endpoint.target()) == DEFAULT_ENDPOINT
    assert str(Endpoint.target(port=1)) == "127.0.0.1:1"


@pytest.mark.parametrize("host", [-1, 0x1_0000_0000])
def test_an_integer_address_has_32_bits(host: int) -> None:
    with pytest.raises(
        ConfigError, match=f"endpoint '{host}:1' has the integer address {host}, which is not"
    ):
        Endpoint.tcp(host, 1)


def test_errors_of_the_other_constructors_name_the_value() -> None:
    with pytest.raises(ConfigError, match="endpoint 'a b:1' has invalid characters in host name 'a b'"):
        Endpoint.tcp("a b", 1)
    with pytest.raises(ConfigError, match="endpoint 'udp:a b:1' has invalid characters in host name 'a b'"):
        Endpoint.udp("a b", 1)
    with pytest.raises(ConfigError, match="endpoint 'unix:' has no path"):
        Endpoint.unix("")
    with pytest.raises(ConfigError, match="endpoint 'fd:-1' has no descriptor number"):
        Endpoint.inherited(-1)


def test_the_resolver_accepts_an_integer_address_as_text() -> None:
    endpoint = Endpoint.parse("2130706433:9999")
    found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    assert found[0][4] == ("127.0.0.1", 9999)


def test_abstract_is_a_name_without_a_file() -> None:
    assert Endpoint.unix("@x").abstract
    assert Endpoint.unix("\0x") == Endpoint.unix("@x")
    assert not Endpoint.unix("/x").abstract
    assert not Endpoint.tcp().abstract


def test_only_an_endpoint_for_datagrams_is_refused_where_a_stream_is_needed() -> None:
    with pytest.raises(ConfigError) as caught:
        Endpoint.udp("::1", 17).require_stream("HTTP")
    assert str(caught.value) == "HTTP needs a stream, and udp:[::1]:17 is an endpoint for datagrams"
    for endpoint in (Endpoint.tcp(), Endpoint.unix("/x"), Endpoint.inherited(3)):
        endpoint.require_stream("HTTP")


def test_endpoints_are_values() -> None:
    assert {Endpoint.tcp("h", 1), Endpoint.parse("h:1"), Endpoint.parse("h:01")} == {Endpoint("tcp", "h", 1)}
    with pytest.raises(AttributeError):
        Endpoint.tcp().port = 1  # type: ignore[misc]  # the test is that it is frozen


# Text that resembles an endpoint more often than random text does.
PIECES = st.sampled_from(
    ["unix:", "udp:", "fd:", "[", "]", ":", "::1", "@", "\0", ".", "-", "0", "65536", "host", "%"]
)
ANY_TEXT = st.text(st.characters(), max_size=40)  # lone surrogates among them
GARBAGE = st.lists(PIECES | ANY_TEXT, max_size=8).map("".join)

LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
HOSTS = st.one_of(
    st.sampled_from(["unix", "udp", "fd"]),
    st.lists(LABELS, min_size=1, max_size=4).map(".".join),
    st.ip_addresses().map(str),
    st.just(""),
)
SERVICES = st.sampled_from(["http", "qotd", "x11-1", "a"])
PATHS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=26)
ENDPOINTS = st.one_of(
    st.builds(Endpoint.tcp, HOSTS, st.integers(0, 65535) | SERVICES),
    st.builds(Endpoint.udp, HOSTS, st.integers(0, 65535) | SERVICES),
    st.builds(Endpoint.tcp, st.integers(0, 0xFFFFFFFF), st.integers(0, 65535)),
    st.builds(Endpoint.unix, PATHS.filter(lambda path: path != "@")),
    st.builds(Endpoint.inherited, st.integers(0, 0x7FFFFFFF)),
)


@given(ENDPOINTS)
def test_every_endpoint_is_parsed_from_its_text(endpoint: Endpoint) -> None:
    assert Endpoint.parse(str(endpoint)) == endpoint


@settings(max_examples=200)
@given(GARBAGE)
def test_garbage_is_an_endpoint_or_a_config_error(text: str) -> None:
    try:
        endpoint = Endpoint.parse(text)
    except ConfigError as error:
        line = str(error)
    else:
        line = f"endpoint {text!r} is {endpoint!r}"
        assert Endpoint.parse(str(endpoint)) == endpoint
    assert line.startswith(f"endpoint {text!r} ")
    assert line.isprintable()


@settings(max_examples=200)
@given(ENDPOINTS, st.none() | st.integers(0, 65535))
def test_the_text_of_an_endpoint_is_a_target_without_a_port(endpoint: Endpoint, port: int | None) -> None:
    if port is None:
        assert Endpoint.target(str(endpoint)) == endpoint
    else:
        for target in (endpoint, str(endpoint)):
            with pytest.raises(ConfigError, match="^port .* requires a host, and "):
                Endpoint.target(target, port)


@settings(max_examples=200)
@given(GARBAGE, st.none() | st.integers(-1, 65536))
def test_garbage_is_a_target_or_a_config_error(text: str, port: int | None) -> None:
    try:
        endpoint = Endpoint.target(text, port)
    except ConfigError as error:
        line = str(error)
    else:
        line = repr(endpoint)
        assert Endpoint.target(endpoint) == endpoint
        assert port in (None, endpoint.port)
    assert line.isprintable()


@pytest.mark.parametrize("text", ["a.example", "a.example.", "münchen.example", "127.0.0.1", "::1", "x"])
def test_valid_host_names(text: str) -> None:
    assert host_name(text) == text


@pytest.mark.parametrize("text", ["", ".x", "a..b", "é" * 60, "\udcff", "a\0b", "a." * 128])
def test_invalid_host_names(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        host_name(text)
    assert str(caught.value) == f"{text!r} is not a host name"


KIND = "the kind of an endpoint must be 'tcp', 'unix', 'udp' or 'fd', not {}; Endpoint.parse() reads text"
ANY: Any = Endpoint  # as a caller without a type checker has it


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: ANY(9871), KIND.format("9871")),
        (lambda: ANY("h:1"), KIND.format("'h:1'")),
        (lambda: ANY([]), KIND.format("[]")),
        (lambda: ANY("tcp", host=1), "the host of an endpoint must be a string, not 1"),
        (
            lambda: ANY("tcp", port=True),
            "the port of an endpoint must be an integer or a string, not True",
        ),
        (lambda: ANY("unix", path=b"/x"), "the path of an endpoint must be a string, not b'/x'"),
        (lambda: ANY("fd", fd="3"), "the fd of an endpoint must be an integer, not '3'"),
        (lambda: ANY.parse(9871), "the text of an endpoint must be a string, not 9871"),
        (lambda: ANY.parse(None), "the text of an endpoint must be a string, not None"),
        (lambda: ANY.tcp(b"h"), "the host of an endpoint must be a string or an integer, not b'h'"),
        (lambda: ANY.tcp("h", None), "the port of an endpoint must be an integer or a string, not None"),
        (lambda: ANY.tcp("h", 1.5), "the port of an endpoint must be an integer or a string, not 1.5"),
        (lambda: ANY.udp(b"h"), "the host of an endpoint must be a string or an integer, not b'h'"),
        (lambda: ANY.udp("h", None), "the port of an endpoint must be an integer or a string, not None"),
        (lambda: ANY.unix(None), "the path of an endpoint must be a string, not None"),
        (lambda: ANY.inherited(None), "the fd of an endpoint must be an integer or a string, not None"),
    ],
)
def test_a_field_of_a_wrong_type_is_rejected(make: Any, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == why


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("tcp://127.0.0.1:9999", "127.0.0.1:9999"),
        ("http://localhost:9999/", "localhost:9999"),
        ("HTTP://user:word@h:1/p?q#f", "h:1"),
        ("https://[::1]:443", "[::1]:443"),
        ("smtp://mail.example", "mail.example:PORT"),
    ],
)
def test_a_url_is_rejected_with_the_form_that_is_meant(text: str, form: str) -> None:
    for read in (Endpoint.parse, Endpoint.target):
        with pytest.raises(ConfigError) as caught:
            read(text)
        assert str(caught.value) == f"endpoint {text!r} is a URL; write {form}"
