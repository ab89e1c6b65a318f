"""What a service logs of its own life, from real processes: to a pipe, as JSON, and on a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import select
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import PATIENCE, ROOT, greeter_process, one_loop, run_greeter
from tests.support.peers import connect, read_to_end
from tests.support.service_peers import children, lines_with

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = one_loop


@pytest.mark.parametrize("source", ["flag", "flag with =", "environment", "file"])
@pytest.mark.parametrize(
    ("wrong", "code", "text"),
    [
        (["--backlog", "many"], 2, "many"),
        (["--no-such-option"], 2, "--no-such-option"),
        (["--app", "no_such_module:greet"], 2, "no_such_module"),
        (["--listen", "unix:/no/such/folder/sock"], 1, "/no/such/folder"),
    ],
)
async def test_errors_at_the_start_are_json_lines(
    source: str, wrong: list[str], code: int, text: str, tmp_path: Path
) -> None:
    (tmp_path / "greeter.toml").write_text('log-format = "json"\n')
    json_log = {
        "flag": ["--log-format", "json"],
        "flag with =": ["--log-format=json"],
        "file": ["--config", f"{tmp_path}/greeter.toml"],
    }.get(source, [])
    env = {"GREETER_LOG_FORMAT": "json"} if source == "environment" else {}
    found, out, err = await run_greeter("serve", "--listen", "127.0.0.1:0", *json_log, *wrong, env=env)
    assert (found, out) == (code, "")
    *_, last = [json.loads(line) for line in err.splitlines()]
    assert (last["level"], last["event"]) == ("error", "start_failed")
    assert text in last["message"]


async def test_other_commands_ignore_the_log_format() -> None:
    code, _, err = await run_greeter("greet", "127.0.0.1:1", env={"GREETER_LOG_FORMAT": "json"})
    assert code == 1
    assert err.startswith("greeter: ")


@pytest.mark.thorough
async def test_a_worker_that_takes_the_place_of_another_is_logged() -> None:
    args = ("--listen", "127.0.0.1:0", "--workers", "2", "--log-format", "json")
    async with greeter_process("serve", *args, ready='"listening", "address": "') as service:
        old = children(service.pid)[0]
        os.kill(old, signal.SIGKILL)
        entry = json.loads(await service.line_with("serves in place of"))
        assert (entry["event"], entry["level"], entry["replaces"]) == ("worker_ready", "info", old)
        assert entry["worker"] in children(service.pid)
        died = json.loads(await service.line_with("was killed by SIGKILL"))
        assert (died["event"], died["worker"]) == ("worker", old)
        service.process.send_signal(signal.SIGHUP)
        replaced = [json.loads(line) for line in await lines_with(service, "serves in place of", 3)]
        assert {e["worker"] for e in replaced[1:]} == set(children(service.pid)) - {
            e["replaces"] for e in replaced
        }
        assert await service.stop() == 0
    assert {json.loads(line)["pid"] for line in service.lines if "serves in place" in line} == {service.pid}


@pytest.mark.parametrize(
    ("options", "wanted", "source"),
    [
        ((), 3, "descriptors"),
        (("--max-connections", "3"), 3, "max-connections"),
        (("--max-connections", "3", "--workers", "2"), 4, "max-connections"),  # rounded up, for each
        (("--max-connections", "1000000"), 3, "descriptors"),
    ],
)
async def test_the_limit_on_connections_and_its_source_are_logged_behind_the_addresses(
    options: tuple[str, ...], wanted: int, source: str
) -> None:
    args = ("--listen", "127.0.0.1:0", "--log-format", "json", *options)
    async with greeter_process("serve", *args, ready='"limit"') as service:
        assert await service.stop() == 0
    entries = [json.loads(line) for line in service.lines]
    events = [entry.get("event") for entry in entries]
    entry = entries[events.index("limit")]
    assert events.index("limit") == events.index("listening") + 1
    assert entry["source"] == source
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if source == "descriptors":
        assert hard - 100 < entry["max_connections"] < hard
        assert entry["message"].endswith(f"(descriptor limit {hard} for each process)")
    else:
        assert entry["message"] == f"At most {wanted} connections at once (--max-connections)"


class Terminal:
    """A terminal on which a service logs. The test sees what it shows."""

    def __init__(self) -> None:
        self.main, self.inner = os.openpty()
        self.shown = ""

    async def shows(self, text: str) -> None:
        """Wait until the terminal shows ``text``."""
        async with asyncio.timeout(PATIENCE):
            while text not in self.shown:
                self.shown += (await asyncio.to_thread(os.read, self.main, 65536)).decode().replace("\r", "")

    def close(self) -> None:
        os.close(self.main)
        os.close(self.inner)


async def life_on_a_terminal(*args: str, env: dict[str, str]) -> tuple[str, tuple[str, int]]:
    """What a terminal shows of a service that greets one client; and the address of the client."""
    terminal = Terminal()
    environ = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | env
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "greeter", "serve", "--listen", "127.0.0.1:0", *args),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=terminal.inner,
            cwd=ROOT,
            env=environ,
        )
        await terminal.shows("Press Ctrl-C to stop")
        port = re.search(r"Listening on 127\.0\.0\.1:(\d+) ", terminal.shown)
        assert port
        client = await connect(int(port[1]))
        name = client.getsockname()
        await read_to_end(client)
        await terminal.shows(f"{name}")
        process.send_signal(signal.SIGINT)
        await terminal.shows(" 0 failed")  # of the last line, which may come in pieces
        assert await asyncio.wait_for(process.wait(), PATIENCE) == 0
        return terminal.shown, name
    finally:
        terminal.close()


@pytest.mark.parametrize(
    ("env", "coloured"), [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False)]
)
async def test_on_a_terminal_lines_have_the_time_and_the_line_of_a_client_is_plain(
    env: dict[str, str], coloured: bool
) -> None:
    shown, name = await life_on_a_terminal(env=env)
    assert ("\x1b[" in shown) is coloured
    lines = re.sub(r"\x1b\[\d*m", "", shown).splitlines()
    assert f"Got a connection from {name}" in shown.splitlines()
    others = [line for line in lines if line and not line.startswith("Got a connection")]
    assert [line for line in others if not re.match(r"\d\d:\d\d:\d\d ", line)] == []
    stop = next(number for number, line in enumerate(lines) if line.endswith(" Press Ctrl-C to stop"))
    listening = max(number for number, line in enumerate(lines) if " Listening on " in line)
    assert stop > listening
    assert re.search(r"^\d\d:\d\d:\d\d Stopped: 1 greeted of 1 accepted, 0 failed$", "\n".join(lines), re.M)


async def test_away_from_a_terminal_nothing_about_ctrl_c_is_logged() -> None:
    async with greeter_process("serve", "--listen", "127.0.0.1:0") as service:
        assert await service.stop() == 0
    assert not [line for line in service.lines if "Ctrl-C" in line]


async def test_under_journald_lines_begin_with_their_priority(tmp_path: Path) -> None:
    """As journald's stream is a socket with a number, so is this file."""
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    found = os.fstat(log)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "greeter", "serve", "--listen", "unix:/no/such/folder/sock"),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=log,
        cwd=ROOT,
        env=os.environ | {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"},
    )
    os.close(log)
    assert await asyncio.wait_for(process.wait(), PATIENCE) == 1
    assert re.fullmatch(r"<3>greeter: cannot listen on .*\n", (tmp_path / "log").read_text())


