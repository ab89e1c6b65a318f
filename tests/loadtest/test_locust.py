"""Locust with greeter's generator: masters and workers on this machine, each in its own process.

This process does not import Locust, which replaces the sockets of its process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from greeter.loadtest import LoadReport
from greeter.loadtest.metrics.histogram import lowest
from greeter.loadtest.metrics.run_metrics import HISTOGRAMS, RunMetrics
from tests.conftest import PATIENCE, ROOT, greeter_process
from tests.support.free_ports import free_port
from tests.support.loadtest_peers import (
    checked,
    greet,
    refused_endpoint,
    serving,
    serving_and_counting,
    wait_for_clients,
)

pytestmark = [pytest.mark.one_interpreter, pytest.mark.thorough]
if find_spec("locust") is None:
    pytest.skip("needs the extra locust", allow_module_level=True)

# Scenarios that run at the same time. Most of them wait, but each starts processes.
CONCURRENT_SCENARIOS = 4
# The script waits for 20 s for its workers to start.
PATIENT = ("--expect-workers-max-wait", f"{PATIENCE:.0f}")


class Locust:
    """A Locust process; its output goes to two files."""

    def __init__(self, process: asyncio.subprocess.Process, path: Path) -> None:
        self.process, self._path = process, path

    @property
    def out(self) -> str:
        return self._path.with_suffix(".out").read_text()

    @property
    def log(self) -> str:
        return self._path.with_suffix(".log").read_text()

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()

    def errors(self) -> list[str]:
        """Return the logged errors, without time and host. There must be no traceback."""
        assert "Traceback" not in self.log
        return [line.partition("/ERROR/")[2] for line in self.log.splitlines() if "/ERROR/" in line]


def coverage_environment() -> dict[str, str]:
    """Return the environment, with coverage, if active, set up for the greenlets of Locust."""
    environment = dict(os.environ)
    if text := environment.get("COVERAGE_PROCESS_CONFIG"):
        from coverage.config import CoverageConfig

        config = CoverageConfig.deserialize(text)
        config.concurrency = ["thread", "greenlet"]
        environment["COVERAGE_PROCESS_CONFIG"] = config.serialize()
    return environment


class LocustProcesses:
    """Starts Locust processes, and kills those that remain at the end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.json = directory / "run.json"
        self._started: list[Locust] = []
        self.port = str(free_port())  # its master does not report the port for port 0

    async def __aenter__(self) -> LocustProcesses:
        self.directory.mkdir()
        return self

    async def __aexit__(self, *_: object) -> None:
        for locust in self._started:
            if locust.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(locust.process.pid, signal.SIGKILL)  # its process group, see start_new_session
                await locust.process.wait()

    async def start(self, *command: str) -> Locust:
        path = self.directory / str(len(self._started))
        with path.with_suffix(".out").open("wb") as out, path.with_suffix(".log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *command,
                cwd=ROOT,
                stdout=out,
                stderr=log,
                env=coverage_environment(),
                start_new_session=True,
            )
        self._started.append(Locust(process, path))
        return self._started[-1]

    async def locust(self, *options: str, file: str = "examples/distributed/locustfile.py") -> Locust:
        return await self.start("-m", "locust", "-f", file, *options)

    async def master(self, *options: str, workers: int = 2, **file: str) -> Locust:
        return await self.locust(
            *("--headless", "--only-summary", "--master", "--expect-workers", str(workers)),
            *("--master-bind-host", "127.0.0.1", "--master-bind-port", self.port),
            *("--greeter-json", str(self.json), *options),
            **file,
        )

    async def worker(self, **file: str) -> Locust:
        return await self.locust("--worker", "--master-port", self.port, **file)

    def locustfile(self, text: str, name: str = "locustfile") -> str:
        path = self.directory / f"{name}.py"
        path.write_text(textwrap.dedent(text))
        return str(path)

    def report(self) -> LoadReport:
        return checked(LoadReport.from_json(self.json.read_text()))


# A locustfile whose master saves the report of each worker.
SAVES_REPORTS = """
    import json, os
    from locust import events
    from greeter.loadtest.locust import GreeterUser

    class Canary(GreeterUser):
        plan = {"thresholds": ["response:p50<2us"], "rate": 1, "duration": 60}

    @events.worker_report.add_listener
    def keep(client_id, data, **_):
        if "metrics" in data["greeter"]:
            with open(os.path.join(os.path.dirname(__file__), client_id + ".json"), "w") as file:
                json.dump(data["greeter"]["metrics"], file)
"""


