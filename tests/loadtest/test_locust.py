"""Locust with greeter's generator: masters and workers on this machine, each a process of its own.

Locust replaces the sockets of a process that imports it, so that this one does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
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
from tests.support.loadtest_peers import (
    checked,
    greet,
    refused_endpoint,
    serving,
    serving_and_counting,
    wait_for_clients,
)

pytestmark = pytest.mark.one_interpreter
if find_spec("locust") is None:
    pytest.skip("needs the extra locust", allow_module_level=True)

# As many scenarios at a time as the machine can start processes for, with most of them waiting.
AT_ONCE = 4


class Locust:
    """A Locust that was started, and what it says, on its way to two files."""

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

    def complaints(self) -> list[str]:
        """What it logged as errors, without the time and the machine; and nothing was a surprise."""
        assert "Traceback" not in self.log
        return [line.partition("/ERROR/")[2] for line in self.log.splitlines() if "/ERROR/" in line]


def free_port() -> int:
    """A port that nobody has, and that no client is given: Locust's master cannot tell of a port 0."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def traced() -> dict[str, str]:
    """The environment for a process whose lines are measured, if any are: Locust runs them in greenlets."""
    environment = dict(os.environ)
    if text := environment.get("COVERAGE_PROCESS_CONFIG"):
        from coverage.config import CoverageConfig

        config = CoverageConfig.deserialize(text)
        config.concurrency = ["thread", "greenlet"]
        environment["COVERAGE_PROCESS_CONFIG"] = config.serialize()
    return environment


class Fleet:
    """Processes that are gone when it is left."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.json = directory / "run.json"
        self._started: list[Locust] = []
        self.port = str(free_port())

    async def __aenter__(self) -> Fleet:
        self.directory.mkdir()
        return self

    async def __aexit__(self, *_: object) -> None:
        for locust in self._started:
            if locust.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(locust.process.pid, signal.SIGKILL)  # the group that it leads, see below
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
                env=traced(),
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


# It keeps what every worker reported, as it came.
KEEPING = """
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


