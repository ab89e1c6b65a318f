"""Some checks against real services: the verdicts of their musts are known, and never vary.

``python -m tests.services`` has all checks, and more services.
"""

from __future__ import annotations

import shutil

import pytest

from greeter.conformance.check_run import run
from greeter.conformance.findings import Verdict
from tests.conftest import one_loop
from tests.services.programs import SERVICES, Missing
from tests.services.running import running

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
async def test_the_musts_of_a_real_service_are_those_of_the_table(name: str) -> None:
    try:
        with running(SERVICES[name]) as service:
            report = await run(service.plan(only=("speaks-first", *KEPT)))
    except Missing as error:
        pytest.skip(str(error))
    found = {result.check.id: result.finding.verdict for result in report.results}
    # On a busy machine, a check may be without a verdict.
    assert {id for id, verdict in found.items() if verdict is Verdict.FAIL} == BROKEN[name]


def test_a_program_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_args, **_options: None)
    with (
        pytest.raises(Missing, match="haproxy is not installed"),
        running(SERVICES["haproxy, Lua `applet:send`"]),
    ):
        pass
