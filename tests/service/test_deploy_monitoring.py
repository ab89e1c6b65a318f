"""The deploy files for Prometheus, Grafana and containers, with the programs that they are for."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families

from greeter import greet
from greeter.service.prometheus import render
from greeter.system.tls import client_context
from tests.conftest import PATIENCE, ROOT, greeter_process, one_loop
from tests.service.test_deploy import DEPLOY, options_of, text
from tests.service.test_prometheus import everything
from tests.support.service_peers import running

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

pytestmark = [pytest.mark.one_interpreter, pytest.mark.thorough]
alone = one_loop
yaml = pytest.importorskip("yaml")

PROMETHEUS, PROMTOOL, COMPOSE = map(shutil.which, ("prometheus", "promtool", "docker-compose"))
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(text("alerts.yml"))["groups"]
    return list(group["rules"])


def panels() -> list[dict[str, Any]]:
    return list(json.loads(text("grafana.json"))["panels"])


def queries(window: str = "5m") -> dict[str, str]:
    """The queries of the dashboard, by panel and letter, as Grafana sends them for all instances."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$__rate_interval", window)
        .replace("$instance", ".+")
        for panel in panels()
        for target in panel["targets"]
    }


# -- Prometheus ------------------------------------------------------------------------------------------


def promtool(*args: str, cwd: Path = DEPLOY) -> tuple[int, str]:
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, *args], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode, done.stdout


@needs_promtool
def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    code, shown = promtool("check", "config", "prometheus.yml")
    assert code == 0, shown
    code, shown = promtool("check", "rules", "alerts.yml")
    assert (code, f"{len(rules())} rules found" in shown) == (0, True), shown


@needs_promtool
def test_every_alert_fires_in_its_case_only() -> None:
    code, shown = promtool("test", "rules", "alerts_test.yml")
    assert code == 0, shown
    cases = yaml.safe_load(text("alerts_test.yml"))["tests"]
    healthy, *others = [re.findall(r'alertname="(\w+)"', str(case["promql_expr_test"])) for case in cases]
    assert healthy == []
    assert [name for names in others for name in names] == [rule["alert"] for rule in rules()]


@needs_promtool
@pytest.mark.parametrize(
    ("old", "new"), [("> 0.9", "> 0.95"), ("== 0", "== 1"), ("< 14 *", "< 7 *"), ('class!="reset"', "")]
)
def test_the_cases_of_the_alerts_can_fail(old: str, new: str, tmp_path: Path) -> None:
    alerts = text("alerts.yml")
    assert old in alerts
    (tmp_path / "alerts.yml").write_text(alerts.replace(old, new))
    (tmp_path / "alerts_test.yml").write_text(text("alerts_test.yml"))
    assert promtool("test", "rules", "alerts_test.yml", cwd=tmp_path)[0] == 1


def known_metrics() -> set[str]:
    families = text_string_to_metric_families(render(everything(), ["self"]).decode())
    return {"up", *(sample.name for family in families for sample in family.samples)}


def test_alerts_and_dashboard_use_metrics_that_exist() -> None:
    expressions = [rule["expr"] for rule in rules()] + list(queries().values())
    used = [set(re.findall(r"\b(?:up|(?:greeter|process)_\w+)\b(?!\")", each)) for each in expressions]
    assert all(used), "each asks for something"
    assert set().union(*used) <= known_metrics()
    assert {name for name in known_metrics() if name.startswith("process_")} - {
        "process_virtual_memory_bytes"
    } <= set().union(*used)
    assert {name for name in known_metrics() if name.startswith("greeter_datagrams_")} - {
        "greeter_datagrams_sent_bytes_total",
        "greeter_datagrams_receive_errors_total",
    } <= set().union(*used)


# -- Grafana ---------------------------------------------------------------------------------------------


def test_the_dashboard_is_complete() -> None:
    dashboard = json.loads(text("grafana.json"))
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    names = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", text("grafana.json"))) - {"__rate_interval", "__all"} == names
    places: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, "the width of Grafana's grid"
        for row in range(place["y"], place["y"] + place["h"]):
            for column in range(place["x"], place["x"] + place["w"]):
                assert (column, row) not in places, panel["title"]
                places.add((column, row))
        letters = [target["refId"] for target in panel["targets"]]
        assert len(letters) == len(set(letters))
        for each in (panel, *panel["targets"]):
            assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@needs_promtool
def test_promtool_accepts_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    def check(expressions: Iterable[str]) -> int:
        recorded = [{"record": f"r{n}", "expr": each} for n, each in enumerate(expressions)]
        (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "g", "rules": recorded}]}))
        return promtool("check", "rules", "rules.yml", cwd=tmp_path)[0]

    assert check(queries().values()) == 0
    assert check(["sum(rate(greeter_greeted_total[5m])"]) == 1


# -- a real Prometheus with a real greeter ---------------------------------------------------------------


