"""``greeter load`` and ``greeter report``: what they print, write and exit with."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import pty
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from greeter.system.signals import SAME_REQUEST_SECONDS
from tests.conftest import PATIENCE, ROOT, greeter_process, one_loop, run_greeter
from tests.loadtest.report.test_report import metrics, report
from tests.support.loadtest_peers import (
    GREETING,
    greet,
    greet_and_stay,
    never_accepting,
    refused_endpoint,
    serving,
)
from tests.support.peers import until
from tests.support.proc import state_and_session
from tests.support.service_peers import children, metric

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("hdrh")
pytestmark = one_loop

# A server in a thread, and the command of the arguments: both in one network namespace.
SERVE_AND_LOAD = """
import socket, sys, threading
from greeter.cli.cli import run

def greet(client):
    client.sendall(b"hi\\r\\n")
    client.recv(1)
    client.close()

def serve(listener):
    while True:
        client, _ = listener.accept()
        threading.Thread(target=greet, args=(client,), daemon=True).start()

listener = socket.create_server(("127.0.0.1", 9), backlog=500)
threading.Thread(target=serve, args=(listener,), daemon=True).start()
sys.exit(run(sys.argv[1:]))
"""

SHORT = ("-c", "5", "-n", "200", "--quiet")
# A limit that no run keeps. It is none on a latency, for whose miss a pause of the machine may be the reason.
MISSED = ("--threshold", "rate:achieved>=1g")


async def test_a_run_and_its_files(tmp_path: Path) -> None:
    run, page, timeline, histograms = (
        tmp_path / name for name in ("run.json", "page", "run.csv", "run.hlog")
    )
    files = ("--json", str(run), "--csv", str(timeline), "--hdr", str(histograms))
    async with greeter_process("serve", "--listen", "127.0.0.1:0") as server:
        code, out, err = await run_greeter("load", server.address, *SHORT, *files)
        assert (code, err) == (0, "")
        assert "200 attempted, 200 greeted, 0 failed" in out
        assert json.loads(run.read_text())["connections"]["greeted"] == 200
        assert timeline.read_text()
        assert histograms.read_text().startswith("#")
        code, out, _ = await run_greeter("load", server.address, *SHORT, *MISSED)
        assert code == 99
        assert "rate:achieved>=1g" in out
        old = ("--baseline", str(run), "--tolerance", "100000")
        code, out, _ = await run_greeter("load", server.address, *SHORT, *old)
        assert code == 0
    if pytest.importorskip("vl_convert"):
        code, out, err = await run_greeter("report", str(run), "--html", str(page))
        assert (code, err) == (0, "")
        assert page.read_text().lower().startswith("<!doctype html>")


async def test_a_report_goes_through_a_pipe(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema")
    run, timeline = tmp_path / "run.json", tmp_path / "run.csv"
    async with serving(greet) as target:
        code, out, err = await run_greeter("load", target, *SHORT, "--json", "-")
    assert (code, json.loads(out)["connections"]["greeted"]) == (0, 200)
    assert "All 200 clients were greeted" in err.splitlines()[-1]
    run.write_text(out)
    command = f"{sys.executable} -m greeter report - --csv {timeline} --json /dev/stdout < {run}"
    process = await asyncio.create_subprocess_shell(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    again, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 0
    assert json.loads(again) == json.loads(out)
    assert errors.decode() == err
    assert timeline.read_text().startswith("t_s,")
    code, _, err = await run_greeter("report", "-", "-")
    assert (code, err) == (2, "greeter: standard input (-) can be read only once\n")


async def test_a_service_that_refuses_in_words_is_named() -> None:
    number = itertools.count()

    async def mostly_busy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"421 too many connections\r\n" if next(number) % 4 else b"220 ready\r\n")
        await reader.read()

    async with serving(mostly_busy) as target:
        code, out, _ = await run_greeter("load", target, *SHORT, "--until", "line")
        assert code == 0
        assert '150 × "421 too many connections", 50 × "220 ready"' in out.splitlines()[-1]
        limit = ("--expect", "220", "--threshold", "errors:unexpected_greeting<1")
        code, out, _ = await run_greeter("load", target, *SHORT, "--until", "line", *limit)
    assert code == 99
    assert "; 150 failed: unexpected_greeting." in out.splitlines()[-1]
    assert '150 × "421 too many connections"' in out.splitlines()[-1]


async def test_a_service_that_stays_connected_is_named() -> None:
    async with serving(greet_and_stay) as target:
        options = ("-c", "3", "-n", "3", "--timeout", "1s", "--quiet")
        code, out, _ = await run_greeter("load", target, *options)
    assert code == 1
    assert "; 3 failed: greeting_timeout." in out.splitlines()[-1]
    assert out.endswith(" The service stays connected after its greeting: --until line ends it there.\n")


@pytest.mark.parametrize(
    ("limit", "code"),
    [((), 0), (("--threshold", "errors:rate<1%"), 0), (("--threshold", "response:max<50ms"), 98)],
)
@pytest.mark.thorough
async def test_a_stopped_generator_is_not_mistaken_for_a_slow_server(
    limit: tuple[str, ...], code: int
) -> None:
    begun = asyncio.Event()

    async def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.set()
        await asyncio.sleep(0.01)
        writer.write(GREETING)

    async with serving(note) as target:
        options = ("-c", "3", "-z", "1500ms", "--quiet", *limit)
        async with greeter_process("load", target, *options, ready="") as process:
            await asyncio.wait_for(begun.wait(), PATIENCE)
            process.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.8)  # how long it is stopped is what is measured
            process.process.send_signal(signal.SIGCONT)
            out, _ = await asyncio.wait_for(process.process.communicate(), PATIENCE)
    assert process.process.returncode == code, out.decode()
    assert re.search(r"the generator stood still for (0\.[5-9]|[1-9])", out.decode())
    assert ("The machine of the generator was busy" in out.decode()) == (code == 98)


FIFTY_PORTS = """
ip link set lo up
echo 40000 40049 > /proc/sys/net/ipv4/ip_local_port_range
exec "$@"
"""


@pytest.mark.one_interpreter
@pytest.mark.parametrize("loop", [("-c", "5"), ("-r", "400", "-c", "20")])
async def test_running_out_of_ports_is_not_the_failure_of_the_server(loop: tuple[str, ...]) -> None:
    """There are 50 local ports, in a network namespace. The client closes first and keeps its port."""
    namespace = ["unshare", "-rn", "sh", "-ec", FIFTY_PORTS, "sh"]
    if not (shutil.which("unshare") and shutil.which("ip")) or (await output_of(*namespace, "true"))[0]:
        pytest.skip("needs ip(8), unshare(1) and the permission to make a network namespace")
    limits = ("--threshold", "errors:rate<1%", "--threshold", "connections:failed<1")
    options = ("-n", "200", *loop, "--until", "line", "--quiet", *limits)
    code, out = await output_of(
        *namespace, sys.executable, "-c", SERVE_AND_LOAD, "load", "127.0.0.1:9", *options
    )
    verdict = out.splitlines()[-1]
    assert code == 98, verdict
    assert " could not be made: local_exhausted (Cannot assign requested address)." in verdict
    assert " failed: " not in verdict
    assert verdict.endswith(
        "this machine ran out of ports. Add source addresses (--source-ip) or ask for less."
    )


async def output_of(*command: str) -> tuple[int | None, str]:
    """Run a command; return its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=ROOT)
    out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    return process.returncode, out.decode()


