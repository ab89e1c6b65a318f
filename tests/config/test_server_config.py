"""From options to what a server needs, and what of new ones a reload brings into force."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from greeter import Endpoint
from greeter.config.options import ServeOptions
from greeter.config.server_config import in_force, need_restart

OLD = ServeOptions(tls_cert=Path("old.pem"), tls_key=Path("old.key"))
NEW = ServeOptions(
    greeting="new",
    accept="streams",
    greet_timeout=5.0,
    max_per_ip=7,
    tls_cert=Path("new.pem"),
    tls_key=Path("new.key"),
    listen=(Endpoint.tcp(),),
    proxy_protocol=True,
    proxy_from=("10.0.0.0/8",),
    drain_timeout=5.0,
    log_format="json",
)
NEVER: dict[str, Any] = {
    "listen": (),
    "proxy_protocol": False,
    "proxy_from": (),
    "drain_timeout": 10.0,
    "log_format": "text",
}


def flags(names: Any) -> set[str]:
    return {"--" + name.replace("_", "-") for name in names}


@pytest.mark.parametrize(
    ("workers", "kept"), [(True, NEVER), (False, {**NEVER, "accept": "auto", "greet_timeout": 10.0})]
)
def test_what_is_said_to_need_a_restart_keeps_its_old_value(workers: bool, kept: dict[str, Any]) -> None:
    assert in_force(OLD, NEW, workers=workers) == dataclasses.replace(NEW, **kept)
    assert set(need_restart(OLD, NEW, workers=workers)) == flags(kept)


@pytest.mark.parametrize("turn", [(OLD, ServeOptions()), (ServeOptions(), OLD)])
def test_only_new_workers_can_turn_tls_on_or_off(turn: tuple[ServeOptions, ServeOptions]) -> None:
    old, new = turn
    assert in_force(old, new, workers=True) == new
    assert need_restart(old, new, workers=True) == []
    assert in_force(old, new, workers=False) == old
    assert set(need_restart(old, new, workers=False)) == {"--tls-cert", "--tls-key"}


def test_a_reload_without_a_change() -> None:
    for workers in (True, False):
        assert in_force(NEW, NEW, workers=workers) == NEW
        assert need_restart(NEW, NEW, workers=workers) == []
