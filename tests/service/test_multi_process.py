"""``greeter serve --workers 2`` in a process of its own, and the options that travel to workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme

import greeter
from greeter.config.greeting_sources import greeting_from_file
from greeter.config.options import ServeOptions
from greeter.errors import ConfigError
from greeter.server.timeouts import PAUSE_SECONDS
from greeter.service.multi_process import pack_options, per_worker_options, unpacked_options
from greeter.system.tls import client_context
from tests.conftest import PATIENCE, ROOT, Process, greeter_process, one_loop
from tests.support.peers import connect, until
from tests.support.service_peers import children, crowd, lines_with, metric, running

pytestmark = one_loop


# Where a worker has to be started before the client is greeted.
PATIENT: dict[str, Any] = {"timeout": PATIENCE, "connect_timeout": PATIENCE}


def workers(*args: str) -> tuple[str, ...]:
    return ("serve", "--workers", "2", "--listen", "127.0.0.1:0", "--no-access-log", *args)


async def reload(process: Process, text: str = "Reloaded", times: int = 1) -> None:
    """Send SIGHUP; wait for a number of log lines with ``text``, and for the exit of replaced workers."""
    before = set(children(process.pid))
    process.process.send_signal(signal.SIGHUP)
    await lines_with(process, text, times)
    if text == "Reloaded":
        await until(lambda: not before & set(children(process.pid)), "all are replaced")


async def test_options_travel_to_a_worker() -> None:
    options = ServeOptions(greeting="Hello $host", backlog=7)
    task, files = pack_options(options)
    assert files == ()
    with unpacked_options(task) as found:
        assert found == options


@pytest.mark.parametrize(
    ("limit", "count", "each"), [(None, 2, None), (8, 2, 4), (4, 3, 2), (1, 8, 1), (7, 1, 7)]
)
async def test_workers_share_max_connections_equally(limit: int | None, count: int, each: int | None) -> None:
    options = ServeOptions(max_connections=limit, max_per_ip=3, rate_per_ip=5.0)
    assert per_worker_options(options, count) == ServeOptions(
        max_connections=each, max_per_ip=3, rate_per_ip=5.0
    )


@pytest.mark.usefixtures("no_fd_leak")
async def test_files_travel_with_the_options(tmp_path: Path) -> None:
    file = tmp_path / "greeting"
    data = bytes(range(256)) * 1000
    file.write_bytes(data)
    reading, writing = os.pipe()
    os.write(writing, b"from a pipe")
    os.close(writing)
    pipe = Path(f"/dev/fd/{reading}")
    task, files = pack_options(ServeOptions(greeting_file=file, tls_key=pipe))
    again = pack_options(ServeOptions(tls_key=pipe))
    file.write_bytes(b"another")
    os.close(reading)
    with unpacked_options(task) as found:  # which closes the descriptors, as a worker does
        assert found.greeting_file is not None
        assert greeting_from_file(found.greeting_file).fixed == data
        assert found.tls_key is not None
        assert found.tls_key.read_bytes() == found.tls_key.read_bytes() == b"from a pipe"
    assert len(files) == 2
    with unpacked_options(again[0]) as found:
        assert found.tls_key is not None
        assert found.tls_key.read_bytes() == b"from a pipe"


async def test_a_file_that_cannot_be_read_any_more_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "greeting"
    with pytest.raises(ConfigError, match=f"^cannot read '{file}': no such file or directory$"):
        pack_options(ServeOptions(greeting_file=file))


@pytest.mark.parametrize("accept", ["direct", "streams"])
async def test_the_metrics_agree_with_the_clients(accept: str) -> None:
    pytest.importorskip("prometheus_client")
    args = workers("--metrics", "127.0.0.1:0", "--accept", accept)
    async with greeter_process(*args) as process:
        assert f"{accept}, 2 workers)" in process.lines[-1]
        assert len(children(process.pid)) == 2
        replies = await asyncio.gather(*(greeter.greet(port=process.port) for _ in range(200)))
        assert {reply.data for reply in replies} == {b"Thank you for connecting"}
        assert await metric(process, "greeter_greeted_total") == 200
        assert await process.stop() == 0
        assert process.lines[-1] == "Stopped: 200 greeted of 200 accepted, 0 failed"


async def test_all_workers_together_keep_max_connections(accept: str, tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    config = tmp_path / "greeter.toml"
    config.write_text("max-connections = 1")
    args = ("--metrics", "127.0.0.1:0", "--linger-timeout", "60", "--accept", accept, "--config", str(config))
    async with greeter_process(*workers(*args)) as process:
        config.write_text("max-connections = 2")
        await reload(process)
        with contextlib.ExitStack() as held:
            loop = asyncio.get_running_loop()
            for _ in range(2):
                sock = held.enter_context(await connect(process.port))
                assert await loop.sock_recv(sock, 1) == b"T"
            third = held.enter_context(await connect(process.port))
            assert await metric(process, "greeter_accepted_total") == 2
            held.enter_context(sock).close()  # a slot is free again
            assert await loop.sock_recv(third, 1) == b"T"
        assert await process.stop() == 0
    assert process.lines[-1] == "Stopped: 3 greeted of 3 accepted, 0 failed"


async def test_a_reload_does_not_pass_restart_options_to_new_workers(tmp_path: Path) -> None:
    file = tmp_path / "greeter.toml"
    file.write_text("greeting = 'one'")
    async with greeter_process(*workers("--config", str(file))) as process:
        new = "proxy-protocol = true\nproxy-from = '10.0.0.0/8'\nlog-format = 'json'\ndrain-timeout = 5\n"
        file.write_text(f"greeting = 'two'\n{new}")
        await reload(process)
        assert {(await greeter.greet(port=process.port)).data for _ in range(10)} == {b"two"}
        for pid in children(process.pid):  # nor to their replacements
            os.kill(pid, signal.SIGKILL)
        assert (await greeter.greet(port=process.port, **PATIENT)).data == b"two"
        assert await process.stop() == 0
    logged = [
        line for line in process.lines if line.endswith(" has changed, which takes effect with a restart")
    ]
    flags = ["--drain-timeout", "--proxy-protocol", "--proxy-from", "--log-format"]
    assert [line.split()[1] for line in logged] == flags
    assert not [line for line in process.lines if line.startswith("{")]


@pytest.mark.parametrize("count", ["1", "2"])
async def test_a_reload_imports_the_app_anew_and_rejects_a_broken_one(tmp_path: Path, count: str) -> None:
    config, app = tmp_path / "greeter.toml", tmp_path / "parent_app.py"
    config.write_text("app = 'parent_app:first'")
    app.write_text("def first(peer): return 'one'")
    args = workers("--workers", count, "--config", str(config))
    async with greeter_process(*args, env={"PYTHONPATH": str(tmp_path)}) as process:

        async def reloaded(source: str, *text: Any) -> bytes:
            app.write_text(source)
            await reload(process, *text)
            return (await greeter.greet(port=process.port)).data

        both = "def first(peer): return 'two!'\ndef second(peer): return 'three'"
        assert await reloaded(both) == b"two!"
        assert await reloaded("1 / 0", "reload failed") == b"two!"
        config.write_text("app = 'parent_app:second'")
        assert await reloaded(both, "Reloaded", 2) == b"three"
        assert await process.stop() == 0
    assert "ZeroDivisionError" in await process.line_with("reload failed")


async def test_workers_ignore_a_greeter_package_in_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "greeter").mkdir()
    (tmp_path / "greeter" / "__init__.py").write_text("raise SystemExit('another greeter')")
    (tmp_path / "parent_app.py").write_text("text = 'from the current directory'")
    command = (sys.executable, "-P", str(ROOT / "greeter" / "__main__.py"))
    async with running(*command, *workers("--app", "parent_app:text"), cwd=tmp_path) as process:
        assert (await greeter.greet(port=process.port)).data == b"from the current directory"
        assert await process.stop() == 0
    assert process.lines[-1] == "Stopped: 1 greeted of 1 accepted, 0 failed"


async def test_a_reload_replaces_the_workers_and_a_failed_one_does_not(tmp_path: Path) -> None:
    file = tmp_path / "greeting"
    file.write_text("one")
    async with greeter_process(*workers("--greeting-file", str(file))) as process:
        before = children(process.pid)
        file.write_text("two")
        await reload(process)
        assert not set(before) & set(children(process.pid))
        assert {(await greeter.greet(port=process.port)).data for _ in range(20)} == {b"two"}
        file.unlink()
        process.process.send_signal(signal.SIGHUP)
        assert "cannot read the greeting file" in await process.line_with("reload failed")
        assert (await greeter.greet(port=process.port)).data == b"two"
        assert await process.stop(signal.SIGINT) == 0


@pytest.mark.thorough
async def test_reloads_and_a_stop_under_load_lose_no_client(tmp_path: Path, accept: str) -> None:
    file = tmp_path / "greeting"
    greetings = [b"greeting number %d" % number for number in range(4)]
    file.write_bytes(greetings[0])
    async with greeter_process(*workers("--greeting-file", str(file), "--accept", accept)) as process:
        async with crowd(process.port, whole=lambda data, _: data in greetings) as clients:
            for number in range(1, 4):
                await clients.more(100)
                before = children(process.pid)
                file.with_suffix(".new").write_bytes(greetings[number])
                file.with_suffix(".new").rename(file)
                process.process.send_signal(signal.SIGHUP)
                await lines_with(process, "Reloaded", number)
        assert (clients.lost, clients.refused) == ([], 0)
        pair: set[int] = set()

        def only_new_workers() -> bool:
            pair.clear()
            pair.update(children(process.pid))
            return len(pair) == 2 and not pair & set(before)

        await until(only_new_workers, "only the last two workers run")
        for other in pair:  # each worker has the last greeting
            os.kill(other, signal.SIGSTOP)
            try:
                assert (await greeter.greet(port=process.port, **PATIENT)).data == greetings[3]
            finally:
                os.kill(other, signal.SIGCONT)
        async with crowd(process.port, whole=lambda data, _: data == greetings[3]) as last:
            await last.more(150)
            assert await process.stop() == 0
            last.give_up()
        assert last.lost == []
        assert last.refused > 0, "the stop came while they were there"
    greeted = clients.greeted + last.greeted + 2
    assert process.lines[-1] == f"Stopped: {greeted} greeted of {greeted} accepted, 0 failed"


async def test_workers_abort_stuck_clients_at_the_drain_deadline(accept: str) -> None:
    """The workers do it themselves: the parent does not kill them."""
    args = workers("--drain-timeout", "0.3", "--linger-timeout", "60", "--accept", accept)
    async with greeter_process(*args) as process:
        with contextlib.ExitStack() as held:
            for _ in range(10):
                sock = held.enter_context(await connect(process.port))
                assert await asyncio.get_running_loop().sock_recv(sock, 1) == b"T"
            assert await process.stop() == 0
    cut = [line for line in process.lines if "at the drain deadline" in line]
    assert sum(int(line.removeprefix("warning: aborted ").split()[0]) for line in cut) == 10
    assert not [line for line in process.lines if "killed" in line]
    assert process.lines[-1] == "Stopped: 10 greeted of 10 accepted, 0 failed"


async def test_a_killed_worker_is_replaced() -> None:
    async with greeter_process(*workers()) as process:
        first, second = children(process.pid)
        os.kill(first, signal.SIGKILL)
        await process.line_with("starting another")
        async with asyncio.timeout(PATIENCE):
            while len(set(children(process.pid)) - {first}) < 2:
                assert (await greeter.greet(port=process.port)).data == b"Thank you for connecting"
        assert second in children(process.pid)
        assert await process.stop() == 0


async def test_a_worker_that_hangs_is_replaced_when_there_is_a_watchdog(tmp_path: Path) -> None:
    address = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "800000"}
        async with greeter_process(*workers(), env=env) as process:
            first, _ = children(process.pid)
            os.kill(first, signal.SIGSTOP)
            assert (
                await process.line_with(f"worker {first} ")
                == f"error: worker {first} does not respond: killed"
            )
            await until(lambda: len(set(children(process.pid)) - {first}) == 2, "it is replaced")
            assert await process.stop() == 0


async def test_workers_killed_under_load_lose_what_they_had_and_count_it_as_aborted(
    accept: str, tmp_path: Path
) -> None:
    (tmp_path / "kills_app.py").write_text(
        "import asyncio\n\n\nasync def hello(peer):\n    await asyncio.sleep(0.01)\n    return 'hello'\n"
    )
    greeted = lost = 0
    leaving = False

    async def keep_coming(port: int) -> None:
        nonlocal greeted, lost
        while not leaving:
            heard = b""
            with contextlib.suppress(greeter.GreetFailed):
                heard = (await greeter.greet(port=port, timeout=PATIENCE)).data
            greeted += heard == b"hello"
            lost += heard != b"hello"

    args = workers("--accept", accept, "--app", "kills_app:hello")
    async with greeter_process(*args, env={"PYTHONPATH": str(tmp_path)}) as process:
        clients = [asyncio.create_task(keep_coming(process.port)) for _ in range(10)]
        for kill in range(3):
            before = greeted
            await until(lambda: greeted > before + 50, "clients are greeted")  # noqa: B023  # awaited here
            os.kill(children(process.pid)[kill % 2], signal.SIGKILL)
            await lines_with(process, "was killed by SIGKILL", kill + 1)
        leaving = True
        await asyncio.gather(*clients)
        assert await process.stop() == 0
    totals = re.fullmatch(r"Stopped: (\d+) greeted of (\d+) accepted, (\d+) failed", process.lines[-1])
    assert totals is not None
    counted, accepted, failed = map(int, totals.groups())
    assert accepted == counted + failed
    # A client hears the end of its greeting a moment before the worker counts it.
    assert 0 <= greeted - counted <= 3
    assert lost <= failed


@pytest.mark.thorough
async def test_after_a_pause_no_worker_is_taken_for_hung(tmp_path: Path) -> None:
    """The parent runs on before its workers do: it has asked for a report that it cannot have yet."""
    pytest.importorskip("prometheus_client")
    address = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(PATIENCE)

        async def fed() -> None:
            while await asyncio.to_thread(manager.recv, 4096) != b"WATCHDOG=1":
                pass

        env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000"}
        async with greeter_process(*workers("--metrics", "127.0.0.1:0"), env=env) as process:
            before = children(process.pid)
            await fed()
            await metric(process, "greeter_workers")  # they have answered the request of the start too
            for pid in before:
                os.kill(pid, signal.SIGSTOP)
            await fed()  # and reports are requested
            os.kill(process.pid, signal.SIGSTOP)
            await asyncio.sleep(1.5 + 1.5 * PAUSE_SECONDS)
            os.kill(process.pid, signal.SIGCONT)
            await fed()
            for pid in before:
                os.kill(pid, signal.SIGCONT)
            await fed()
            assert children(process.pid) == before
            assert await process.stop() == 0
        assert not [line for line in process.lines if "killed" in line]


async def test_after_a_failed_reload_a_dead_worker_is_replaced_with_the_old_configuration(
    tmp_path: Path,
) -> None:
    """The configuration and the certificate are broken by then, and the greeting file is gone."""
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate, greeting = tmp_path / "both.pem", tmp_path / "greeting"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    greeting.write_text("the old one")
    context = client_context(tmp_path / "ca.pem")
    config = tmp_path / "greeter.toml"
    config.write_text(f"greeting-file = '{greeting}'")
    async with greeter_process(*workers("--tls-cert", str(certificate), "--config", str(config))) as process:
        config.write_text("broken")
        certificate.write_text("broken")
        greeting.unlink()
        process.process.send_signal(signal.SIGHUP)
        await process.line_with("reload failed, the old configuration stays")
        before = set(children(process.pid))
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        for _ in range(2):  # the clients wait in the accept queue for a worker
            assert (await greeter.greet(port=process.port, ssl=context, **PATIENT)).data == b"the old one"
        await until(lambda: len(set(children(process.pid)) - before) == 2, "both are replaced")
        assert await process.stop() == 0
    assert len([line for line in process.lines if "was killed by SIGKILL" in line]) == 2
    assert not [line for line in process.lines if "before it was ready" in line]


async def test_a_failed_start_leaves_no_worker() -> None:
    async with greeter_process(*workers()) as process:
        async with greeter_process("serve", "--workers", "2", "--listen", process.address, ready="") as other:
            assert await other.ended() == 1
        assert other.lines == [f"greeter: cannot listen on {process.address}: address already in use"]