@pytest.mark.thorough
async def test_many_connections_are_held_open_and_a_raised_limit_is_noted() -> None:
    """Ten thousand, if the descriptor limit allows it: they are held until all of them are greeted."""
    pytest.importorskip("prometheus_client")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    many = 10_000 if hard == resource.RLIM_INFINITY else min(10_000, hard - 100)
    if many < 1_000:
        pytest.skip(f"a limit of {hard} open files")
    args = ("--listen", "127.0.0.1:0", "--no-access-log", "--metrics", "127.0.0.1:0")
    async with greeter_process("serve", *args) as server:
        options = f"-c {many} -n {many} --hold 1h --timeout 10m --connect-timeout 10m --quiet"
        low = f"ulimit -Sn 200; exec {sys.executable} -m greeter load {server.address} {options}"
        process = await asyncio.create_subprocess_shell(low, stdout=subprocess.PIPE, cwd=ROOT)
        async with asyncio.timeout(PATIENCE):
            while await metric(server, "greeter_greeted_total") < many:
                pass
        both = (process.pid, *children(process.pid))
        await until(lambda: all(state_and_session(pid)[0] == "S" for pid in both), "they have read all of it")
        process.send_signal(signal.SIGINT)
        out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    text = out.decode()
    assert process.returncode == 130
    assert f"All {many:,} clients were greeted" in text
    assert f"{many:,} attempted, {many:,} greeted, 0 failed, 0 unstarted; {many:,} open at most\n" in text
    assert "  - raised the limit of open files from 200 to " in text


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_run_has_its_summary(
    number: signal.Signals, workers: str, tmp_path: Path
) -> None:
    begun = asyncio.Event()

    async def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.set()
        writer.write(GREETING)

    run = tmp_path / "run.json"
    async with serving(note) as target:
        options = ("-r", "50", "-z", "60s", "--threshold", "response:max<1us", "--json", str(run))
        async with greeter_process("load", target, "-w", workers, *options, ready="") as process:
            await asyncio.wait_for(begun.wait(), PATIENCE)
            for child in children(process.pid):
                os.kill(child, number)  # a terminal and timeout(1) signal the whole group
            process.process.send_signal(number)
            out, _ = await asyncio.wait_for(process.process.communicate(), PATIENCE)
    assert process.process.returncode == 130, "130 takes precedence over 99 of the threshold"
    assert " Interrupted after " in out.decode()
    assert json.loads(run.read_text())["interrupted"] is True


