"""The metrics as a scraper sees them: names, labels, values, and the checks of promtool."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import greeter
from greeter import Endpoint, Limits, MissingExtra, ServerStats, greet, serve
from greeter.core.stats import BOUNDS, DATAGRAM_COUNTERS, DATAGRAM_FAILURES, DATAGRAM_REJECTIONS
from greeter.service import process_metrics
from greeter.service.prometheus import render, serve_metrics
from greeter.service.snapshot import Counters
from tests.conftest import PATIENCE, ROOT, greeter_process, one_loop, run_greeter
from tests.support.peers import connect, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

HERE = Endpoint.parse("127.0.0.1:0")


def everything() -> Counters:
    """A snapshot with a different number in each field."""
    timed = ServerStats()
    timed.count_greeted(24, 0.0002, 7)
    timed.count_greeted(24, 3.0, 2)
    timed.count_greeted(24, 60.0)
    return Counters(
        accepted=101,
        greeted=102,
        bytes_sent=103,
        linger_timeouts=104,
        accept_errors=105,
        drains=106,
        worker_restarts=107,
        paused_micros=115_500_000,
        failed={"reset": 108, "tls": 109},
        rejected={"rate": 110},
        datagrams={name: number for number, name in enumerate(DATAGRAM_COUNTERS, 201)},
        datagrams_dropped=214,
        reloads={"ok": 111, "failed": 112},
        greeting_time=timed.greeting_time,
        open=113,
        lingering=114,
        max_connections=116,
        accepting=2,
        workers=117,
        workers_ready=118,
        certificate_expiry=1_800_000_000.5,
    )


def samples(text: bytes) -> dict[str, float]:
    """Every sample, by the name and the labels that it has in the text."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        assert family.documentation.endswith(".")
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_every_counter_is_a_metric() -> None:
    found = samples(render(everything()))
    python = ".".join(map(str, sys.version_info[:3]))
    assert found.pop(f"greeter_build_info{{python={python},version={greeter.__version__}}}") == 1
    times = {name: found.pop(name) for name in list(found) if name.startswith("greeter_greeting_seconds")}
    assert found == {
        "greeter_accepted_total": 101,
        "greeter_greeted_total": 102,
        "greeter_sent_bytes_total": 103,
        "greeter_linger_timeouts_total": 104,
        "greeter_accept_errors_total": 105,
        "greeter_paused_seconds_total": 115.5,
        "greeter_drains_total": 106,
        "greeter_worker_restarts_total": 107,
        "greeter_failed_total{class=reset}": 108,
        "greeter_failed_total{class=tls}": 109,
        "greeter_rejected_total{reason=rate}": 110,
        "greeter_reloads_total{result=ok}": 111,
        "greeter_reloads_total{result=failed}": 112,
        "greeter_datagrams_received_total": 201,
        "greeter_datagrams_dropped_total": 214,
        "greeter_datagrams_greeted_total": 202,
        **{
            f"greeter_datagrams_failed_total{{class={name}}}": number
            for number, name in enumerate(DATAGRAM_FAILURES, 203)
        },
        **{
            f"greeter_datagrams_rejected_total{{reason={name}}}": number
            for number, name in enumerate(DATAGRAM_REJECTIONS, 203 + len(DATAGRAM_FAILURES))
        },
        "greeter_datagrams_sent_bytes_total": 212,
        "greeter_datagrams_receive_errors_total": 213,
        "greeter_open_connections": 113,
        "greeter_lingering_connections": 114,
        "greeter_max_connections": 116,
        "greeter_accepting": 1,
        "greeter_workers": 117,
        "greeter_workers_ready": 118,
        "greeter_certificate_expiry_seconds": 1_800_000_000.5,
    }
    assert times.pop("greeter_greeting_seconds_count") == 10
    assert times.pop("greeter_greeting_seconds_sum") == pytest.approx(66.0014)
    expected = {
        f"greeter_greeting_seconds_bucket{{le={b}}}": 7 * (b >= 0.0002) + 2 * (b >= 3) for b in BOUNDS
    }
    assert times == {**expected, "greeter_greeting_seconds_bucket{le=+Inf}": 10}


