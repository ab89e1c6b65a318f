"""What it takes to hold very many clients: memory, CPU beside them, a reload, and two kinds of stop.

Invariants:
- The clients wait in an async greeting, over as many workers as the descriptor limit asks for. They are in C,
  in several processes, each with a source address of its own for its local ports.
- Every client is counted twice: by itself, and by the service. One that is missing in either count is lost.
- The service that holds clients and one that holds none are up at the same time, and each round visits both.
  So the ratio of their costs is of the same seconds.
- What a client costs in memory is what one more adds: the first ones fill the pools that a process keeps
  anyway. Memory of the kernel is that of both ends, because both are on this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks import servers
from tests.benchmarks.bench import Contender, rotated
from tests.benchmarks.figures import Claim, Row, Table, figure, ratio
from tests.benchmarks.groups.memory import raise_descriptor_limit
from tests.benchmarks.load import GREETING
from tests.benchmarks.process import PATIENCE, Process
from tests.support.free_ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.bench import Bench, Server

# A greeting beside the held clients costs at most so many times what it costs beside none.
LIMIT = 1.1
FIRST = 500
# Descriptors that a process needs besides its clients.
SPARE = 100
# Clients of one process, and so of one source address. connect() looks at every second one of the address's
# 28,232 local ports before it looks at the others, one by one. So once half of them are in use, it is slow.
MOST_FROM_ONE = 10_000
# Bytes that a client takes at most, of the service and of the kernel.
BYTES_EACH = 20_000
DRAIN_SECONDS = 2.0
# For whatever all clients do at once.
LONG = 300.0


@dataclass(frozen=True)
class Service:
    """A greeter that is up. Its clients at ``held`` (a port) are held until ``release`` is called."""

    server: Server
    held: int
    metrics: int
    release: Callable[[], None]

    def log(self) -> str:
        return self.server.process.log.read_text()

    def scrape(self) -> dict[str, float]:
        """The values of ``/metrics``; those of one metric are added up."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=LONG) as page:
            text = page.read().decode()
        found: dict[str, float] = {}
        for name, value in re.findall(r"^(\w+)(?:{.*})? (\S+)$", text, re.MULTILINE):
            found[name] = found.get(name, 0.0) + float(value)
        return found


class Found:
    """The rows of the tables, which grow with each event loop."""

    def __init__(self) -> None:
        self.memory: list[Row] = []
        self.cpu: list[Row] = []
        self.seconds: list[Row] = []
        self.lost: list[Row] = []

    def took(self, name: str, *seconds: float) -> None:
        self.seconds.append(Row(name, figure(seconds)))

    def tables(self, title: str) -> list[Table]:
        return [
            Table("scale_memory", f"memory of a held client, {title}", "bytes", tuple(self.memory), digits=0),
            Table("scale_cpu", f"CPU of a greeting beside {title}", "µs", tuple(self.cpu), "beside none"),
            Table("scale_seconds", f"how long it takes, {title}", "s", tuple(self.seconds), digits=3),
            Table("scale_lost", f"clients lost or not counted, {title}", "lost", tuple(self.lost), digits=0),
        ]


