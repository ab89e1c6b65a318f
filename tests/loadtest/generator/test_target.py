from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from greeter.errors import ConfigError, ConnectFailed
from greeter.loadtest import LoadPlan
from greeter.loadtest.generator import target as target_module
from greeter.loadtest.generator.preflight import preflight
from greeter.loadtest.generator.target import Target, resolve, with_tls
from tests.support.loadtest_peers import never_accepting, refused_endpoint

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("no_fd_leak")


def set_addresses(monkeypatch: pytest.MonkeyPatch, *addresses: Any) -> None:
    """Make every name resolve to ``addresses``."""

    async def found(*_: Any) -> list[tuple[int, Any]]:
        return [(socket.AF_INET, address) for address in addresses]

    monkeypatch.setattr(target_module, "_addresses", found)


async def test_addresses_and_paths_resolve_to_themselves() -> None:
    target = await resolve(LoadPlan("127.0.0.1:7"))
    assert (target.family, target.address) == (socket.AF_INET, ("127.0.0.1", 7))
    target = await resolve(LoadPlan("[::1]:7"))
    assert (target.family, target.address[:2]) == (socket.AF_INET6, ("::1", 7))
    target = await resolve(LoadPlan("unix:@x"))
    assert (target.family, target.address) == (socket.AF_UNIX, "\0x")


async def test_an_empty_host_is_this_machine() -> None:
    target = await resolve(LoadPlan(":7", connect_timeout=0.5))
    assert target.loopback


async def test_a_name_that_does_not_resolve() -> None:
    with pytest.raises(ConnectFailed, match=r"^cannot connect to no-such-host\.invalid:7: ") as caught:
        await resolve(LoadPlan("no-such-host.invalid:7"))
    with pytest.raises(ConnectFailed, match=r":7: not a host name$"):
        await resolve(LoadPlan(f"{'é' * 60}.invalid:7"))
    assert caught.value.target == "no-such-host.invalid:7"


async def test_the_target_is_the_first_address_that_accepts() -> None:
    with never_accepting(backlog=5) as (_, endpoint):
        port = int(endpoint.rpartition(":")[2])
        with pytest.MonkeyPatch.context() as patch:
            set_addresses(patch, ("127.0.0.9", port), ("127.0.0.1", port), ("127.0.0.8", port))
            plan = LoadPlan(f"name:{port}")
            target = await resolve(plan)
            assert target.address == ("127.0.0.1", port)
            assert preflight(plan, target) == [
                f"name has 3 addresses: all connections went to 127.0.0.1:{port}"
            ]


async def test_an_address_keeps_its_scope_id() -> None:
    scope = socket.if_nametoindex("lo")
    target = await resolve(LoadPlan("[fe80::1%lo]:7"))
    assert target.address == ("fe80::1", 7, 0, scope)
    assert target.text == "[fe80::1%lo]:7"


def test_an_address_as_text() -> None:
    assert Target(socket.AF_INET, ("127.0.0.1", 7)).text == "127.0.0.1:7"
    assert Target(socket.AF_INET6, ("::1", 7, 0, 0)).text == "[::1]:7"
    assert Target(socket.AF_UNIX, "/run/x").text == "unix:/run/x"
    assert Target(socket.AF_UNIX, "\0x").text == "unix:@x"


async def test_the_target_is_the_first_address_if_none_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(refused_endpoint().rpartition(":")[2])
    set_addresses(monkeypatch, ("127.0.0.9", port), ("127.0.0.8", port))
    assert (await resolve(LoadPlan(f"name:{port}"))).address == ("127.0.0.9", port)


async def test_a_single_address_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with never_accepting(backlog=5) as (listener, endpoint):
        set_addresses(monkeypatch, listener.getsockname())
        await resolve(LoadPlan(endpoint))
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_source_addresses_are_local_and_of_one_family() -> None:
    target = await resolve(LoadPlan("127.0.0.1:7", source_ips=["127.0.0.2", "127.0.0.3"]))
    assert target.sources == (("127.0.0.2", 0), ("127.0.0.3", 0))
    for expected in ("127.0.0.2", "127.0.0.3", "127.0.0.2"):
        sock = target.open()
        assert sock.getsockname()[0] == expected
        sock.close()
    with pytest.raises(ConfigError, match=r"source address 192\.0\.2\.1 is not usable: cannot assign"):
        await resolve(LoadPlan("127.0.0.1:7", source_ips=["192.0.2.1"]))
    with pytest.raises(ConfigError, match="must be all IPv4 or all IPv6"):
        await resolve(LoadPlan("127.0.0.1:7", source_ips=["127.0.0.2", "::1"]))
    with pytest.raises(ConnectFailed):
        await resolve(LoadPlan("127.0.0.1:7", source_ips=["::1"]))


async def test_a_socket_that_cannot_bind_is_closed() -> None:
    target = Target(socket.AF_INET, ("127.0.0.1", 7), [("192.0.2.1", 0)])
    with pytest.raises(OSError, match="Cannot assign"):
        target.open()


def test_a_target_is_local_if_it_can_be_bound_to() -> None:
    assert Target(socket.AF_INET, ("127.0.0.1", 7)).local
    assert Target(socket.AF_INET6, ("::1", 7, 0, 0)).local
    assert Target(socket.AF_UNIX, "/x").local
    assert not Target(socket.AF_INET, ("192.0.2.1", 7)).local
    assert Target(socket.AF_UNIX, "/x").loopback
    assert not Target(socket.AF_INET6, ("fe80::1%eth0", 7, 0, 2)).loopback


def test_a_target_survives_json() -> None:
    for target in (
        Target(socket.AF_INET, ("127.0.0.1", 7), (("127.0.0.2", 0),)),
        Target(socket.AF_INET6, ("::1", 7, 0, 0)),
        Target(socket.AF_UNIX, "\0x"),
    ):
        assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target


def test_tls_files_are_checked_before_the_run(tmp_path: Path) -> None:
    target = Target(socket.AF_INET, ("127.0.0.1", 7))
    assert with_tls(target, LoadPlan()).ssl_context is None
    none = str(tmp_path / "none.pem")
    with pytest.raises(ConfigError, match=rf"cannot use {none} for tls: no such file"):
        with_tls(target, LoadPlan(tls=True, tls_ca=none))
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    with pytest.raises(ConfigError, match=f"cannot use {wrong} for tls: "):
        with_tls(target, LoadPlan(tls=True, tls_cert=str(wrong)))
    with pytest.raises(ConfigError, match="tls to unix:/x requires a server name"):
        with_tls(Target(socket.AF_UNIX, "/x"), LoadPlan("unix:/x", tls=True))
    assert with_tls(target, LoadPlan(tls=True)).server_name == "127.0.0.1"
    absolute = LoadPlan("mail.example.:25", tls=True)
    assert with_tls(target, absolute).server_name == "mail.example"
