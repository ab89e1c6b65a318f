"""What a reload of ``greeter serve`` replaces, and what needs a restart.

Invariants:

- An option that a reload cannot change keeps its old value and is named in a warning.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greeter.config.options import ServeOptions

# The options that a reload changes in a running server. The others belong to the sockets, the processes or
# the log, and need a restart.
TLS_FILES = {"tls_cert", "tls_key", "tls_client_ca"}  # renewed; TLS is not turned on or off
RELOADABLE = {"greeting", "greeting_file", "app", *TLS_FILES}
RELOADABLE |= {"max_connections", "max_per_ip", "rate_per_ip", "allow", "deny"}
# The options that a reload changes in addition if it replaces the workers.
RELOADABLE_BY_WORKERS = {"greet_timeout", "linger_timeout", "access_log", "accept", "loop"}


def reloaded_options(old: ServeOptions, new: ServeOptions, *, workers: bool) -> ServeOptions:
    """Return the options in effect after a reload.

    Args:
        old: The options before the reload.
        new: The options that the reload has read.
        workers: True if the reload replaces the workers.

    Returns:
        ``new``, with the values of ``old`` for what needs a restart.
    """
    changed = RELOADABLE | (RELOADABLE_BY_WORKERS if workers else set())
    if (old.tls_cert is None) != (new.tls_cert is None) and not workers:
        changed -= TLS_FILES
    fields = (field.name for field in dataclasses.fields(new) if field.name not in changed)
    return dataclasses.replace(new, **{name: getattr(old, name) for name in fields})


def restart_required(old: ServeOptions, new: ServeOptions, *, workers: bool) -> list[str]:
    """Return the flags whose change needs a restart. The arguments are those of ``reloaded_options``."""
    reloaded = reloaded_options(old, new, workers=workers)
    names = (field.name for field in dataclasses.fields(new))
    return ["--" + name.replace("_", "-") for name in names if getattr(reloaded, name) != getattr(new, name)]
