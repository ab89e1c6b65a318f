"""A service for datagrams as a process: what it counts, and what its options, signals and workers do."""

from __future__ import annotations

import os
import signal

import pytest

from tests.conftest import greeter_process, one_loop
from tests.service.test_prometheus import fetch, samples
from tests.support.datagram_peers import QUESTION, client, queued, small_buffer
from tests.support.peers import until
from tests.support.service_peers import children, stopped

# The loops under test are those of the services, not the one that watches them.
pytestmark = one_loop


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_what_the_kernel_drops_is_a_metric_that_workers_share(workers: str) -> None:
    with small_buffer() as sock:
        args = ("--workers", workers, "--listen", f"fd:{sock.fileno()}", "--metrics", "127.0.0.1:0")
        async with greeter_process("serve", *args, pass_fds=(sock.fileno(),)) as process:
            metrics = (await process.line_with("Metrics on ")).rpartition(" ")[2]
            serving = children(process.pid) or [process.pid]
            for pid in serving:
                os.kill(pid, signal.SIGSTOP)
            await until(lambda: all(stopped(pid) for pid in serving), "they stand still")
            with client(sock.getsockname()) as asking:
                for _ in range(200):
                    asking.send(QUESTION)
                for pid in serving:
                    os.kill(pid, signal.SIGCONT)
                counts = {"received": 0.0, "dropped": 0.0}
                while sum(counts.values()) < 200:
                    found = samples((await fetch(metrics, "/metrics")).partition(b"\r\n\r\n")[2])
                    counts = {name: found[f"greeter_datagrams_{name}_total"] for name in counts}
                assert sum(counts.values()) == 200
                assert queued(asking) == counts["received"] < 100
            assert await process.stop() == 0
        lines = [line for line in process.lines if "its receive buffer was full" in line]
        assert 1 <= len(lines) <= int(workers)
        assert f"dropped {counts['dropped']:.0f} datagrams to udp:127.0.0.1:" in lines[0]
