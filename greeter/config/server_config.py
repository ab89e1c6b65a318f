"""From options to what a server needs, checked; and checked again when the service is told to reload.

The law: everything that can be wrong with the words of a configuration is found here, before a socket is
opened or a running server is touched.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from greeter.config.sources import greeting_from_app, greeting_from_file
from greeter.core.greeting import Greeting
from greeter.core.limits import Limits
from greeter.errors import ConfigError
from greeter.system import tls

if TYPE_CHECKING:
    import ssl

    from greeter.config.options import ServeOptions

# What a reload brings into force in a process that goes on serving. The rest belongs to the sockets, the
# processes or the log, and needs a restart.
TLS = {"tls_cert", "tls_key", "tls_client_ca"}  # to renew it, not to turn it on or off
RELOADED = {"greeting", "greeting_file", "app", *TLS}
RELOADED |= {"max_connections", "max_per_ip", "rate_per_ip", "allow", "deny"}
# What workers that are replaced bring into force besides.
REPLACED = {"greet_timeout", "linger_timeout", "access_log", "accept", "loop"}


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """What ``serve()`` is given. ``certificate_expiry`` is in seconds since the epoch."""

    greeting: Greeting
    limits: Limits
    tls: ssl.SSLContext | None
    certificate_expiry: float | None
    proxy_from: tuple[str, ...] | None


def prepare(options: ServeOptions) -> Prepared:
    """Read the files and modules that the options name. Raises ConfigError."""
    if bool(options.proxy_from) != options.proxy_protocol:
        raise ConfigError("--proxy-protocol and --proxy-from go together: name the proxies to believe")
    if options.tls_cert is None and (options.tls_key or options.tls_client_ca):
        raise ConfigError("--tls-key and --tls-client-ca go with --tls-cert")
    context = expiry = None
    if options.tls_cert is not None:
        context, expiry = tls.load(options.tls_cert, options.tls_key, options.tls_client_ca)
    return Prepared(
        greeting=_greeting(options),
        limits=Limits(
            max_connections=options.max_connections,
            max_per_ip=options.max_per_ip,
            rate_per_ip=options.rate_per_ip,
            allow=options.allow,
            deny=options.deny,
        ),
        tls=context,
        certificate_expiry=expiry,
        proxy_from=options.proxy_from or None,
    )


def in_force(old: ServeOptions, new: ServeOptions, *, workers: bool) -> ServeOptions:
    """What a reload makes of ``old``: ``new``, but for what needs a restart."""
    taken = RELOADED | (REPLACED if workers else set())
    if (old.tls_cert is None) != (new.tls_cert is None) and not workers:
        taken -= TLS
    fields = (field.name for field in dataclasses.fields(new) if field.name not in taken)
    return dataclasses.replace(new, **{name: getattr(old, name) for name in fields})


def need_restart(old: ServeOptions, new: ServeOptions, *, workers: bool) -> list[str]:
    """The flags whose change does not take effect by a reload."""
    then = in_force(old, new, workers=workers)
    names = (field.name for field in dataclasses.fields(new))
    return ["--" + name.replace("_", "-") for name in names if getattr(then, name) != getattr(new, name)]


def _greeting(options: ServeOptions) -> Greeting:
    if options.app is not None:
        return greeting_from_app(options.app)
    if options.greeting_file is not None:
        return greeting_from_file(options.greeting_file)
    return Greeting(options.greeting)
