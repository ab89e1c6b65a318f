"""The sizes of datagrams: what fits in one, what a greeting may have, what a request should have.

Invariants:

- REQUEST is what a client sends that has nothing of its own to say. It is long enough for every greeting that
  RFC 865 allows, from a service that is no amplifier. RFC 865 gives its contents no meaning.
"""

from __future__ import annotations

# The longest payload that fits in one datagram over IPv4: 65,535 bytes without the headers of IP and UDP.
DATAGRAM_MAX = 65_507
# What RFC 865 allows a greeting in a datagram to have, in bytes. More is fragmented on its way.
DATAGRAM_GREETING = 512
# RFC 9000, 8.1: a server sends an address that is not validated at most three times what it received from it.
AMPLIFICATION_BOUND = 3

# A third of the longest greeting, rounded up.
REQUEST = bytes(-(-DATAGRAM_GREETING // AMPLIFICATION_BOUND))
