"""Admission control: networks, connections per address, and new connections per second.

Invariants:

- Addresses that one client can choose between count as one: an IPv6 address counts as its /64, and
  ``::ffff:192.0.2.1`` as ``192.0.2.1``.
- A decision takes a few dictionary look-ups.
- Memory is bounded, however many addresses connect, and no connection is rejected because a table is full.

The rate limit is a token bucket per address. A bucket gains ``rate_per_ip`` tokens per second and holds that
many (rounded up); a connection takes one. A full bucket carries no information, so full buckets are evicted
as new addresses arrive. A flood may fill the table with ``MAX_BUCKETS`` buckets that are not full. Then the
address that was inactive longest is evicted; a rejected attempt counts as activity. So an address that keeps
trying stays limited, and to get a full bucket by eviction takes ``MAX_BUCKETS`` connections from other
addresses.

A client with more addresses than the table has buckets is not stopped by any limit per address. ``deny`` and
``max_connections`` are for that.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TYPE_CHECKING, Literal, TypeAlias

from greeter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_BUCKETS = 65_536  # about 14 MB when all are in use
# Network texts whose parsed network is cached: it is parsed when the options are checked, needed when the
# limits are made, and mostly the same after a reload.
NETWORK_CACHE_SIZE = 65_536
HOST_CACHE_SIZE = 8_192  # host texts whose parsed address is cached

Network: TypeAlias = IPv4Network | IPv6Network
Reason: TypeAlias = Literal["denied", "per_ip", "rate"]
DENIED: Reason = "denied"
PER_IP: Reason = "per_ip"
RATE: Reason = "rate"

_CIDR = re.compile(r"[0-9A-Fa-f:.]+(/[0-9]+)?", re.ASCII)
_MAPPED = IPv6Network("::ffff:0:0/96")
_ROUNDING_TOLERANCE = 0.001  # tokens: an arrival exactly at the rate must not fail for a rounding error


class Networks:
    """A set of networks; ``host in networks`` tests membership.

    A look-up takes time proportional to the number of distinct prefix lengths, not of networks. Text that is
    not an address, such as the name of a Unix socket, is in no network.

    Args:
        networks: Texts such as ``192.0.2.0/24`` and ``2001:db8::/32``, or objects of ``ipaddress``. A bare
            address is a network of one address.
        name: The name of the setting, for error messages.

    Raises:
        ConfigError: A text is not a network, or has host bits set (192.0.2.7/24 is ambiguous).
    """

    __slots__ = ("_cache", "_prefixes", "networks")

    def __init__(self, networks: Iterable[str | Network] = (), name: str = "network") -> None:
        if isinstance(networks, str):
            networks = (networks,)
        self.networks: tuple[Network, ...] = tuple(
            _unmapped(network)
            if isinstance(network, IPv4Network | IPv6Network)
            else _named_network(str(network), name)
            for network in networks
        )
        self._cache: dict[str, bool] = {}  # results of recent look-ups
        self._prefixes: dict[int, dict[int, set[int]]] = {32: {}, 128: {}}
        for network in self.networks:
            host_bits = network.max_prefixlen - network.prefixlen
            prefixes = self._prefixes[network.max_prefixlen].setdefault(host_bits, set())
            prefixes.add(int(network.network_address) >> host_bits)

    def __contains__(self, host: str) -> bool:
        found = self._cache.get(host)
        if found is None:
            if len(self._cache) >= HOST_CACHE_SIZE:
                self._cache.clear()
            found = self._cache[host] = self._look_up(host)
        return found

    def _look_up(self, host: str) -> bool:
        address = _parse_address(host)
        if address is None:
            return False
        prefixes, number = self._prefixes[address.max_prefixlen], int(address)
        return any(number >> host_bits in known for host_bits, known in prefixes.items())


def trusted_proxies(networks: Iterable[str]) -> Networks:
    """Return the networks of trusted proxies.

    Raises:
        ConfigError: A text is not a network, or there are none, so that every connection would be rejected.
    """
    proxies = Networks(networks, "proxy_from")
    if not proxies.networks:
        raise ConfigError("proxy_from names no network, so every connection would be rejected")
    return proxies


@dataclass(frozen=True, slots=True, init=False)
class Limits:
    """Which connections a server admits.

    None, or no networks, means no limit. Numbers may also be given as text.

    Args:
        max_connections: Open connections. The server enforces this one by pausing accept().
        max_per_ip: Open connections per address.
        rate_per_ip: New connections per second and address. A burst of that many, rounded up, is admitted.
        allow: Networks, as ``Networks`` accepts them. If there are any, other addresses are rejected.
        deny: Networks whose addresses are rejected, even if they are in ``allow``.

    Raises:
        ConfigError: A value is not valid. The message has its name and the value.
    """

    max_connections: int | None
    max_per_ip: int | None
    rate_per_ip: float | None
    allow: tuple[Network, ...]
    deny: tuple[Network, ...]
    # The same as sets, made once: the event loop that takes these limits over should not have to.
    _allow: Networks = field(init=False, repr=False, compare=False)
    _deny: Networks = field(init=False, repr=False, compare=False)

    def __init__(
        self,
        *,
        max_connections: int | str | None = None,
        max_per_ip: int | str | None = None,
        rate_per_ip: float | str | None = None,
        allow: Iterable[str | Network] = (),
        deny: Iterable[str | Network] = (),
    ) -> None:
        put = object.__setattr__  # the dataclass is frozen
        put(self, "max_connections", _parse_count(max_connections, "max_connections"))
        put(self, "max_per_ip", _parse_count(max_per_ip, "max_per_ip"))
        put(self, "rate_per_ip", _parse_rate(rate_per_ip, "rate_per_ip"))
        put(self, "_allow", Networks(allow, "allow"))
        put(self, "_deny", Networks(deny, "deny"))
        put(self, "allow", self._allow.networks)
        put(self, "deny", self._deny.networks)

    @property
    def excludes(self) -> Callable[[str], bool] | None:
        """A function that tests whether the networks exclude a host; None if there are no networks."""
        if not self.allow and not self.deny:
            return None
        allow, deny, only_allowed = self._allow, self._deny, bool(self.allow)
        return lambda host: host in deny or (only_allowed and host not in allow)

    @property
    def admits_all(self) -> bool:
        """True if every client is admitted, so that no Admission is needed."""
        return self.max_per_ip is None and self.rate_per_ip is None and not self.allow and not self.deny


class Admission:
    """Admits or rejects connections, and counts the open ones per address.

    A ``host`` is the text of an address, with or without a scope id. Any other text is the name of a Unix
    socket, or empty; those are always admitted and never counted.

    Args:
        limits: The limits to apply.
        max_buckets: The largest number of addresses to keep a token bucket for.

    Attributes:
        limits: The limits in force.
        rejected: Rejected connections, by reason.
    """

    __slots__ = (
        "_buckets",
        "_burst",
        "_denied",
        "_max_buckets",
        "_max_per_ip",
        "_open",
        "_rate",
        "limits",
        "rejected",
    )

    def __init__(self, limits: Limits, *, max_buckets: int = MAX_BUCKETS) -> None:
        self.rejected: dict[str, int] = {DENIED: 0, PER_IP: 0, RATE: 0}
        self._open: dict[int, int] = {}  # by address, without zeros: never larger than what is open
        # By address, the longest inactive first: when its bucket is full, on the clock of ``_take_token``.
        self._buckets: OrderedDict[int, float] = OrderedDict()
        self._max_buckets = max_buckets
        self._rate: float | None = None
        self.replace(limits)

    @classmethod
    def of(cls, limits: Limits) -> Admission | None:
        """Return an Admission for ``limits``, or None if they admit every client."""
        return None if limits.admits_all else cls(limits)

    def replace(self, limits: Limits) -> None:
        """Replace the limits. Counts are kept, and so are buckets unless the rate changes."""
        if limits.rate_per_ip != self._rate:
            self._buckets.clear()
        self.limits = limits
        self._max_per_ip = math.inf if limits.max_per_ip is None else limits.max_per_ip
        self._rate = limits.rate_per_ip
        self._burst = math.ceil(limits.rate_per_ip or 0)
        self._denied = limits.excludes

    def admit(self, host: str, now: float) -> Reason | None:
        """Decide whether to admit a connection.

        Args:
            host: The text of the client's address.
            now: The current time in seconds, on a monotonic clock.

        Returns:
            None if the connection is admitted; ``release`` must be called when it is closed. Otherwise the
            reason, and ``release`` must not be called.
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
        if self._rate is not None and not self._take_token(key, now * self._rate):
            self.rejected[RATE] += 1
            return RATE
        self._open[key] = count + 1
        return None

    def release(self, host: str) -> None:
        """Stop counting an admitted connection, which was closed.

        Args:
            host: The text of the client's address.

        Raises:
            KeyError: No connection from ``host`` is open.
        """
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
        """The number of addresses that have open connections."""
        return len(self._open)

    @property
    def buckets(self) -> int:
        """The number of token buckets, at most ``max_buckets``."""
        return len(self._buckets)

    def _take_token(self, key: int, clock: float) -> bool:
        """Take a token from a bucket. Return False if it is empty.

        ``clock`` is the time in tokens: each tick adds one token to every bucket that is not full.
        """
        buckets = self._buckets
        full = buckets.get(key)
        if full is None:
            self._evict(clock)
            buckets[key] = clock + 1
            return True
        buckets.move_to_end(key)
        missing = full - clock if full > clock else 0.0
        if missing > self._burst - 1 + _ROUNDING_TOLERANCE:
            return False
        buckets[key] = clock + missing + 1
        return True

    def _evict(self, clock: float) -> None:
        """Evict up to two full buckets; at ``max_buckets``, the longest inactive even if it is not full."""
        buckets = self._buckets
        for _ in range(min(2, len(buckets))):
            oldest = next(iter(buckets))
            if len(buckets) < self._max_buckets and buckets[oldest] > clock:
                return
            del buckets[oldest]


