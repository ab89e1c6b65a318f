"""The one configuration of a server: what it refuses, and that serve() and the options make the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from greeter import ConfigError, Greeting, Limits, serve
from greeter.config.loading import load_server_config
from greeter.config.options import ServeOptions
from greeter.core.server_config import ServerConfig

GREETING = Greeting("Hello")
# Values that are not the default, as keywords of serve() and as options.
CHANGED: dict[str, Any] = {
    "limits": Limits(max_connections=5, max_per_ip=4, rate_per_ip=3, allow=["::/0"], deny=["10.1.0.0/16"]),
    "proxy_from": ("192.0.2.0/24",),
    "accept": "streams",
    "backlog": 7,
    "unix_mode": 0o600,
    "greet_timeout": 3.0,
    "linger_timeout": 4.0,
    "drain_timeout": 5.0,
    "access_log": False,
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"greet_timeout": -1.0}, "greet_timeout must be a number of seconds from 0, not -1.0"),
        ({"linger_timeout": float("nan")}, "linger_timeout must be a number of seconds from 0, not nan"),
        ({"drain_timeout": "2"}, "drain_timeout must be a number of seconds from 0, not '2'"),
        ({"greet_timeout": True}, "greet_timeout must be a number of seconds from 0, not True"),
        ({"backlog": 0}, "backlog must be an integer from 1 to 2147483647, not 0"),
        ({"backlog": 2**31}, "backlog must be an integer from 1 to 2147483647, not 2147483648"),
        ({"backlog": "5"}, "backlog must be an integer from 1 to 2147483647, not '5'"),
        ({"backlog": 1.5}, "backlog must be an integer from 1 to 2147483647, not 1.5"),
        ({"unix_mode": "660"}, "unix_mode must be an integer from 0 to 4095, not '660'"),
        ({"unix_mode": 0o10000}, "unix_mode must be an integer from 0 to 4095, not 4096"),
        ({"tls": True}, "TLS needs an SSLContext, not True"),
        ({"tls": "cert.pem"}, "TLS needs an SSLContext, not 'cert.pem'"),
        ({"limits": {}}, "limits must be Limits, not {}"),
        ({"accept": "fast"}, "accept must be 'auto', 'direct' or 'streams', not 'fast'"),
    ],
    ids=str,
)
def test_a_config_that_exists_is_valid(wrong: dict[str, Any], message: str) -> None:
    config = ServerConfig(greeting=GREETING)
    with pytest.raises(ConfigError) as caught:
        ServerConfig(greeting=GREETING, **wrong)
    assert str(caught.value) == message
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(config, **wrong)
    assert str(caught.value) == message
    (name,) = wrong
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, getattr(config, name))


def comparable(config: ServerConfig) -> dict[str, Any]:
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    greeting, proxies = fields.pop("greeting"), fields.pop("proxy_from")
    return {**fields, "greeting": greeting.fixed, "proxy_from": proxies and proxies.networks}


@pytest.mark.parametrize("name", ["", *CHANGED])
async def test_serve_and_the_options_make_the_same_config(name: str) -> None:
    """Every field is handed down from both, which a field that one of them forgets would fail."""
    changed = {name: CHANGED[name]} if name else {}
    options: dict[str, Any] = dict(changed)
    if limits := options.pop("limits", None):
        options |= {each.name: getattr(limits, each.name) for each in dataclasses.fields(limits) if each.init}
    if name == "proxy_from":
        options["proxy_protocol"] = True
    loaded = load_server_config(dataclasses.replace(ServeOptions(greeting="Hello"), **options))
    async with serve("Hello", port=0, **{"limits": Limits(), **changed}) as server:
        assert comparable(server.config) == comparable(loaded)
        default = comparable(ServerConfig(greeting=GREETING, limits=Limits()))
        assert {key for key, value in comparable(loaded).items() if value != default[key]} == set(changed)


def test_every_field_is_compared() -> None:
    assert {field.name for field in dataclasses.fields(ServerConfig)} == {
        *CHANGED,
        *("greeting", "tls", "certificate_expiry"),  # test_service.py, test_tls.py
        "datagram_log",  # test_datagrams.py
    }
