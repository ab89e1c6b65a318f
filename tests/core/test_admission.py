"""Limits and Admission: parsing, decisions, and bounded memory."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from dataclasses import FrozenInstanceError, replace
from ipaddress import IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from greeter.core.admission import (
    DENIED,
    HOST_CACHE_SIZE,
    MAX_BUCKETS,
    PER_IP,
    RATE,
    Admission,
    Limits,
    Networks,
    _key,
)
from greeter.errors import ConfigError

# -- limits ----------------------------------------------------------------------------------------------


def test_limits_read_text_and_values_alike() -> None:
    limits = Limits(
        max_connections="100",
        max_per_ip="7",
        rate_per_ip="2.5",
        allow=["10.0.0.0/8"],
        deny=["::1", "10.0.0.1"],
    )
    assert limits.max_connections == 100
    assert limits.max_per_ip == 7
    assert limits.rate_per_ip == 2.5
    assert limits.allow == (ip_network("10.0.0.0/8"),)
    assert limits.deny == (ip_network("::1/128"), ip_network("10.0.0.1/32"))
    assert limits == Limits(
        max_connections=100, max_per_ip=7, rate_per_ip=2.5, allow=limits.allow, deny=limits.deny
    )
    assert hash(limits) == hash(replace(limits))
    assert replace(limits, max_per_ip=8).max_per_ip == 8
    assert pickle.loads(pickle.dumps(limits)) == limits
    with pytest.raises(FrozenInstanceError):
        limits.max_per_ip = 9  # type: ignore[misc]  # that it cannot be set is the test


def test_the_default_limits_admit_everything() -> None:
    assert Limits() == Limits(max_connections=None, max_per_ip=None, rate_per_ip=None, allow=(), deny=())
    assert Limits().admits_all
    assert Limits(max_connections=5).admits_all  # enforced by the server, not by Admission
    assert Admission.of(Limits(max_connections=5)) is None


@pytest.mark.parametrize(
    "limits", [Limits(max_per_ip=1), Limits(rate_per_ip=1), Limits(allow=["::/0"]), Limits(deny=["::1"])]
)
def test_any_limit_needs_an_admission(limits: Limits) -> None:
    assert not limits.admits_all
    admission = Admission.of(limits)
    assert admission is not None
    assert admission.limits is limits


@pytest.mark.parametrize("name", ["max_connections", "max_per_ip"])
@pytest.mark.parametrize(
    "value", [0, -1, "0", "-1", "", "many", "1.5", 1.5, "1k", " 1", "\u0661", True, "9" * 20]
)
def test_a_count_is_a_whole_number_above_zero(name: str, value: int | str) -> None:
    with pytest.raises(ConfigError) as caught:
        Limits(**{name: value})  # type: ignore[arg-type]  # the name is a parameter here
    assert str(caught.value) == f"{name} {value!r} is not a whole number above 0"


@pytest.mark.parametrize("value", [0, -1, "0", "", "fast", "nan", "inf", math.inf, math.nan, "1/s", True])
def test_a_rate_is_a_number_above_zero(value: float | str) -> None:
    with pytest.raises(ConfigError) as caught:
        Limits(rate_per_ip=value)
    assert str(caught.value) == f"rate_per_ip {value!r} is not a number above 0"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost",
        "10.0.0.0/33",
        "::/129",
        "10.0.0",
        "10.0.0.0/8/8",
        "10.0.0.0/255.0.0.0",
        "10.0.0.0/0.0.0.255",
    ]
    + [
        "fe80::%eth0/64",
        "fe80::1%1",
        "010.0.0.0/8",
        "10.0.0.0/-1",
        " 10.0.0.0/8",
        "[::1]",
        "1:2:3",
        "167772160",
    ],
)
@pytest.mark.parametrize("name", ["allow", "deny"])
def test_an_invalid_network_is_an_error_with_its_name(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Limits(**{name: [text]})  # type: ignore[arg-type]  # the name is a parameter here
    assert str(caught.value) == f"{name} {text!r} is not a network, as in 192.0.2.0/24 or 2001:db8::/32"


@pytest.mark.parametrize(
    ("text", "network", "host"),
    [("192.0.2.7/24", "192.0.2.0/24", "192.0.2.7"), ("2001:db8::1/64", "2001:db8::/64", "2001:db8::1")],
)
def test_host_bits_are_an_error_that_names_both_meanings(text: str, network: str, host: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Networks([text], "proxy_from")
    assert (
        str(caught.value)
        == f"proxy_from '{text}' has host bits set; the network is {network}, the host {host}"
    )


# -- networks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("192.0.2.0/24", ["192.0.2.0", "192.0.2.255", "::ffff:192.0.2.1", "::FFFF:c000:0201"], ["192.0.3.0"]),
        ("192.0.2.7", ["192.0.2.7"], ["192.0.2.6"]),
        ("0.0.0.0/0", ["0.0.0.0", "255.255.255.255", "::ffff:1.2.3.4"], ["::1", "::"]),
        ("2001:db8::/32", ["2001:db8::", "2001:DB8:ffff::1"], ["2001:db9::", "32.1.13.184"]),
        ("fe80::/10", ["fe80::1%eth0", "fe80::1"], ["fec0::1%eth0"]),
        ("::1", ["::1"], ["::2", "::", "127.0.0.1"]),
        ("::/0", ["::", "ffff::"], ["1.2.3.4", "::ffff:1.2.3.4"]),
        ("::ffff:192.0.2.0/120", ["192.0.2.255", "::ffff:192.0.2.9"], ["192.0.3.9"]),
        ("::ffff:0:0/96", ["1.2.3.4", "255.2.3.4"], ["::1"]),
    ],
)
def test_networks_contain_their_addresses_only(network: str, inside: list[str], outside: list[str]) -> None:
    networks = Networks([network])
    assert all(host in networks for host in inside)
    assert not any(
        host in networks for host in [*outside, "", "@name", "/run/client.sock", "%", "1.2.3.4%eth0"]
    )


def test_networks_of_one_text_and_of_none() -> None:
    assert Networks("10.0.0.0/8").networks == Networks(["10.0.0.0/8"]).networks == (ip_network("10.0.0.0/8"),)
    assert "10.0.0.1" not in Networks()


def network_of(address: str, bits: int) -> str:
    return str(ip_network(f"{address}/{min(bits, 32 if '.' in address else 128)}", strict=False))


# Few addresses, so that the networks often meet them.
hosts = st.sampled_from(
    ["10.0.0.1", "10.0.0.2", "10.9.0.1", "192.0.2.1", "2001:db8::1", "2001:db8:0:1::1", "::1"]
)
network_texts = st.lists(st.builds(network_of, hosts, st.integers(0, 128)), max_size=4)


@given(network_texts, network_texts, hosts)
def test_deny_overrides_allow_and_allow_excludes_the_rest(
    allow: list[str], deny: list[str], host: str
) -> None:
    denied = any(ip_address(host) in ip_network(network) for network in deny)
    allowed = not allow or any(ip_address(host) in ip_network(network) for network in allow)
    admission = Admission(Limits(allow=allow, deny=deny))
    for count in (1, 2):  # the second result is cached
        assert admission.admit(host, 0.0) == (None if allowed and not denied else DENIED)
        assert admission.rejected[DENIED] == (0 if allowed and not denied else count)


# -- one address -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "same",
    [
        ["192.0.2.1", "::ffff:192.0.2.1", "::ffff:c000:201", "::FFFF:192.0.2.1"],
        ["2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", "2001:0DB8:0:0::"],
        ["fe80::1", "fe80::1%eth0", "fe80::2%2"],
    ],
)
def test_spellings_and_a_64_count_as_one_address(same: list[str]) -> None:
    admission = Admission(Limits(max_per_ip=len(same)))
    assert [admission.admit(host, 0.0) for host in same] == [None] * len(same)
    assert [admission.admit(host, 0.0) for host in same] == [PER_IP] * len(same)
    assert admission.addresses == 1


def test_different_addresses_count_separately() -> None:
    admission = Admission(Limits(max_per_ip=1, rate_per_ip=1))
    different = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1", "::c000:201", "0.0.0.0"]
    assert [admission.admit(host, 0.0) for host in different] == [None] * len(different)
    assert admission.addresses == admission.buckets == len(different)


@given(st.integers(1 << 64, (1 << 128) - 1), st.integers(0, 127))
def test_ipv6_addresses_are_counted_by_their_64(one: int, bit: int) -> None:
    admission = Admission(Limits(max_per_ip=1))
    assert admission.admit(str(IPv6Address(one)), 0.0) is None
    assert admission.admit(str(IPv6Address(one ^ 1 << bit)), 0.0) == (PER_IP if bit < 64 else None)


@pytest.mark.parametrize("name", ["", "@name", "/run/client.sock", "relative.sock"])
def test_unix_peers_are_always_admitted(name: str) -> None:
    admission = Admission(
        Limits(max_per_ip=1, rate_per_ip=1, allow=["192.0.2.1"], deny=["::/0", "0.0.0.0/0"])
    )
    for _ in range(5):
        assert admission.admit(name, 0.0) is None
    admission.release(name)
    assert admission.addresses == admission.buckets == 0


def test_rejections_are_counted_and_the_first_reason_is_returned() -> None:
    admission = Admission(Limits(max_per_ip=2, rate_per_ip=3, deny=["192.0.2.9"]))
    assert admission.rejected == {"denied": 0, "per_ip": 0, "rate": 0}
    assert admission.admit("192.0.2.9", 0.0) == "denied"
    assert admission.buckets == 0  # a denied address gets no bucket
    assert [admission.admit("192.0.2.1", 0.0) for _ in range(4)] == [None, None, "per_ip", "per_ip"]
    admission.release("192.0.2.1")
    assert admission.admit("192.0.2.1", 0.0) is None  # a rejection for the count takes no token
    admission.release("192.0.2.1")
    assert admission.admit("192.0.2.1", 0.0) == "rate"
    assert admission.rejected == {"denied": 1, "per_ip": 2, "rate": 1}


def test_release_without_admit_is_an_error() -> None:
    with pytest.raises(KeyError):
        Admission(Limits(max_per_ip=1)).release("192.0.2.1")


# -- the rate --------------------------------------------------------------------------------------------

rates = st.sampled_from([0.1, 0.5, 1, 1.5, 3, 10, 33.3])


@given(rates, st.lists(st.floats(0, 3), max_size=60), st.sampled_from([0.0, 1e6, 1e9]))
def test_no_window_holds_more_than_the_burst_and_the_rate(
    rate: float, gaps: list[float], start: float
) -> None:
    admission = Admission(Limits(rate_per_ip=rate))
    now, admitted = start, []
    for gap in gaps:
        now += gap if gap < 2 else 0.0  # many at once
        if admission.admit("192.0.2.1", now) is None:
            admitted.append(now)
    burst = math.ceil(rate)
    for i, first in enumerate(admitted):
        for j, last in enumerate(admitted[i:], 1):
            assert j <= burst + rate * (last - first) + 0.01


@given(rates, st.sampled_from([0.0, 12345.678, 1e6]))
def test_a_burst_is_admitted_and_then_the_rate(rate: float, start: float) -> None:
    admission, burst = Admission(Limits(rate_per_ip=rate)), math.ceil(rate)
    assert [admission.admit("::1", start) for _ in range(burst + 2)] == [None] * burst + [RATE] * 2
    for tick in range(1, 20):  # arrivals exactly at the rate are always admitted
        assert admission.admit("::1", start + (tick - 0.1) / rate) == RATE
        assert admission.admit("::1", start + tick / rate) is None
    later = start + 100 / rate + 100  # an idle address saves up one burst at most
    assert [admission.admit("::1", later) for _ in range(burst + 2)] == [None] * burst + [RATE] * 2


def test_a_rate_limited_address_does_not_affect_another() -> None:
    admission = Admission(Limits(rate_per_ip=1))
    assert [admission.admit("192.0.2.1", 0.0) for _ in range(9)] == [None] + [RATE] * 8
    assert admission.admit("192.0.2.2", 0.0) is None


# -- bounds ----------------------------------------------------------------------------------------------


def test_a_flood_fills_the_table_to_its_bound_and_rejects_no_new_address() -> None:
    admission = Admission(Limits(rate_per_ip=0.001))
    flooder, refused = "203.0.113.7", Counter[str | None]()
    assert admission.admit(flooder, 0.0) is None
    for n in range(MAX_BUCKETS + 5000):
        host = f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"
        refused[admission.admit(host, n * 1e-4)] += 1
        admission.release(host)
        if n % 1000 == 0:  # a few attempts are enough to stay limited
            assert admission.admit(flooder, n * 1e-4) == RATE
    assert admission.buckets == MAX_BUCKETS
    assert refused == {None: MAX_BUCKETS + 5000}
    assert admission.addresses == 1
    # Inactive addresses are evicted as new ones arrive: two full buckets for each one added.
    for n in range(2000):
        admission.admit("2001:db8:" + f"{n:x}::", 1e5)
    assert admission.buckets == MAX_BUCKETS - 2000


def test_the_longest_inactive_bucket_is_evicted_from_a_full_table() -> None:
    admission = Admission(Limits(rate_per_ip=1), max_buckets=3)
    for at, host in enumerate(["192.0.2.1", "192.0.2.2", "192.0.2.3"]):
        assert admission.admit(host, at / 4) is None
    assert admission.admit("192.0.2.4", 0.9) is None  # none is full, so .1, inactive longest, is evicted
    assert admission.admit("192.0.2.2", 1.0) == RATE
    assert admission.admit("192.0.2.3", 1.0) == RATE
    assert admission.admit("192.0.2.1", 1.0) is None
    assert admission.buckets == 3


@given(st.lists(st.tuples(st.integers(0, 12), st.floats(0, 0.4)), max_size=120), st.integers(1, 6), rates)
def test_the_table_is_bounded_and_an_evicted_address_gains_one_bucket_at_most(
    steps: list[tuple[int, float]], max_buckets: int, rate: float
) -> None:
    bounded, unbounded = (
        Admission(Limits(rate_per_ip=rate), max_buckets=max_buckets),
        Admission(Limits(rate_per_ip=rate)),
    )
    others: dict[int, set[int]] = {}  # by address: the others since its last attempt
    now, evicted = 0.0, False
    for address, gap in steps:
        now += gap
        verdict, unbounded_verdict = (each.admit(f"192.0.2.{address}", now) for each in (bounded, unbounded))
        assert bounded.buckets <= max_buckets
        evicted = evicted or any(len(seen) >= max_buckets for seen in others.values())
        if not evicted:
            assert verdict == unbounded_verdict
        if address not in others or len(others[address]) >= max_buckets:
            assert verdict is None
        for seen in others.values():
            seen.add(address)
        others[address] = set()


def test_caches_are_bounded() -> None:
    admission = Admission(Limits(deny=["192.0.2.0/24"]))
    for n in range(HOST_CACHE_SIZE + 100):
        admission.admit(f"10.0.{n >> 8}.{n & 255}", 0.0)
    assert _key.cache_info().currsize == HOST_CACHE_SIZE == _key.cache_info().maxsize
    assert admission.admit("10.0.0.0", 0.0) is None
    assert admission.admit("192.0.2.1", 0.0) == DENIED


# -- reload ----------------------------------------------------------------------------------------------


def test_replace_applies_new_limits_at_once_and_keeps_counts() -> None:
    admission = Admission(Limits(max_per_ip=2, rate_per_ip=5))
    assert [admission.admit("192.0.2.1", 0.0) for _ in range(3)] == [None, None, PER_IP]
    admission.replace(Limits(max_per_ip=3, rate_per_ip=5))
    assert [admission.admit("192.0.2.1", 0.0) for _ in range(2)] == [None, PER_IP]
    admission.replace(Limits(rate_per_ip=5))
    assert [admission.admit("192.0.2.1", 0.0) for _ in range(3)] == [None, None, RATE]  # five in total
    admission.replace(Limits(rate_per_ip=1))
    assert admission.admit("192.0.2.1", 0.0) is None  # a new rate starts with full buckets
    admission.replace(Limits(deny=["192.0.2.1"]))
    assert admission.admit("192.0.2.1", 0.0) == DENIED
    for _ in range(6):
        admission.release("192.0.2.1")  # also of addresses that are denied by now
    assert admission.addresses == 0
    assert admission.rejected == {"denied": 1, "per_ip": 2, "rate": 1}
    admission.replace(Limits())
    assert admission.admit("192.0.2.1", 0.0) is None


class AdmissionMachine(RuleBasedStateMachine):
    """Any sequence of admit(), release() and replace() agrees with a simple model."""

    @initialize(limit=st.integers(1, 3))
    def start(self, limit: int) -> None:
        self.limit: int | None = limit
        self.admission = Admission(Limits(max_per_ip=limit))
        self.open: list[str] = []

    @rule(host=hosts)
    def admit(self, host: str) -> None:
        at_limit = self.limit is not None and self.open.count(host) >= self.limit
        assert self.admission.admit(host, 0.0) == (PER_IP if at_limit else None)
        if not at_limit:
            self.open.append(host)

    @precondition(lambda self: self.open)
    @rule(choice=st.randoms(use_true_random=False))
    def release(self, choice: object) -> None:
        host = self.open.pop(choice.randrange(len(self.open)))  # type: ignore[attr-defined]  # a Random
        self.admission.release(host)

    @rule(limit=st.none() | st.integers(1, 3))
    def reload(self, limit: int | None) -> None:
        self.limit = limit
        self.admission.replace(Limits(max_per_ip=limit))

    @invariant()
    def bounded_by_what_is_open(self) -> None:
        assert self.admission.addresses == len(set(self.open))

    def teardown(self) -> None:
        for host in self.open:
            self.admission.release(host)
        assert self.admission.addresses == 0


AdmissionMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=30)
TestAdmissionMachine = AdmissionMachine.TestCase


def test_a_network_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the options are checked, not when limits are made of them, nor when a server takes these over."""
    parsed: list[str] = []

    def counting(text: str, *, strict: bool) -> object:
        parsed.append(text)
        return ip_network(text, strict=strict)

    monkeypatch.setattr("greeter.core.admission.ip_network", counting)
    texts = [f"198.18.{number}.0/24" for number in range(256)]
    for text in texts:
        Networks([text])
    admission = Admission(Limits(allow=texts))
    admission.replace(Limits(allow=texts, deny=texts))
    assert parsed == texts
    assert admission.admit("198.18.7.1", 0.0) == "denied"
