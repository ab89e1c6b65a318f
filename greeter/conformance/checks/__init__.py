"""The checks, one small function each, and the order in which they run.

Gentle checks come first, resets and bursts later, and those that stop the service last.

Must not import: what ``greeter.conformance`` must not.
"""

from greeter.conformance.checks import (
    bursts,
    holding,
    idle,
    lifecycle,
    over_tls,
    plain_clients,
    proxy,
    resources,
    speaking,
)
from greeter.conformance.registry import REGISTERED, Check

__all__ = [
    "CHECKS",
    "bursts",
    "plain_clients",
    "holding",
    "idle",
    "lifecycle",
    "proxy",
    "resources",
    "speaking",
    "over_tls",
]

_ORDER = """
greets end families speaks-first speaks-much half-close silent kept let-go cut-off
tls-end tls-speaks-first tls-half tls-pieces tls-old tls-garbage tls-silent tls-cut-off
proxy-forms proxy-pieces proxy-joined proxy-bad
wakes silent-100 many-open resets burst burst-1000 descriptors
reload stop-load stop
"""

CHECKS: dict[str, Check] = {name: REGISTERED[name] for name in _ORDER.split()}
