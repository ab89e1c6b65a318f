"""GreetingTable: every kind of source, what is invalid, and what is rendered for a peer."""

from __future__ import annotations

import functools
import re
from socket import AddressFamily
from string import Template
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greeter import ConfigError, Greeting, GreetingError, Peer
from greeter.core.greeting import DEFAULT_GREETING, VARIABLES
from tests.conftest import one_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable

PEER = Peer(
    host="192.0.2.7",
    port=3747,
    family=AddressFamily.AF_INET,
    server="127.0.0.1:9999",
    hostname="here",
    time=1_700_000_000.9,
    count=41,
)
once = one_loop  # does not depend on the loop


def greet_sync(peer: Peer) -> str:
    return f"hello {peer.host}"


async def greet_async(peer: Peer) -> str:
    return f"hello {peer.port}"


class AsyncCallable:
    async def __call__(self, peer: Peer, mark: str = "") -> bytes:
        return f"{peer.count}{mark}".encode()


# -- text ------------------------------------------------------------------------------------------------


def test_the_default_greeting() -> None:
    greeting = Greeting()
    assert DEFAULT_GREETING == "Thank you for connecting"
    assert greeting.fixed == b"Thank you for connecting"
    assert (greeting.kind, greeting.quick, repr(greeting)) == ("fixed", True, "<Greeting fixed quick>")


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("$host", "192.0.2.7"),
        ("$port", "3747"),
        ("$hostname", "here"),
        ("${hostname}s", "heres"),
        ("$time", "2023-11-14T22:13:20Z"),
        ("$count", "41"),
        ("[$host]:$port #$count\r\n", "[192.0.2.7]:3747 #41\r\n"),
        ("$$$count", "$41"),
        ("$count$$", "41$"),
        ("$$$$$host", "$$192.0.2.7"),
    ],
)
def test_a_template_is_rendered_for_each_peer(text: str, rendered: str) -> None:
    greeting = Greeting(text)
    assert greeting.fixed is None
    assert (greeting.kind, greeting.quick) == ("template", True)
    assert greeting.render(PEER) == rendered.encode()


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("", b""),
        ("plain", b"plain"),
        ("5 $$", b"5 $"),
        ("$$host", b"$host"),
        ("$$$$", b"$$"),
        ("{0.__class__} %s", b"{0.__class__} %s"),
        ("grüße\n", "grüße\n".encode()),
        ("two\nlines\0", b"two\nlines\0"),
    ],
)
def test_text_without_variables_is_fixed(text: str, data: bytes) -> None:
    greeting = Greeting(text)
    assert greeting.fixed == greeting.render(PEER) == data
    assert greeting.kind == "fixed"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("$name", "greeting has the unknown name $name; known are $host $port $hostname $time $count"),
        ("$HOST", "greeting has the unknown name $HOST"),
        ("$host_", "greeting has the unknown name $host_"),
        ("${host.__class__}", "greeting has a lone $ in '${host.__class__}'"),
        ("cost: $5", "greeting has a lone $ in '$5'; write $$ for a dollar"),
        ("$$$", "greeting has a lone $ in '$'"),
        ("$ " + "x" * 100, "greeting has a lone $ in '$ xxxxxxxxxxxxxxxxxx'"),
        ("$host \udcff", "greeting '$host \\udcff' cannot be encoded as UTF-8: surrogates not allowed"),
        ("\ud800", "greeting '\\ud800' cannot be encoded as UTF-8: surrogates not allowed"),
    ],
)
def test_invalid_text_raises_when_the_greeting_is_made(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(why)):
        Greeting(text)


TEXTS = st.lists(
    st.sampled_from(["$", "$$", "${", "}", "$host", "$unknown", *("$" + name for name in VARIABLES)])
    | st.text(st.characters(), max_size=10),
    max_size=8,
).map("".join)


@settings(max_examples=300)
@given(TEXTS)
def test_any_text_raises_when_made_or_always_renders(text: str) -> None:
    try:
        greeting = Greeting(text)
    except ConfigError:
        return
    data = greeting.render(PEER).decode()
    values = {"host": PEER.host, "port": PEER.port, "hostname": PEER.hostname, "count": PEER.count}
    assert data == Template(text).substitute(values, time="2023-11-14T22:13:20Z")
    assert (greeting.fixed is None) == bool(Template(text).get_identifiers())
    assert Greeting(data.replace("$", "$$")).fixed == data.encode()  # $$ escapes any text


@settings(max_examples=50)
@given(st.binary(max_size=100))
def test_bytes_are_sent_unchanged(data: bytes) -> None:
    for source in (data, bytearray(data), memoryview(data)):
        greeting = Greeting(source)  # type: ignore[arg-type]  # more types than declared
        assert (greeting.fixed, greeting.kind, greeting.quick) == (data, "fixed", True)


