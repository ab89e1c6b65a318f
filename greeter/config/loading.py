"""From the options of ``greeter serve`` to the configuration of a server, at the start and at every reload.

Invariants:

- A wrong configuration is rejected here, before a socket is opened or a running server is changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from greeter.config.greeting_sources import greeting_from_app, greeting_from_file
from greeter.core.admission import Limits, trusted_proxies
from greeter.core.greeting import Greeting
from greeter.core.server_config import ServerConfig
from greeter.errors import ConfigError
from greeter.system import tls

if TYPE_CHECKING:
    from greeter.config.options import ServeOptions
    from greeter.core.server_config import AccessLog


def load_server_config(
    options: ServeOptions, access_log: bool | AccessLog = True, greeting: Greeting | None = None
) -> ServerConfig:
    """Load what the options name: the greeting, the certificate, the limits.

    Args:
        options: The options of ``greeter serve``.
        access_log: What logs each client, unless the options switch that off.
        greeting: The greeting that the options name, if it is loaded already.

    Returns:
        The configuration of a server.

    Raises:
        ConfigError: Options contradict each other, or a file or a module cannot be loaded.
    """
    if bool(options.proxy_from) != options.proxy_protocol:
        raise ConfigError("--proxy-protocol and --proxy-from go together: name the trusted proxies")
    if options.tls_cert is None and (options.tls_key or options.tls_client_ca):
        raise ConfigError("--tls-key and --tls-client-ca go with --tls-cert")
    context = expiry = None
    if options.tls_cert is not None:
        context, expiry = tls.load_server_context(options.tls_cert, options.tls_key, options.tls_client_ca)
    config = ServerConfig(
        greeting=load_greeting(options) if greeting is None else greeting,
        limits=Limits(
            max_connections=options.max_connections,
            max_per_ip=options.max_per_ip,
            rate_per_ip=options.rate_per_ip,
            allow=options.allow,
            deny=options.deny,
        ),
        tls=context,
        certificate_expiry=expiry,
        proxy_from=trusted_proxies(options.proxy_from) if options.proxy_from else None,
        accept=options.accept,
        backlog=options.backlog,
        unix_mode=options.unix_mode,
        greet_timeout=options.greet_timeout,
        linger_timeout=options.linger_timeout,
        drain_timeout=options.drain_timeout,
        access_log=options.access_log and access_log,
    )
    for endpoint in options.listen:
        config.check_endpoint(endpoint)
    return config


def load_greeting(options: ServeOptions) -> Greeting:
    """Return the greeting that the options name. Raises ConfigError if it cannot be loaded."""
    if options.app is not None:
        return greeting_from_app(options.app)
    if options.greeting_file is not None:
        return greeting_from_file(options.greeting_file)
    return Greeting(options.greeting)
