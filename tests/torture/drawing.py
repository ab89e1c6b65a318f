"""A schedule from a seed.

Invariants:

- A seed draws the same schedule on every machine: only ``random.Random`` of a text decides, and nothing
  depends on the order of a set or on what is installed.
- The events between two of the kind ``quiet`` take about a second.
"""

from __future__ import annotations

import random
from dataclasses import replace

from tests.torture.schedule import (
    BAD,
    COSTLY,
    FULL_DISK,
    GOOD,
    GREETINGS,
    HARMLESS,
    OUTAGES,
    Event,
    Schedule,
    ServiceSpec,
)

SIZES = (1, 24, 24, 1000, 20_000, 300_000, 1_000_000)
# How long a client may take its time, in milliseconds.
LONGEST = 500


def draw(seed: int) -> Schedule:
    """Return the schedule of a seed."""
    chance = random.Random(f"torture {seed}")
    service = draw_service(chance)
    events: list[Event] = []
    for _ in range(chance.randint(5, 14)):
        events += draw_events(chance, service)
    events.append(Event(chance.randint(0, 100), "quiet"))
    if service.max_connections and chance.random() < 0.7:
        # Clients are still in the accept queue when the stop comes.
        events.append(Event(0, "client", "hold", service.max_connections, LONGEST))
    events += [draw_clients(chance, service) for _ in range(chance.randint(1, 4))]
    if chance.random() < 0.6:
        events += draw_events(chance, service)
    return Schedule(service, (*events, draw_stop(chance, service)))


def draw_service(chance: random.Random) -> ServiceSpec:
    """Draw a service whose options go together."""
    kinds = [("tcp",), ("tcp",), ("unix",), ("tcp", "unix"), ("tcp", "udp")]
    endpoints = chance.choice(kinds)
    greeting = chance.choice(GREETINGS)
    plain = "udp" in endpoints
    limited = chance.choice(["", "", "", "", "connections", "connections", "per_ip", "files"])
    timeouts = chance.choice(["", "", "", "greet", "linger", "drain"])
    log = chance.choice(["file", "file", "file", "pipe", "pipe", "full"])
    spec = ServiceSpec(
        loop=chance.choice(["asyncio", "uvloop"]),
        path=chance.choice(["direct", "streams"]),
        workers=chance.choice([1, 1, 2, 2, 3]),
        endpoints=("unix",) if log == "full" else endpoints,
        greeting=greeting,
        size=24 if plain else chance.choice(SIZES),
        tls=chance.random() < 0.3 and not plain,
        proxy=chance.random() < 0.3 and not plain,
        log=log,
        files=chance.choice([64, 80]) if limited == "files" else 0,
        max_connections=chance.choice([2, 4, 10]) if limited == "connections" else 0,
        max_per_ip=chance.choice([1, 3]) if limited == "per_ip" and not plain else 0,
        greet_timeout=0.6 if timeouts == "greet" else 10.0,
        linger_timeout=0.3 if timeouts == "linger" else 2.0,
        drain_timeout=0.5 if timeouts == "drain" else 10.0,
        stop_delay=chance.choice([0.0, 0.0, 0.0, 0.2]),
    )
    # uvloop on the streams path loses the clients for which it has no descriptor, which is documented.
    if spec.loop == "uvloop" and spec.path == "streams":
        spec = replace(spec, files=0)
    return spec


def draw_events(chance: random.Random, service: ServiceSpec) -> list[Event]:
    """Draw clients, and sometimes something else."""
    others = ["fault", "fault", "fault", "reload", "pause", "descriptors", "clock"]
    if service.workers > 1:
        others += ["kill", "kill", "reload"]
    if service.log != "full":
        others.append("log")
    if chance.random() < 0.6:
        return [draw_clients(chance, service)]
    do = chance.choice(others)
    if do != "kill":
        return [draw_other(chance, service, do)]
    # Some connections are open.
    clients = replace(draw_clients(chance, service), count=6, ms=LONGEST)
    return [clients, Event(chance.randint(0, 15), do, value=chance.randint(0, 2))]


def draw_other(chance: random.Random, service: ServiceSpec, do: str) -> Event:
    """Draw what happens to the service itself."""
    after = chance.randint(0, 60)
    if do == "fault":
        return draw_fault(chance, service, after)
    if do == "reload":
        return Event(after, do, chance.choice(["", "", "broken"]))
    if do == "pause":
        return Event(after, do, chance.choice(["parent", "worker", "all"]), ms=chance.choice([20, 100, 600]))
    if do == "descriptors":
        if service.loop == "uvloop" and service.path == "streams":
            return Event(after, "reload")
        return Event(after, do, ms=chance.randint(50, 400), value=chance.randint(0, 6))
    if do == "clock":
        return Event(after, do, value=chance.choice([-86_400, -5, 5, 3600, 10**8]))
    ms = chance.randint(100, 500)
    if service.log == "file":
        call, error = FULL_DISK
        return Event(after, "fault", call, 10**6, ms, error=error, part=chance.choice([0, 1, 100]))
    return Event(after, do, ms=ms)


def draw_fault(chance: random.Random, service: ServiceSpec, after: int) -> Event:
    """Draw system calls that fail."""
    ms = chance.randint(50, 400)
    kind = chance.choice(["costly", "harmless", "harmless", "outage", "short"])
    if kind == "outage" and not (service.loop == "uvloop" and service.path == "streams"):
        count = chance.choice([1, 3, 1_000_000])
        return Event(after, "fault", "accept", count, ms, chance.randint(0, 3), chance.choice(OUTAGES))
    if kind == "short":
        part = chance.choice([1, 10, 1000])
        return Event(after, "fault", "send", 4, ms, chance.randint(0, 3), "EAGAIN", part)
    table = COSTLY if kind == "costly" else HARMLESS
    call = chance.choice(list(table))
    count = chance.randint(1, 3)
    return Event(after, "fault", call, count, ms, chance.randint(0, 5), chance.choice(table[call]))


def draw_clients(chance: random.Random, service: ServiceSpec) -> Event:
    """Draw some clients of one kind."""
    good = [kind for kind in GOOD if kind != "datagram" or "udp" in service.endpoints]
    kind = chance.choice(good if chance.random() < 0.65 else BAD)
    ms = chance.choice([0, 5, 50, LONGEST])
    count = 30 if chance.random() < 0.1 and service.size <= 1000 else chance.randint(1, 6)
    return Event(chance.randint(0, 60), "client", kind, count, ms, chance.randint(0, 99))


def draw_stop(chance: random.Random, service: ServiceSpec) -> Event:
    """Draw the end: SIGTERM, or the kill of a parent of workers."""
    whom = ["parent", "parent", "all", *(["killed parent"] if service.workers > 1 else [])]
    count = chance.choice([1, 1, 2])
    crowd = chance.choice([0, 2, 6])
    meanwhile = chance.choice(["", "", "", "reload", "pause", "kill", "descriptors"])
    if meanwhile == "descriptors" and service.loop == "uvloop" and service.path == "streams":
        meanwhile = ""
    after, ms = chance.randint(0, 100), chance.choice([0, 5, 50])
    return Event(after, "stop", chance.choice(whom), count, ms, crowd, meanwhile)
