"""Which options a reload changes, and which need a restart."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from greeter import Endpoint
from greeter.config.options import ServeOptions
from greeter.config.reloading import reloaded_options, restart_required

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
def test_an_option_that_needs_a_restart_keeps_its_old_value(workers: bool, kept: dict[str, Any]) -> None:
    assert reloaded_options(OLD, NEW, workers=workers) == dataclasses.replace(NEW, **kept)
    assert set(restart_required(OLD, NEW, workers=workers)) == flags(kept)


@pytest.mark.parametrize("turn", [(OLD, ServeOptions()), (ServeOptions(), OLD)])
def test_only_a_reload_of_workers_turns_tls_on_or_off(turn: tuple[ServeOptions, ServeOptions]) -> None:
    old, new = turn
    assert reloaded_options(old, new, workers=True) == new
    assert restart_required(old, new, workers=True) == []
    assert reloaded_options(old, new, workers=False) == old
    assert set(restart_required(old, new, workers=False)) == {"--tls-cert", "--tls-key"}


def test_a_reload_without_a_change_needs_no_restart() -> None:
    for workers in (True, False):
        assert reloaded_options(NEW, NEW, workers=workers) == NEW
        assert restart_required(NEW, NEW, workers=workers) == []
