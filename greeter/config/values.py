"""How the text of an option becomes a value, or one line that says why not.

The law: a reader takes text and raises ConfigError with that text in its message; where the text came from
(the command line, the environment, a file) makes no difference.
"""

from __future__ import annotations

import math
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from greeter.core.admission import Limits, Networks
from greeter.core.endpoint import Endpoint, host_name
from greeter.core.greeting import Greeting
from greeter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

MOST = 2**31 - 1  # what the system's own calls take


class Checked(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic in new clicks only
    """A type that is a function from text to a value, and says no with ConfigError.

    ``number``: in a file, its value may be written as a number too. ``hint``: what is to be said where it is
    and may not.
    """

    def __init__(
        self, name: str, read: Callable[[str], Any], *, number: bool = False, hint: str = ""
    ) -> None:
        self.name = name
        self.number = number
        self.hint = hint
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._read(str(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class FilePath(click.Path):  # type: ignore[type-arg,unused-ignore]  # as Checked
    """A path, but for what no file can be called, as a configuration file may have it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except ValueError:  # a zero byte, a lone surrogate
            self.fail(f"{value!r} is no name of a file", param, ctx)


def endpoint(text: str) -> Endpoint:
    """An endpoint whose port this machine knows, if it is the name of a service."""
    found = Endpoint.parse(text)
    if isinstance(found.port, str):
        try:
            socket.getservbyname(found.port, "tcp")
        except (OSError, ValueError):
            raise ConfigError(f"endpoint {text!r}: this machine knows no service {found.port!r}") from None
    return found


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1e8:
        raise ConfigError(f"{text!r} is not a number of seconds")
    return value


def positive_seconds(text: str) -> float:
    value = seconds(text)
    if value == 0:
        raise ConfigError("0 seconds is no time at all")
    return value


def count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10) or not 1 <= int(text) <= MOST:
        raise ConfigError(f"{text[:40]!r} is not a whole number from 1 to {MOST}")
    return int(text)


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


def duration(text: str) -> float:
    """As in ``500ms``, ``10s`` or ``2m``; in seconds."""
    from greeter.loadtest.plan.units import parse_duration  # only `load` has durations

    return parse_duration(text)


def quantity(text: str) -> int:
    """As in ``10k``."""
    from greeter.loadtest.plan.units import parse_count

    return parse_count(text)


def per_second(text: str) -> float:
    """As in ``1.5k``; zero and less is said by the plan."""
    from greeter.loadtest.plan.units import parse_quantity

    return parse_quantity(text)


def limit(text: str) -> str:
    """As in ``response:p99<20ms``."""
    from greeter.loadtest import Threshold

    Threshold.parse(text)
    return text


def percent(text: str) -> float:
    """As in ``25`` or ``25%``."""
    from greeter.loadtest.plan.units import parse_percent

    return parse_percent(text)


def stage(text: str) -> Any:
    """As in ``10s:500``."""
    from greeter.loadtest import parse_stage

    return parse_stage(text)


ENDPOINT = Checked("endpoint", endpoint)
SECONDS = Checked("seconds", seconds, number=True)
POSITIVE_SECONDS = Checked("seconds", positive_seconds, number=True)
COUNT = Checked("n", count, number=True)
TEMPLATE = Checked("text", template)
RATE = Checked("rate", rate, number=True)
NETWORK = Checked("cidr", network)
# As a number, 0o660 would be 432 by the time that we see it, and 660 another mode than it says.
MODE = Checked("mode", mode, hint='put its octal digits in quotes, as in "660"')
WORKERS = Checked("n", lambda text: text if text == "auto" else count(text), number=True)
DURATION = Checked("duration", duration, number=True)
QUANTITY = Checked("n", quantity, number=True)
PER_SECOND = Checked("rate", per_second, number=True)
STAGE = Checked("dur:rate", stage)
LIMIT = Checked("expr", limit)
PERCENT = Checked("pct", percent, number=True)
APP = Checked("module:name", str)
HOST_NAME = Checked("name", host_name)
FILE = FilePath(path_type=Path)
FILE_NAME = FilePath()  # as text, for what writes it down
LOOP = click.Choice(["auto", "asyncio", "uvloop"])
