"""Some checks against real services: the verdicts of their musts are known, and never vary.

``python -m tests.services`` has all checks, and more services.
"""

from __future__ import annotations

import math
import shutil
from typing import TYPE_CHECKING

import pytest

from greeter.conformance import target_service
from greeter.conformance.check_run import run
from greeter.conformance.findings import Verdict
from tests.conftest import one_loop
from tests.services.comparison import compared, documented
from tests.services.programs import DATAGRAM_SERVICES, SERVICES, Missing
from tests.services.running import running

if TYPE_CHECKING:
    from greeter.conformance.registry import Check
    from greeter.conformance.target_service import TargetService

KEPT = ("end", "half-close", "silent", "kept", "resets")
# What a service breaks of what is asked here, and no more.
BROKEN = {
    "nginx stream `return`": {"speaks-first"},
    "asyncio, as documented": {"speaks-first"},
    "uvloop, the same": {"speaks-first"},
    "haproxy, Lua `applet:send`": set(),
    "OpenSSH": set(),
}


@one_loop
@pytest.mark.one_interpreter
@pytest.mark.thorough
@pytest.mark.parametrize("name", BROKEN)
async def test_the_musts_of_a_real_service_are_those_of_the_table(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = target_service.LATE

    def begin(_service: TargetService, checks: tuple[Check, ...]) -> None:
        """What is broken whatever the time is judged also if this process stood still meanwhile."""
        broken = {check.id for check in checks} <= BROKEN[name]
        monkeypatch.setattr(target_service, "LATE", math.inf if broken else late)

    try:
        with running(SERVICES[name]) as service:
            report = await run(service.plan(only=("speaks-first", *KEPT)), on_start=begin)
    except Missing as error:
        pytest.skip(str(error))
    found = {result.check.id: result.finding.verdict for result in report.results}
    # On a busy machine, a check may be without a verdict.
    assert {id for id, verdict in found.items() if verdict is Verdict.FAIL} == BROKEN[name]


# The same for datagrams. What is racy there (socat and xinetd lose some) is not asked for.
BROKEN_OF_DATAGRAMS = {
    "nginx stream `return`, udp": {"udp-ports"},
    "asyncio, datagram endpoint": {"udp-source", "udp-ports"},
}


@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.one_interpreter
@pytest.mark.thorough
@pytest.mark.parametrize("name", BROKEN_OF_DATAGRAMS)
async def test_what_a_real_datagram_service_breaks_is_that_of_the_table(name: str) -> None:
    names = ("udp-empty", "udp-full", "udp-once", "udp-source", "udp-ports", "udp-icmp")
    try:
        with running(DATAGRAM_SERVICES[name]) as service:
            report = await run(service.plan(only=names))
    except Missing as error:
        pytest.skip(str(error))
    found = {result.check.id: result.finding.verdict for result in report.results}
    assert {id for id, verdict in found.items() if verdict is Verdict.FAIL} == BROKEN_OF_DATAGRAMS[name]


TABLE = """\
| service | `end` | `burst` | `let-go` |
| --- | --- | --- | --- |
| a service, fast 1.2.3 | ✓ | ✗ 3 of 4 lost | ✓ 3 s |

| service | `udp-once` | `udp-burst` |
| --- | --- | --- |
| another 4.5 | ✓ | 12 of 1000, 57 ms |
"""


def test_runs_are_compared_with_each_other_and_with_the_table() -> None:
    passed, failed, unsure = Verdict.PASS, Verdict.FAIL, Verdict.UNSURE
    table = documented(TABLE, "a service, fast")
    assert table == {"end": passed, "burst": failed, "let-go": passed}
    assert documented(TABLE, "another") == {"udp-once": passed}
    assert documented(TABLE, "a service") == {}

    def differences(table: dict[str, Verdict], *runs: dict[str, Verdict]) -> list[tuple[str, bool]]:
        return [(each.id, each.changes) for each in compared(list(runs), table)]

    same = {"end": passed, "burst": failed, "let-go": passed}
    assert differences(table, same, same) == []
    assert differences(table, same, same | {"end": unsure}) == [("end", False)]
    assert differences(table, same, same | {"let-go": failed}) == [("let-go", True)]
    assert differences(table, same | {"burst": passed}) == [("burst", True)]  # a must, against the table
    assert differences(table, same | {"let-go": failed}) == [("let-go", False)]  # a should


def test_a_program_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_args, **_options: None)
    with (
        pytest.raises(Missing, match="haproxy is not installed"),
        running(SERVICES["haproxy, Lua `applet:send`"]),
    ):
        pass
