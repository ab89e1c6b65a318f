"""``greeter check``: what it prints, writes and exits with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from greeter.conformance.checks import CHECKS, DATAGRAM_CHECKS
from greeter.conformance.schema import schema
from tests.conftest import PATIENCE, ROOT, greeter_process, one_loop, run_greeter
from tests.support.browser import DESK, PHONE, browser, needs_chromium
from tests.support.loadtest_peers import refused_endpoint
from tests.support.lossy_peers import blocking_loop
from tests.support.peers import until
from tests.support.service_peers import stopped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.browser import Browser

__all__ = ["browser"]

pytestmark = one_loop

# The command line, for which no service is on this machine.
NOT_LOCAL = """
import sys
from greeter.cli.cli import run
from greeter.conformance.tested_service import TestedService

TestedService.local = False
sys.exit(run(sys.argv[1:]))
"""

SHORT = ("--only", "end,half-close")


@contextlib.asynccontextmanager
async def service() -> AsyncIterator[str]:
    async with greeter_process("serve", "--no-access-log", "--listen", "127.0.0.1:0") as process:
        yield process.address


async def python(code: str, *args: str) -> tuple[int, str, str]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, *args),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    out, err = await child.communicate()
    assert child.returncode is not None
    return child.returncode, out.decode(), err.decode()


async def test_a_service_that_keeps_its_clients_exits_with_0() -> None:
    async with service() as target:
        code, out, err = await run_greeter("check", target, *SHORT)
    assert (code, err) == (0, "")
    opening, _, *rows = out.splitlines()
    assert opening == f"{target} says Thank you for connecting (24 B)"
    assert [row.split()[:2] for row in rows[:3]] == [["✓", "greets"], ["✓", "end"], ["✓", "half-close"]]
    assert rows[-1] == "Loses no client that was tried: all 3 musts are kept."
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80


async def test_a_service_that_loses_clients_exits_with_99_and_says_why_and_what_to_change() -> None:
    async with blocking_loop() as peer:
        code, out, err = await run_greeter("check", peer.target, "--only", "speaks-first", "-v")
    assert (code, err) == (99, "")
    assert "✗ speaks-first" in out
    for part in ("one client, in ms: ", "Cause: ", "Cure: ", "Source: RFC 9293 3.6.1"):
        assert part in out
    assert out.splitlines()[-1] == "Loses clients: 1 of 2 musts are broken."


async def test_a_known_failure_exits_with_0() -> None:
    async with blocking_loop() as peer:
        code, out, _ = await run_greeter(
            "check", peer.target, "--only", "speaks-first", "--expect-fail", "speaks-first"
        )
    assert code == 0
    assert "(expected to fail)" in out


async def test_a_reload_that_does_not_work_exits_with_98() -> None:
    async with service() as target:
        code, out, _ = await run_greeter(
            "check", target, "--only", "reload", "--restart", "echo no unit >&2; exit 5"
        )
    assert code == 98
    assert "? reload           --restart: exit code 5: no unit" in out


@pytest.mark.parametrize(
    ("args", "code", "line"),
    [
        ((), 1, " never greeted: connection refused"),
        (("--only", "nonsense"), 2, "'nonsense' is not a check; greeter check --list shows them"),
        (("--only", "stop"), 2, "no check to run: stop (without --pid)"),
        (("--pid", "1"), 2, "process 1 does not listen at the target, nor does a child of it"),
        (("--profile", "http", "--send", "x"), 2, "--send contradicts --profile http"),
        (("--profile", "smtp", "--hello", "x"), 2, "--hello contradicts --profile smtp"),
        (("--send", "@/nonexistent/request"), 2, "cannot read /nonexistent/request: no such file or"),
        (("--start", "true"), 2, "--start needs --stop"),
        (("--stop", "true"), 2, "--stop needs --pid or --start"),
        (("--tls-ca", "/dev/null"), 2, "--tls-ca needs --tls"),
        (("--json", "/nonexistent/report.json"), 1, "cannot write /nonexistent/report.json: no such"),
        (("--explain", "nonsense"), 2, "'nonsense' is not a check; --list shows them"),
    ],
)
async def test_what_cannot_be_is_one_line_and_its_exit_code(
    args: tuple[str, ...], code: int, line: str
) -> None:
    found, out, err = await run_greeter("check", refused_endpoint(), *args)
    said = (out + err).strip()
    assert (found, line in said) == (code, True), said
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1 or said.startswith("Usage: ")


async def test_another_machine_is_named_before_it_is_asked() -> None:
    target = refused_endpoint()
    code, out, err = await python(NOT_LOCAL, "check", target)
    warning, advice, *_ = out.splitlines()
    assert (code, err) == (1, "")
    assert warning == f"{target} is another machine's: only gentle checks run (--yes runs all). Even those"
    assert advice.startswith("can get this machine's address blocked")
    _, out, _ = await python(NOT_LOCAL, "check", target, "--yes")
    assert "another machine" not in out


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--tls",), "--tls needs a stream, and udp:127.0.0.1:9 is an endpoint for datagrams"),
        (("--proxy-protocol", "v1"), "--proxy-protocol needs a stream"),
        (("--until", "line"), "--until needs a stream"),
        (("--hello", "x"), "--hello needs a stream"),
        (("--profile", "smtp"), "--profile smtp needs a stream"),
        (("--only", "speaks-first"), "speaks-first is a check of streams, and udp:127.0.0.1:9 serves datagr"),
        (("--pid", "1"), "process 1 does not listen at the target"),
    ],
)
async def test_what_datagrams_do_not_have_is_a_usage_error(args: tuple[str, ...], line: str) -> None:
    code, out, err = await run_greeter("check", "udp:127.0.0.1:9", *args)
    assert (code, out) == (2, "")
    assert line in err
    assert len(err.splitlines()) == 1


async def test_a_datagram_service_that_is_not_there_never_greets(tmp_path: Path) -> None:
    code, out, err = await run_greeter("check", "udp:127.0.0.1:9", "--json", f"{tmp_path}/a.json")
    assert (code, err) == (1, "")
    assert out.strip() == "udp:127.0.0.1:9 never greeted: connection refused"
    assert json.loads((tmp_path / "a.json").read_text())["checks"] == []


async def test_a_datagram_service_is_checked_by_a_list_of_its_own(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")

    async with greeter_process("serve", "--no-access-log", "--listen", "udp:127.0.0.1:0") as process:
        code, out, err = await run_greeter(
            "check", process.address, "--json", f"{tmp_path}/a.json", "--html", f"{tmp_path}/a.html"
        )
    assert (code, err) == (0, "")
    assert out.startswith(f"{process.address} says Thank you for connecting (24 B)\n\n✓ udp-greets ")
    report = json.loads((tmp_path / "a.json").read_text())
    jsonschema.Draft202012Validator(schema()).validate(report)
    assert [found["id"] for found in report["checks"]] == list(DATAGRAM_CHECKS)
    assert "udp-once" in (tmp_path / "a.html").read_text()


async def test_a_request_is_read_from_a_file(tmp_path: Path) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.write_eof()
        await reader.read()
        writer.close()

    (tmp_path / "request").write_bytes(b"one \\n two\r\n")
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        code, out, _ = await run_greeter(
            "check", f":{port}", "--send", f"@{tmp_path}/request", "--only", "end"
        )
    assert code == 0
    assert r"says one \\n two\r\n (12 B)" in out


async def test_a_report_on_stdout_is_alone_there() -> None:
    jsonschema = pytest.importorskip("jsonschema")

    async with service() as target:
        code, out, err = await run_greeter("check", target, *SHORT, "--json", "-")
    assert (code, err) == (0, "")
    report = json.loads(out)
    jsonschema.Draft202012Validator(schema()).validate(report)
    assert (report["exit_code"], report["profile"]) == (0, "raw")


async def test_a_report_is_written_of_a_service_that_never_greets(tmp_path: Path) -> None:
    junitparser = pytest.importorskip("junitparser")

    code, _, _ = await run_greeter(
        "check", refused_endpoint(), "--json", f"{tmp_path}/a.json", "--junit", f"{tmp_path}/a.xml"
    )
    report = json.loads((tmp_path / "a.json").read_text())
    assert (code, report["exit_code"], report["checks"]) == (1, 1, [])
    assert junitparser.JUnitXml.fromfile(f"{tmp_path}/a.xml").errors == 1


async def test_the_checks_are_listed_and_explained() -> None:
    code, out, _ = await run_greeter("check", "--list")
    assert code == 0
    listed = [line.split("!")[0].split()[0] for line in out.splitlines()[:-2]]
    assert [name for name in listed if name != "For"] == list(CHECKS)
    code, out, _ = await run_greeter("check", "--explain", "half-close")
    assert code == 0
    assert out.startswith("half-close (must): the service greets a client that has closed its sending side.")


async def on_a_terminal(*args: str, env: dict[str, str] | None = None) -> str:
    """Run a command on a terminal. Returns what it writes there."""
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environment |= {"TERM": "xterm"} | (env or {})
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "greeter", *args, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while part := await asyncio.to_thread(os.read, ours, 65536):
            said += part
    os.close(ours)
    await child.wait()
    return said.decode()


async def test_a_terminal_shows_colour_and_which_check_runs() -> None:
    async with service() as target:
        said = await on_a_terminal("check", target, *SHORT)
        plain = await on_a_terminal("check", target, *SHORT, env={"NO_COLOR": "1"})
        dumb = await on_a_terminal("check", target, *SHORT, env={"TERM": "dumb"})
    assert "\x1b[32m✓\x1b[0m half-close" in said
    assert "\r\x1b[K… half-close\r\x1b[K" in said
    assert "\x1b[32m" not in plain
    assert "\r\x1b[K… half-close\r\x1b[K✓ half-close" in plain
    assert "\x1b" not in dumb


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_a_run_with_130_and_lets_the_service_go_on(number: int, tmp_path: Path) -> None:
    told, started = tmp_path / "told", tmp_path / "started"
    # The signal comes while the service stands still, which lasts until the command has begun to stop it.
    stop = f": > {told}; kill -{int(number)} $PPID; sleep 100"
    async with blocking_loop() as peer:
        async with greeter_process(
            "check",
            peer.target,
            *("--pid", str(peer.pid), "--only", "stop"),
            *("--stop", stop, "--start", f": > {started}"),
            ready="",
        ) as process:
            async with asyncio.timeout(PATIENCE):
                out, err = await process.process.communicate()
            assert process.process.returncode == 130
            assert b"Traceback" not in out + err
            assert told.exists()
        await until(lambda: not stopped(peer.pid), "the service goes on")


async def test_a_run_that_is_ended_after_a_stop_starts_the_service_again(tmp_path: Path) -> None:
    begun, started = tmp_path / "begun", tmp_path / "started"
    async with blocking_loop() as peer:
        async with greeter_process(
            *("check", peer.target, "--only", "stop-load"),
            *("--stop", f": > {begun}; sleep 100", "--start", f": > {started}"),
            ready="",
        ) as process:
            await until(begun.exists, "the service is told to stop")
            process.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE):
                await process.process.communicate()
            assert process.process.returncode == 130
        await until(started.exists, "the service is started")


@needs_chromium
@pytest.mark.thorough
@pytest.mark.one_interpreter
async def test_the_page_opens_without_an_error(tmp_path: Path, browser: Browser) -> None:
    page = tmp_path / "page.html"
    async with blocking_loop() as peer:
        code, _, _ = await run_greeter(
            "check", peer.target, "--only", "speaks-first,half-close,end", "--html", str(page)
        )
    assert code == 99
    for size, touch in ((DESK, False), (PHONE, True)):
        for scheme in ("light", "dark"):
            browser.open(page, size, scheme=scheme, touch=touch)
            assert browser.errors == []
            assert browser.driver.execute_script(
                "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
            )
    assert "speaks-first (must) is broken" in browser.driver.find_element("tag name", "main").text
