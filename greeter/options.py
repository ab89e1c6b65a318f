"""Every option, once: its field, flag, environment variable, key in the file, check and help.

The law: an option is a field of one of these dataclasses and nothing else. The command line is made from
the fields; what is wrong is said before anything starts, with the name of where it came from.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
from click.core import ParameterSource

from greeter.endpoint import DEFAULT_ENDPOINT, Endpoint
from greeter.errors import ConfigError, reason
from greeter.greeting import DEFAULT_GREETING, Greeting
from greeter.limits import Limits, Networks

if TYPE_CHECKING:
    from collections.abc import Callable

OptionsT = TypeVar("OptionsT")

_KEY = "greeter"
MOST = 2**31 - 1  # what the system's own calls take


class Checked(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic in new clicks only
    """A type that is a function from text to a value, and says no with ConfigError.

    ``number``: in a file, its value may be written as a number too.
    """

    def __init__(self, name: str, read: Callable[[str], Any], *, number: bool = False) -> None:
        self.name = name
        self.number = number
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._read(str(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1e8:
        raise ConfigError(f"{text!r} is not a number of seconds")
    return value


def _positive_seconds(text: str) -> float:
    value = _seconds(text)
    if value == 0:
        raise ConfigError("0 seconds is no time at all")
    return value


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10) or not 1 <= int(text) <= MOST:
        raise ConfigError(f"{text[:40]!r} is not a whole number from 1 to {MOST}")
    return int(text)


def _template(text: str) -> str:
    Greeting(text)
    return text


def _rate(text: str) -> float:
    Limits(rate_per_ip=text)
    return float(text)


def _network(text: str) -> str:
    Networks([text])
    return text


def _mode(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not set(text) <= set("01234567") or len(text) not in (3, 4):
        raise ConfigError(f"{text!r} is not a mode of three or four octal digits, as in 660")
    return int(text, 8)


ENDPOINT = Checked("endpoint", Endpoint.parse)
SECONDS = Checked("seconds", _seconds, number=True)
POSITIVE_SECONDS = Checked("seconds", _positive_seconds, number=True)
COUNT = Checked("n", _count, number=True)
TEMPLATE = Checked("text", _template)
RATE = Checked("rate", _rate, number=True)
NETWORK = Checked("cidr", _network)
MODE = Checked("mode", _mode)  # 0o660 is the number 432 by the time that we would see it
WORKERS = Checked("n", lambda text: text if text == "auto" else _count(text), number=True)
FILE = click.Path(path_type=Path)
LOOP = click.Choice(["auto", "asyncio", "uvloop"])


def option(
    default: Any, help: str, type: Any = None, *, many: bool = False, argument: bool = False, only: str = ""
) -> Any:
    """A field that is an option: ``only`` is a group of which one may be given."""
    meta = {"help": help, "type": type, "multiple": many, "argument": argument, "only": only}
    return dataclasses.field(default=default, metadata={_KEY: meta})


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """What ``greeter serve`` can be told."""

    listen: tuple[Endpoint, ...] = option(
        (Endpoint.parse(DEFAULT_ENDPOINT),), "Where to listen; may be repeated.", ENDPOINT, many=True
    )
    greeting: str = option(
        DEFAULT_GREETING,
        "What to say. Knows $host $port $hostname $time $count; $$ is a dollar.",
        TEMPLATE,
        only="greeting",
    )
    greeting_file: Path | None = option(
        None, "Say what is in this file, byte for byte.", FILE, only="greeting"
    )
    app: str | None = option(
        None,
        "Say what this MODULE:NAME says: a callable that gets a Peer, text or bytes.",
        str,
        only="greeting",
    )
    loop: Literal["auto", "asyncio", "uvloop"] = option(
        "auto", "The event loop; auto is uvloop where it is installed.", LOOP
    )
    accept: Literal["auto", "stream", "instant"] = option(
        "auto",
        "The accept path: instant greets at accept time, stream can wait; auto takes the first that can.",
        click.Choice(["auto", "stream", "instant"]),
    )
    workers: int | Literal["auto"] = option(
        1, "Processes that serve; auto is one for each core that we may use.", WORKERS
    )
    backlog: int = option(2048, "Connections that the kernel queues for us (listen backlog).", COUNT)
    max_connections: int | None = option(
        None,
        "Clients at a time; the others wait in the listen queue. Default: what the descriptor limit allows.",
        COUNT,
    )
    max_per_ip: int | None = option(None, "Clients at a time from one address (IPv6: from one /64).", COUNT)
    rate_per_ip: float | None = option(
        None, "New clients a second from one address (IPv6: one /64); as many may come at once.", RATE
    )
    allow: tuple[str, ...] = option((), "Serve only these networks; may be repeated.", NETWORK, many=True)
    deny: tuple[str, ...] = option((), "Never serve these networks; may be repeated.", NETWORK, many=True)
    greet_timeout: float = option(
        10.0, "Seconds from accept until the kernel has the last byte.", POSITIVE_SECONDS
    )
    linger_timeout: float = option(2.0, "Seconds for a greeted client to close.", SECONDS)
    drain_timeout: float = option(10.0, "Seconds for everybody to leave when we stop.", SECONDS)
    stop_delay: float = option(
        0.0, "Seconds to go on serving after a stop signal, while load balancers notice.", SECONDS
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
    metrics: Endpoint | None = option(None, "Serve Prometheus metrics there, under /metrics.", ENDPOINT)
    access_log: bool = option(True, "Write a line for each client.")
    log_format: Literal["text", "json"] = option(
        "text", "The form of the log.", click.Choice(["text", "json"])
    )
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "info", "What to log, and above.", click.Choice(["debug", "info", "warning", "error"])
    )


@dataclasses.dataclass(frozen=True)
class GreetOptions:
    """What ``greeter greet`` can be told."""

    target: Endpoint = option(Endpoint.parse(DEFAULT_ENDPOINT), "", ENDPOINT, argument=True)
    timeout: float = option(10.0, "Seconds for everything.", POSITIVE_SECONDS)
    connect_timeout: float = option(5.0, "Seconds of those for connecting.", POSITIVE_SECONDS)
    max_bytes: int = option(65536, "The longest greeting to take.", COUNT)
    until: Literal["eof", "line"] = option("eof", "What ends a greeting.", click.Choice(["eof", "line"]))
    wait: float = option(0.0, "Keep trying for this many seconds until the service is up.", SECONDS)
    json: bool = option(False, "Print an object with the times, in microseconds.")
    tls: bool = option(False, "Speak TLS, and verify the server's certificate.")
    tls_ca: Path | None = option(
        None, "Trust the authorities in this PEM file instead of the system's.", FILE
    )
    server_name: str | None = option(None, "The name that the certificate must have, if not the host's.", str)
    raw: bool = option(False, "Print the bytes as they came, control characters and all.")


@dataclasses.dataclass(frozen=True)
class DemoOptions:
    """What ``greeter demo`` can be told."""

    clients: int = option(1000, "How many clients to greet at once.", COUNT)
    loop: Literal["auto", "asyncio", "uvloop"] = option(
        "auto", "The event loop; auto is uvloop where it is installed.", LOOP
    )


def with_options(
    cls: type[Any], *, config: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a command with the options of ``cls``; ``config`` adds ``--config FILE.toml``."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(dataclasses.fields(cls)):
            function = _parameter(field)(function)
        if config:
            function = click.option(
                "--config",
                type=click.Path(dir_okay=False),
                envvar="GREETER_CONFIG",
                show_envvar=True,
                is_eager=True,
                expose_value=False,
                callback=lambda ctx, _param, file: _read_config(ctx, cls, file),
                metavar="FILE.toml",
                help="Read options from a file; its keys are the options' names.",
            )(function)
        return function

    return decorate


def collect(cls: type[OptionsT], ctx: click.Context) -> OptionsT:
    """The options of ``cls`` that the command was given. Raises ConfigError where they contradict."""
    values = dict(ctx.params)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # it is one
    groups: dict[str, list[str]] = {}
    for name, field in fields.items():
        if group := field.metadata[_KEY]["only"]:
            groups.setdefault(group, []).append(name)
    for names in groups.values():
        ranks = {name: _RANK[ctx.get_parameter_source(name)] for name in names}
        best = max(ranks.values())
        chosen = [name for name in names if ranks[name] == best]
        if best and len(chosen) > 1:
            where = f"{ctx.meta['greeter.config']}: " if _SPELL[best] is _dashed else ""
            raise ConfigError(f"{where}give one of {' and '.join(_SPELL[best](name) for name in chosen)}")
        values |= {name: fields[name].default for name in names if name not in chosen}
    return cls(**values)


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _flag(name: str) -> str:
    return "--" + _dashed(name)


def _variable(name: str) -> str:
    return f"GREETER_{name.upper()}"


# Where a value comes from, by rank, and how its option is spelled there.
_RANK: defaultdict[ParameterSource | None, int] = defaultdict(int)
_RANK |= {ParameterSource.COMMANDLINE: 3, ParameterSource.ENVIRONMENT: 2, ParameterSource.DEFAULT_MAP: 1}
_SPELL = {3: _flag, 2: _variable, 1: _dashed}


def _parameter(field: dataclasses.Field[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    meta = field.metadata[_KEY]
    if meta["argument"]:
        return click.argument(field.name, type=meta["type"], default=str(field.default), metavar="[TARGET]")
    flag = _flag(field.name)
    if isinstance(field.default, bool):
        # What is on by default needs a way to turn it off; what is off needs only its name.
        declared, kind = (f"{flag}/--no-{_dashed(field.name)}" if field.default else flag), bool
    else:
        declared, kind = flag, meta["type"]
    many = meta["multiple"]
    default: Any = field.default
    return click.option(
        declared,
        field.name,
        type=kind,
        is_flag=isinstance(field.default, bool),
        multiple=many,
        default=[str(item) for item in default] if many else default,
        show_default=default not in (None, False),
        envvar=_variable(field.name),
        show_envvar=True,
        help=meta["help"],
    )


def _read_config(ctx: click.Context, cls: type[Any], file: str | None) -> None:
    """Make the keys of a TOML file the defaults of the command."""
    if file is None:
        return
    try:
        with open(file, "rb") as stream:
            table = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {file!r}: {reason(error)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error
    fields = {field.name: field for field in dataclasses.fields(cls)}
    defaults: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in fields:
            raise ConfigError(f"{file}: unknown key {key!r}{_nearest(name, fields)}")
        many = fields[name].metadata[_KEY]["multiple"]
        if isinstance(value, list) != many and not (many and isinstance(value, str)):
            raise ConfigError(f"{file}: {key} is {'a list' if many else 'one value'}, not {value!r}")
        values = value if isinstance(value, list) else [value]
        meaningless = not values and fields[name].default  # nowhere to listen, say
        if meaningless or any(type(item) not in _kinds(fields[name]) for item in values):
            raise ConfigError(f"{file}: {key} cannot be {value!r}")
        defaults[name] = values if many else value
    ctx.default_map = defaults
    ctx.meta["greeter.config"] = file


def _kinds(field: dataclasses.Field[Any]) -> tuple[type, ...]:
    """What TOML may have for ``field``; the option's own check comes after it."""
    if isinstance(field.default, bool):
        return (bool,)
    return (str, int, float) if getattr(field.metadata[_KEY]["type"], "number", False) else (str,)


def _nearest(name: str, known: dict[str, Any]) -> str:
    import difflib  # only for a misspelling

    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {_dashed(near[0])!r}?" if near else ""
