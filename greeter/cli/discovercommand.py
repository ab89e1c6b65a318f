"""The command ``discover``: find services for datagrams, and print each.

Invariants:

- Services go to stdout: a line each as they reply, or with ``--json`` one list at the end.
- What is printed has no character that a terminal obeys.
"""

from __future__ import annotations

from json import dumps
from typing import TYPE_CHECKING

from greeter.client.discovery import discover
from greeter.core.escapes import escape
from greeter.system import loops

if TYPE_CHECKING:
    from collections.abc import Callable

    from greeter.config.discover_options import DiscoverOptions


def run_discover(
    options: DiscoverOptions, echo: Callable[[str], None], print_error: Callable[[str], None]
) -> int:
    """Run the command.

    Args:
        options: Its options.
        echo: Prints a line to stdout.
        print_error: Prints an error to stderr.

    Returns:
        The exit code: 0, or 1 if no service has replied.

    Raises:
        ConnectFailed: There is no network to ask.
    """
    return loops.run(_discover(options, echo, print_error), "asyncio")  # loads faster than uvloop


async def _discover(
    options: DiscoverOptions, echo: Callable[[str], None], print_error: Callable[[str], None]
) -> int:
    services = []
    async for found in discover(options.port, timeout=options.timeout):
        services.append(found)
        if not options.json:
            greeting = escape(found.data.rstrip(b"\r\n"))
            echo(f"{found.address}: {greeting}")
    if options.json:
        values = [
            {
                "address": found.address,
                "greeting": found.greeting,
                "round_trip_us": round(found.round_trip * 1e6),
            }
            for found in services
        ]
        echo(dumps(values))
    if not services:
        print_error(f"no service replied on port {options.port} within {options.timeout:g} s")
    return 0 if services else 1
