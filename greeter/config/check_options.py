"""The options of ``greeter check``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import click

from greeter.config.options import (
    CLIENT_TLS,
    CLIENT_TLS_CA,
    CLIENT_TLS_CERT,
    CLIENT_TLS_KEY,
    EXPECT_HELP,
    GREETING,
    JUDGEMENT,
    OUTPUT,
    PROXY_PROTOCOL_HELP,
    SERVER_NAME,
    TLS,
    UNTIL_HELP,
    option,
)
from greeter.config.values import COUNT, ENDPOINT, FILE, NAMES, POSITIVE_SECONDS, SAID, TEXT, UNTIL
from greeter.core.endpoint import DEFAULT_ENDPOINT, Endpoint

if TYPE_CHECKING:
    from pathlib import Path

PROFILE_NAMES = ("raw", "http", "ssh", "smtp", "ftp", "mysql", "redis")

# Further groups of ``check --help``.
CHECKS = "Checks"
PROCESS = "Process"


@dataclasses.dataclass(frozen=True)
class CheckOptions:
    """The options of ``greeter check``."""

    target: Endpoint = option(
        Endpoint.parse(DEFAULT_ENDPOINT), "", ENDPOINT, argument=True, metavar="[TARGET]"
    )
    profile: str = option(
        "raw",
        "Protocol of the service: sets what is sent, and what ends a greeting.",
        click.Choice(PROFILE_NAMES),
        group=GREETING,
    )
    send: bytes | None = option(
        None, r"Send this before the greeting, or @FILE; \r \n \t \xNN are escapes.", SAID, group=GREETING
    )
    hello: bytes | None = option(
        None, "What a client says that speaks first, or @FILE; a line by default.", SAID, group=GREETING
    )
    until: str | None = option(None, UNTIL_HELP, UNTIL, group=GREETING, default_text="that of the profile")
    expect: str | None = option(None, EXPECT_HELP, TEXT, group=GREETING)
    timeout: float = option(
        5.0, "How long a client waits for its greeting.", POSITIVE_SECONDS, group=GREETING
    )
    proxy_protocol: Literal["v1", "v2"] | None = option(
        None, PROXY_PROTOCOL_HELP, click.Choice(["v1", "v2"]), group=GREETING
    )
    tls: bool = option(*CLIENT_TLS, group=TLS)
    tls_ca: str | None = option(*CLIENT_TLS_CA, group=TLS)
    tls_cert: str | None = option(*CLIENT_TLS_CERT, group=TLS)
    tls_key: str | None = option(*CLIENT_TLS_KEY, group=TLS)
    server_name: str | None = option(*SERVER_NAME, group=TLS)
    only: tuple[str, ...] = option((), "Run these checks, as in burst,stop.", NAMES, group=CHECKS, many=True)
    skip: tuple[str, ...] = option((), "Leave these checks out.", NAMES, group=CHECKS, many=True)
    fast: bool = option(False, "Leave out the checks that wait in the background.", group=CHECKS)
    idle_limit: float = option(
        30.0, "How long a service may keep an idle client.", POSITIVE_SECONDS, group=CHECKS
    )
    yes: bool = option(False, "Run heavy checks against another machine too.", group=CHECKS)
    list: bool = option(False, "List the checks, and exit.", group=CHECKS, env=False)
    explain: str | None = option(
        None, "Explain the check with this id, and exit.", TEXT, group=CHECKS, env=False
    )
    pid: int | None = option(
        None, "Process that listens, for the checks that look at it.", COUNT, group=PROCESS
    )
    restart: str | None = option(
        None, "Shell command that reloads the service, and returns.", TEXT, group=PROCESS
    )
    stop: str | None = option(None, "Shell command that stops the service.", TEXT, group=PROCESS)
    start: str | None = option(
        None, "Shell command that starts it again; it need not return.", TEXT, group=PROCESS
    )
    expect_fail: tuple[str, ...] = option(
        (), "Checks that are known to fail: they pass, a surprise fails.", NAMES, group=JUDGEMENT, many=True
    )
    strict: bool = option(False, "Count what should be as what must be.", group=JUDGEMENT)
    json: Path | None = option(None, "Write the report to this JSON file.", FILE, group=OUTPUT)
    junit: Path | None = option(None, "Write the report to this JUnit XML file.", FILE, group=OUTPUT)
    html: Path | None = option(None, "Write the report to this HTML page.", FILE, group=OUTPUT)
    verbose: bool = option(
        False, "Show what one client of each failed check experienced.", group=OUTPUT, short="-v"
    )