async def test_a_second_interrupt_a_second_later_does_not_wait() -> None:
    """For example while a resolver blocks, before there is a run to stop."""
    code = (
        "import asyncio\n"
        "from greeter.cli import cli, loadcommand\n"
        "async def load(*_, stop, **__):\n"
        "    print('looking up', flush=True)\n"
        "    await stop.wait()\n"
        "    print('stopping', flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "loadcommand.load = load\n"
        "raise SystemExit(cli.run(['load', '127.0.0.1:1', '--quiet']))\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    try:
        for word in (b"looking up\n", b"stopping\n"):
            assert await asyncio.wait_for(process.stdout.readline(), PATIENCE) == word
            process.send_signal(signal.SIGINT)  # at "stopping": the same request, delivered twice
        await asyncio.sleep(SAME_REQUEST_SECONDS + 0.2)
        process.send_signal(signal.SIGINT)  # raises ProcessLookupError if it has exited
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
        assert (process.returncode, out, err.strip()) == (130, b"", b"")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_progress_goes_to_the_terminal_and_only_the_summary_to_stdout() -> None:
    async with serving(greet) as target:
        ours, theirs = pty.openpty()
        try:
            command = [sys.executable, "-m", "greeter", "load", target, "-r", "100", "-z", "0.6s"]
            process = await asyncio.create_subprocess_exec(
                *command, stdout=subprocess.PIPE, stderr=theirs, cwd=ROOT, env={**os.environ, "TERM": "xterm"}
            )
            out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
            shown = os.read(ours, 65536).decode()
        finally:
            os.close(ours)
            os.close(theirs)
    late = b"The generator was saturated: " in out  # possible on a busy machine
    assert process.returncode == (98 if late else 0)
    assert out.startswith(b"Load test of ")
    assert b"\x1b" not in out
    assert "/s  " in shown
    assert " open  0 failed  p50 " in shown
    assert "█" in shown
    assert " left" in shown


async def test_a_load_on_a_mail_server() -> None:
    smtp = pytest.importorskip("aiosmtpd.smtp")
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: smtp.SMTP(None), "127.0.0.1", 0)
    async with server:
        target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        options = ("--until", "line", "--expect", "220 ", "-c", "5", "-n", "25", "--quiet")
        code, out, err = await run_greeter("load", target, *options)
    assert (code, err) == (0, "")
    assert "25 attempted, 25 greeted" in out