@settings(max_examples=50)
@given(st.text(), st.text())
def test_values_of_a_peer_are_never_parsed_as_a_template(host: str, hostname: str) -> None:
    peer = Peer(host=host, port=1, family=AddressFamily.AF_UNIX, hostname=hostname)
    assert Greeting("$host|$hostname").render(peer).decode() == f"{host}|{hostname}"


# -- callables -------------------------------------------------------------------------------------------


def test_a_sync_callable() -> None:
    greeting = Greeting(greet_sync)
    assert (greeting.kind, greeting.quick, greeting.fixed) == ("sync", False, None)
    assert greeting.render(PEER) == b"hello 192.0.2.7"
    assert repr(Greeting(greet_sync, quick=True)) == "<Greeting sync quick>"


@pytest.mark.parametrize("value", [b"x", bytearray(b"x"), memoryview(b"x"), "x"])
def test_return_types_of_a_callable(value: Any) -> None:
    assert Greeting(lambda _peer: value).render(PEER) == b"x"


@once
@pytest.mark.parametrize(
    ("source", "data"),
    [
        (greet_async, b"hello 3747"),
        (AsyncCallable(), b"41"),
        (AsyncCallable().__call__, b"41"),
        (functools.partial(greet_async), b"hello 3747"),
        (functools.partial(AsyncCallable(), mark="!"), b"41!"),
        (functools.partial(functools.partial(AsyncCallable()), mark="!"), b"41!"),
    ],
)
async def test_async_callables(source: Any, data: bytes) -> None:
    greeting = Greeting(source)
    assert (greeting.kind, greeting.quick, greeting.fixed) == ("async", False, None)
    assert await greeting.render_async(PEER) == data


def test_an_async_greeting_cannot_be_quick() -> None:
    with pytest.raises(ConfigError, match="an async greeting cannot be quick: it has to be awaited"):
        Greeting(greet_async, quick=True)


@pytest.mark.parametrize(
    ("source", "name"), [(5, "int"), (None, "NoneType"), (["x"], "list"), (functools, "module")]
)
def test_a_source_of_another_type_is_an_error(source: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=f"a greeting must be text, bytes or a callable, not {name}"):
        Greeting(source)


@once
async def test_a_callable_that_raises_is_a_greeting_error() -> None:
    def broken(_peer: Peer) -> str:
        raise LookupError("no such entry")

    async def broken_later(_peer: Peer) -> str:
        raise TimeoutError

    with pytest.raises(GreetingError, match="raised LookupError: no such entry") as caught:
        Greeting(broken).render(PEER)
    assert isinstance(caught.value.__cause__, LookupError)
    with pytest.raises(GreetingError, match="raised TimeoutError$") as caught:
        await Greeting(broken_later).render_async(PEER)
    assert isinstance(caught.value.__cause__, TimeoutError)


@once
async def test_a_callable_that_returns_another_type_is_a_greeting_error() -> None:
    async def nothing(_peer: Peer) -> None:
        pass

    wrong: Any = [(None, "NoneType"), (5, "int"), (Greeting("x"), "Greeting")]
    for value, name in wrong:
        with pytest.raises(GreetingError, match=f"returned {name}, not str or bytes"):
            Greeting(lambda _peer, value=value: value).render(PEER)
    with pytest.raises(GreetingError, match="returned NoneType, not str or bytes"):
        await Greeting(nothing).render_async(PEER)  # type: ignore[arg-type]  # that it is wrong is the test
    with pytest.raises(GreetingError, match="not encodable as UTF-8: surrogates not allowed"):
        Greeting(lambda _peer: "\udcff").render(PEER)


def test_a_sync_callable_that_returns_an_awaitable_is_a_greeting_error() -> None:
    class Later:
        def __await__(self) -> Any:
            raise AssertionError("it must not be awaited")

    def undeclared(peer: Peer) -> Awaitable[str]:
        return greet_async(peer)  # the coroutine is closed, or Python would warn

    for source in (undeclared, lambda _peer: Later()):
        assert Greeting(source).kind == "sync"
        with pytest.raises(GreetingError, match="returned an awaitable; declare it with async def"):
            Greeting(source).render(PEER)


# -- greetings of greetings, peers -----------------------------------------------------------------------


@pytest.mark.parametrize("source", ["fixed", "$count", greet_sync, greet_async, b"\0"])
def test_a_greeting_of_a_greeting_is_equivalent(source: Any) -> None:
    one = Greeting(source)
    two = Greeting(one)
    assert (one.kind, one.quick, one.fixed) == (two.kind, two.quick, two.fixed)
    if one.kind != "async":
        assert one.render(PEER) == two.render(PEER)


def test_quick_can_be_declared_later() -> None:
    assert Greeting(Greeting(greet_sync), quick=True).quick
    assert Greeting(Greeting(greet_sync, quick=True)).quick


def test_str_of_a_peer_is_its_address() -> None:
    assert str(PEER) == "('192.0.2.7', 3747)"
    assert str(Peer("a\nb", 0, AddressFamily.AF_UNIX)) == "('a\\nb', 0)"
