"""The checks, one small function each, and the order in which they run.

There is a list for services of streams, and one for services that answer datagrams. In each, gentle checks
come first, resets and bursts later, and those that stop the service last.

Must not import: what ``greeter.conformance`` must not.
"""

from greeter.conformance.checks import (
    bursts,
    datagram_load,
    datagram_replies,
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
    "DATAGRAM_CHECKS",
    "STREAM_CHECKS",
    "bursts",
    "datagram_load",
    "datagram_replies",
    "plain_clients",
    "holding",
    "idle",
    "lifecycle",
    "proxy",
    "resources",
    "speaking",
    "over_tls",
]

_STREAMS = """
greets end families speaks-first speaks-much half-close silent kept let-go cut-off
tls-end tls-speaks-first tls-half tls-pieces tls-old tls-garbage tls-silent tls-cut-off
proxy-forms proxy-pieces proxy-joined proxy-bad
wakes silent-100 many-open resets burst burst-1000 descriptors
reload stop-load stop
"""

_DATAGRAMS = """
udp-greets udp-empty udp-full udp-once udp-source udp-ports udp-amplifies udp-icmp udp-many udp-burst
udp-reload udp-stop
"""

STREAM_CHECKS: dict[str, Check] = {name: REGISTERED[name] for name in _STREAMS.split()}
DATAGRAM_CHECKS: dict[str, Check] = {name: REGISTERED[name] for name in _DATAGRAMS.split()}
CHECKS: dict[str, Check] = STREAM_CHECKS | DATAGRAM_CHECKS