async def test_a_load_on_an_ssh_server(tmp_path: Path) -> None:
    sshd, keygen = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin"), shutil.which("ssh-keygen")
    if sshd is None or keygen is None:
        pytest.skip("sshd is not installed")
    key = str(tmp_path / "key")
    assert await _status(keygen, "-q", "-t", "ed25519", "-N", "", "-f", key) == 0
    if await _status(sshd, "-t", "-f", os.devnull, "-h", key):
        pytest.skip("sshd does not start here")
    # In inetd mode, sshd serves the connection on its standard input, without a port and without privileges.
    command = [sshd, "-i", "-f", os.devnull, "-h", key]

    async def shell(client: socket.socket) -> None:
        with client:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=client.fileno(), stdout=client.fileno(), stderr=subprocess.DEVNULL
            )
        await process.wait()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)

        async def accept() -> None:
            async with asyncio.TaskGroup() as shells:
                for _ in range(4):
                    client, _ = await asyncio.get_running_loop().sock_accept(listener)
                    client.setblocking(True)
                    shells.create_task(shell(client))

        serving_clients = asyncio.create_task(accept())
        target = f"127.0.0.1:{listener.getsockname()[1]}"
        options = ("--until", "line", "--expect", "SSH-2.0-", "-c", "2", "-n", "4", "--quiet")
        code, out, err = await run_greeter("load", target, *options)
        await asyncio.wait_for(serving_clients, PATIENCE)
    assert (code, err) == (0, ""), out
    assert "4 attempted, 4 greeted" in out


async def _status(*command: str) -> int:
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL)
    return await asyncio.wait_for(process.wait(), PATIENCE)


async def test_a_full_queue() -> None:
    with never_accepting(backlog=5) as (_, target):
        options = ("-c", "30", "-n", "30", "--timeout", "300ms", "--connect-timeout", "200ms", "--quiet")
        code, out, err = await run_greeter("load", target, *options)
    assert (code, err) == (1, "")
    assert "30 attempted, 0 greeted, 30 failed" in out
    assert " connected_no_greeting" in out.splitlines()[-1]


async def test_a_rate_above_what_one_worker_can_make_exits_with_98() -> None:
    # A refusal frees its slot at once, so that there always is one.
    code, out, err = await run_greeter("load", refused_endpoint(), "-r", "300k", "-z", "300ms", "--quiet")
    assert (code, err) == (98, "")
    assert " The generator was saturated: " in out.splitlines()[-1]


