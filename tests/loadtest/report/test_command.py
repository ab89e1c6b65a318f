from __future__ import annotations

import json
import shlex

import pytest

from greeter.cli.cli import load
from greeter.cli.click_options import parse_options
from greeter.cli.loadcommand import plan_of
from greeter.config.options import LoadOptions
from greeter.loadtest import LoadPlan, Stage, Threshold
from greeter.loadtest.report.command import command


def reparsed(text: str) -> LoadPlan:
    """Return the plan of a command line."""
    program, name, *words = shlex.split(text)
    assert (program, name) == ("greeter", "load")
    return plan_of(parse_options(LoadOptions, load.make_context(name, words)))


@pytest.mark.parametrize(
    "plan",
    [
        LoadPlan(),
        LoadPlan("unix:/run/a b.sock", connections=7, count=1000),
        LoadPlan("mail.example:25", count=5, duration=60.0, until="line", expect="a 'b' $c", hold=0.5),
        LoadPlan(send=b"HELO \xff\r\n\\", until="text:a b", proxy_protocol="v2", max_lag=0.5),
        LoadPlan("[::1]:9999", rate=1234.5, duration=90.0, warmup=2.0, workers=2, max_bytes=100),
        LoadPlan(
            rate=10, stages=[Stage(0.5, 100), Stage(60, 2000.25)], source_ips=["127.0.0.2", "127.0.0.3"]
        ),
        LoadPlan(tls=True, tls_ca="ca.pem", server_name="a.example", timeout=2.5, connect_timeout=0.25),
        LoadPlan(
            rate=5, thresholds=[Threshold.parse("response:p99<20ms"), Threshold.parse("errors:rate<1%")]
        ),
    ],
    ids=lambda plan: command(plan.to_dict()),
)
def test_the_command_of_a_plan_makes_the_same_plan(plan: LoadPlan) -> None:
    values = json.loads(json.dumps(plan.to_dict()))
    assert reparsed(command(values)).to_dict() == plan.to_dict()


def test_a_command_has_no_option_that_has_its_default() -> None:
    assert command(LoadPlan().to_dict()) == "greeter load 127.0.0.1:9999"
    assert command(LoadPlan(rate=1000, duration=10.0).to_dict()) == "greeter load 127.0.0.1:9999 --rate 1000"