def run(bench: Bench) -> list[Table]:
    count = bench.clients or bench.size(20_000, 1_000)
    if not bench.holders:
        return []
    if (free := _meminfo("MemAvailable")) < count * BYTES_EACH:
        bench.left_out["scale"] = (
            f"{count:,} clients need more memory than the {free / 1e9:.1f} GB that are left"
        )
        return []
    limit = raise_descriptor_limit() or 1_000_000
    workers = max(2, -(-count // (limit - SPARE)))
    found = Found()
    for loop in bench.loops:
        _measure(bench, loop, count, workers, min(limit - SPARE, MOST_FROM_ONE), found)
    return found.tables(f"{count:,} clients held by {workers} workers")


def _measure(bench: Bench, loop: str, count: int, workers: int, share: int, found: Found) -> None:
    name = servers.greeter_name(servers.DIRECT, loop)
    with contextlib.ExitStack() as stack:
        steady = _start(bench, stack, loop, workers, drain=LONG)
        hasty = _start(bench, stack, loop, workers, drain=DRAIN_SECONDS)

        bench.say(f"holding {count:,} clients of {name}")
        first = min(FIRST, count // 10)
        holders = _hold(bench, stack, steady, first, share)
        steady.server.process.settled_cpu_seconds()
        resident, kernel = steady.server.process.resident_bytes(), _meminfo("Slab")
        start = time.monotonic()
        holders += _hold(bench, stack, steady, count - first, share, already=first)
        found.took(f"{name}: connect", time.monotonic() - start)
        steady.server.process.settled_cpu_seconds()
        more = count - first
        found.memory.append(
            Row(
                name,
                figure([(steady.server.process.resident_bytes() - resident) / more]),
                extras={"kernel, both ends": (_meminfo("Slab") - kernel) / more},
            )
        )
        _compare(bench, name, steady, hasty, found)

        bench.say(f"reloading {name}")
        start = time.monotonic()
        steady.server.process.reload()
        _wait_for("the reload", lambda: "Reloaded" in steady.log())
        found.took(f"{name}: reload", time.monotonic() - start)
        still_open = steady.scrape()["greeter_open_connections"]
        found.lost.append(Row(f"{name}: reload", figure([count - still_open]), claim=Claim(0)))

        bench.say(f"stopping {name}")
        steady.server.process.terminate()
        _wait_for_stop(steady)
        start = time.monotonic()
        steady.release()
        _stopped(f"{name}: stop, released", steady, holders, "greeted", count, start, found)

        bench.say(f"holding {count:,} clients of {name} again")
        holders = _hold(bench, stack, hasty, count, share)
        start = time.monotonic() + DRAIN_SECONDS
        hasty.server.process.terminate()
        _stopped(f"{name}: stop, cut off", hasty, holders, "failed", count, start, found)


def _start(bench: Bench, stack: contextlib.ExitStack, loop: str, workers: int, *, drain: float) -> Service:
    held, metrics = free_port(), free_port()
    fifo = bench.folder / f"fifo-{held}"
    os.mkfifo(fifo)
    writer = stack.enter_context(fifo.open("r+b", buffering=0))  # "wb" would wait for a reader
    options = ["--app", "tests.benchmarks.programs.held_until:held", "--workers", str(workers)]
    options += ["--listen", f"127.0.0.1:{held}", "--metrics", f"127.0.0.1:{metrics}"]
    options += ["--greet-timeout", f"{LONG * 4:g}", "--drain-timeout", f"{drain:g}"]
    greeter = servers.greeter(servers.DIRECT, loop, options=options, note=f"drain {drain:g} s")

    def command(port: int) -> list[str]:
        variables = f"HELD_ENDPOINT=127.0.0.1:{held}", f"HELD_FIFO={fifo}"
        return ["env", *variables, *greeter.command(port)]

    contender = Contender(greeter.name, command, ours=True)
    (server,) = stack.enter_context(bench.serving([contender], patience=LONG))
    return Service(server, held, metrics, writer.close)


def _hold(
    bench: Bench,
    stack: contextlib.ExitStack,
    service: Service,
    count: int,
    share: int,
    *,
    already: int = 0,
) -> list[Process]:
    """Connect ``count`` clients beside ``already``; returns their processes when the service has them all."""
    started: list[Process] = []
    for number, first in enumerate(range(0, count, share)):
        clients = min(share, count - first)
        source = f"127.0.1.{number + 1}"
        log = bench.folder / f"hold-{service.held}-{already + first}.log"
        argv = [bench.holders, str(service.held), str(clients), source, GREETING.hex()]
        started.append(Process(argv, log, bench.other))
        stack.callback(started[-1].stop)

    def all_held() -> bool:
        for process in started:
            process.check()
        if not all("held" in process.log.read_text() for process in started):
            return False
        return service.scrape()["greeter_open_connections"] >= already + count

    _wait_for(f"{count:,} clients of {service.server.name}", all_held)
    return started


def _compare(bench: Bench, name: str, steady: Service, hasty: Service, found: Found) -> None:
    """The cost of a greeting and of ``/metrics``: of ``steady``, which holds clients, and of ``hasty``."""
    greetings = bench.size(5_000, 500)
    costs: dict[Service, list[float]] = {steady: [], hasty: []}
    scrapes: dict[Service, list[float]] = {steady: [], hasty: []}
    for service in costs:
        bench.load.run(service.server.port, at_once=50, total=greetings // 4)
        service.scrape()
        service.server.process.settled_cpu_seconds()
    for number in bench.rounds(9, 3, seconds=30):
        for service in rotated([hasty, steady], number):
            before = service.server.process.cpu_seconds()
            outcome = bench.load.run(service.server.port, at_once=50, total=greetings)
            after = service.server.process.settled_cpu_seconds()
            costs[service].append((after - before) / max(1, outcome.greeted) * 1e6)
            start = time.monotonic()
            service.scrape()
            scrapes[service].append(time.monotonic() - start)
    value, beside = figure(costs[steady]), figure(costs[hasty])
    extras = {"beside none": beside.median, "rounds": len(beside.samples)}
    found.cpu.append(Row(name, value, ratio=ratio(value, beside), claim=Claim(LIMIT), extras=extras))
    found.took(f"{name}: /metrics", *scrapes[steady])
    found.took(f"{name}: /metrics beside none", *scrapes[hasty])


def _stopped(
    name: str, service: Service, holders: list[Process], kind: str, count: int, start: float, found: Found
) -> None:
    """Wait for the end of a service that was told to stop, and see that every client ended as ``kind``."""
    code = service.server.process.wait_for_end(LONG)
    found.took(name, time.monotonic() - start)
    said = re.search(
        r"Stopped: (?P<greeted>\d+) greeted of (?P<accepted>\d+) accepted, (?P<failed>\d+) failed",
        service.log(),
    )
    if said is None:
        raise SystemExit(f"scale: {name}: no last line; exit code {code}")
    counts = {what: int(number) for what, number in said.groupdict().items()}
    for process in holders:
        process.wait_for_end(PATIENCE)
    ends = [json.loads(process.log.read_text().splitlines()[-1]) for process in holders]
    if kind == "greeted":
        missing = count - sum(end["greeted"] for end in ends) + counts["failed"]
    else:
        missing = count - sum(end["empty"] + end["reset"] for end in ends) + abs(count - counts["failed"])
    missing += counts["accepted"] - counts["greeted"] - counts["failed"]
    killed = len(re.findall(r"killed|exited with code", service.log()))
    found.lost.append(
        Row(
            name,
            figure([missing]),
            claim=Claim(0),
            extras={**counts, "workers killed": killed, "exit code": -1 if code is None else code},
        )
    )


def _wait_for_stop(service: Service) -> None:
    """Wait until the service has begun to stop, so that its clients are released after that."""
    _wait_for("the stop", lambda: "stopping" in service.log())


def _wait_for(what: str, happened: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not happened():
        if time.monotonic() > end:
            raise SystemExit(f"scale: waited for {what} for {LONG:g} s")
        time.sleep(0.05)


def _meminfo(name: str) -> int:
    """A line of /proc/meminfo (proc(5)), in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
