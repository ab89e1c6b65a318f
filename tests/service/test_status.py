"""The status page: its data, its header fields, and the page itself in headless Chromium."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from greeter import __version__, greet
from greeter.core.greeting import DEFAULT_GREETING
from greeter.core.stats import DATAGRAM_FAILURES, DATAGRAM_REJECTIONS, FAILURES, REJECTIONS
from greeter.service.snapshot import Counters
from greeter.service.status import POLICY, status_response
from greeter.system.tls import client_context
from tests.conftest import PATIENCE, greeter_process, one_loop
from tests.service.test_prometheus import Service, everything, fetch, serving
from tests.support.browser import DESK, PHONE, Browser, browser, needs_chromium
from tests.support.datagram_peers import client
from tests.support.service_peers import children

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["browser"]  # a fixture


def test_the_data_has_every_counter() -> None:
    response = status_response(everything(), addresses=["unix:/x"], uptime=2.5, problem="stopping")
    found = json.loads(response.body)
    assert found.pop("time") > 1_700_000_000
    assert found == {
        "version": __version__,
        "addresses": ["unix:/x"],
        "problem": "stopping",
        "uptime_s": 2.5,
        "accepting": True,
        "accepted": 101,
        "greeted": 102,
        "sent_bytes": 103,
        "linger_timeouts": 104,
        "accept_errors": 105,
        "drains": 106,
        "paused_s": 115.5,
        "workers": {"count": 117, "ready": 118, "restarts": 107},
        "failed": {"reset": 108, "tls": 109},
        "rejected": {"rate": 110},
        "datagrams": everything().datagrams,
        "datagrams_dropped": 214,
        "reloads": {"ok": 111, "failed": 112},
        "greeting_time": {"count": 10, "sum_s": pytest.approx(66.0014)},
        "open": 113,
        "lingering": 114,
        "max_connections": 116,
        "certificate_expiry": 1_800_000_000.5,
    }


def test_without_a_worker_that_accepts_nothing_is_accepted() -> None:
    response = status_response(Counters(), addresses=[], uptime=0.0, problem="")
    assert json.loads(response.body)["accepting"] is False


async def test_every_part_of_the_page_has_the_policy() -> None:
    async with serving(Service()) as address:
        kinds = {}
        for path in ("/", "/status.css", "/status.js", "/status.json"):
            head, _, body = (await fetch(address, path)).decode().partition("\r\n\r\n")
            first, *lines = head.split("\r\n")
            fields = dict(line.split(": ", 1) for line in lines)
            assert first == "HTTP/1.1 200 OK"
            assert body
            assert fields["Content-Security-Policy"] == POLICY
            assert fields["X-Content-Type-Options"] == "nosniff"
            assert fields["Cache-Control"] == "no-store"
            kinds[path] = fields["Content-Type"].partition(";")[0]
    assert list(kinds.values()) == ["text/html", "text/css", "text/javascript", "application/json"]


async def test_the_data_say_why_no_client_is_served() -> None:
    service = Service()
    async with serving(service) as address:
        for service.unready_because in ("", "no worker is ready"):
            found = json.loads((await fetch(address, "/status.json")).partition(b"\r\n\r\n")[2])
            assert found["problem"] == service.unready_because


# -- in Chromium -----------------------------------------------------------------------------------------

# In the name of an abstract Unix socket.
HOSTILE = "<img src=x onerror=window.hacked=1>"
TEXTS = """
return Object.fromEntries([...document.querySelectorAll("[id]")].map((found) => [found.id, found.innerText]));
"""


# As if the page became visible again: it does not wait for its next turn.
REFRESH = "document.dispatchEvent(new Event('visibilitychange'));"


def texts(browser: Browser) -> dict[str, str]:
    """Return what each part of the page shows."""
    found: dict[str, str] = browser.run(TEXTS)
    return found


def shows(browser: Browser, name: str, text: str) -> None:
    """Wait until a part of the page shows ``text``."""
    script = "return document.getElementById(arguments[0]).innerText.includes(arguments[1])"
    browser.until(REFRESH + script, name, text)


def drawn(browser: Browser) -> None:
    """Wait until every chart has a line, for which the page asks a second time by itself."""
    browser.until("return document.querySelectorAll('.chart .line').length === 4")


@one_loop
@needs_chromium
@pytest.mark.thorough
@pytest.mark.one_interpreter
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_the_page_shows_a_service(browser: Browser, workers: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(f"{tmp_path}/cert.pem")
    authority.cert_pem.write_to_path(f"{tmp_path}/ca.pem")
    socket = f"unix:@{os.getpid()} {HOSTILE}"
    args = ("--tls-cert", f"{tmp_path}/cert.pem", "--workers", workers, "--max-connections", "1000")
    listen = ("--listen", "127.0.0.1:0", "--listen", socket, "--metrics", "127.0.0.1:0")
    async with greeter_process("serve", *listen, *args) as service:
        address = (await service.line_with("Metrics on ")).rpartition(" ")[2]
        browser.open(f"http://{address}/")
        drawn(browser)
        for _ in range(3):
            await greet("localhost", service.port, ssl=client_context(ca=tmp_path / "ca.pem"))
        shows(browser, "greeted", "3 since the start")
        found = texts(browser)
        assert found["version"] == __version__
        assert found["addresses"] == f"{service.address}, {socket}"
        assert found["state"] == "Serving"
        assert found["open-more"].endswith("at most 1,000")
        assert found["workers"] == f"{workers} of {workers}"
        assert found["restarts"] == "0 restarts"
        assert found["failed-share"] == "0 % of accepted"
        assert re.fullmatch(r"\d+ s|\d+ min( \d+ s)?", found["uptime"])
        assert re.fullmatch(r"[\d,]+ days", found["certificate"])
        classes = [row.split("\t")[0] for row in found["failures"].splitlines()]
        assert classes == list(FAILURES)
        assert [row.split("\t")[0] for row in found["rejections"].splitlines()] == list(REJECTIONS)
        assert browser.run("return typeof window.hacked") == "undefined"
        assert browser.run("return document.images.length") == 0
        if workers == "2":
            for pid in children(service.pid):
                os.kill(pid, signal.SIGSTOP)
            shows(browser, "state", "Not ready: no worker responds")
            for pid in children(service.pid):
                os.kill(pid, signal.SIGCONT)
            shows(browser, "state", "Serving")
        assert browser.requests == [], "other hosts"
        assert browser.errors == []
        assert await service.stop() == 0
        shows(browser, "state", "The service does not respond")
        assert texts(browser)["greeted"] == "3 since the start"
    assert all("ERR_CONNECTION_REFUSED" in error for error in browser.errors)


@one_loop
@needs_chromium
@pytest.mark.thorough
@pytest.mark.one_interpreter
async def test_the_page_shows_datagrams_where_there_are_some(browser: Browser) -> None:
    hidden = "document.getElementById(`datagrams-${part}`).hidden"
    hidden = f"return ['tile', 'section', 'table'].map((part) => {hidden})"
    for endpoint, expected in (("127.0.0.1:0", [True] * 3), ("udp:127.0.0.1:0", [False] * 3)):
        async with greeter_process("serve", "--listen", endpoint, "--metrics", "127.0.0.1:0") as service:
            browser.open(f"http://{(await service.line_with('Metrics on ')).rpartition(' ')[2]}/")
            drawn(browser)
            assert browser.run(hidden) == expected
            if expected[0]:
                continue
            for _ in range(3):
                await greet(f"udp:127.0.0.1:{service.port}")
            with client(("127.0.0.1", service.port)) as sock:
                sock.send(DEFAULT_GREETING.encode())  # its own greeting, which is not answered
            shows(browser, "datagrams", "3 greeted of 4")
            rows = dict(row.split("\t") for row in texts(browser)["datagram-counters"].splitlines())
            assert rows.keys() >= {f"failed: {name}" for name in DATAGRAM_FAILURES}
            assert rows.keys() >= {f"rejected: {name}" for name in DATAGRAM_REJECTIONS}
            assert {name: count for name, count in rows.items() if count != "0"} == {
                "received": "4",
                "greeted": "3",
                "bytes sent": "72",
                "rejected: loop": "1",
            }
            assert (browser.requests, browser.errors) == ([], [])


@one_loop
@needs_chromium
@pytest.mark.thorough
@pytest.mark.one_interpreter
async def test_the_page_fits_a_phone_and_the_colour_scheme(browser: Browser) -> None:
    ink = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    address = "unix:/" + 100 * "x"
    service = Service()
    service.addresses = (address,)
    async with serving(service) as where:

        def look() -> list[Any]:
            colours = []
            for scheme, size in (("light", DESK), ("dark", PHONE)):
                browser.open(f"http://{where}/", size, scheme=scheme, touch=size == PHONE)
                drawn(browser)
                assert browser.run("return document.documentElement.scrollWidth") == size[0]
                colours.append(browser.run(ink))
            return colours

        async with asyncio.timeout(PATIENCE):
            light, dark = await asyncio.to_thread(look)
        assert light[0] != dark[0]
        assert light[1] != dark[1]
    browser.errors  # noqa: B018  # reading the log empties it
