"""Which checks apply to a service, and what a plan must not ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greeter.conformance.checks import CHECKS
from greeter.conformance.findings import NOT_ASKED_FOR
from greeter.core.datagram_sizes import DATAGRAM_MAX
from greeter.errors import ConfigError

if TYPE_CHECKING:
    from greeter.conformance.check_plan import CheckPlan
    from greeter.conformance.registry import Check
    from greeter.conformance.target_service import TargetService

# Why a check does not apply to a service without a trait.
MISSING = {
    "tcp": "the target is a Unix socket",
    "eof": "the service goes on after its greeting",
    "junk": "the protocol makes a client wait for the greeting",
    "tls": "without --tls",
    "proxy": "without --proxy-protocol",
    "pid": "without --pid",
    "restart": "without --restart",
    "stop": "without --stop",
    "start": "without --start",
    "unasked": "the service waits for a request (--send)",
    "private": "from this network, a reply to it would amplify",
    "public": "asked from a private network, which needs no bound",
}


def excuse(check: Check, plan: CheckPlan, service: TargetService) -> str:
    """Returns why a check is not run; "" if it is."""
    if (plan.only and check.id not in plan.only) or check.id in plan.skip:
        return NOT_ASKED_FOR
    if check.background and plan.fast:
        return "left out by --fast"
    if check.heavy and not service.local and not plan.heavy:
        return "heavy, and the target is not this machine: --yes runs it"
    for need in MISSING:
        if need == "start" and check.id in plan.only:
            continue  # it is asked for by name, though the service stays stopped
        if need in check.needs and need not in service.traits:
            return MISSING[need]
    return ""


def require_consistent(plan: CheckPlan) -> None:
    """Raise ConfigError if a plan names a check that does not exist, or that is not for its target."""
    kind, other = ("datagrams", "streams") if plan.datagrams else ("streams", "datagrams")
    for name in (*plan.only, *plan.skip, *plan.expect_fail):
        if name not in CHECKS:
            raise ConfigError(f"{name!r} is not a check; greeter check --list shows them")
        if CHECKS[name].datagrams != plan.datagrams:
            raise ConfigError(f"{name} is a check of {other}, and {plan.target} serves {kind}")
    for name, given in (
        ("ssl", plan.tls is not None or plan.server_name is not None),
        ("proxy_protocol", plan.proxy_protocol is not None),
        (f"until {str(plan.until)!r}", plan.until.kind != "eof"),
        ("hello", bool(plan.hello)),
        ("polite", plan.polite),
    ):
        if given:
            plan.target.require_stream(name)
    if plan.datagrams and len(plan.send) > DATAGRAM_MAX:
        raise ConfigError(f"send has {len(plan.send)} bytes, and a datagram {DATAGRAM_MAX} at most")
