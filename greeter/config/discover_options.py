"""The options of ``greeter discover``."""

from __future__ import annotations

import dataclasses

from greeter.config.options import option
from greeter.config.values import POSITIVE_SECONDS, SERVICE_PORT
from greeter.core.endpoint import DEFAULT_PORT


@dataclasses.dataclass(frozen=True)
class DiscoverOptions:
    """The options of ``greeter discover``."""

    port: int | str = option(DEFAULT_PORT, "", SERVICE_PORT, argument=True, metavar="[PORT]")
    timeout: float = option(1.0, "How long to wait for replies.", POSITIVE_SECONDS)
    json: bool = option(False, "Print a JSON list, with round trips in microseconds.")
