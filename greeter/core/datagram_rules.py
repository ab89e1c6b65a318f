"""Which datagrams are answered: rules that keep a service from being an amplifier, or one half of a loop.

A source address can be forged. An answer that is larger than its datagram then multiplies what an attacker
sends, at the cost of a victim (TA14-017A of US-CERT lists the quote of the day, RFC 865). And one forged
datagram can set two services on each other for ever (CVE-2024-2169), if each answers the other's answers.

Invariants:

- The rules depend on the addresses and the sizes alone. No option lifts them.
- Addresses count as private by RFC 1918 and RFC 4193, not by ``ipaddress``' ``is_private``, which includes
  networks for documentation.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeAlias

from greeter.core.admission import HOST_CACHE_SIZE, Networks
from greeter.core.admission import Reason as AdmissionReason
from greeter.core.datagram_sizes import AMPLIFICATION_BOUND

if TYPE_CHECKING:
    from collections.abc import Container

SourceKind: TypeAlias = Literal["local", "public", "invalid"]
Reason: TypeAlias = Literal["loop", "amplification"] | AdmissionReason

# Services listen on the ports below it; clients get the ports from it on (RFC 6335, 6).
FIRST_CLIENT_PORT = 1024

LOOP: Reason = "loop"
AMPLIFICATION: Reason = "amplification"

# Attackers elsewhere cannot have an answer sent to one of these networks: routers drop or never route them.
_LOCAL = Networks(
    (
        *("127.0.0.0/8", "::1"),  # loopback
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),  # private, RFC 1918
        "fc00::/7",  # private, RFC 4193
        *("169.254.0.0/16", "fe80::/10"),  # link-local, RFC 3927 and RFC 4291
    )
)
# No host has one of these addresses: unspecified, multicast, broadcast.
_INVALID = Networks(("0.0.0.0", "::", "224.0.0.0/4", "ff00::/8", "255.255.255.255"))


@lru_cache(maxsize=HOST_CACHE_SIZE)
def classify_source(host: str) -> SourceKind:
    """Classify the source address of a datagram.

    Args:
        host: The text of the address, with or without a scope id.

    Returns:
        ``"local"`` for the loopback, private and link-local networks, ``"invalid"`` for what is not the
        address of one host, else ``"public"``.
    """
    if host in _INVALID:
        return "invalid"
    return "local" if host in _LOCAL else "public"


def rejection(host: str, port: int, ports: Container[object], size: int, reply_size: int) -> Reason | None:
    """Decide whether a datagram may be answered.

    Args:
        host: The text of its source address.
        port: Its source port.
        ports: The ports on which this service itself answers datagrams.
        size: Its size in bytes.
        reply_size: The size of the answer in bytes.

    Returns:
        The reason not to answer it, or None. That it must not equal the answer is for the caller to check.
    """
    if port < FIRST_CLIENT_PORT or port in ports:
        return LOOP
    source = classify_source(host)
    if source == "local":
        return None
    if source == "invalid":
        return LOOP
    return AMPLIFICATION if size * AMPLIFICATION_BOUND < reply_size else None