DEEP = """
def even(n):
    return odd(n)
def odd(n):
    return even(n)
def greet(peer):
    try:
        even(0)
    except RecursionError:
        raise ValueError("x" * 100_000)
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_a_line_fits_into_one_write_to_a_pipe_whatever_an_app_raises(
    log_format: str, tmp_path: Path
) -> None:
    """So the lines of several workers are not mixed."""
    (tmp_path / "deep_app.py").write_text(DEEP)
    args = ["--listen", "127.0.0.1:0", "--log-format", log_format, "--app", "deep_app:greet"]
    async with greeter_process("serve", *args, env={"PYTHONPATH": str(tmp_path)}, ready="") as service:
        line = await service.line_with("Listening on ")
        port = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert port
        await read_to_end(await connect(int(port[1])))
        line = await service.line_with("the greeting callable raised ValueError: xxxx")
        assert await service.stop() == 0
    assert len(line) < select.PIPE_BUF
    assert "deep_app.py" in line


BROKEN = "def greet(peer):\n    return 1 / 0\n"


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_the_traceback_of_an_app_is_a_field(workers: str, tmp_path: Path) -> None:
    (tmp_path / "broken_app.py").write_text(BROKEN)
    env = {"PYTHONPATH": str(tmp_path)}
    args = [
        "--listen",
        "127.0.0.1:0",
        "--log-format",
        "json",
        "--workers",
        workers,
        "--app",
        "broken_app:greet",
    ]
    async with greeter_process("serve", *args, env=env, ready='"listening", "address": "') as service:
        port = int(json.loads(await service.line_with('"listening"'))["address"].rpartition(":")[2])
        client = await connect(port)
        name = "{}:{}".format(*client.getsockname())
        await read_to_end(client)
        entry = json.loads(await service.line_with('"failed"'))
        assert await service.stop() == 0
    assert (entry["peer"], entry["reason"]) == (name, "greeting_error")
    assert entry["error"] == "the greeting callable raised ZeroDivisionError: division by zero"
    assert re.match(r'Traceback .*\n  File ".*", line 2, in greet\n', entry["traceback"])
    assert (entry["pid"] == service.pid) is (workers == "1")