async def two_workers_and_a_master(locusts: LocustProcesses) -> None:
    """All counts arrive and thresholds are checked; options override the plan of the class."""
    file = locusts.locustfile(SAVES_REPORTS)
    async with greeter_process("serve", "--listen", "127.0.0.1:0", "--no-access-log") as server:
        options = ("-H", server.address, "-t", "2s", "-u", "99", "--greeter-rate", "300")
        workers = [await locusts.worker(file=file) for _ in range(2)]
        master = await locusts.master(*options, file=file)
        code = await master.ended()
        assert [await worker.ended() for worker in workers] == [0, 0]
        await server.stop()
    report = locusts.report()
    assert code == report.exit_code
    assert code in (98, 99), "98 if the machine was busy"
    assert report.thresholds[0]["expr"] == "response:p50<2us"
    assert not report.passed
    assert report.plan["connections"] == 99
    assert report.plan["workers"] == 2
    assert "MISSED  response:p50<2us" in master.out

    counted = [
        RunMetrics.from_json(json.loads(path.read_text())) for path in locusts.directory.glob("*_*.json")
    ]
    parts = report.generator["parts"]
    connections = report.connections
    assert len(counted) == len(parts) == 2
    assert sum(part["attempted"] for part in parts) == connections["attempted"] == connections["greeted"]
    assert connections["attempted"] + connections["unstarted"] == 600
    assert sorted(m.attempted for m in counted) == sorted(part["attempted"] for part in parts)
    assert min(m.attempted for m in counted) > 0
    assert (
        f"Stopped: {connections['greeted']} greeted of {connections['greeted']} accepted" in server.lines[-1]
    )
    assert f"{connections['greeted']}     0(0.00%)" in master.log, "also in Locust's own statistics"

    # The percentiles are those of all samples, as recorded in the histograms.
    for phase in HISTOGRAMS:
        samples = sorted(
            lowest(index)
            for m in counted
            for index, count in getattr(m, phase).counts.items()
            for _ in range(count)
        )
        assert report.histogram(phase).total == len(samples)
        for stat in (
            ("p50", "p99", "p99.9") if phase in ("connect", "first_byte", "service", "response") else ()
        ):
            true = samples[max(1, int(float(stat[1:]) * len(samples) / 100 + 0.5)) - 1]
            found = report.latency_us[phase][stat]
            assert found is not None
            assert true <= found <= true * 1.001, (phase, stat)


async def a_script(locusts: LocustProcesses) -> None:
    """The example of a master with two workers writes every output."""
    names = ("json", "html", "csv", "hdr")
    outputs = [
        word for name in names for word in (f"--greeter-{name}", str(locusts.directory / f"run.{name}"))
    ]
    if find_spec("vl_convert") is None or find_spec("jinja2") is None:
        del outputs[2:4]
    async with serving(greet) as target:
        script = await locusts.start("examples/distributed/run.py", "-H", target, *outputs, *PATIENT)
        code = await script.ended()
    report = locusts.report()
    assert code == report.exit_code
    if code != 98:  # the machine was too busy to make the load
        assert code == 0
        attempted = 400 - report.connections["unstarted"]  # connections due at the very end may be late
        assert script.out.strip().splitlines()[-1].startswith(f"All {attempted} clients were greeted")
    assert report.plan["expect"] == "Thank you"
    written = {name for name in os.listdir(locusts.directory) if name.startswith("run.")}
    assert written == {os.path.basename(path) for path in outputs[1::2]}


async def a_worker_dies(locusts: LocustProcesses) -> None:
    async with serving_and_counting(greet) as (target, accepted_clients):
        page = locusts.directory / "run.html"
        drawn = find_spec("vl_convert") is not None and find_spec("jinja2") is not None
        options = ("-H", target, "-t", "3s", "--greeter-rate", "100")
        master = await locusts.master(*options, *(("--greeter-html", str(page)) if drawn else ()))
        workers = [await locusts.worker() for _ in range(2)]
        await wait_for_clients(accepted_clients, 50)
        workers[0].process.kill()
        code = await master.ended()
        assert await workers[1].ended() == 0
    report = locusts.report()
    assert code == report.exit_code
    assert code in (1, 98)
    lost, other = sorted(report.generator["parts"], key=lambda part: not part["lost"])
    assert lost["lost"] == "it sends no heartbeat"
    assert (lost["attempted"], other["lost"]) == (0, None)
    assert report.connections["attempted"] == other["attempted"] > 0
    assert report.connections["attempted"] <= 150
    text = f"worker {lost['name']} was lost, and with it 150 of 300 connections: it sends no heartbeat"
    assert text in master.out
    assert "Part of the load is missing: 1 of 2 workers was lost." in master.out
    if drawn:
        assert "✗ lost: it sends no heartbeat" in page.read_text(encoding="utf-8")