@pytest.mark.thorough
async def test_a_report_that_cannot_be_written_is_one_error_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit code is 2, and no partial file is left."""
    pytest.importorskip("jsonschema")
    pytest.importorskip("vl_convert")
    run, page = tmp_path / "run.json", tmp_path / "page.html"
    await run_greeter("load", "127.0.0.1:1", "-n", "5", "--quiet", "--json", str(run))
    good = json.loads(run.read_text())
    for values, words in (
        ({"a": 1}, "is not a load test report: it has no schema"),
        ({**good, "schema": 2}, "has schema 2; this greeter reads schema 1"),
        ({**good, "connections": {**good["connections"], "greeted": "x"}}, "connections.greeted"),
        (
            {**good, "histograms": {**good["histograms"], "service": "HIST"}},
            "a histogram that cannot be read",
        ),
    ):
        run.write_text(json.dumps(values))
        code, _, err = await run_greeter("report", str(run), "--html", str(page))
        assert (code, err.count("\n")) == (2, 1), err
        assert words in err
    run.write_text(json.dumps(good))
    nowhere = tmp_path / "nowhere" / "page.html"
    code, _, err = await run_greeter("report", str(run), "--html", str(nowhere))
    assert (code, err) == (2, f"greeter: --html: cannot write {nowhere}: no such file or directory\n")
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['vl_convert'] = None")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, out, err = await run_greeter("report", str(run), "--html", str(page))
    assert (code, out) == (2, ""), "the error precedes the work"
    assert (
        err == "greeter: --html needs an optional package: pip install '.[report]' in greeter's source tree\n"
    )
    assert set(os.listdir(tmp_path)) <= {"run.json", "sitecustomize.py", "__pycache__"}


async def test_a_target_without_a_listener_is_not_greeted() -> None:
    code, out, err = await run_greeter("load", "127.0.0.1:1", "-n", "5", "--quiet")
    assert (code, err) == (1, "")
    assert out.splitlines()[-1] == "Nothing was greeted; 5 failed: connect_refused (Connection refused)."


async def test_an_unresolvable_name_is_one_error_line() -> None:
    code, out, err = await run_greeter("load", "missing.invalid:1", *SHORT)
    assert (code, out) == (1, "")
    assert err.startswith("greeter: cannot connect to missing.invalid:1: ")
    assert err.count("\n") == 1


async def test_a_full_disk_fails_the_report_after_the_summary() -> None:
    async with serving(greet) as target:
        code, out, err = await run_greeter("load", target, *SHORT, "--json", "/dev/full")
    assert code == 1
    assert "200 attempted, 200 greeted" in out, "the summary is printed"
    assert err == "greeter: cannot write /dev/full: no space left on device\n"


async def test_after_a_failed_file_the_others_are_written(tmp_path: Path) -> None:
    timeline = tmp_path / "run.csv"
    options = (*MISSED, "--json", "/dev/full", "--csv", str(timeline))
    async with serving(greet) as target:
        code, _, err = await run_greeter("load", target, *SHORT, *options)
    assert (code, err) == (99, "greeter: cannot write /dev/full: no space left on device\n")
    assert timeline.read_text().startswith("t_s,")


@pytest.mark.parametrize(("options", "code"), [((), 1), (MISSED, 99)])
async def test_a_full_disk_behind_stdout_keeps_the_files(
    tmp_path: Path, options: tuple[str, ...], code: int
) -> None:
    run = tmp_path / "run.json"
    async with serving(greet) as target:
        command = [sys.executable, "-m", "greeter", "load", target, *SHORT, "--json", str(run), *options]
        full = os.open("/dev/full", os.O_WRONLY)
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdout=full, stderr=subprocess.PIPE, cwd=ROOT
            )
            _, err = await asyncio.wait_for(process.communicate(), PATIENCE)
        finally:
            os.close(full)
    assert (process.returncode, err) == (code, b"greeter: no space left on device\n")
    assert json.loads(run.read_text())["connections"]["greeted"] == 200


async def test_text_that_is_not_utf_8_is_escaped(tmp_path: Path) -> None:
    """A byte of the command line that is not UTF-8, and JSON that contains it."""
    pytest.importorskip("vl_convert")
    run, page = tmp_path / "run.json", tmp_path / "page.html"
    expect = os.fsdecode(b"\xff")
    async with serving(greet) as target:
        files = ("--json", str(run), "--html", str(page))
        code, _, err = await run_greeter("load", target, *SHORT, "--expect", expect, *files)
    assert (code, err) == (1, "")
    assert json.loads(run.read_text())["plan"]["expect"] == expect
    assert "\\udcff" in page.read_text(encoding="utf-8")
    page.unlink()
    assert (await run_greeter("report", str(run), "--html", str(page)))[::2] == (1, "")
    assert sorted(os.listdir(tmp_path)) == ["page.html", "run.json"]


async def test_a_tolerance_without_a_baseline_is_an_error(tmp_path: Path) -> None:
    run = str(tmp_path / "run.json")
    await run_greeter("load", "127.0.0.1:1", *SHORT, "--json", run)
    for options in ((run,), ("--merge", run, run)):
        code, out, err = await run_greeter("report", *options, "--tolerance", "5")
        assert (code, out) == (2, "")
        assert err.startswith("greeter: --tolerance needs a baseline")


async def test_a_baseline_of_another_schema_is_rejected(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text('{"schema": 7}')
    code, out, err = await run_greeter("load", "127.0.0.1:1", "--baseline", str(old))
    assert (code, out) == (2, "")
    assert err == f"greeter: {old} has schema 7; this greeter reads schema 1\n"


async def test_a_baseline_without_greetings_is_rejected_before_the_run(tmp_path: Path) -> None:
    (old := tmp_path / "old.json").write_text(report(metrics(0, 0, 5)).to_json())
    code, out, err = await run_greeter("load", "127.0.0.1:1", "--baseline", str(old))
    assert (code, out) == (2, "")
    assert err == f"greeter: {old} is not a usable baseline: nothing was greeted in it\n"


async def test_an_invalid_baseline_is_rejected_before_the_run(tmp_path: Path) -> None:
    """It is validated with the schema."""
    old = tmp_path / "old.json"
    await run_greeter("load", "127.0.0.1:1", *SHORT, "--json", str(old))
    values = json.loads(old.read_text())
    values["connections"]["attempted"] = "x"
    old.write_text(json.dumps(values))
    code, out, err = await run_greeter("load", "127.0.0.1:1", "--baseline", str(old))
    assert (code, out) == (2, "")
    assert err.startswith(f"greeter: {old} is not a load test report: connections.attempted: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("-c", "0"), "not 0"),
        (("--rate", "-5"), "'-5' is not a number of 0 or more"),
        (("-c", "100M"), "100000000 connections do not fit: the limit of "),
        (("-c", "1000k"), " with 1 worker: --workers "),
        (("-c", "1000k", "--hold", "1s", "-w", "900"), " addresses of --source-ip are enough"),
        (("--threshold", "speed:p99<1s"), "speed"),
        (("--baseline", "/nonexistent"), "/nonexistent"),
        (("--tolerance", "5"), "--tolerance needs --baseline"),
        (("--json", "-", "--csv", "/dev/stdout"), "--json and --csv both go to standard output"),
        (("--until", "text:"), "until must be eof, line, reply, text:TEXT, bytes:N or idle:DURATION"),
        (("--send", "\\q"), "unknown escape \\q in \\q"),
        (("--proxy-protocol", "v3"), "'v3' is not one of 'v1', 'v2'"),
        (("--max-lag", "0"), "--max-lag must be greater than 0, not 0"),
        (("--json", "/nonexistent/x"), "--json: cannot write /nonexistent/x: no such file or directory"),
        (("--csv", "same", "--hdr", "./same"), "--csv and --hdr name the same file"),
        (("-n", "9" * 400), "is more than the maximum of 1,000,000,000,000"),
        (("-r", "10000000000000g", "-z", "10ms"), "--rate must be at most 1,000,000,000,000"),
        (("-r", "1000g", "-z", "2s"), "the plan makes more than 1,000,000,000,000 connections"),
        (("--tls", "--server-name", ".x"), "'.x' is not a host name"),
        (("--tls-ca", "x.pem"), "--tls-ca requires --tls"),
        (("--tls", "--tls-key", "x.pem"), "--tls-key requires --tls-cert"),
        (("--connect-timeout", "0"), "--connect-timeout must be greater than 0, not 0"),
        (("--stage", "1s:5", "-z", "1s"), "--duration cannot be combined with --stage"),
    ],
)
async def test_a_usage_error_is_one_line(args: tuple[str, ...], text: str) -> None:
    code, out, err = await run_greeter("load", "127.0.0.1:1", *args)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert text in err
