"""Who is let in: networks, connections per address, new connections per second, decided in one call.

The law: one who can take another address at will is one address all the same. So an IPv6 address counts
as its /64, and ``::ffff:192.0.2.1`` is ``192.0.2.1``. A decision takes a few look-ups in dictionaries,
and what is remembered has a bound however many addresses come.

The rate is a bucket of tokens for each address: ``rate_per_ip`` tokens come in a second, the bucket holds
that many (rounded up), and a connection takes one. A full bucket says no more than none at all, so those
are dropped as new addresses come. In a flood there may be ``MAX_BUCKETS`` buckets that are not full yet.
Then the address goes that has been quiet longest, where being refused is not being quiet: one who keeps
trying stays limited, and one who waits to be forgotten gains a full bucket at the price of ``MAX_BUCKETS``
connections from other addresses. Nobody is refused for want of memory. Whoever has more addresses than
the table is not stopped by any limit per address; ``deny`` and ``max_connections`` are for that.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TYPE_CHECKING, Literal, TypeAlias

from greeter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_BUCKETS = 65_536  # addresses that have a bucket; with all of them about 14 MB
HOST_CACHE_SIZE = 8_192  # texts of hosts whose address is remembered

Network: TypeAlias = IPv4Network | IPv6Network
Reason: TypeAlias = Literal["denied", "per_ip", "rate"]
DENIED: Reason = "denied"
PER_IP: Reason = "per_ip"
RATE: Reason = "rate"

_CIDR = re.compile(r"[0-9A-Fa-f:.]+(/[0-9]+)?", re.ASCII)
_MAPPED = IPv6Network("::ffff:0:0/96")
_SLACK = 0.001  # of a token: what floats round away is nobody's fault


class Networks:
    """A set of networks that answers ``host in networks``.

    ``networks`` are texts such as ``192.0.2.0/24`` and ``2001:db8::/32``, where a bare address is a
    network of one, or objects of ``ipaddress``; ``name`` is what errors call them. Raises ConfigError
    for anything else, and for host bits that are set: who writes 192.0.2.7/24 may mean either. A look-up
    takes as long as there are different lengths of prefix, not networks. What is no address, the name of
    a Unix socket say, is in none of them.
    """

    __slots__ = ("_known", "_prefixes", "networks")

    def __init__(self, networks: Iterable[str | Network] = (), name: str = "network") -> None:
        if isinstance(networks, str):
            networks = (networks,)
        self.networks: tuple[Network, ...] = tuple(_network(str(network), name) for network in networks)
        self._known: dict[str, bool] = {}  # of the hosts that were looked up last
        self._prefixes: dict[int, dict[int, set[int]]] = {32: {}, 128: {}}
        for network in self.networks:
            host_bits = network.max_prefixlen - network.prefixlen
            prefixes = self._prefixes[network.max_prefixlen].setdefault(host_bits, set())
            prefixes.add(int(network.network_address) >> host_bits)

    def __contains__(self, host: str) -> bool:
        found = self._known.get(host)
        if found is None:
            if len(self._known) >= HOST_CACHE_SIZE:
                self._known.clear()
            found = self._known[host] = self._look_up(host)
        return found

    def _look_up(self, host: str) -> bool:
        address = _address(host)
        if address is None:
            return False
        prefixes, number = self._prefixes[address.max_prefixlen], int(address)
        return any(number >> host_bits in known for host_bits, known in prefixes.items())


def trusted_proxies(networks: Iterable[str]) -> Networks:
    """The networks of the proxies to believe. Raises ConfigError when there are none: nobody could come."""
    proxies = Networks(networks, "proxy_from")
    if not proxies.networks:
        raise ConfigError("proxy_from names no network, so that nobody could be served")
    return proxies


@dataclass(frozen=True, slots=True, init=False)
class Limits:
    """What a server lets in. None means without limit, and so do no networks.

    ``max_connections``: open at once; the server itself holds to that. ``max_per_ip``: open at once from
    one address. ``rate_per_ip``: new ones a second from one address; that many (rounded up, at least
    one) may come at once. ``allow``: if there are any, nobody else is let in. ``deny``: never let in,
    whatever ``allow`` says. Numbers may be given as text, networks as ``Networks`` takes them. Raises
    ConfigError with the name and the value.
    """

    max_connections: int | None
    max_per_ip: int | None
    rate_per_ip: float | None
    allow: tuple[Network, ...]
    deny: tuple[Network, ...]

    def __init__(
        self,
        *,
        max_connections: int | str | None = None,
        max_per_ip: int | str | None = None,
        rate_per_ip: float | str | None = None,
        allow: Iterable[str | Network] = (),
        deny: Iterable[str | Network] = (),
    ) -> None:
        put = object.__setattr__  # frozen
        put(self, "max_connections", _count(max_connections, "max_connections"))
        put(self, "max_per_ip", _count(max_per_ip, "max_per_ip"))
        put(self, "rate_per_ip", _rate(rate_per_ip, "rate_per_ip"))
        put(self, "allow", Networks(allow, "allow").networks)
        put(self, "deny", Networks(deny, "deny").networks)

    @property
    def admits_all(self) -> bool:
        """True when every client is admitted, so that nobody need ask."""
        return self.max_per_ip is None and self.rate_per_ip is None and not self.allow and not self.deny


class Admission:
    """Decides about each connection, and counts the open ones and, in ``rejected``, the refused ones.

    ``host`` is always the text of an address, with or without a scope id. Any other text is the name of a
    Unix socket; those, and the empty one, are always admitted, and not counted.
    """

    __slots__ = (
        "_buckets",
        "_burst",
        "_denied",
        "_max_per_ip",
        "_open",
        "_rate",
        "_max_buckets",
        "limits",
        "rejected",
    )

    def __init__(self, limits: Limits, *, max_buckets: int = MAX_BUCKETS) -> None:
        self.rejected: dict[str, int] = {DENIED: 0, PER_IP: 0, RATE: 0}
        self._open: dict[int, int] = {}  # by address; has no zeros, so it is no larger than what is open
        # By address, the one quiet longest first: when its bucket is full, on the clock of ``_take``.
        self._buckets: OrderedDict[int, float] = OrderedDict()
        self._max_buckets = max_buckets
        self._rate: float | None = None
        self.replace(limits)

    @classmethod
    def of(cls, limits: Limits) -> Admission | None:
        """One for these limits, or None when they limit nothing: then ``admit`` need not be called."""
        return None if limits.admits_all else cls(limits)

    def replace(self, limits: Limits) -> None:
        """Go on with other limits. Counts stay; buckets do too unless the rate is another one."""
        if limits.rate_per_ip != self._rate:
            self._buckets.clear()
        self.limits = limits
        self._max_per_ip = math.inf if limits.max_per_ip is None else limits.max_per_ip
        self._rate = limits.rate_per_ip
        self._burst = math.ceil(limits.rate_per_ip or 0)
        self._denied = _denied(limits)

    def admit(self, host: str, now: float) -> Reason | None:
        """Why the client may not come in, or None if it may.

        ``now`` is in seconds, on any clock that does not go back. After None, and only then, call
        ``release`` when the connection is over.
        """
        key = _key(host)
        if key is None:
            return None
        if self._denied is not None and self._denied(host):
            self.rejected[DENIED] += 1
            return DENIED
        count = self._open.get(key, 0)
        if count >= self._max_per_ip:
            self.rejected[PER_IP] += 1
            return PER_IP
        if self._rate is not None and not self._take(key, now * self._rate):
            self.rejected[RATE] += 1
            return RATE
        self._open[key] = count + 1
        return None

    def release(self, host: str) -> None:
        """A connection that was admitted is over. Raises KeyError when none from ``host`` is open."""
        key = _key(host)
        if key is None:
            return
        count = self._open[key]
        if count > 1:
            self._open[key] = count - 1
        else:
            del self._open[key]

    @property
    def addresses(self) -> int:
        """How many addresses have open connections."""
        return len(self._open)

    @property
    def buckets(self) -> int:
        """How many addresses are remembered for their rate, at most ``MAX_BUCKETS``."""
        return len(self._buckets)

    def _take(self, key: int, clock: float) -> bool:
        """Take a token. The clock counts tokens: each tick puts one into every bucket that has room."""
        buckets = self._buckets
        full = buckets.get(key)
        if full is None:
            self._evict(clock)
            buckets[key] = clock + 1
            return True
        buckets.move_to_end(key)
        missing = full - clock if full > clock else 0.0
        if missing > self._burst - 1 + _SLACK:
            return False
        buckets[key] = clock + missing + 1
        return True

    def _evict(self, clock: float) -> None:
        """Forget up to two: full buckets, and at the bound the quietest whatever is in it."""
        buckets = self._buckets
        for _ in range(min(2, len(buckets))):
            quietest = next(iter(buckets))
            if len(buckets) < self._max_buckets and buckets[quietest] > clock:
                return
            del buckets[quietest]


def _denied(limits: Limits) -> Callable[[str], bool] | None:
    """Whether the networks shut a host out, or None if there are no networks to ask."""
    if not limits.allow and not limits.deny:
        return None
    allow, deny = Networks(limits.allow), Networks(limits.deny)

    def denied(host: str) -> bool:
        return host in deny or (bool(limits.allow) and host not in allow)

    return denied


@lru_cache(maxsize=HOST_CACHE_SIZE)
def _key(host: str) -> int | None:
    """What ``host`` counts as: its IPv4 address, or its /64 above all of those."""
    address = _address(host)
    if isinstance(address, IPv6Address):
        return 1 << 64 | int(address) >> 64
    return None if address is None else int(address)


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        if ":" not in host:
            return IPv4Address(host)
        address = IPv6Address(host)  # with or without a scope id, which is no part of the number
    except ValueError:
        return None
    return address.ipv4_mapped or address


def _network(text: str, name: str) -> Network:
    try:
        if _CIDR.fullmatch(text) is None:  # ip_network() also takes netmasks, inverted ones and scope ids
            raise ValueError
        network = ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(f"{name} {text!r} is no network, as in 192.0.2.0/24 or 2001:db8::/32") from None
    address = (IPv6Address if ":" in text else IPv4Address)(text.partition("/")[0])
    if address != network.network_address:
        raise ConfigError(f"{name} {text!r} has host bits set; the network is {network}, the host {address}")
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def _count(value: int | str | None, name: str) -> int | None:
    if value is None:
        return None
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text)):
        raise ConfigError(f"{name} {value!r} is not a whole number above 0")
    return int(text)


def _rate(value: float | str | None, name: str) -> float | None:
    if value is None:
        return None
    try:
        rate = float(str(value))
    except ValueError:
        rate = 0.0
    if not 0 < rate < math.inf:
        raise ConfigError(f"{name} {value!r} is not a number above 0")
    return rate