def generators(pid: int) -> list[int]:
    """Return the generators among the children of a process, without Locust's other children."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # another child, which has ended
            if b"loadtest.generator.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


async def a_generator_dies(locusts: LocustProcesses) -> None:
    """The generator of a Locust worker exits, the worker does not. A threshold of the class is missed."""
    async with serving_and_counting(greet) as (target, accepted_clients):
        master = await locusts.master("-H", target, "-t", "60s", "--greeter-rate", "100", workers=1)
        worker = await locusts.worker()
        await wait_for_clients(accepted_clients, 20)
        [generator] = generators(worker.process.pid)
        os.kill(generator, signal.SIGKILL)
        assert await master.ended() == 99
        await worker.ended()
    [part] = locusts.report().generator["parts"]
    assert part["lost"] == "its generator exited with status -9"


async def interrupted(locusts: LocustProcesses) -> None:
    async with serving_and_counting(greet) as (target, accepted_clients):
        master = await locusts.master("-H", target, "-t", "60s", "--greeter-rate", "100", workers=1)
        worker = await locusts.worker()
        await wait_for_clients(accepted_clients, 50)
        master.process.send_signal(signal.SIGINT)
        assert await master.ended() == 130
        assert await worker.ended() == 0
    report = locusts.report()
    assert report.interrupted
    # The last connections may have been cut off, which do not count as attempts.
    assert report.connections["attempted"] + report.connections["cut_off"] >= 50
    assert " Interrupted after " in master.out


async def a_script_interrupted(locusts: LocustProcesses) -> None:
    """Ctrl-C signals all of its processes; the master still reports."""
    async with serving_and_counting(greet) as (target, accepted_clients):
        options = ("-H", target, "-t", "60s", "--greeter-rate", "100", "--greeter-json", str(locusts.json))
        script = await locusts.start("examples/distributed/run.py", *options, *PATIENT)
        await wait_for_clients(accepted_clients, 50)
        os.killpg(script.process.pid, signal.SIGINT)
        assert await script.ended() == 130
    assert script.errors() == []
    assert locusts.report().interrupted


# A locustfile with short timeouts of the master, for workers that never do what it waits for.
SHORT_TIMEOUTS = """
    from greeter.loadtest.distributed import locust_master
    from greeter.loadtest.locust import GreeterUser
    locust_master._REPLY_TIMEOUT, locust_master._STOP_TIMEOUT = {}, 1.0
    class Canary(GreeterUser):
        pass
"""

# A locustfile whose master waits for 3 s instead of 30 s after the last moment of the plan for results. It
# still has 30 s for a worker to start its generator.
SHORT_WAIT_FOR_RESULTS = """
    from greeter.loadtest.distributed.locust_master import LocustMaster
    from greeter.loadtest.locust import GreeterUser
    class Canary(GreeterUser):
        pass
    wait = LocustMaster._wait_for_results
    LocustMaster._wait_for_results = lambda self, deadline: wait(self, deadline - 27.0)
"""

# A locustfile whose worker waits for a second instead of 10 s for its generator to stop, not to start.
SHORT_STOP = """
    from greeter.loadtest.distributed import locust_worker
    from greeter.loadtest.locust import GreeterUser
    class Canary(GreeterUser):
        pass
    stop = locust_worker.LocustWorker._stop
    def stop_soon(self, message):
        if self._generator is not None:
            locust_worker._GENERATOR_TIMEOUT = 1.0
        return stop(self, message)
    locust_worker.LocustWorker._stop = stop_soon
"""

# A locustfile whose worker runs a statement before it handles a command.
INTERCEPTS_COMMAND = """
    import gevent
    from greeter.loadtest.distributed import locust_worker
    from greeter.loadtest.locust import GreeterUser
    class Canary(GreeterUser):
        pass
    dispatch = locust_worker.LocustWorker._dispatch
    def intercepted(self, message):
        if message["command"] == "{}":
            {}
        dispatch(self, message)
    locust_worker.LocustWorker._dispatch = intercepted
