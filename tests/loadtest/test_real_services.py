"""Load tests of services of other authors: what they said, and how many they refused."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from greeter import serve
from greeter.loadtest import LoadPlan, load
from tests.conftest import one_loop
from tests.support.loadtest_peers import checked
from tests.support.real_services import nginx, postfix, sshd, vsftpd

if TYPE_CHECKING:
    from greeter.loadtest import LoadReport, Snapshot

pytestmark = [
    pytest.mark.one_interpreter,
    pytest.mark.thorough,
    one_loop,
]


async def run(target: str, **options: Any) -> LoadReport:
    return checked(await load(LoadPlan(target, **{"timeout": 20.0, **options})))


async def run_until_all_are_answered(target: str, count: int, **options: Any) -> LoadReport:
    """Hold all connections until the last one has its answer, however slow the service is."""
    stop = asyncio.Event()

    def on_snapshot(snapshot: Snapshot) -> None:
        if snapshot.greeted + snapshot.failed == count:
            stop.set()

    plan = LoadPlan(target, connections=count, count=count, hold=60.0, timeout=20.0, **options)
    return checked(await load(plan, on_snapshot=on_snapshot, stop=stop))


def said(report: LoadReport) -> dict[str, int]:
    assert report.greetings["others"] == 0
    return {row["text"]: row["count"] for row in report.greetings["texts"]}


async def test_openssh_refuses_startups_in_words() -> None:
    with sshd() as target:
        report = await run_until_all_are_answered(target, 20, until="line")
        strict = await run_until_all_are_answered(target, 20, until="line", expect="SSH-2.0")
    found = said(report)
    refused = found.pop("Exceeded MaxStartups")
    assert refused >= 10
    [(banner, greeted)] = found.items()
    assert banner.startswith("SSH-#.#-OpenSSH_")
    assert (report.connections["greeted"], greeted + refused) == (20, 20)
    assert f'{refused} × "Exceeded MaxStartups"' in report.verdict
    assert strict.errors["unexpected_greeting"] == said(strict)["Exceeded MaxStartups"] >= 10


async def test_postfix_refuses_beyond_its_rate_in_words() -> None:
    with postfix("- smtpd", rate_limit=8) as target:  # one of them was to see that it accepts
        report = await run(target, connections=2, count=20, until="reply")
        strict = await run(target, connections=2, count=5, until="reply", expect="220")
    found = said(report)
    assert found.pop("220 mail.example ESMTP Postfix (Debian/GNU)", 0) or found.pop(
        "220 mail.example ESMTP Postfix"
    )
    [(refusal, count)] = found.items()
    assert refusal == "421 #.#.# mail.example Error: too many connections from #.#.#.#"
    assert count == 13
    assert f'13 × "{refusal[:40]}' in report.verdict
    assert strict.errors["unexpected_greeting"] == 5
    assert strict.exit_code == 1


async def test_vsftpd_refuses_beyond_its_limit_in_words() -> None:
    with vsftpd() as target:
        report = await run_until_all_are_answered(target, 10, until="reply")
    found = said(report)
    refused = found["421 There are too many connections from your internet address."]
    assert refused >= 5
    assert found["220 (vsFTPd #.#.#)"] == 10 - refused


async def test_the_greeting_of_postscreen_is_the_one_after_its_teaser() -> None:
    with postfix("1 postscreen") as target:
        teaser = await run(target, connections=4, count=4, until="line")
        greeting = await run(target, connections=4, count=4, until="reply", expect="220 mail.example")
    assert teaser.connections["greeted"] == greeting.connections["greeted"] == 4
    [(text, _)] = said(teaser).items()
    assert text.startswith("220-mail.example ESMTP Postfix")
    first, last = (greeting.latency_us[phase]["min"] or 0 for phase in ("first_byte", "service"))
    assert last >= 1_000_000
    assert last - first > 700_000 or greeting.generator["stopped_s"], "unless both arrived during a pause"


async def test_nginx_resets_clients_that_speak_first_and_greeter_does_not() -> None:
    with nginx() as target:
        silent = await run(target, connections=10, count=100)
        speaking = await run(target, connections=10, count=100, send=b"HELLO")
    assert silent.connections["greeted"] == 100
    # A reset overtakes the end of the stream, or follows it.
    assert speaking.errors["reset"] + speaking.connections["reset_after_greeting"] >= 90, speaking.verdict
    async with serve(port=0) as server:
        ours = await run(str(server.addresses[0]), connections=10, count=100, send=b"HELLO")
    assert ours.connections["greeted"] == 100
    assert ours.connections["reset_after_greeting"] == 0