async def two_workers_and_a_master(fleet: Fleet) -> None:
    """All that was counted arrives, and is judged; options go before the plan of the class."""
    file = fleet.locustfile(KEEPING)
    async with greeter_process("serve", "--listen", "127.0.0.1:0", "--no-access-log") as server:
        options = ("-H", server.address, "-t", "2s", "-u", "99", "--greeter-rate", "300")
        workers = [await fleet.worker(file=file) for _ in range(2)]
        master = await fleet.master(*options, file=file)
        code = await master.ended()
        assert [await worker.ended() for worker in workers] == [0, 0]
        await server.stop()
    report = fleet.report()
    assert code == report.exit_code
    assert code == (98 if report.generator["saturated"] else 99), "a machine may be too busy for anything"
    assert report.thresholds[0]["expr"] == "response:p50<2us"
    assert not report.passed
    assert report.plan["connections"] == 99
    assert report.plan["workers"] == 2
    assert "MISSED  response:p50<2us" in master.out

    counted = [
        RunMetrics.from_json(json.loads(path.read_text())) for path in fleet.directory.glob("*_*.json")
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
    assert f"{connections['greeted']}     0(0.00%)" in master.log, "Locust's own statistics have them too"

    # The percentiles are those of all samples, each as its histogram has it, in a row.
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


async def a_script(fleet: Fleet) -> None:
    """The example of a master with two workers, and every file that there is."""
    names = ("json", "html", "csv", "hdr")
    outputs = [word for name in names for word in (f"--greeter-{name}", str(fleet.directory / f"run.{name}"))]
    if find_spec("plotly") is None or find_spec("jinja2") is None:
        del outputs[2:4]
    async with serving(greet) as target:
        script = await fleet.start("examples/distributed/run.py", "-H", target, *outputs)
        code = await script.ended()
    report = fleet.report()
    assert code == report.exit_code
    if code != 98:  # on a machine that is too busy
        assert code == 0
        attempted = 400 - report.connections["unstarted"]  # what is due at the very end may come too late
        assert script.out.strip().splitlines()[-1].startswith(f"All {attempted} clients were greeted")
    assert report.plan["expect"] == "Thank you"
    written = {name for name in os.listdir(fleet.directory) if name.startswith("run.")}
    assert written == {os.path.basename(path) for path in outputs[1::2]}


async def a_worker_dies(fleet: Fleet) -> None:
    async with serving_and_counting(greet) as (target, came):
        page = fleet.directory / "run.html"
        drawn = find_spec("plotly") is not None and find_spec("jinja2") is not None
        options = ("-H", target, "-t", "3s", "--greeter-rate", "100")
        master = await fleet.master(*options, *(("--greeter-html", str(page)) if drawn else ()))
        workers = [await fleet.worker() for _ in range(2)]
        await wait_for_clients(came, 50)
        workers[0].process.kill()
        code = await master.ended()
        assert await workers[1].ended() == 0
    report = fleet.report()
    assert code == report.exit_code
    assert code in (1, 98)
    lost, other = sorted(report.generator["parts"], key=lambda part: not part["lost"])
    assert lost["lost"] == "it sends no heartbeat"
    assert (lost["attempted"], other["lost"]) == (0, None)
    assert report.connections["attempted"] == other["attempted"] > 0
    assert report.connections["attempted"] <= 150
    text = f"worker {lost['name']} was lost, and with it 150 of 300 connections: it sends no heartbeat"
    assert text in master.out
    assert "A part of the load is missing, that of 1 of 2 workers." in master.out
    if drawn:
        assert "✗ lost: it sends no heartbeat" in page.read_text(encoding="utf-8")


def generators(pid: int) -> list[int]:
    """The generators among the children of a process, and not Locust's other helpers."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(c)
        for c in children
        if b"loadtest.generator.worker_main" in Path(f"/proc/{c}/cmdline").read_bytes()
    ]


async def a_generator_dies(fleet: Fleet) -> None:
    """The process under a Locust worker; the worker itself is well. The limit of the class is missed."""
    async with serving_and_counting(greet) as (target, came):
        master = await fleet.master("-H", target, "-t", "60s", "--greeter-rate", "100", workers=1)
        worker = await fleet.worker()
        await wait_for_clients(came, 20)
        [generator] = generators(worker.process.pid)
        os.kill(generator, signal.SIGKILL)
        assert await master.ended() == 99
        await worker.ended()
    [part] = fleet.report().generator["parts"]
    assert part["lost"] == "its generator ended with status -9"


async def interrupted(fleet: Fleet) -> None:
    async with serving_and_counting(greet) as (target, came):
        master = await fleet.master("-H", target, "-t", "60s", "--greeter-rate", "100", workers=1)
        worker = await fleet.worker()
        await wait_for_clients(came, 50)
        master.process.send_signal(signal.SIGINT)
        assert await master.ended() == 130
        assert await worker.ended() == 0
    report = fleet.report()
    assert report.interrupted
    # The last of those who came may have been cut off, which is not an attempt.
    assert report.connections["attempted"] + report.connections["cut_off"] >= 50
    assert "Interrupted after " in master.out


async def a_script_interrupted(fleet: Fleet) -> None:
    """As by Ctrl-C, which all of its processes have: the master still reports."""
    async with serving_and_counting(greet) as (target, came):
        options = ("-H", target, "-t", "60s", "--greeter-rate", "100", "--greeter-json", str(fleet.json))
        script = await fleet.start("examples/distributed/run.py", *options)
        await wait_for_clients(came, 50)
        os.killpg(script.process.pid, signal.SIGINT)
        assert await script.ended() == 130
    assert script.complaints() == []
    assert fleet.report().interrupted


# A master that does not wait as long as others do.
IMPATIENT = """
    import greeter.loadtest.distributed.conductor as conductor
    from greeter.loadtest.locust import GreeterUser
    conductor._PATIENCE_SECONDS, conductor._LAST_PATIENCE_SECONDS = {}, 1.0
    class Canary(GreeterUser):
        pass
"""

# A worker to which something happens on the way; Locust's own users of it are none.
DISTURBED = """
    import gevent
    from greeter.loadtest.distributed import station
    from greeter.loadtest.locust import GreeterUser
    station._PATIENCE_SECONDS = 5.0
    class Canary(GreeterUser):
        pass
    obey = station.Station._obey
    def disturbed(self, order):
        if order["verb"] == "{}":
            {}
        obey(self, order)
    station.Station._obey = disturbed
"""


async def a_generator_freezes(fleet: Fleet) -> None:
    """The worker is well and says so; what it waits for does not come."""
    async with serving_and_counting(greet) as (target, came):
        impatient = fleet.locustfile(IMPATIENT.format(5.0), "impatient")
        options = ("-H", target, "-t", "2s", "--greeter-rate", "100", "--greeter-timeout", "1s")
        master = await fleet.master(*options, file=impatient, workers=1)
        worker = await fleet.worker(file=fleet.locustfile(DISTURBED.format("none", "pass"), "worker"))
        await wait_for_clients(came, 20)
        [generator] = generators(worker.process.pid)
        os.kill(generator, signal.SIGSTOP)
        assert await master.ended() == 1
        assert await worker.ended() == 0, "it ends its generator"
    [part] = fleet.report().generator["parts"]
    assert part["lost"] == "it did not report in time"


async def a_worker_is_stopped_on_the_way(fleet: Fleet) -> None:
    """Between its readiness and the beginning: the others begin without it."""
    stop = "self._environment.events.test_stopping.fire(environment=self._environment)"
    async with serving(greet) as target:
        disturbed = fleet.locustfile(DISTURBED.format("begin", stop))
        master = await fleet.master("-H", target, "-t", "1s", "--greeter-rate", "50")
        workers = [await fleet.worker(), await fleet.worker(file=disturbed)]
        code = await master.ended()
        assert [await worker.ended() for worker in workers] == [0, 0]
    report = fleet.report()
    assert code == report.exit_code
    assert code in (1, 98)
    lost, other = sorted(report.generator["parts"], key=lambda part: not part["lost"])
    assert lost["lost"].endswith(" cannot take part: it was stopped before the run began")
    assert other["attempted"] + other["unstarted"] == 25


async def a_worker_without_our_user(fleet: Fleet) -> None:
    file = fleet.locustfile(
        """
        from locust import User, task
        class Canary(User):
            @task
            def be_there(self):
                pass
        """
    )
    master = await fleet.master(workers=1, file=fleet.locustfile(IMPATIENT.format(2.0), "impatient"))
    worker = await fleet.worker(file=file)
    assert await master.ended() == 1
    await worker.ended()
    [line] = master.complaints()
    assert line.startswith("greeter: worker ")
    assert "is gone, or has no GreeterUser" in line
    assert not fleet.json.exists()


async def a_worker_that_gets_stuck(fleet: Fleet) -> None:
    master = await fleet.master(workers=1, file=fleet.locustfile(IMPATIENT.format(2.0), "impatient"))
    worker = await fleet.worker(file=fleet.locustfile(DISTURBED.format("prepare", "gevent.sleep(60)")))
    assert await master.ended() == 1
    await worker.ended()
    [line] = master.complaints()
    assert " did not answer within " in line
    assert not fleet.json.exists()


async def interrupted_in_vain(fleet: Fleet) -> None:
    """There is no report when nobody reports, and no half of one."""
    async with serving_and_counting(greet) as (target, came):
        impatient = fleet.locustfile(IMPATIENT.format(30.0), "impatient")
        options = ("-H", target, "-t", "60s", "--greeter-rate", "100")
        master = await fleet.master(*options, file=impatient, workers=1)
        worker = await fleet.worker()
        await wait_for_clients(came, 20)
        worker.process.send_signal(signal.SIGSTOP)
        master.process.send_signal(signal.SIGINT)
        assert await master.ended() == 130
    assert master.complaints() == ["greeter: interrupted, and the workers do not report: there is no report"]
    assert not fleet.json.exists()


async def from_the_web_page(fleet: Fleet) -> None:
    """Locust stays after a run that was started there, and can start another."""
    async with serving(greet) as target:
        port = str(free_port())
        locust = await fleet.locust(
            *("--web-host", "127.0.0.1", "--web-port", port, "--greeter-json", str(fleet.json)),
            file=fleet.locustfile(IMPATIENT.format(30.0)),
        )
        old = fleet.directory / "old.json"
        form = {"user_count": 1, "spawn_rate": 1, "host": target}
        for count, more in ((20, {}), (30, {"greeter_baseline": str(old), "greeter_tolerance": "1000000%"})):
            form |= {"greeter_count": count, **more}
            await answered(f"http://127.0.0.1:{port}/swarm", urlencode(form).encode())
            async with asyncio.timeout(PATIENCE):
                while await state_at(port) != "stopped" or not fleet.json.exists():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)  # another process has no event for us
            report = fleet.report()
            assert report.plan["count"] == count
            assert report.connections["greeted"] == count
            fleet.json.rename(old)
        assert report.baseline is not None
        assert (report.baseline["name"], report.baseline["tolerance_percent"]) == (str(old), 1000000)
        locust.process.send_signal(signal.SIGTERM)
        assert await locust.ended() == 0


async def state_at(port: str) -> str:
    state: str = json.loads(await answered(f"http://127.0.0.1:{port}/stats/requests"))["state"]
    return state


async def answered(url: str, data: bytes | None = None) -> bytes:
    """What is answered there, by a server that may be on its way."""

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
            await asyncio.sleep(0.05)  # a port has no event that would tell of a listener


# No rate: a closed loop, which cannot be late.
PLAIN = """
    from greeter.loadtest.locust import GreeterUser
    class Canary(GreeterUser):
        pass
"""


async def without_a_master(fleet: Fleet) -> None:
    """Locust for itself; and a target that nobody answers for."""
    options = (
        "-H",
        refused_endpoint(),
        "-u",
        "2",
        "--greeter-count",
        "50",
        "--greeter-json",
        str(fleet.json),
    )
    file = fleet.locustfile(PLAIN)
    locust = await fleet.locust("--headless", "--only-summary", *options, file=file)
    assert await locust.ended() == 1
    report = fleet.report()
    assert report.plan["mode"] == "closed"
    assert report.errors["connect_refused"] == 50
    assert report.verdict in locust.out
    assert "connect_refused" in locust.log, "also among Locust's errors"


async def nobody_comes(fleet: Fleet) -> None:
    master = await fleet.master("--expect-workers-max-wait", "1")
    assert await master.ended() == 1
    assert master.complaints() == ["locust.main: Gave up waiting for workers to connect"]
    assert not fleet.json.exists()


async def another_version(fleet: Fleet) -> None:
    file = fleet.locustfile(
        """
        import gevent, greeter
        from locust import events
        events.init.add_listener(lambda **_: gevent.sleep(1.5))  # connected, and not yet to be spoken to
        greeter.__version__ = "0.0.7"
        from greeter.loadtest.locust import GreeterUser
        class Canary(GreeterUser):
            pass
        """
    )
    master = await fleet.master("-H", refused_endpoint(), workers=1)
    worker = await fleet.worker(file=file)
    assert await master.ended() == 2
    assert await worker.ended() == 0
    from greeter import __version__

    [line] = master.complaints()
    assert line.startswith("greeter: worker ")
    assert line.endswith(f" cannot take part: it has greeter 0.0.7, and the master {__version__}")
    assert not fleet.json.exists()


async def what_is_wrong_with_the_plan(fleet: Fleet) -> None:
    """Said before anybody waits for a worker."""
    for options, words in (
        (
            ["--greeter-threshold", "response:p99"],
            "threshold 'response:p99' is not of the form METRIC:STAT<VALUE",
        ),
        (["--greeter-rate", "many"], "'many' is not a number"),
        (["--greeter-baseline", "/nowhere.json"], "cannot read '/nowhere.json': no such file or directory"),
        (["--greeter-tolerance", "some"], "'some' is not a percentage"),
        (["--greeter-tolerance", "nan"], "'nan' is not a percentage"),
        (["--greeter-tolerance", "20"], "--greeter-tolerance means nothing without --greeter-baseline"),
        (["--greeter-csv", "-"], "--greeter-csv takes a path; standard output is /dev/stdout, not -"),
    ):
        master = await fleet.master(*options)
        assert await master.ended() == 2
        [line] = master.complaints()
        assert line.startswith(f"greeter: {words}")
        assert not fleet.json.exists()


async def what_is_wrong_with_the_class(fleet: Fleet) -> None:
    file = fleet.locustfile(
        """
        from greeter.loadtest.locust import GreeterUser
        class Canary(GreeterUser):
            plan = {"speed": 9}
        class Finch(GreeterUser):
            pass
        """
    )
    master = await fleet.master("Canary", file=file)
    assert await master.ended() == 2
    assert "the plan of Canary is none: " in master.complaints()[0]
    assert "'speed'" in master.complaints()[0]
    master = await fleet.master(file=file)
    assert await master.ended() == 2
    assert "one load at a time: choose one of " in master.complaints()[0]


async def no_extra(fleet: Fleet) -> None:
    code = "import sys; sys.modules['locust'] = None; import greeter.loadtest.locust"
    python = await fleet.start("-c", code)
    assert await python.ended() == 1
    line = python.log.strip().splitlines()[-1]
    assert line.endswith(" needs an optional package: pip install '.[locust]' in greeter's source tree")


async def nowhere_to_write(fleet: Fleet) -> None:
    path = fleet.directory / "nowhere" / "run.json"
    options = ("-H", refused_endpoint(), "--greeter-count", "10", "--greeter-json", str(path))
    file = fleet.locustfile(PLAIN)
    locust = await fleet.locust("--headless", "--only-summary", *options, file=file)
    assert await locust.ended() == 2, "it is said before the run"
    words = f"greeter: --greeter-json: cannot write {path}: no such file or directory"
    assert locust.complaints() == [words]
    # One that fails after the run loses neither the others nor the exit code of a missed threshold.
    limit = ("--greeter-csv", str(fleet.json), "--greeter-threshold", "errors:count<1")
    others = (*options[:-1], "/dev/full", *limit)
    locust = await fleet.locust("--headless", "--only-summary", *others, file=file)
    assert await locust.ended() == 99
    assert locust.complaints() == ["greeter: cannot write /dev/full: no space left on device"]
    assert fleet.json.read_text().startswith("t_s,")


async def stages_and_a_class_with_a_duration(fleet: Fleet) -> None:
    """Stages say how long the run is, whatever the class says."""
    options = ("-H", refused_endpoint(), "--greeter-stage", "200ms:100", "--greeter-json", str(fleet.json))
    locust = await fleet.locust("--headless", "--only-summary", *options)
    assert await locust.ended() in (1, 98, 99)
    assert locust.complaints() == []
    assert fleet.report().plan["stages"] == [{"duration_s": 0.2, "rate": 100.0}]


SCENARIOS = (
    a_worker_dies,  # the longest first
    two_workers_and_a_master,
    a_script,
    a_script_interrupted,
    what_is_wrong_with_the_plan,
    interrupted,
    a_generator_freezes,
    a_generator_dies,
    from_the_web_page,
    interrupted_in_vain,
    a_worker_is_stopped_on_the_way,
    a_worker_that_gets_stuck,
    a_worker_without_our_user,
    another_version,
    without_a_master,
    what_is_wrong_with_the_class,
    nobody_comes,
    nowhere_to_write,
    stages_and_a_class_with_a_duration,
    no_extra,
)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exception | None]:
    """Every scenario, several at the same time: most of what they do is wait."""
    directory = tmp_path_factory.mktemp("locust")

    async def play() -> dict[str, Exception | None]:
        room = asyncio.Semaphore(AT_ONCE)

        async def one(scenario: Any) -> Exception | None:
            async with room, Fleet(directory / scenario.__name__) as fleet:
                try:
                    await scenario(fleet)
                except (Exception, AssertionError) as error:
                    for locust in fleet._started:
                        error.add_note(f"-- {locust.process}\n{locust.out}{locust.log}")
                    return error
            return None

        found = await asyncio.gather(*map(one, SCENARIOS))
        return {scenario.__name__: error for scenario, error in zip(SCENARIOS, found, strict=True)}

    return asyncio.run(play())


@pytest.mark.parametrize("scenario", [scenario.__name__ for scenario in SCENARIOS])
def test_scenario(scenario: str, played: dict[str, Exception | None]) -> None:
    if error := played[scenario]:
        raise error


def test_the_examples_are_short() -> None:
    for path in Path(ROOT, "examples/distributed").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 40, path
