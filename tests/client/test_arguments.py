"""Validation of the arguments that both clients share."""

from __future__ import annotations

from typing import Any

import pytest

from greeter import ConfigError, Endpoint
from greeter.client.arguments import destination


def test_a_cached_target_does_not_hide_a_wrong_type() -> None:
    assert destination("h", 1, None, None) == Endpoint.tcp("h", 1)
    wrong: tuple[Any, ...] = (True, 1.0)  # both are equal to 1
    for port in wrong:
        with pytest.raises(ConfigError, match="a port must be an integer or a string, not "):
            destination("h", port, None, None)


def test_an_endpoint_for_datagrams_is_a_target() -> None:
    for target in ("udp:h:1", Endpoint.udp("h", 1)):
        assert destination(target, None, None, None) == Endpoint.udp("h", 1)


def test_an_unhashable_value_is_not_a_target() -> None:
    unhashable: tuple[Any, ...] = ([], {}, bytearray(b"h"))
    for value in unhashable:
        with pytest.raises(ConfigError, match="a target must be a string, an integer or an Endpoint, not "):
            destination(value, None, None, None)
        with pytest.raises(ConfigError, match="a port must be an integer or a string, not "):
            destination("h", value, None, None)


def test_path_replaces_a_target() -> None:
    assert destination("127.0.0.1", None, "@x", None) == Endpoint.unix("@x")
    for target, port in (("h", None), ("127.0.0.1", 1), (Endpoint.tcp(), None)):
        with pytest.raises(ConfigError, match="^path cannot be combined with a target or a port$"):
            destination(target, port, "/x", None)