"""


async def a_generator_freezes(locusts: LocustProcesses) -> None:
    """The generator stops responding; the worker still sends heartbeats."""
    async with serving_and_counting(greet) as (target, accepted_clients):
        options = ("-H", target, "-t", "4s", "--greeter-rate", "100", "--greeter-timeout", "1s")
        short_wait = locusts.locustfile(SHORT_WAIT_FOR_RESULTS, "short_wait")
        master = await locusts.master(*options, file=short_wait, workers=1)
        worker = await locusts.worker(file=locusts.locustfile(SHORT_STOP, "short_stop"))
        await wait_for_clients(accepted_clients, 20)
        [generator] = generators(worker.process.pid)
        os.kill(generator, signal.SIGSTOP)
        assert await master.ended() == 1
        assert await worker.ended() == 0, "it kills its generator"
    [part] = locusts.report().generator["parts"]
    assert part["lost"] == "it did not report in time"


async def a_worker_is_stopped_on_the_way(locusts: LocustProcesses) -> None:
    """Stopped between readiness and start: the others start without it."""
    stop = "self._environment.events.test_stopping.fire(environment=self._environment)"
    async with serving(greet) as target:
        intercepted = locusts.locustfile(INTERCEPTS_COMMAND.format("begin", stop))
        master = await locusts.master("-H", target, "-t", "1s", "--greeter-rate", "50")
        workers = [await locusts.worker(), await locusts.worker(file=intercepted)]
        code = await master.ended()
        assert [await worker.ended() for worker in workers] == [0, 0]
    report = locusts.report()
    assert code == report.exit_code
    assert code in (1, 98)
    lost, other = sorted(report.generator["parts"], key=lambda part: not part["lost"])
    assert lost["lost"].endswith(" cannot take part: it was stopped before the run started")
    assert other["attempted"] + other["unstarted"] == 25


async def a_worker_without_our_user(locusts: LocustProcesses) -> None:
    file = locusts.locustfile(
        """
        from locust import User, task
        class Canary(User):
            @task
            def idle(self):
                pass
        """
    )
    master = await locusts.master(
        workers=1, file=locusts.locustfile(SHORT_TIMEOUTS.format(2.0), "short_timeouts")
    )
    worker = await locusts.worker(file=file)
    assert await master.ended() == 1
    await worker.ended()
    [line] = master.errors()
    assert line.startswith("greeter: worker ")
    assert "has ended, or has no GreeterUser" in line
    assert not locusts.json.exists()


async def a_worker_that_blocks(locusts: LocustProcesses) -> None:
    master = await locusts.master(
        workers=1, file=locusts.locustfile(SHORT_TIMEOUTS.format(2.0), "short_timeouts")
    )
    worker = await locusts.worker(
        file=locusts.locustfile(INTERCEPTS_COMMAND.format("prepare", "gevent.sleep(60)"))
    )
    assert await master.ended() == 1
    await worker.ended()
    [line] = master.errors()
    assert " did not reply within " in line
    assert not locusts.json.exists()


async def interrupted_without_results(locusts: LocustProcesses) -> None:
    """Without results there is no report, and no partial file."""
    async with serving_and_counting(greet) as (target, accepted_clients):
        short_timeouts = locusts.locustfile(SHORT_TIMEOUTS.format(30.0), "short_timeouts")
        options = ("-H", target, "-t", "60s", "--greeter-rate", "100")
        master = await locusts.master(*options, file=short_timeouts, workers=1)
        worker = await locusts.worker()
        await wait_for_clients(accepted_clients, 20)
        worker.process.send_signal(signal.SIGSTOP)
        master.process.send_signal(signal.SIGINT)
        assert await master.ended() == 130
    assert master.errors() == ["greeter: interrupted, and the workers did not report in time: no report"]
    assert not locusts.json.exists()


async def from_the_web_page(locusts: LocustProcesses) -> None:
    """Locust keeps running after a run from the web page, and can start another."""
    async with serving(greet) as target:
        port = str(free_port())
        locust = await locusts.locust(
            *("--web-host", "127.0.0.1", "--web-port", port, "--greeter-json", str(locusts.json)),
            file=locusts.locustfile(SHORT_TIMEOUTS.format(30.0)),
        )
        old = locusts.directory / "old.json"
        form = {"user_count": 1, "spawn_rate": 1, "host": target}
        for count, more in ((20, {}), (30, {"greeter_baseline": str(old), "greeter_tolerance": "1000000%"})):
            form |= {"greeter_count": count, **more}
            await fetch(f"http://127.0.0.1:{port}/swarm", urlencode(form).encode())
            async with asyncio.timeout(PATIENCE):
                # In this order: until there is a report, the state may be that of the run before.
                while not locusts.json.exists() or await state_at(port) != "stopped":  # noqa: ASYNC110
                    await asyncio.sleep(0.05)  # the other process has no event to wait for
            report = locusts.report()
            assert report.plan["count"] == count
            assert report.connections["greeted"] == count
            locusts.json.rename(old)
        assert report.baseline is not None
        assert (report.baseline["name"], report.baseline["tolerance_percent"]) == (str(old), 1000000)
        locust.process.send_signal(signal.SIGTERM)
        assert await locust.ended() == 0


async def state_at(port: str) -> str:
    state: str = json.loads(await fetch(f"http://127.0.0.1:{port}/stats/requests"))["state"]
    return state


async def fetch(url: str, data: bytes | None = None) -> bytes:
    """Return the response of a server that may not listen yet."""

    def ask() -> bytes:
        with urlopen(url, data, timeout=PATIENCE) as answer:
            text: bytes = answer.read()
            return text

    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await asyncio.to_thread(ask)
            except URLError as error:
                if not isinstance(error.reason, ConnectionRefusedError):
                    raise
            await asyncio.sleep(0.05)  # there is no event for a port being listened on


# A closed loop, which cannot be late.
CLOSED_LOOP = """
    from greeter.loadtest.locust import GreeterUser
    class Canary(GreeterUser):
        pass
