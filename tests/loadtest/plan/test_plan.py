from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from greeter.core.endpoint import Endpoint
from greeter.errors import ConfigError
from greeter.loadtest.plan.pacer import Stage
from greeter.loadtest.plan.plan import LoadPlan, PlanError, parse_stage
from greeter.loadtest.plan.threshold import Threshold


def test_a_plan_without_options_has_every_default() -> None:
    plan = LoadPlan()
    assert plan.endpoint == Endpoint.tcp("127.0.0.1", 9999)
    assert (plan.mode, plan.slots, plan.duration, plan.count) == ("closed", 50, 10.0, None)
    assert (plan.timeout, plan.connect_timeout) == (10.0, 5.0)


def test_a_rate_makes_the_loop_open_and_a_count_needs_no_duration() -> None:
    plan = LoadPlan("[::1]:7", rate=100, count=50)
    assert (plan.mode, plan.slots, plan.duration) == ("open", 1000, None)
    assert plan.schedule == (50, 0.5)
    assert LoadPlan(count=5).duration is None


def test_stages_set_the_duration() -> None:
    plan = LoadPlan(stages=[Stage(10, 100), Stage(20, 100)])
    assert plan.duration == 30
    assert plan.schedule == (2500, 30.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"connections": 0}, "connections must be 1 or more, not 0"),
        ({"connections": -3}, "connections must be 1 or more, not -3"),
        ({"count": 0}, "count must be 1 or more, not 0"),
        ({"workers": 0}, "workers must be 1 or more, not 0"),
        ({"max_bytes": 0}, "max bytes must be 1 or more, not 0"),
        ({"rate": -5.0}, "rate must be greater than 0, not -5"),
        ({"rate": 0.0}, "rate must be greater than 0, not 0"),
        ({"rate": float("inf")}, "rate must be greater than 0, not inf"),
        ({"duration": 0.0}, "duration must be greater than 0, not 0"),
        ({"timeout": -1.0}, "timeout must be greater than 0, not -1"),
        ({"connect_timeout": 0.0}, "connect timeout must be greater than 0, not 0"),
        ({"hold": -1.0}, "hold must be 0 or more, not -1"),
        ({"warmup": float("nan")}, "warmup must be 0 or more, not nan"),
        ({"stages": [Stage(-1, 5)]}, "duration of a stage must be 0 or more, not -1"),
        ({"stages": [Stage(1, -5)]}, "rate of a stage must be 0 or more, not -5"),
        (
            {"stages": [Stage(1, 5)], "duration": 3.0},
            "duration cannot be combined with stages, which set the duration",
        ),
        ({"rate": 1e11, "duration": 11.0}, "the plan makes more than 1,000,000,000,000 connections"),
        ({"rate": 1e200, "duration": 1e200}, "rate must be at most 1,000,000,000,000, not 1e+200"),
        ({"stages": [Stage(1, 1e13)]}, "rate of a stage must be at most 1,000,000,000,000"),
        ({"stages": [Stage(1, 0)]}, "the plan makes no connections"),
        ({"workers": 4, "connections": 3}, "4 workers need at least as many connections, not 3"),
        ({"target": "fd:3"}, "target fd:3 is a listening socket"),
        ({"target": "udp:h:1", "until": "line"}, "until needs a stream, and udp:h:1 is an endpoint for"),
        ({"target": "udp:h:1", "tls": True}, "tls needs a stream, and udp:h:1 is an endpoint for datagrams"),
        ({"target": "udp:h:1", "proxy_protocol": "v1"}, "proxy protocol needs a stream, and udp:h:1 is"),
        ({"target": "udp:h:1", "hold": 1}, "hold needs a stream, and udp:h:1 is an endpoint for datagrams"),
        ({"target": "udp:h:1", "send": bytes(65_508)}, "send has 65508 bytes, and a datagram 65507 at most"),
        (
            {"target": "udp:h:1", "thresholds": [Threshold.parse("connect:p99<1s")]},
            "threshold 'connect:p99<1s' needs a stream, and udp:h:1 is an endpoint for datagrams",
        ),
        ({"target": "nonsense"}, "endpoint 'nonsense' has no port"),
        ({"until": "then"}, "until must be eof, line, reply, text:TEXT, bytes:N or idle:DURATION, not"),
        ({"send": "\\q"}, "unknown escape \\q in \\q"),
        ({"proxy_protocol": "v3"}, "proxy protocol must be v1 or v2, not 'v3'"),
        ({"max_lag": 0.0}, "max lag must be greater than 0, not 0"),
        ({"source_ips": ["localhost"]}, "source address 'localhost' is not an IP address"),
        (
            {"target": "unix:/x", "source_ips": ["127.0.0.2"]},
            "source addresses require a TCP target, not unix:/x",
        ),
        ({"tls_ca": "x.pem"}, "tls ca requires tls"),
        ({"server_name": "x"}, "server name requires tls"),
        ({"tls": True, "server_name": ".x"}, "server name: '.x' is not a host name"),
        ({"tls": True, "tls_key": "x.pem"}, "tls key requires tls cert"),
    ],
)
def test_an_invalid_plan_is_rejected_with_its_reason(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        LoadPlan(**options)


def test_an_error_names_fields_as_the_user_gave_them() -> None:
    with pytest.raises(PlanError) as caught:
        LoadPlan(tls=True, tls_key="x.pem")
    renamed = caught.value.with_field_names(lambda field: f"<{field}>")
    assert str(renamed) == "<tls_key> requires <tls_cert>"


FULL = LoadPlan(
    "unix:@name",
    connections=7,
    count=1000,
    rate=5.5,
    stages=[Stage(12, 100), Stage(0, 50)],
    hold=1.5,
    timeout=3.0,
    connect_timeout=2.0,
    until="reply",
    send="EHLO me\\r\\n\\xff",
    expect="220 \udcff",
    proxy_protocol="v2",
    max_bytes=100,
    workers=2,
    warmup=1.0,
    tls=True,
    tls_ca="ca.pem",
    tls_cert="cert.pem",
    tls_key="key.pem",
    server_name="a.example",
    thresholds=[Threshold.parse("response:p99<20ms")],
    max_lag=0.5,
)


def test_a_plan_survives_json() -> None:
    back = LoadPlan.from_dict(json.loads(json.dumps(FULL.to_dict())))
    assert back == FULL
    assert LoadPlan.from_dict(LoadPlan().to_dict()) == LoadPlan()
    assert LoadPlan.from_dict(LoadPlan(source_ips=["127.0.0.2"]).to_dict()).source_ips == ("127.0.0.2",)


def test_the_full_plan_sets_every_option() -> None:
    default = LoadPlan()
    same = [f.name for f in dataclasses.fields(FULL) if getattr(FULL, f.name) == getattr(default, f.name)]
    assert same == ["source_ips"], "a Unix target cannot have it"


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_the_shares_of_the_workers_add_up(workers: int) -> None:
    plan = LoadPlan(connections=10, count=23, workers=workers)
    assert sum(plan.share(index) for index in range(workers)) == 10
    assert sum(plan.pacer(index).total or 0 for index in range(workers)) == 23
    plan = LoadPlan(connections=10, rate=7, duration=9.0, workers=workers, warmup=2.0)
    assert sum(plan.pacer(index).total or 0 for index in range(workers)) == 63
    assert sum(plan.warmup_pacer(index).total or 0 for index in range(workers)) == 14


def test_the_warm_up_has_the_rate_of_the_beginning_of_the_run() -> None:
    assert LoadPlan(warmup=2.0).warmup_pacer().pace(1.99, 10**6) == (0.0, False)
    assert LoadPlan(warmup=2.0).warmup_pacer().pace(2.0, 0)[1]
    assert LoadPlan(warmup=2.0, rate=5, stages=[Stage(1, 9)]).warmup_pacer().total == 10
    assert LoadPlan(warmup=2.0, stages=[Stage(1, 9)]).warmup_pacer().total == 18


@pytest.mark.parametrize(
    ("options", "width"),
    [
        ({}, 10 / 60),
        ({"duration": 600.0}, 10.0),
        ({"duration": 1.0}, 0.05),
        ({"rate": 10, "count": 100}, 10 / 60),
        ({"stages": [Stage(12, 100), Stage(18, 5)]}, 0.5),
        ({"count": 10}, 0.05),  # a closed loop is over when it is
        ({"count": 10, "duration": 600.0}, 0.05),
    ],
)
def test_a_bucket_is_a_sixtieth_of_the_run(options: dict[str, Any], width: float) -> None:
    assert LoadPlan(**options).bucket == pytest.approx(width)


def test_a_stage_is_parsed_from_text() -> None:
    assert parse_stage("30s:500") == Stage(30.0, 500.0)
    assert parse_stage("1m:1.5k") == Stage(60.0, 1500.0)
    for text in ("30s", "30s:", ":500", "x:500", "30s:500:1"):
        with pytest.raises(ConfigError, match=re.escape(f"stage {text!r} is not of the form DURATION:RATE")):
            parse_stage(text)