@lru_cache(maxsize=HOST_CACHE_SIZE)
def _key(host: str) -> int | None:
    """Return the number under which ``host`` is counted: its IPv4 address, or its IPv6 /64 plus 2**64."""
    address = _parse_address(host)
    if isinstance(address, IPv6Address):
        return 1 << 64 | int(address) >> 64
    return None if address is None else int(address)


def _parse_address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        if ":" not in host:
            return IPv4Address(host)
        address = IPv6Address(host)  # int() of it leaves out the scope id
    except ValueError:
        return None
    return address.ipv4_mapped or address


def _named_network(text: str, name: str) -> Network:
    try:
        return _parse_network(text)
    except ConfigError as error:
        raise ConfigError(f"{name} {text!r} {error}") from None


@lru_cache(maxsize=NETWORK_CACHE_SIZE)
def _parse_network(text: str) -> Network:
    try:
        if _CIDR.fullmatch(text) is None:  # ip_network() also accepts netmasks, host masks and scope ids
            raise ValueError
        network = ip_network(text, strict=False)
    except ValueError:
        raise ConfigError("is not a network, as in 192.0.2.0/24 or 2001:db8::/32") from None
    address = (IPv6Address if ":" in text else IPv4Address)(text.partition("/")[0])
    if address != network.network_address:
        raise ConfigError(f"has host bits set; the network is {network}, the host {address}")
    return _unmapped(network)


def _unmapped(network: Network) -> Network:
    """Return the IPv4 network of an IPv6 network of IPv4-mapped addresses; any other as it is."""
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def _parse_count(value: int | str | None, name: str) -> int | None:
    if value is None:
        return None
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text)):
        raise ConfigError(f"{name} {value!r} is not a whole number above 0")
    return int(text)


def _parse_rate(value: float | str | None, name: str) -> float | None:
    if value is None:
        return None
    try:
        rate = float(str(value))
    except ValueError:
        rate = 0.0
    if not 0 < rate < math.inf:
        raise ConfigError(f"{name} {value!r} is not a number above 0")
    return rate
