"""Parse the text of an option into its value.

Invariants:

- A parser takes text and raises ConfigError with that text in its message.
- It does not depend on the source of the text: the command line, the environment or a file.
"""

from __future__ import annotations

import math
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from greeter.core.admission import Limits, Networks
from greeter.core.durations import parse_duration
from greeter.core.endpoint import Endpoint, host_name
from greeter.core.escapes import unescape
from greeter.core.greeting import Greeting
from greeter.core.replies import Until
from greeter.errors import ConfigError, os_error_text
from greeter.system.input_files import read_input

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_SECONDS = 1e8  # three years
MAX_WORKERS = 1024
MAX_COUNT = 2**31 - 1  # the largest C int, which system calls take


class ParsedType(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic in new clicks only
    """A click type made from a parser.

    Args:
        name: The metavar of the option.
        parse: Returns the value of a text, or raises ConfigError.
        number: True if a TOML file may have the value as a number.
        hint: Advice for the error about a number in a TOML file, where ``number`` is False.
        text: Returns the text of a value, which ``parse`` turns back into the value.
    """

    def __init__(
        self,
        name: str,
        parse: Callable[[str], Any],
        *,
        number: bool = False,
        hint: str = "",
        text: Callable[[Any], str] = str,
    ) -> None:
        self.name = name
        self.number = number
        self.hint = hint
        self.text = text
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._parse(str(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class FilePath(click.Path):  # type: ignore[type-arg,unused-ignore]  # as ParsedType
    """A path. It rejects text that cannot be a file name, which a TOML file may contain."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except ValueError:  # a null byte, a lone surrogate
            self.fail(f"{value!r} is not a file name", param, ctx)


def endpoint(text: str) -> Endpoint:
    """Parse an endpoint. A port that is a service name must be known to this machine."""
    found = Endpoint.parse(text)
    if isinstance(found.port, str):
        try:
            socket.getservbyname(found.port, "udp" if found.kind == "udp" else "tcp")
        except (OSError, ValueError):
            raise ConfigError(f"endpoint {text!r}: this machine knows no service {found.port!r}") from None
    return found


def stream_endpoint(text: str) -> Endpoint:
    """Parse an endpoint, but not one for datagrams."""
    found = endpoint(text)
    found.require_stream("HTTP")
    return found


def service_port(text: str) -> int | str:
    """Parse the port of a service for datagrams: a number, or a name that this machine knows."""
    found = endpoint(f"udp::{text}")
    if found.port == 0:
        raise ConfigError("no service can have port 0")
    return found.port


def seconds(text: str) -> float:
    """Parse a number of seconds, or a duration with units such as ``500ms`` or ``1m30s``."""
    try:
        value = float(text)
    except ValueError:
        value = parse_duration(text)
    if MAX_SECONDS < value < math.inf:
        raise ConfigError(f"{text[:40]!r} is longer than {MAX_SECONDS:.0f} s")
    if not 0 <= value < math.inf:
        raise ConfigError(f"{text!r} is not a duration, as in 500ms, 10s or 2m")
    return value


def positive_seconds(text: str) -> float:
    value = seconds(text)
    if value == 0:
        raise ConfigError("must be greater than 0 seconds")
    return value


def count(text: str, most: int = MAX_COUNT) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10) or not 1 <= int(text) <= most:
        raise ConfigError(f"{text[:40]!r} is not a whole number from 1 to {most}")
    return int(text)


def processes(text: str) -> int:
    """Parse a number of processes, which all start at once and need memory."""
    return count(text, MAX_WORKERS)


def worker_count(text: str) -> int | Literal["auto"]:
    """Parse a number of workers, or ``auto``."""
    if text == "auto":
        return "auto"
    try:
        return processes(text)
    except ConfigError as error:
        raise ConfigError(f"{error}, nor auto") from None


def template(text: str) -> str:
    Greeting(text)
    return text


def rate(text: str) -> float:
    Limits(rate_per_ip=text)
    return float(text)


def network(text: str) -> str:
    Networks([text])
    return text


def mode(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not set(text) <= set("01234567") or len(text) not in (3, 4):
        raise ConfigError(f"{text!r} is not a mode of three or four octal digits, as in 660")
    return int(text, 8)


def quantity(text: str) -> int:
    """Parse a count such as ``10k``."""
    from greeter.loadtest.plan.units import parse_count

    return parse_count(text)


def per_second(text: str) -> float:
    """Parse a rate such as ``1.5k``. The load plan rejects zero and less."""
    from greeter.loadtest.plan.units import parse_quantity

    return parse_quantity(text)


def names(text: str) -> str:
    """Check a list of names, separated by commas."""
    if not re.fullmatch(r"[a-z0-9-]+(,[a-z0-9-]+)*", text):
        raise ConfigError(f"{text!r} is not a list of ids, as in burst,stop")
    return text


def limit(text: str) -> str:
    """Check a threshold such as ``response:p99<20ms``."""
    from greeter.loadtest import Threshold

    Threshold.parse(text)
    return text


def until(text: str) -> str:
    """Check what ends a greeting, such as ``line`` or ``text:READY``."""
    Until.parse(text)
    return text


def escaped(text: str) -> bytes:
    """Parse text with escapes, such as ``HELO me\\r\\n``."""
    return unescape(text)


def escaped_or_file(text: str) -> bytes:
    """Parse text with escapes, or read the file that follows an ``@``."""
    if not text.startswith("@"):
        return unescape(text)
    try:
        return read_input(text[1:])
    except OSError as error:
        raise ConfigError(f"cannot read {text[1:]}: {os_error_text(error)}") from error


def nonempty(text: str) -> str:
    if not text:
        raise ConfigError("must not be empty")
    return text


def percent(text: str) -> float:
    """Parse a percentage such as ``25`` or ``25%``."""
    from greeter.loadtest.plan.units import parse_percent

    return parse_percent(text)


def stage(text: str) -> Any:
    """Parse a stage such as ``10s:500``."""
    from greeter.loadtest import parse_stage

    return parse_stage(text)


ENDPOINT = ParsedType("endpoint", endpoint)
STREAM_ENDPOINT = ParsedType("endpoint", stream_endpoint)
SERVICE_PORT = ParsedType("port", service_port, number=True)
SECONDS = ParsedType("duration", seconds, number=True)
POSITIVE_SECONDS = ParsedType("duration", positive_seconds, number=True)
COUNT = ParsedType("n", count, number=True)
TEMPLATE = ParsedType("text", template)
RATE = ParsedType("rate", rate, number=True)
NETWORK = ParsedType("cidr", network)
# Not as a number: TOML parses 0o660 to 432, and the number 660 is another mode.
MODE = ParsedType(
    "mode", mode, hint='put its octal digits in quotes, as in "660"', text=lambda value: f"{value:03o}"
)
WORKERS = ParsedType("n", worker_count, number=True)
PROCESS_COUNT = ParsedType("n", processes, number=True)
DURATION = SECONDS
QUANTITY = ParsedType("n", quantity, number=True)
PER_SECOND = ParsedType("rate", per_second, number=True)
STAGE = ParsedType("dur:rate", stage)
UNTIL = ParsedType("until", until)
ESCAPED = ParsedType("bytes", escaped)
SAID = ParsedType("bytes", escaped_or_file)
NAMES = ParsedType("id,…", names)
LIMIT = ParsedType("expr", limit)
PERCENT = ParsedType("pct", percent, number=True)
APP = ParsedType("module:name", str)
TEXT = ParsedType("text", nonempty)
HOST_NAME = ParsedType("name", host_name)
FILE = FilePath(path_type=Path)
FILE_NAME = FilePath()  # as text
LOOP = click.Choice(["auto", "asyncio", "uvloop"])
