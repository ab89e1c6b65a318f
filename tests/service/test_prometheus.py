"""The metrics as a scraper sees them: names, labels, values, and the checks of promtool."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

import greeter
from greeter import Endpoint, MissingExtra, ServerStats, greet, serve
from greeter.core.stats import BOUNDS
from greeter.service.prometheus import render, serve_metrics
from greeter.service.snapshot import Counters
from tests.conftest import PATIENCE, ROOT, greeter_process, run_greeter

if TYPE_CHECKING:
    from collections.abc import Callable
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
        failed={"reset": 108, "tls": 109},
        rejected={"rate": 110},
        reloads={"ok": 111, "failed": 112},
        greeting_time=timed.greeting_time,
        open=113,
        lingering=114,
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
        "greeter_drains_total": 106,
        "greeter_worker_restarts_total": 107,
        "greeter_failed_total{class=reset}": 108,
        "greeter_failed_total{class=tls}": 109,
        "greeter_rejected_total{reason=rate}": 110,
        "greeter_reloads_total{result=ok}": 111,
        "greeter_reloads_total{result=failed}": 112,
        "greeter_open_connections": 113,
        "greeter_lingering_connections": 114,
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
        input=render(make()),
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


@pytest.mark.usefixtures("no_fd_leak")
async def test_a_server_is_scraped() -> None:
    async with serve(port=0, access_log=False) as server:

        async def collect() -> Counters:
            return Counters.of(server.stats)

        draining = False
        with contextlib.closing(await serve_metrics(HERE, collect, stopping=lambda: draining)) as metrics:
            for count in range(3):
                head, _, body = (await fetch(metrics.address, "/metrics")).partition(b"\r\n\r\n")
                assert b"Content-Type: text/plain; version=0.0.4; charset=utf-8" in head
                found = samples(body)
                assert found["greeter_greeted_total"] == count
                assert found["greeter_sent_bytes_total"] == 24 * count
                await greet(port=server.port)
            healthy = await fetch(metrics.address, "/healthz")
            assert healthy.startswith(b"HTTP/1.1 200 OK\r\n")
            assert healthy.endswith(b"\r\n\r\nok\n")
            draining = True
            stopping = await fetch(metrics.address, "/healthz")
            assert stopping.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert stopping.endswith(b"\r\n\r\nstopping\n")
        await metrics.wait_closed()


MISSING = "--metrics needs an optional package: pip install '.[metrics]' in greeter's source tree"


async def test_serve_metrics_without_prometheus_client(monkeypatch: pytest.MonkeyPatch) -> None:
    async def collect() -> Counters:
        return Counters()

    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtra, match=f"^{re.escape(MISSING)}$"):
        await serve_metrics(HERE, collect, stopping=bool)


def test_the_import_without_h11(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h11", None)
    for name in ("greeter.service.prometheus", "greeter.service.httpd"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtra, match=f"^{re.escape(MISSING)}$"):
        importlib.import_module("greeter.service.prometheus")


@pytest.mark.parametrize("package", ["h11", "prometheus_client"])
@pytest.mark.parametrize("workers", ["1", "2"])
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