@one_loop
@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed")
async def test_prometheus_scrapes_a_service_and_answers_every_query(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(f"{tmp_path}/cert.pem")
    authority.cert_pem.write_to_path(f"{tmp_path}/ca.pem")
    args = ("--workers", "2", "--metrics", "127.0.0.1:0", "--tls-cert", f"{tmp_path}/cert.pem")
    async with greeter_process("serve", "--listen", "127.0.0.1:0", *args) as service:
        address = (await service.line_with("Metrics on ")).rpartition(" ")[2]
        config = text("prometheus.yml").replace("greeter:9998", address).replace("15s", "200ms")
        assert address in config
        (tmp_path / "prometheus.yml").write_text(config)
        shutil.copy(DEPLOY / "alerts.yml", tmp_path)
        assert PROMETHEUS is not None
        command = [PROMETHEUS, "--config.file=prometheus.yml", "--web.listen-address=127.0.0.1:0"]
        command += [f"--storage.tsdb.path={tmp_path}/data", "--log.format=json"]
        async with running(*command, ready="Server is ready", cwd=tmp_path) as prometheus:
            found = [json.loads(line) for line in prometheus.lines if '"Listening on"' in line]
            (api,) = [line["address"] for line in found]

            def ask(path: str, **values: str) -> Any:
                url = f"http://{api}/api/v1/{path}?{urllib.parse.urlencode(values)}"
                with urllib.request.urlopen(url, timeout=PATIENCE) as response:
                    return json.load(response)["data"]

            await greet("localhost", service.port, ssl=client_context(ca=tmp_path / "ca.pem"))
            waiting = queries("2s")
            async with asyncio.timeout(PATIENCE):
                while waiting:
                    for name, query in list(waiting.items()):
                        if (await asyncio.to_thread(ask, "query", query=query))["result"]:
                            del waiting[name]
                    await asyncio.sleep(0.1)
            health, states = "", {""}
            async with asyncio.timeout(PATIENCE):
                while (health, states) != ("up", {"inactive"}):  # a scrape may take longer than 200 ms
                    await asyncio.sleep(0.1)
                    (target,) = (await asyncio.to_thread(ask, "targets"))["activeTargets"]
                    health = target["health"]
                    assert target["labels"]["job"] == "greeter"
                    (group,) = (await asyncio.to_thread(ask, "rules"))["groups"]
                    assert {rule["lastError"] for rule in group["rules"] if rule.get("lastError")} == set()
                    states = {rule["state"] for rule in group["rules"]}
            prometheus.process.terminate()
            await prometheus.ended()
        assert await service.stop() == 0


# -- containers ------------------------------------------------------------------------------------------


def composed() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text("compose.yaml"))
    return found


@pytest.mark.skipif(COMPOSE is None, reason="docker-compose is not installed")
def test_docker_compose_accepts_the_file(tmp_path: Path) -> None:
    assert COMPOSE is not None
    for name, code in (("compose.yaml", 0), ("broken.yaml", 1)):
        path = tmp_path / name
        path.write_text(
            text("compose.yaml").replace("cap_drop: [", f"cap_drop: {'[' if code == 0 else '[{}, '}")
        )
        done = subprocess.run([COMPOSE, "-f", path, "config", "-q"], capture_output=True, text=True)
        assert done.returncode == code, done.stderr


def test_the_compose_file_fits_the_other_files() -> None:
    greeter, prometheus = composed()["services"]["greeter"], composed()["services"]["prometheus"]
    context = (DEPLOY / greeter["build"]["context"]).resolve()
    assert context == ROOT
    containerfile = (context / greeter["build"]["dockerfile"]).read_text()
    match = re.search(r"^CMD (\[.*\])$", containerfile, re.MULTILINE)
    assert match
    options = options_of("serve", json.loads(match[1])[1:])
    ports = {int(port.rpartition(":")[2]) for port in greeter["ports"]}
    assert ports == {options["listen"][0].port, options["metrics"].port}
    assert int(greeter["stop_grace_period"].removesuffix("s")) > options["drain_timeout"]
    for volume in prometheus["volumes"]:
        source, target, *_ = volume.split(":")
        if source.startswith("./"):
            assert (DEPLOY / source).is_file()
            assert target == f"/etc/prometheus/{source[2:]}"
        else:
            assert source in composed()["volumes"]
    (job,) = yaml.safe_load(text("prometheus.yml"))["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"greeter:{options['metrics'].port}"]}]


def test_the_build_of_the_image_sees_what_it_copies_and_nothing_else() -> None:
    everything, *kept = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")
    ]
    assert everything == "*"
    copied = [
        name
        for line in text("Containerfile").splitlines()
        if line.startswith("COPY ")
        for name in line.split()[1:-1]
    ]
    assert sorted(line.removeprefix("!") for line in kept if line.startswith("!")) == sorted(copied)
    assert [line for line in kept if not line.startswith("!")] == ["**/__pycache__"]
