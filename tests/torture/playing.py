"""A schedule played to its end, and the evidence of it.

What is wrong is judged later (invariants.py), except for what can only be seen while the service runs: that
it is as it was when all clients are gone.
"""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.support.peers import until
from tests.support.proc import resident_bytes, state_and_session, wakeups
from tests.support.service_peers import descriptors
from tests.torture.evidence import Evidence, Problem
from tests.torture.schedule import Event, Schedule
from tests.torture.service import PATIENCE, Service, Workshop
from tests.torture.visits import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

# What a process may grow by, in bytes. The greetings of clients that come at once are held at once.
GROWTH = 32 * 1024 * 1024
# A service is idle if none of its processes wakes up for so long, in seconds.
IDLE_SECONDS = 0.6
# How long clients have been coming one after the other when the stop comes, in seconds, and how many at most.
CROWD_SECONDS, MOST_VISITS = 0.03, 300
# How long clients keep coming after a reload at most, in seconds, and what each takes, in milliseconds.
RELOAD_SECONDS, CROWD_MS = 5.0, 200
# When something else happens during a stop, in seconds after the signal.
MEANWHILE_SECONDS = 0.02
# What a stop may take beyond its deadlines on a busy machine, in seconds.
STOP_SLACK = 15.0


async def play(schedule: Schedule, workshop: Workshop, directory: Path) -> Evidence:
    """Play a schedule in a new directory. Always ends, and leaves no process."""
    service = Service(schedule.service, workshop, directory)
    player = Player(schedule, service)
    try:
        await player.run()
    except (AssertionError, OSError) as error:  # TimeoutError is one
        player.evidence.problems.append(Problem("start", str(error) or repr(error)))
    finally:
        player.cancel()
        player.evidence.log = service.log()
        service.end()
    return player.evidence