"""


async def without_a_master(locusts: LocustProcesses) -> None:
    """A local run without a master, against a target that refuses connections."""
    options = (
        "-H",
        refused_endpoint(),
        "-u",
        "2",
        "--greeter-count",
        "50",
        "--greeter-json",
        str(locusts.json),
    )
    file = locusts.locustfile(CLOSED_LOOP)
    locust = await locusts.locust("--headless", "--only-summary", *options, file=file)
    assert await locust.ended() == 1
    report = locusts.report()
    assert report.plan["mode"] == "closed"
    assert report.errors["connect_refused"] == 50
    assert report.verdict in locust.out
    assert "connect_refused" in locust.log, "also among Locust's errors"


async def no_worker_connects(locusts: LocustProcesses) -> None:
    master = await locusts.master("--expect-workers-max-wait", "1")
    assert await master.ended() == 1
    assert master.errors() == ["locust.main: Gave up waiting for workers to connect"]
    assert not locusts.json.exists()


async def another_version(locusts: LocustProcesses) -> None:
    file = locusts.locustfile(
        """
        import gevent, greeter
        from locust import events
        events.init.add_listener(lambda **_: gevent.sleep(1.5))  # connected, but not handling messages yet
        greeter.__version__ = "0.0.7"
        from greeter.loadtest.locust import GreeterUser
        class Canary(GreeterUser):
            pass
        """
    )
    master = await locusts.master("-H", refused_endpoint(), workers=1)
    worker = await locusts.worker(file=file)
    assert await master.ended() == 2
    assert await worker.ended() == 0
    from greeter import __version__

    [line] = master.errors()
    assert line.startswith("greeter: worker ")
    assert line.endswith(f" cannot take part: it has greeter 0.0.7, and the master {__version__}")
    assert not locusts.json.exists()


async def an_invalid_plan(locusts: LocustProcesses) -> None:
    """Reported before waiting for workers."""
    for options, message in (
        (
            ["--greeter-threshold", "response:p99"],
            "threshold 'response:p99' is not of the form METRIC:STAT<VALUE",
        ),
        (["--greeter-rate", "many"], "'many' is not a number"),
        (["--greeter-baseline", "/nowhere.json"], "cannot read '/nowhere.json': no such file or directory"),
        (["--greeter-tolerance", "some"], "'some' is not a percentage"),
        (["--greeter-tolerance", "nan"], "'nan' is not a percentage"),
        (["--greeter-tolerance", "20"], "--greeter-tolerance requires --greeter-baseline"),
        (["--greeter-csv", "/no/x"], "--greeter-csv: cannot write /no/x: no such file or directory"),
        (["--greeter-until", "then"], "until must be eof, line, reply, text:TEXT, "),
        (["--greeter-proxy-protocol", "v3"], "proxy protocol must be v1 or v2, not 'v3'"),
    ):
        master = await locusts.master(*options)
        assert await master.ended() == 2
        [line] = master.errors()
        assert line.startswith(f"greeter: {message}")
        assert not locusts.json.exists()


async def an_invalid_class(locusts: LocustProcesses) -> None:
    file = locusts.locustfile(
        """
        from greeter.loadtest.locust import GreeterUser
        class Canary(GreeterUser):
            plan = {"speed": 9}
        class Finch(GreeterUser):
            pass
        """
    )
    master = await locusts.master("Canary", file=file)
    assert await master.ended() == 2
    assert "the plan of Canary is invalid: " in master.errors()[0]
    assert "'speed'" in master.errors()[0]
    master = await locusts.master(file=file)
    assert await master.ended() == 2
    assert "a run has one GreeterUser: choose one of " in master.errors()[0]


async def without_the_extra(locusts: LocustProcesses) -> None:
    code = "import sys; sys.modules['locust'] = None; import greeter.loadtest.locust"
    python = await locusts.start("-c", code)
    assert await python.ended() == 1
    line = python.log.strip().splitlines()[-1]
    assert line.endswith(" needs an optional package: pip install '.[locust]' in greeter's source tree")


async def an_unwritable_output(locusts: LocustProcesses) -> None:
    path = locusts.directory / "nowhere" / "run.json"
    options = ("-H", refused_endpoint(), "--greeter-count", "10", "--greeter-json", str(path))
    file = locusts.locustfile(CLOSED_LOOP)
    locust = await locusts.locust("--headless", "--only-summary", *options, file=file)
    assert await locust.ended() == 2, "reported before the run"
    message = f"greeter: --greeter-json: cannot write {path}: no such file or directory"
    assert locust.errors() == [message]
    # A failure after the run affects neither the other outputs nor the exit code of a missed threshold.
    limit = ("--greeter-csv", str(locusts.json), "--greeter-threshold", "errors:count<1")
    others = (*options[:-1], "/dev/full", *limit)
    locust = await locusts.locust("--headless", "--only-summary", *others, file=file)
    assert await locust.ended() == 99
    assert locust.errors() == ["greeter: cannot write /dev/full: no space left on device"]
    assert locusts.json.read_text().startswith("t_s,")


async def stages_and_a_class_with_a_duration(locusts: LocustProcesses) -> None:
    """The stages determine the length of the run, not the duration of the class."""
    options = ("-H", refused_endpoint(), "--greeter-stage", "200ms:100", "--greeter-json", str(locusts.json))
    locust = await locusts.locust("--headless", "--only-summary", *options)
    assert await locust.ended() in (1, 98, 99)
    assert locust.errors() == []
    assert locusts.report().plan["stages"] == [{"duration_s": 0.2, "rate": 100.0}]


SCENARIOS = (
    a_worker_dies,  # the longest first
    two_workers_and_a_master,
    a_script,
    a_script_interrupted,
    an_invalid_plan,
    interrupted,
    a_generator_freezes,
    a_generator_dies,
    from_the_web_page,
    interrupted_without_results,
    a_worker_is_stopped_on_the_way,
    a_worker_that_blocks,
    a_worker_without_our_user,
    another_version,
    without_a_master,
    an_invalid_class,
    no_worker_connects,
    an_unwritable_output,
    stages_and_a_class_with_a_duration,
    without_the_extra,
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exception | None]:
    """Run all scenarios, several at the same time, and return their errors."""
    directory = tmp_path_factory.mktemp("locust")

    async def run_all() -> dict[str, Exception | None]:
        limit = asyncio.Semaphore(CONCURRENT_SCENARIOS)

        async def one(scenario: Any) -> Exception | None:
            async with limit, LocustProcesses(directory / scenario.__name__) as locusts:
                try:
                    await scenario(locusts)
                except (Exception, AssertionError) as error:
                    for locust in locusts._started:
                        error.add_note(f"-- {locust.process}\n{locust.out}{locust.log}")
                    return error
            return None

        found = await asyncio.gather(*map(one, SCENARIOS))
        return {scenario.__name__: error for scenario, error in zip(SCENARIOS, found, strict=True)}

    return asyncio.run(run_all())


@pytest.mark.parametrize("scenario", [scenario.__name__ for scenario in SCENARIOS])
def test_scenario(scenario: str, outcomes: dict[str, Exception | None]) -> None:
    if error := outcomes[scenario]:
        raise error


def test_the_examples_are_short() -> None:
    for path in Path(ROOT, "examples/distributed").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 40, path
