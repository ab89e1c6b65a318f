"""Every option, once: its field, flag, environment variable, key in the file, check and help.

The law: an option is a field of one of these dataclasses and nothing else; the command line is made from
the fields.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import click

from greeter.endpoint import DEFAULT_ENDPOINT, Endpoint
from greeter.greeting import DEFAULT_GREETING
from greeter.values import (
    APP,
    COUNT,
    DURATION,
    ENDPOINT,
    FILE,
    FILE_NAME,
    HOST_NAME,
    LIMIT,
    LOOP,
    MODE,
    NETWORK,
    PER_SECOND,
    PERCENT,
    POSITIVE_SECONDS,
    QUANTITY,
    RATE,
    SECONDS,
    STAGE,
    TEMPLATE,
    WORKERS,
)

if TYPE_CHECKING:
    from pathlib import Path

KEY = "greeter"


def option(
    default: Any,
    help: str,
    type: Any = None,
    *,
    many: bool = False,
    argument: bool = False,
    only: str = "",
    short: str = "",
    env: bool = True,
) -> Any:
    """A field that is an option: ``only`` is a group of which one may be given, ``short`` as in ``-c``.

    ``env`` says whether the environment may give it.
    """
    meta = {"help": help, "type": type, "multiple": many, "argument": argument, "only": only}
    meta |= {"short": short, "env": env}
    return dataclasses.field(default=default, metadata={KEY: meta})


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """What ``greeter serve`` can be told."""

    listen: tuple[Endpoint, ...] = option(
        (),
        f"Where to listen; may be repeated. Default: {DEFAULT_ENDPOINT}, or the sockets of systemd.",
        ENDPOINT,
        many=True,
    )
    greeting: str = option(
        DEFAULT_GREETING,
        "What to say. Knows $host $port $hostname $time $count (of each worker its own); $$ is a dollar.",
        TEMPLATE,
        only="greeting",
    )
    greeting_file: Path | None = option(
        None, "Say what is in this file, byte for byte.", FILE, only="greeting"
    )
    app: str | None = option(
        None,
        "Say what this says: a callable that gets a Peer, text or bytes.",
        APP,
        only="greeting",
    )
    loop: Literal["auto", "asyncio", "uvloop"] = option(
        "auto", "The event loop; auto is uvloop where it is installed.", LOOP
    )
    accept: Literal["auto", "direct", "streams"] = option(
        "auto",
        "The accept path: direct works on the accepted sockets, streams is asyncio.start_server; auto is "
        "direct where possible.",
        click.Choice(["auto", "direct", "streams"]),
    )
    workers: int | Literal["auto"] = option(
        1, "Processes that serve; auto is one for each core that we may use.", WORKERS
    )
    backlog: int = option(2048, "Connections that the kernel queues for us (listen backlog).", COUNT)
    max_connections: int | None = option(
        None,
        "Clients at a time, which workers share equally, rounded up; the others wait in the listen queue. "
        "Default: what the descriptor limit allows.",
        COUNT,
    )
    max_per_ip: int | None = option(
        None,
        "Clients at a time from one address (IPv6: from one /64); each worker counts for itself.",
        COUNT,
    )
    rate_per_ip: float | None = option(
        None,
        "New clients a second from one address (IPv6: one /64); as many may come at once; each worker counts "
        "for itself.",
        RATE,
    )
    allow: tuple[str, ...] = option((), "Serve only these networks; may be repeated.", NETWORK, many=True)
    deny: tuple[str, ...] = option((), "Never serve these networks; may be repeated.", NETWORK, many=True)
    greet_timeout: float = option(
        10.0, "Seconds from accept until the kernel has the last byte.", POSITIVE_SECONDS
    )
    linger_timeout: float = option(2.0, "Seconds for a greeted client to close.", SECONDS)
    drain_timeout: float = option(10.0, "How long a stop waits for open connections, in seconds.", SECONDS)
    stop_delay: float = option(
        0.0,
        "Seconds to go on serving after a stop signal, while load balancers notice by /healthz of --metrics.",
        SECONDS,
    )
    unix_mode: int | None = option(None, "Mode of Unix sockets' files, in octal, as in 660.", MODE)
    tls_cert: Path | None = option(None, "Serve TLS with the certificate chain in this PEM file.", FILE)
    tls_key: Path | None = option(None, "The certificate's key, if it is in a file of its own.", FILE)
    tls_client_ca: Path | None = option(
        None, "Serve only clients with a certificate that an authority in this file signed.", FILE
    )
    proxy_protocol: bool = option(False, "Connections begin with a PROXY header, version 1 or 2.")
    proxy_from: tuple[str, ...] = option(
        (),
        "Networks of the proxies to believe; required with --proxy-protocol; may be repeated.",
        NETWORK,
        many=True,
    )
    metrics: Endpoint | None = option(
        None,
        "Serve Prometheus metrics there, under /metrics, and /healthz: 200, and 503 from a stop signal on.",
        ENDPOINT,
    )
    access_log: bool = option(True, "Write a line for each client that is let in, at level info.")
    log_format: Literal["text", "json"] = option(
        "text", "The form of the log.", click.Choice(["text", "json"])
    )
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "info", "What to log, and above.", click.Choice(["debug", "info", "warning", "error"])
    )


# Both kinds of client have these.
TLS = (False, "Speak TLS, and verify the server's certificate.")
TLS_CA = (None, "Trust the authorities in this PEM file instead of the system's.", FILE_NAME)
TLS_CERT = (None, "Show the certificate in this PEM file.", FILE_NAME)
TLS_KEY = (None, "The certificate's key, if it is in a file of its own.", FILE_NAME)
SERVER_NAME = (None, "The name that the certificate must have, if not the host's.", HOST_NAME)


@dataclasses.dataclass(frozen=True)
class GreetOptions:
    """What ``greeter greet`` can be told."""

    target: Endpoint = option(Endpoint.parse(DEFAULT_ENDPOINT), "", ENDPOINT, argument=True)
    timeout: float = option(10.0, "Seconds for everything.", POSITIVE_SECONDS)
    connect_timeout: float = option(5.0, "Seconds of those for connecting.", POSITIVE_SECONDS)
    max_bytes: int = option(65536, "The longest greeting to take.", COUNT)
    until: Literal["eof", "line", "reply"] = option(
        "eof",
        "What ends a greeting: the stream, a line, or an SMTP or FTP reply.",
        click.Choice(["eof", "line", "reply"]),
    )
    wait: float = option(0.0, "Keep trying for this many seconds until the service is up.", SECONDS)
    json: bool = option(False, "Print an object with the times, in microseconds.", only="form")
    tls: bool = option(*TLS)
    tls_ca: str | None = option(*TLS_CA)
    # In the environment, these are the server's: a health check beside it has the same.
    tls_cert: str | None = option(*TLS_CERT, env=False)
    tls_key: str | None = option(*TLS_KEY, env=False)
    server_name: str | None = option(*SERVER_NAME)
    raw: bool = option(False, "Print the bytes as they came, control characters and all.", only="form")


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """What ``greeter load`` can be told."""

    target: Endpoint = option(Endpoint.parse(DEFAULT_ENDPOINT), "", ENDPOINT, argument=True)
    connections: int | None = option(
        None, "Connections open at once, at the most. Default: 50, with a rate 1000.", QUANTITY, short="-c"
    )
    count: int | None = option(None, "End after so many connections, as in 10k.", QUANTITY, short="-n")
    duration: float | None = option(None, "End after this time. Default: 10s.", DURATION, short="-z")
    rate: float | None = option(
        None,
        "New connections a second, in all, whether or not earlier ones have ended.",
        PER_SECOND,
        short="-r",
    )
    stage: tuple[Any, ...] = option(
        (), "DUR:RATE goes in a straight line to RATE within DUR; may be repeated.", STAGE, many=True
    )
    hold: float = option(
        0.0,
        "Keep each connection open for so long after its greeting, to the end of the duration at most.",
        DURATION,
    )
    timeout: float = option(10.0, "Time for a connection and its whole greeting.", DURATION)
    connect_timeout: float = option(5.0, "Time of that for connecting.", DURATION)
    expect: str | None = option(None, "Text that a greeting must contain.", str)
    max_bytes: int = option(65536, "The longest greeting to take.", COUNT)
    until: Literal["eof", "line"] = option("eof", "What ends a greeting.", click.Choice(["eof", "line"]))
    workers: int = option(1, "Processes that make the load.", COUNT, short="-w")
    warmup: float = option(0.0, "Load for so long before the figures begin.", DURATION)
    source_ip: tuple[str, ...] = option(
        (), "Local address to connect from; each adds a range of ports; may be repeated.", str, many=True
    )
    tls: bool = option(*TLS)
    tls_ca: str | None = option(*TLS_CA)
    tls_cert: str | None = option(*TLS_CERT)
    tls_key: str | None = option(*TLS_KEY)
    server_name: str | None = option(*SERVER_NAME)
    threshold: tuple[str, ...] = option(
        (), "A limit to keep, as in response:p99<20ms or errors:rate<0.1%; may be repeated.", LIMIT, many=True
    )
    baseline: Path | None = option(None, "Compare with the JSON report of an earlier run.", FILE)
    tolerance: float | None = option(
        None, "How many percent worse than the baseline is still good. Default: 10.", PERCENT
    )
    json: Path | None = option(None, "Write the report there.", FILE)
    csv: Path | None = option(None, "Write the timeline there.", FILE)
    hdr: Path | None = option(None, "Write the histograms there, as an .hlog.", FILE)
    html: Path | None = option(None, "Write a page to look at there.", FILE)
    quiet: bool = option(False, "Show no progress.")


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """What ``greeter report`` can be told."""

    runs: tuple[Path, ...] = option((), "", FILE, many=True, argument=True)
    merge: bool = option(False, "The files are parts of one run, made by several generators: add them up.")
    tolerance: float | None = option(
        None, "How many percent worse than the baseline is still good. Default: 10.", PERCENT
    )
    html: Path | None = option(None, "Write a page to look at there.", FILE)
    json: Path | None = option(None, "Write the report there.", FILE)


@dataclasses.dataclass(frozen=True)
class DemoOptions:
    """What ``greeter demo`` can be told."""

    clients: int = option(1000, "How many clients to greet at once.", COUNT)
    loop: Literal["auto", "asyncio", "uvloop"] = option(
        "auto", "The event loop; auto is uvloop where it is installed.", LOOP
    )
