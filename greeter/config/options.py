"""Every option of every command, defined once.

Invariants:

- An option is a field of one of these dataclasses. Its flag, its environment variable and its TOML key are
  made from the field.
- A help text is one line of at most 70 characters. It does not repeat what click shows beside it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import click

from greeter.config.values import (
    APP,
    COUNT,
    DURATION,
    ENDPOINT,
    ESCAPED,
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
    PROCESS_COUNT,
    QUANTITY,
    RATE,
    SECONDS,
    STAGE,
    STREAM_ENDPOINT,
    TEMPLATE,
    TEXT,
    UNTIL,
    WORKERS,
)
from greeter.core.endpoint import DEFAULT_ENDPOINT, Endpoint
from greeter.core.greeting import DEFAULT_GREETING
from greeter.core.server_config import BACKLOG, DRAIN_TIMEOUT, GREET_TIMEOUT, LINGER_TIMEOUT

if TYPE_CHECKING:
    from pathlib import Path

METADATA_KEY = "greeter"
# In the environment of a worker, whose options come from its parent: the descriptor of its channel, then
# those of the listening sockets. A plus sign follows those that other services may use, such as systemd's.
WORKER_VARIABLE = "GREETER_WORKER"


def option(
    default: Any,
    help: str,
    type: Any = None,
    *,
    group: str = "",
    default_text: str = "",
    many: bool = False,
    argument: bool = False,
    metavar: str = "",
    exclusive_group: str = "",
    short: str = "",
    env: bool = True,
) -> Any:
    """Return a dataclass field that is an option.

    Args:
        default: The value if no source gives one.
        help: What the option does, in one line of at most 70 characters.
        type: The click type that parses its text; None for a flag.
        group: The heading under which ``--help`` shows it.
        default_text: The default as ``--help`` shows it, if it differs from the value.
        many: True if it may be repeated.
        argument: True if it is a positional argument.
        metavar: How the help shows the argument, in brackets if it is optional.
        exclusive_group: The name of a group of options, of which one source may give only one.
        short: The short flag, such as ``-c``.
        env: True if it has an environment variable.

    Returns:
        The field, with these arguments in its metadata.
    """
    meta = {"help": help, "type": type, "group": group, "default_text": default_text, "multiple": many}
    meta |= {
        "argument": argument,
        "metavar": metavar,
        "exclusive_group": exclusive_group,
        "short": short,
        "env": env,
    }
    return dataclasses.field(default=default, metadata={METADATA_KEY: meta})


# The groups of ``serve --help``.
LISTENING = "Listening"
GREETING = "Greeting"
LIMITS = "Limits"
TIMEOUTS = "Timeouts"
TLS = "TLS"
PROXY = "PROXY protocol"
PROCESSES = "Processes"
LOGS = "Logs and metrics"


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """The options of ``greeter serve``."""

    listen: tuple[Endpoint, ...] = option(
        (),
        "Where to listen; may be repeated.",
        ENDPOINT,
        group=LISTENING,
        default_text=f"{DEFAULT_ENDPOINT}, or the sockets of systemd",
        many=True,
    )
    backlog: int = option(BACKLOG, "Length of the accept queue (listen backlog).", COUNT, group=LISTENING)
    unix_mode: int | None = option(
        None, "Mode of the files of Unix sockets, in octal, as in 660.", MODE, group=LISTENING
    )
    greeting: str = option(
        DEFAULT_GREETING,
        "Text to send. Variables: $host $port $hostname $time $count ($$: $).",
        TEMPLATE,
        group=GREETING,
        exclusive_group="greeting",
    )
    greeting_file: Path | None = option(
        None,
        "Send the contents of this file, byte for byte.",
        FILE,
        group=GREETING,
        exclusive_group="greeting",
    )
    app: str | None = option(
        None,
        "Send this object: text, bytes, or a callable that takes a Peer.",
        APP,
        group=GREETING,
        exclusive_group="greeting",
    )
    max_connections: int | None = option(
        None,
        "Connections open at once; the others wait in the accept queue.",
        COUNT,
        group=LIMITS,
        default_text="what the descriptor limit allows",
    )
    max_per_ip: int | None = option(
        None, "Connections open at once from one address, per worker.", COUNT, group=LIMITS
    )
    rate_per_ip: float | None = option(
        None, "New connections per second from one address, per worker.", RATE, group=LIMITS
    )
    allow: tuple[str, ...] = option(
        (), "Serve only clients of this network; may be repeated.", NETWORK, group=LIMITS, many=True
    )
    deny: tuple[str, ...] = option(
        (), "Reject clients of this network; may be repeated.", NETWORK, group=LIMITS, many=True
    )
    greet_timeout: float = option(
        GREET_TIMEOUT,
        "Time from accept until the kernel has the last byte.",
        POSITIVE_SECONDS,
        group=TIMEOUTS,
    )
    linger_timeout: float = option(
        LINGER_TIMEOUT, "Time after the greeting for the client to close.", SECONDS, group=TIMEOUTS
    )
    drain_timeout: float = option(
        DRAIN_TIMEOUT, "How long a stop waits for open connections.", SECONDS, group=TIMEOUTS
    )
    stop_delay: float = option(
        0.0, "How long to serve on after a stop signal; /healthz returns 503.", SECONDS, group=TIMEOUTS
    )
    tls_cert: Path | None = option(
        None, "Serve TLS with the certificate chain in this PEM file.", FILE, group=TLS
    )
    tls_key: Path | None = option(
        None, "The certificate's key, if it is in a file of its own.", FILE, group=TLS
    )
    tls_client_ca: Path | None = option(
        None, "Require a client certificate signed by one of these authorities.", FILE, group=TLS
    )
    proxy_protocol: bool = option(
        False, "Require a PROXY header, version 1 or 2, on every connection.", group=PROXY
    )
    proxy_from: tuple[str, ...] = option(
        (),
        "Network of trusted proxies (required); may be repeated.",
        NETWORK,
        group=PROXY,
        many=True,
    )
    workers: int | Literal["auto"] = option(
        1, "Number of processes that serve; auto is one per usable core.", WORKERS, group=PROCESSES
    )
    loop: Literal["auto", "asyncio", "uvloop"] = option(
        "auto", "Event loop; auto is uvloop if it is installed.", LOOP, group=PROCESSES
    )
    accept: Literal["auto", "direct", "streams"] = option(
        "auto",
        "Accept path; streams is asyncio.start_server, auto prefers direct.",
        click.Choice(["auto", "direct", "streams"]),
        group=PROCESSES,
    )
    metrics: Endpoint | None = option(
        None, "Serve a status page, Prometheus metrics and health checks there.", STREAM_ENDPOINT, group=LOGS
    )
    access_log: bool = option(True, "Log a line for each admitted client, at level info.", group=LOGS)
    log_format: Literal["text", "json"] = option(
        "text", "Format of the log, which goes to stderr.", click.Choice(["text", "json"]), group=LOGS
    )
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "info",
        "Lowest level to log.",
        click.Choice(["debug", "info", "warning", "error"]),
        group=LOGS,
    )


# Options that greet and load share, as arguments of option().
TIMEOUT_HELP = "Time for the whole greeting, connecting included."
CONNECT_TIMEOUT_HELP = "Time for connecting; included in --timeout."
MAX_BYTES_HELP = "Longest greeting to accept, in bytes."
UNTIL_HELP = "What ends it: eof, line, reply, text:TEXT, bytes:N or idle:DURATION."
SEND_HELP = "What to send first; \\r \\n \\t \\xNN are escapes."
EXPECT_HELP = "Text that a greeting must contain."
PROXY_PROTOCOL_HELP = "Send a PROXY header of this version first."
CLIENT_TLS = (False, "Use TLS, and verify the server's certificate.")
CLIENT_TLS_CA = (None, "Trust the authorities in this PEM file, not the system's.", FILE_NAME)
CLIENT_TLS_CERT = (None, "Present the client certificate in this PEM file.", FILE_NAME)
CLIENT_TLS_KEY = (None, "The certificate's key, if it is in a file of its own.", FILE_NAME)
SERVER_NAME = (None, "Name that the certificate must have, if not the host's.", HOST_NAME)

# Options that load and report share.
TOLERANCE_HELP = "Allowed regression from the baseline, in percent."
JSON_HELP = "Write the report to this JSON file."
HTML_HELP = "Write the report to this HTML page."
TITLE_HELP = "Title of the HTML page, instead of the target."
CSV_HELP = "Write the timeline to this CSV file."
HDR_HELP = "Write the histograms to this HdrHistogram log (.hlog)."

# Further groups of ``greet --help`` and ``load --help``.
TARGETS = "Several targets"
OUTPUT = "Output"
LOAD = "Load"
JUDGEMENT = "Judgement"


@dataclasses.dataclass(frozen=True)
class GreetOptions:
    """The options of ``greeter greet``."""

    target: tuple[Endpoint, ...] = option((), "", ENDPOINT, many=True, argument=True, metavar="[TARGET]...")
    targets: str | None = option(
        None, "Greet the targets in this file too, one a line; - is stdin.", FILE_NAME, group=TARGETS
    )
    limit: int = option(100, "Connections at a time, with several targets.", COUNT, group=TARGETS)
    timeout: float = option(10.0, TIMEOUT_HELP, POSITIVE_SECONDS, group=GREETING)
    connect_timeout: float = option(5.0, CONNECT_TIMEOUT_HELP, POSITIVE_SECONDS, group=GREETING)
    wait: float = option(0.0, "How long to retry until the service is up.", SECONDS, group=GREETING)
    until: str = option("eof", UNTIL_HELP, UNTIL, group=GREETING)
    send: bytes | None = option(None, SEND_HELP, ESCAPED, group=GREETING)
    expect: str | None = option(None, EXPECT_HELP, TEXT, group=GREETING)
    # Not in the environment: the variable of this name is an option of serve.
    proxy_protocol: Literal["v1", "v2"] | None = option(
        None, PROXY_PROTOCOL_HELP, click.Choice(["v1", "v2"]), group=GREETING, env=False
    )
    max_bytes: int = option(65536, MAX_BYTES_HELP, COUNT, group=GREETING)
    tls: bool = option(*CLIENT_TLS, group=TLS)
    tls_ca: str | None = option(*CLIENT_TLS_CA, group=TLS)
    # Not in the environment: a health check beside a server has the same variables as the server.
    tls_cert: str | None = option(*CLIENT_TLS_CERT, group=TLS, env=False)
    tls_key: str | None = option(*CLIENT_TLS_KEY, group=TLS, env=False)
    server_name: str | None = option(*SERVER_NAME, group=TLS)
    json: bool = option(
        False,
        "Print a JSON object a target: the greeting, times in microseconds.",
        group=OUTPUT,
        exclusive_group="form",
    )
    raw: bool = option(
        False,
        "Print the bytes as received, control characters included.",
        group=OUTPUT,
        exclusive_group="form",
    )


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """The options of ``greeter load``."""

    target: Endpoint = option(
        Endpoint.parse(DEFAULT_ENDPOINT), "", ENDPOINT, argument=True, metavar="[TARGET]"
    )
    connections: int | None = option(
        None,
        "Maximum number of open connections.",
        QUANTITY,
        group=LOAD,
        default_text="50, with a rate 1000",
        short="-c",
    )
    count: int | None = option(
        None, "Stop after this many connections, as in 10k.", QUANTITY, group=LOAD, short="-n"
    )
    duration: float | None = option(
        None, "Stop after this time.", DURATION, group=LOAD, default_text="10s", short="-z"
    )
    rate: float | None = option(
        None, "New connections per second, in all (open loop).", PER_SECOND, group=LOAD, short="-r"
    )
    stage: tuple[Any, ...] = option(
        (), "Change the rate to RATE, linearly, within DUR; may be repeated.", STAGE, group=LOAD, many=True
    )
    warmup: float = option(0.0, "How long to run the load before measuring.", DURATION, group=LOAD)
    workers: int = option(
        1, "Number of processes that generate the load.", PROCESS_COUNT, group=LOAD, short="-w"
    )
    source_ip: tuple[str, ...] = option(
        (),
        "Local address, for another range of ports; may be repeated.",
        str,
        group=LOAD,
        many=True,
    )
    hold: float = option(
        0.0, "How long to keep a connection open after its greeting.", DURATION, group=GREETING
    )
    timeout: float = option(10.0, TIMEOUT_HELP, DURATION, group=GREETING)
    connect_timeout: float = option(5.0, CONNECT_TIMEOUT_HELP, DURATION, group=GREETING)
    until: str = option("eof", UNTIL_HELP, UNTIL, group=GREETING)
    send: bytes | None = option(None, SEND_HELP, ESCAPED, group=GREETING)
    expect: str | None = option(None, EXPECT_HELP, TEXT, group=GREETING)
    proxy_protocol: Literal["v1", "v2"] | None = option(
        None, PROXY_PROTOCOL_HELP, click.Choice(["v1", "v2"]), group=GREETING
    )
    max_bytes: int = option(65536, MAX_BYTES_HELP, COUNT, group=GREETING)
    tls: bool = option(*CLIENT_TLS, group=TLS)
    tls_ca: str | None = option(*CLIENT_TLS_CA, group=TLS)
    tls_cert: str | None = option(*CLIENT_TLS_CERT, group=TLS)
    tls_key: str | None = option(*CLIENT_TLS_KEY, group=TLS)
    server_name: str | None = option(*SERVER_NAME, group=TLS)
    threshold: tuple[str, ...] = option(
        (),
        "Limit to keep, as in response:p99<20ms; may be repeated.",
        LIMIT,
        group=JUDGEMENT,
        many=True,
    )
    max_lag: float = option(
        0.01,
        "How late starts may be (p99) before the run counts as disturbed.",
        DURATION,
        group=JUDGEMENT,
        default_text="10ms",
    )
    baseline: Path | None = option(
        None, "Compare with the JSON report of an earlier run.", FILE, group=JUDGEMENT
    )
    tolerance: float | None = option(None, TOLERANCE_HELP, PERCENT, group=JUDGEMENT, default_text="10")
    json: Path | None = option(None, JSON_HELP, FILE, group=OUTPUT)
    csv: Path | None = option(None, CSV_HELP, FILE, group=OUTPUT)
    hdr: Path | None = option(None, HDR_HELP, FILE, group=OUTPUT)
    html: Path | None = option(None, HTML_HELP, FILE, group=OUTPUT)
    title: str | None = option(None, TITLE_HELP, str, group=OUTPUT)
    quiet: bool = option(False, "Show no progress.", group=OUTPUT)


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """The options of ``greeter report``."""

    runs: tuple[Path, ...] = option((), "", FILE, many=True, argument=True, metavar="RUN.json...")
    merge: bool = option(False, "Merge the files: parts of one run, by several generators.")
    tolerance: float | None = option(None, TOLERANCE_HELP, PERCENT, default_text="10")
    html: Path | None = option(None, HTML_HELP, FILE)
    title: str | None = option(None, TITLE_HELP, str)
    json: Path | None = option(None, JSON_HELP, FILE)
    csv: Path | None = option(None, CSV_HELP, FILE)
    hdr: Path | None = option(None, HDR_HELP, FILE)


@dataclasses.dataclass(frozen=True)
class DemoOptions:
    """The options of ``greeter demo``."""

    clients: int = option(1000, "Number of clients to greet at once.", COUNT)
    loop: Literal["auto", "asyncio", "uvloop"] = option(
        "auto", "Event loop; auto is uvloop if it is installed.", LOOP
    )