def test_every_class_is_exported_before_the_first_client() -> None:
    found = samples(render(Counters.of(ServerStats())))
    assert found["greeter_failed_total{class=reset}"] == 0
    assert "greeter_certificate_expiry_seconds" not in found


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("make", [everything, Counters])
def test_promtool_accepts_the_metrics(make: Callable[[], Counters]) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=render(make(), ["self"]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.stdout, done.returncode) == (b"", 0)


async def fetch(address: str, path: str) -> bytes:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
    async with asyncio.timeout(PATIENCE):
        response = await reader.read()
    writer.close()
    return response


class Service:
    """What ``serve_metrics`` asks of a service, for a server in this process."""

    addresses: tuple[str, ...] = ("127.0.0.1:9999",)
    worker_pids: tuple[int, ...] = ()
    stopping = False
    unready_because = not_alive_because = ""

    def __init__(self, stats: Callable[[], ServerStats] = ServerStats) -> None:
        self.stats = stats

    @property
    def uptime(self) -> float:
        return time.monotonic()

    async def snapshot(self) -> Counters:
        return Counters.of(self.stats())

    async def unready(self) -> str:
        return self.unready_because

    async def not_alive(self) -> str:
        return self.not_alive_because


@contextlib.asynccontextmanager
async def serving(service: Service) -> AsyncIterator[str]:
    """Serve the metrics of ``service``, entered with their address."""
    with contextlib.closing(await serve_metrics(HERE, service)) as metrics:
        yield metrics.address
    await metrics.wait_closed()


@pytest.mark.usefixtures("no_fd_leak")
async def test_a_server_is_scraped() -> None:
    async with (
        serve(port=0, access_log=False, limits=Limits(max_connections=7)) as server,
        serving(Service(lambda: server.stats)) as address,
    ):
        for count in range(3):
            head, _, body = (await fetch(address, "/metrics")).partition(b"\r\n\r\n")
            assert b"Content-Type: text/plain; version=0.0.4; charset=utf-8" in head
            found = samples(body)
            assert found["greeter_greeted_total"] == count
            assert found["greeter_sent_bytes_total"] == 24 * count
            assert found["greeter_max_connections"] == 7
            assert found["greeter_accepting"] == 1
            await greet(port=server.port)


async def test_a_server_at_capacity_shows_that_accepting_is_paused() -> None:
    async with (
        serve(port=0, access_log=False, limits=Limits(max_connections=1)) as server,
        serving(Service(lambda: server.stats)) as address,
    ):

        async def shown() -> tuple[float, float, float]:
            found = samples((await fetch(address, "/metrics")).partition(b"\r\n\r\n")[2])
            names = ("greeter_accepting", "greeter_open_connections", "greeter_paused_seconds_total")
            accepting, opened, paused = (found[name] for name in names)
            return accepting, opened, paused

        assert await shown() == (1, 0, 0)
        with await connect(server.port):
            await until(lambda: not server.stats.accepting, "it is at capacity")
            paused = 0.0
            for _ in range(1000):  # uvloop's clock has milliseconds
                accepting, opened, paused = await shown()
                assert (accepting, opened) == (0, 1)
                if paused > 0:
                    break
            assert paused > 0
        await until(lambda: bool(server.stats.accepting), "there is room again")
        assert (await shown())[:2] == (1, 0)


@pytest.mark.parametrize(
    ("state", "healthz", "livez"),
    [
        ({}, b"200 ok", b"200 ok"),
        ({"stopping": True}, b"503 stopping", b"200 ok"),
        ({"stopping": True, "not_alive_because": "dead"}, b"503 stopping", b"200 ok"),
        ({"unready_because": "no worker is ready"}, b"503 no worker is ready", b"200 ok"),
        ({"not_alive_because": "dead"}, b"200 ok", b"503 dead"),
    ],
)
async def test_the_health_of_a_service(state: dict[str, Any], healthz: bytes, livez: bytes) -> None:
    service = Service()
    vars(service).update(state)
    async with serving(service) as address:
        for path, expected in (("/healthz", healthz), ("/livez", livez)):
            head, _, body = (await fetch(address, path)).partition(b"\r\n\r\n")
            assert head.split()[1] + b" " + body == expected + b"\n"