class Player:
    """Plays one schedule with a service."""

    def __init__(self, schedule: Schedule, service: Service) -> None:
        self.evidence = Evidence(schedule)
        self._service = service
        self._schedule = schedule
        self._clients: dict[asyncio.Task[None], Client] = {}
        self._crowds: list[asyncio.Task[None]] = []
        self._armed: dict[str, tuple[float, Event]] = {}
        self._undoing: list[tuple[asyncio.TimerHandle, Callable[[], None]]] = []
        self._base: dict[str, tuple[int, int]] = {}  # descriptors and memory, of parent and worker

    async def run(self) -> None:
        """Start, warm up, and let all events happen."""
        begun = time.monotonic()
        await self._service.start()
        await self._warm_up()
        for event in self._schedule.events:
            await asyncio.sleep(event.after / 1000)
            handler: Callable[[Event], Coroutine[None, None, None]] = getattr(self, "_" + event.do)
            with suppress(FileNotFoundError, ProcessLookupError):  # that process has just exited
                await handler(event)
        self.evidence.seconds = time.monotonic() - begun

    def cancel(self) -> None:
        """Cancel what is still under way, after an error."""
        for task in (*self._crowds, *self._clients):
            task.cancel()
        for handle, _ in self._undoing:
            handle.cancel()

    def _later(self, seconds: float, undo: Callable[[], None]) -> None:
        """Call ``undo`` after a while, and perhaps again at the end."""
        handle = asyncio.get_running_loop().call_later(seconds, undo)
        self._undoing.append((handle, undo))

    def _undo_all(self) -> None:
        for handle, undo in self._undoing:
            handle.cancel()
            undo()
        self._undoing.clear()
        for call in list(self._armed):
            self._harvest(call)

    # -- events

    async def _client(self, event: Event) -> None:
        if event.what == "datagram" and "udp" not in self._service.addresses:
            return
        for number in range(event.count):
            client = Client(self._service, event, number)
            self._clients[asyncio.ensure_future(client.come())] = client
            self.evidence.visits.append(client.visit)

    async def _fault(self, event: Event) -> None:
        plan = self._service.plan
        self._harvest(event.what)
        self._armed[event.what] = (time.monotonic(), event)
        plan.arm(event.what, event.error, event.count, skip=event.value, part=event.part)
        self._later(event.ms / 1000, lambda: plan.disarm(event.what))

    def _harvest(self, call: str) -> None:
        """End the fault of a call, and note how many were delivered."""
        armed = self._armed.pop(call, None)
        if armed is not None:
            self._service.plan.disarm(call)
            self.evidence.faults.append((*armed, self._service.plan.delivered(call)))

    async def _reload(self, event: Event) -> None:
        self._service.write_config(broken=event.what == "broken")
        replaced, end = set(self._service.workers()), time.monotonic() + RELOAD_SECONDS
        self._service.signal(self._service.pid, signal.SIGHUP)
        if replaced and event.what != "broken":
            # Workers are replaced later, when the new ones are ready.
            self._crowd(
                "pieces",
                2,
                lambda: time.monotonic() >= end or replaced.isdisjoint(self._service.workers()),
            )

    async def _pause(self, event: Event) -> None:
        service = self._service
        workers = service.workers() or [service.pid]
        pids = {"parent": [service.pid], "worker": workers[-1:], "all": service.running()}[event.what]

        def go_on() -> None:
            for pid in pids:
                service.signal(pid, signal.SIGCONT)

        for pid in pids:
            service.signal(pid, signal.SIGSTOP)
        self._later(event.ms / 1000, go_on)

    async def _kill(self, event: Event) -> None:
        """Kill a worker that stands still, so that its connections can be counted."""
        service = self._service
        workers = service.workers()
        if not workers:
            return
        pid = workers[event.value % len(workers)]
        service.signal(pid, signal.SIGSTOP)
        await until(lambda: state_and_session(pid)[0] in "TZX", "it stands still")
        self.evidence.kills.append((time.monotonic(), service.open_connections(pid)))
        if service.running() == [pid]:
            self.evidence.all_killed = time.monotonic()
        service.signal(pid, signal.SIGKILL)

    async def _descriptors(self, event: Event) -> None:
        pids = self._service.running()

        def allow() -> None:
            for pid in pids:
                self._service.limit_descriptors(pid, None)

        for pid in pids:
            self._service.limit_descriptors(pid, event.value)
        self._later(event.ms / 1000, allow)

    async def _log(self, event: Event) -> None:
        self._service.read_log(False)
        self._later(event.ms / 1000, lambda: self._service.read_log(True))

    async def _clock(self, event: Event) -> None:
        self._service.set_clock(event.value)

    async def _quiet(self, _: Event) -> None:
        await self._all_gone()
        self._undo_all()
        service = self._service
        try:
            counters = await self._settled()
        except OSError as error:
            self._problem("quiet", f"no counters: {error!r}")
            return
        self.evidence.last = counters
        total = sum(counters[f"greeter_{name}_total"] for name in ("greeted",))
        total += sum(value for name, value in counters.items() if name.startswith("greeter_failed_total"))
        total += sum(value for name, value in counters.items() if name.startswith("greeter_rejected_total"))
        accepted = counters["greeter_accepted_total"]
        if accepted != total:
            self._problem("counters", f"{accepted:g} accepted, {total:g} greeted, failed or rejected")
        if not await self._idle():
            self._problem("idle", f"a process wakes up although no client is there: {self._wakeups()}")
        await self._level()
        assert service.running(), "it runs"

    async def _stop(self, event: Event) -> None:
        service, evidence = self._service, self.evidence
        if event.value:
            self._crowd("speak", event.value)
            await asyncio.sleep(CROWD_SECONDS)
        evidence.stopped = time.monotonic()
        if event.what == "killed parent" and service.workers():
            evidence.parent_killed = True
            service.signal(service.pid, signal.SIGKILL)
        else:
            for number in range(event.count):
                if number:
                    await asyncio.sleep(event.ms / 1000)
                for pid in service.running() if event.what == "all" else [service.pid]:
                    service.signal(pid, signal.SIGTERM)
        if event.error:
            await asyncio.sleep(MEANWHILE_SECONDS)
            with suppress(FileNotFoundError, ProcessLookupError):
                await getattr(self, "_" + event.error)(Event(0, event.error, "worker", ms=100))
        spec = service.spec
        longest = spec.stop_delay + spec.drain_timeout + STOP_SLACK
        evidence.code = await service.exited(longest)
        # Workers of a killed parent exit later than it.
        if not await service.all_exited(longest if evidence.parent_killed else 5.0):
            evidence.left = len(service.running())
        for task, client in self._clients.items():
            if client.visit.connecting:  # its SYN is sent again after a second, and refused then
                task.cancel()
        await self._all_gone()
        self._undo_all()
        evidence.socket_file_left = service.socket_file_left()

    def _crowd(self, kind: str, count: int, over: Callable[[], bool] = lambda: False) -> None:
        """Let ``count`` clients at a time keep coming, until one is refused or it is ``over``."""
        for number in range(count):
            event = Event(0, "client", kind, ms=CROWD_MS, value=number)
            self._crowds.append(asyncio.ensure_future(self._keep_coming(event, over)))

    async def _keep_coming(self, event: Event, over: Callable[[], bool]) -> None:
        for turn in range(MOST_VISITS):
            client = Client(self._service, event, turn)
            self.evidence.visits.append(client.visit)
            coming = asyncio.ensure_future(client.come())
            self._clients[coming] = client
            await asyncio.wait([coming])
            if client.visit.outcome != "greeted" or over():
                return

    # -- when all clients are gone

    def _problem(self, invariant: str, text: str) -> None:
        self.evidence.problems.append(Problem(invariant, text))

    async def _all_gone(self) -> None:
        if self._crowds:
            await asyncio.wait(self._crowds)
        self._crowds.clear()
        if self._clients:
            await asyncio.wait(self._clients)
        for task in self._clients:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        self._clients.clear()

    async def _warm_up(self) -> None:
        """Let each process open what it keeps open after its first client, and note what it has then."""
        for kind in ("speak", "read", "greet"):
            await self._client(Event(0, "client", kind, 2 * self._schedule.service.workers))
        await self._all_gone()
        await self._settled()
        readings: dict[str, list[tuple[int, int]]] = {}
        for _ in range(4):
            await asyncio.sleep(0.02)
            for pid in self._service.running():
                with suppress(FileNotFoundError):
                    reading = (descriptors(pid), resident_bytes(pid))
                    readings.setdefault(self._role(pid) + f" {pid}", []).append(reading)
        for name, found in readings.items():
            role = name.partition(" ")[0]
            fds, memory = min(fds for fds, _ in found), max(memory for _, memory in found)
            before = self._base.get(role, (0, 0))
            self._base[role] = (max(before[0], fds), max(before[1], memory))

    def _role(self, pid: int) -> str:
        return "parent" if pid == self._service.pid else "worker"

    async def _settled(self) -> dict[str, float]:
        """Wait until no connection is open and all workers serve. Returns the counters then.

        When it takes too long, they are returned as they are.
        """
        end = time.monotonic() + PATIENCE
        while True:
            counters = await self._service.counters()
            opened = counters["greeter_open_connections"]
            ready = counters["greeter_workers_ready"]
            if not opened and ready == counters["greeter_workers"]:
                return counters
            if time.monotonic() > end:
                self._problem("quiet", f"after {PATIENCE:g} s, {opened:g} open and {ready:g} workers ready")
                return counters
            await asyncio.sleep(0.05)

    def _wakeups(self) -> dict[int, int]:
        found = {}
        for pid in self._service.running():
            with suppress(FileNotFoundError, ProcessLookupError):
                found[pid] = wakeups(pid)
        return found

    async def _idle(self) -> bool:
        """Wait for a while in which no process wakes up. Returns False if there is none."""
        end = time.monotonic() + PATIENCE / 2
        while time.monotonic() < end:
            before, begun = self._wakeups(), time.monotonic()
            while time.monotonic() < begun + IDLE_SECONDS:
                await asyncio.sleep(0.1)
                if self._wakeups() != before:
                    break
            else:
                return True
        return False

    async def _level(self) -> None:
        """Each process has as many descriptors and as much memory as it had after its first clients."""
        end = time.monotonic() + PATIENCE / 3
        while found := list(self._above_base()):
            if time.monotonic() > end:
                self.evidence.problems += found
                return
            await asyncio.sleep(0.1)

    def _above_base(self) -> list[Problem]:
        found = []
        for pid in self._service.running():
            role = self._role(pid)
            if role not in self._base:
                continue
            fds, memory = self._base[role]
            with suppress(FileNotFoundError, ProcessLookupError, AssertionError):
                if (now := descriptors(pid)) > fds:
                    found.append(Problem("descriptors", f"the {role} has {now}, {fds} before"))
                if (now := resident_bytes(pid)) > memory + GROWTH:
                    found.append(Problem("memory", f"the {role} has {now} bytes, {memory} before"))
        return found