def test_the_metrics_of_processes_are_sums() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        mine, both = samples(render(Counters(), ["self"])), samples(render(Counters(), ["self", child.pid]))
    finally:
        child.kill()
        child.wait()
    known = samples(generate_latest(process_registry()))
    names = {name for name in mine if name.startswith("process_")}
    assert names == set(known), "those of prometheus-client"
    assert mine["process_max_fds"] == known["process_max_fds"]
    assert mine["process_start_time_seconds"] == known["process_start_time_seconds"]
    resident = "process_resident_memory_bytes"
    assert mine[resident] == pytest.approx(known[resident], rel=0.1)
    assert mine["process_start_time_seconds"] == both["process_start_time_seconds"]
    assert both["process_max_fds"] == 2 * mine["process_max_fds"]
    assert both["process_open_fds"] > mine["process_open_fds"]
    assert both["process_virtual_memory_bytes"] > mine["process_virtual_memory_bytes"]


def test_a_scrape_does_not_list_the_descriptors_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.stat("/proc/self/fd").st_size:
        pytest.skip("Linux before 6.2 does not count them")

    def listdir(path: object = ".") -> list[str]:
        pytest.fail(f"{path} is listed")

    monkeypatch.setattr(os, "listdir", listdir)
    before = samples(render(Counters(), ["self"]))["process_open_fds"]
    with socket.socket(), socket.socket():
        during = samples(render(Counters(), ["self"]))["process_open_fds"]
    assert during - before == 2


def process_registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


def test_a_process_that_exits_while_it_is_read_counts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a process has an empty list of limits. A real one cannot be stopped at that moment."""
    shutil.copy("/proc/stat", tmp_path)
    for name in ("1", "2"):
        (tmp_path / name / "fd").mkdir(parents=True)
        shutil.copy("/proc/self/stat", tmp_path / name)
        shutil.copy("/proc/self/limits", tmp_path / name)
    monkeypatch.setattr(process_metrics, "_PROC", tmp_path)
    alone = samples(render(Counters(), ["1"]))["process_max_fds"]
    assert samples(render(Counters(), ["1", "2"]))["process_max_fds"] == 2 * alone
    (tmp_path / "2" / "limits").write_bytes(b"")
    assert samples(render(Counters(), ["1", "2"]))["process_max_fds"] == alone


def test_the_cpu_time_of_a_process_that_has_exited_is_kept() -> None:
    code = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        before = samples(render(Counters(), ["self"]))["process_cpu_seconds_total"]
        child.stdout.readline()
        during = samples(render(Counters(), ["self", child.pid]))["process_cpu_seconds_total"]
    after = samples(render(Counters(), ["self", child.pid]))["process_cpu_seconds_total"]
    assert before + 0.15 < during <= after


MISSING = "--metrics needs an optional package: pip install '.[metrics]' in greeter's source tree"


async def test_serve_metrics_without_prometheus_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtra, match=f"^{re.escape(MISSING)}$"):
        await serve_metrics(HERE, Service())


def test_the_import_without_h11(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h11", None)
    for name in ("greeter.service.prometheus", "greeter.service.httpd"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtra, match=f"^{re.escape(MISSING)}$"):
        importlib.import_module("greeter.service.prometheus")


@pytest.mark.parametrize("package", ["h11", "prometheus_client"])
@pytest.mark.parametrize("workers", ["1", "2"])
@one_loop
@pytest.mark.thorough
async def test_a_missing_package_of_the_extra_fails_metrics_only(
    package: str, workers: str, tmp_path: Path
) -> None:
    """Without --metrics it serves; with it, it fails with one line."""
    (tmp_path / f"{package}.py").write_text("raise ImportError")
    env = {"PYTHONPATH": str(tmp_path), "GREETER_LISTEN": "127.0.0.1:0", "GREETER_WORKERS": workers}
    async with greeter_process("serve", env=env) as server:
        assert await server.stop() == 0
    code, _, err = await run_greeter("serve", "--metrics", "127.0.0.1:0", env=env)
    warnings = [line for line in err.splitlines() if line.startswith("warning: running as root")]
    assert (code, err.splitlines()[len(warnings) :]) == (2, [f"greeter: {MISSING}"])


def test_prometheus_client_is_loaded_only_when_metrics_are_served() -> None:
    code = "import sys, greeter.service.prometheus; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"False\n"
