"""The deploy files, each checked by the program that it is for. HAProxy runs with its file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

from greeter import greet
from greeter.cli.cli import cli
from greeter.config.options import ServeOptions
from greeter.service.health import RESPONSE_TIMEOUT
from tests.conftest import ROOT, greeter_process, loop_factories, one_loop, run_greeter
from tests.service.test_prometheus import fetch
from tests.support.service_peers import HELLO, INIT, children, crowd, running

DEPLOY = ROOT / "examples" / "deploy"

# How other programs read these files does not depend on the interpreter.
pytestmark = pytest.mark.one_interpreter
TINI = shutil.which("tini")
CONTAINER = ("unshare", "--fork", "--pid", "--mount-proc", "--kill-child")


def text(name: str) -> str:
    return (DEPLOY / name).read_text()


def options_of(verb: str, args: list[str]) -> dict[str, Any]:
    """The parameters that a command parses from its arguments. Raises click.UsageError."""
    # A command keeps the help option of its first context, which must be that of the group.
    group = click.Context(cli, **cli.context_settings)
    return dict(cli.commands[verb].make_context(verb, list(args), parent=group).params)


def local(args: list[str]) -> list[str]:
    """The same arguments for a service on free ports of this machine."""
    return [re.sub(r"^(--\w+=)?:\d+$", r"\g<1>127.0.0.1:0", arg) for arg in args]


def test_every_deploy_file_is_tested() -> None:
    assert sorted(path.name for path in DEPLOY.iterdir()) == [
        "Containerfile",
        "README.md",
        "alerts.yml",  # and below, in test_deploy_monitoring.py
        "alerts_test.yml",
        "compose.yaml",
        "grafana.json",
        "greeter.service",
        "greeter.socket",
        "greeter.toml",
        "haproxy.cfg",
        "kubernetes.yaml",
        "prometheus.yml",
    ]


def test_what_the_checks_are_made_of_can_fail() -> None:
    with pytest.raises(click.NoSuchOption):
        options_of("serve", ["--lisen", ":9999"])
    with pytest.raises(click.BadParameter):
        options_of("serve", ["--listen", "nowhere"])
    assert local(["--listen", ":9999", "--metrics=:9998", "json"]) == (
        ["--listen", "127.0.0.1:0", "--metrics=127.0.0.1:0", "json"]
    )


# -- systemd ---------------------------------------------------------------------------------------------

ANALYZE = shutil.which("systemd-analyze")
STRACE = shutil.which("strace")
needs_analyze = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")


def analyze(*args: str) -> tuple[int, str]:
    assert ANALYZE is not None
    done = subprocess.run([ANALYZE, *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def settings(unit: str) -> dict[str, list[str]]:
    """The settings of a unit; each is a list, because some may be repeated."""
    found: dict[str, list[str]] = {}
    for line in text(unit).splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@pytest.fixture
def units(tmp_path: Path) -> tuple[Path, Path]:
    """Both units, with a program that exists."""
    service = text("greeter.service").replace("/opt/greeter/bin/greeter", f"{sys.executable} -m greeter")
    paths = tmp_path / "greeter.service", tmp_path / "greeter.socket"
    paths[0].write_text(service)
    paths[1].write_text(text("greeter.socket"))
    return paths


@needs_analyze
def test_systemd_accepts_the_units(units: tuple[Path, Path]) -> None:
    assert analyze("verify", "--man=no", *map(str, units)) == (0, "")
    version = re.match(r"systemd (\d+)", analyze("--version")[1])
    assert version
    if int(version[1]) >= 253:
        lines = [
            line for line in units[0].read_text().splitlines() if not re.match("Type=|ExecReload=", line)
        ]
        units[0].write_text("\n".join(lines).replace("#Type=notify-reload", "Type=notify-reload"))
        assert analyze("verify", "--man=no", *map(str, units)) == (0, "")
    units[0].write_text(units[0].read_text() + "[Service]\nProtectEverything=yes\n")
    assert "ProtectEverything" in analyze("verify", "--man=no", *map(str, units))[1]


@needs_analyze
def test_systemd_rates_the_exposure_as_low(units: tuple[Path, Path]) -> None:
    """2.0 of 10; a service without hardening has 9.6."""
    code, shown = analyze("security", "--offline=true", "--threshold=20", "--no-pager", str(units[0]))
    if "unrecognized option" in shown:
        pytest.skip("this systemd-analyze cannot judge a unit that is not loaded")
    assert code == 0, shown


def test_the_units_fit_the_service() -> None:
    service, doors = settings("greeter.service"), settings("greeter.socket")
    args = shlex.split(service["ExecStart"][0])
    assert args[:2] == ["/opt/greeter/bin/greeter", "serve"]
    assert args[2:] == ["--config", "/etc/greeter/greeter.toml"]
    assert service["Type"] == ["notify"]
    check, reload = map(shlex.split, service["ExecReload"])
    assert check == [*args, "--check-config"]
    assert reload == ["/bin/kill", "-HUP", "$MAINPID"]
    assert "ProcSubset" not in service, "process_start_time_seconds is made of /proc/stat"
    assert "listen" not in tomllib.loads(text("greeter.toml")), "it would take the place of systemd's sockets"
    assert service["Requires"] == service["After"] == service["Also"] == ["greeter.socket"]
    assert doors["BindIPv6Only"] == ["ipv6-only"]
    assert float(service["TimeoutStopSec"][0]) > ServeOptions().drain_timeout + ServeOptions().stop_delay
    for path in re.findall(r"examples/deploy/[\w.]+", text("greeter.service")):
        assert (ROOT / path).exists()


def allowed_calls() -> set[str]:
    """The system calls that SystemCallFilter= leaves."""
    code, shown = analyze("syscall-filter", "--no-pager")
    assert code == 0
    groups: dict[str, list[str]] = {}
    for line in shown.splitlines():
        if line.startswith("@"):
            members = groups.setdefault(line.strip(), [])
        elif line.startswith("    ") and not line.lstrip().startswith("#"):
            members.append(line.strip())

    def calls(name: str) -> set[str]:
        return set().union(*map(calls, groups[name])) if name.startswith("@") else {name}

    found: set[str] = set()
    for value in settings("greeter.service")["SystemCallFilter"]:
        names = set().union(*map(calls, value.removeprefix("~").split()))
        found = found - names if value.startswith("~") else found | names
    return found


def only_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


@one_loop
@needs_analyze
@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
@pytest.mark.parametrize("loop", list(loop_factories()))
async def test_the_unit_allows_what_the_service_calls(loop: str, tmp_path: Path) -> None:
    """The service starts, greets, reloads and stops without the system calls that the unit denies."""
    assert STRACE is not None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # uvloop works without these.
        allowed = allowed_calls()
        refused = [f"-einject={name}:error=EPERM" for name in ("io_uring_setup",) if name not in allowed]
        command = [STRACE, "-f", "-qq", "-esignal=none", *refused, "-o", f"{tmp_path}/calls"]
        command += [sys.executable, "-c", INIT, json.dumps([[listener.fileno()], 0]), "serve", "--loop", loop]
        command += ["--config", str(DEPLOY / "greeter.toml"), "--metrics", "127.0.0.1:0"]
        async with running(*command, fds=(listener.fileno(),)) as tracer:
            assert (await greet(port=listener.getsockname()[1])).data == HELLO
            pid = only_child(tracer.pid)
            signals = (signal.SIGHUP, "Reloaded"), (signal.SIGTERM, "Stopped: 1 greeted of 1 accepted")
            for number, line in signals:
                os.kill(pid, number)
                await tracer.line_with(line)
            assert await tracer.ended() == 0
    started = (tmp_path / "calls").read_text()
    # What Python does before it becomes greeter is behind the last execve(), but for that call itself.
    called = set(re.findall(r"^\d+ +(\w+)\(", started.rpartition("execve(")[2], re.MULTILINE))
    assert {"accept4", "sendto", "prlimit64"} & called
    assert called - allowed <= {"io_uring_setup"}


# From <linux/prctl.h>; what MemoryDenyWriteExecute= does where the kernel knows it (6.3 and later).
WITHOUT_NEW_CODE = """
import ctypes, os, sys
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
if ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0):
    print("Listening on nothing", file=sys.stderr)
else:
    os.execv(sys.executable, [sys.executable, "-m", "greeter", *sys.argv[1:]])
"""


@one_loop
@pytest.mark.parametrize("loop", list(loop_factories()))
async def test_no_new_code_is_needed(loop: str) -> None:
    args = ("serve", "--listen", "127.0.0.1:0", "--loop", loop)
    async with running(sys.executable, "-c", WITHOUT_NEW_CODE, *args) as service:
        if service.address == "nothing":
            pytest.skip("this kernel cannot forbid it")
        assert (await greet(port=service.port)).data == HELLO
        assert await service.stop() == 0  # which loads a library for the drain
    assert service.lines[-1] == "Stopped: 1 greeted of 1 accepted, 0 failed"


@one_loop
async def test_a_reload_of_the_unit_checks_the_configuration_first(tmp_path: Path) -> None:
    program, *args = shlex.split(settings("greeter.service")["ExecReload"][0])
    assert program.endswith("/greeter")
    path = tmp_path / "greeter.toml"
    args = [str(path) if arg == "/etc/greeter/greeter.toml" else arg for arg in args]
    path.write_text(text("greeter.toml"))
    assert (await run_greeter(*args))[0] == 0
    path.write_text(text("greeter.toml").replace("max-per-ip = 100", 'max-per-ip = "many"'))
    code, _, err = await run_greeter(*args)
    assert code == 2
    assert "many" in err


@one_loop
async def test_the_configuration_file_is_accepted_and_complete() -> None:
    args = ("--config", str(DEPLOY / "greeter.toml"), "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
    async with greeter_process("serve", *args) as service:
        assert (await greet(port=service.port)).data == HELLO
        assert await service.stop() == 0
    everything = tomllib.loads(text("greeter.toml").replace("\n#", "\n").replace("\n ", "\n# "))
    known = {field.name.replace("_", "-") for field in dataclasses.fields(ServeOptions)}
    assert set(everything) <= known
    assert {"tls-cert", "proxy-from"} <= set(everything)


# -- containers ------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Containerfile, in order."""
    lines = re.sub(r"\\\n\s*", "", text("Containerfile")).splitlines()
    return [(line.split()[0], line.partition(" ")[2]) for line in lines if line and not line.startswith("#")]


@one_loop
async def test_the_containerfile_fits_the_service() -> None:
    found = dict(instructions())
    assert [name for name, _ in instructions()].count("CMD") == 1
    assert found["FROM"] == "python:3.13-slim"
    user, _, group = found["USER"].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    # A JSON list is the exec form, in which signals reach greeter, not a shell.
    assert json.loads(found["ENTRYPOINT"]) == ["tini", "--", "greeter"]
    verb, *args = json.loads(found["CMD"])
    assert verb == "serve"
    options = options_of("serve", args)
    ports = {options["listen"][0].port, options["metrics"].port}
    assert {int(port) for port in found["EXPOSE"].split()} == ports
    for name, value in instructions():
        if name == "COPY":
            for source in value.split()[:-1]:
                assert (ROOT / source).exists()
    extras = re.search(r"\[([\w,]+)\]", found["RUN"])
    assert extras
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras[1].split(",")) <= set(project["optional-dependencies"])
    async with greeter_process("serve", *local(args), ready='"event": "listening"') as service:
        address = json.loads(await service.line_with('"event": "listening"'))["address"]
        program, health, target, *rest = json.loads(found["HEALTHCHECK"].partition(" CMD ")[2])
        assert (program, health) == ("greeter", "greet")
        assert target == f"127.0.0.1:{options['listen'][0].port}"
        assert await run_greeter("greet", address, *rest) == (0, HELLO.decode() + "\n", "")
        assert await service.stop() == 0
    assert (await run_greeter("greet", address, *rest))[0] == 1


def can_make_a_container() -> bool:
    found = shutil.which(CONTAINER[0]) is not None
    return found and subprocess.run([*CONTAINER, "true"], capture_output=True).returncode == 0


@one_loop
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_process_of_a_container_passes_a_stop_on(number: int) -> None:
    if not TINI or not can_make_a_container():
        pytest.skip("needs tini, unshare(1) and the permission to make a PID namespace")
    command = (sys.executable, "-m", "greeter", "serve", "--listen", "127.0.0.1:0", "--workers", "2")
    async with running(*CONTAINER, TINI or "", "--", *command) as service:
        (first,) = children(service.pid)
        assert (await greet(port=service.port)).data == HELLO
        os.kill(first, number)
        assert await service.ended() == 0
    assert service.lines[-1] == "Stopped: 1 greeted of 1 accepted, 0 failed"


def manifest() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    deployment, service, budget = pytest.importorskip("yaml").safe_load_all(text("kubernetes.yaml"))
    return deployment, service, budget


@pytest.mark.parametrize("version", ["1.31", "latest"])
def test_kubernetes_accepts_the_manifest(version: str) -> None:
    """The published schemas of that version accept the manifest, and know all of it."""
    validator = pytest.importorskip("kubernetes_validate")
    chosen = validator.latest_version() if version == "latest" else version
    for resource in manifest():
        validator.validate(resource, chosen, strict=True)
    broken = manifest()[0]
    broken["spec"]["template"]["spec"]["containers"][0]["args"] = "serve"
    with pytest.raises(validator.ValidationError, match="is not of type"):
        validator.validate(broken, chosen, strict=True)


def test_the_manifest_fits_the_service() -> None:
    deployment, service, budget = manifest()
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    verb, *args = container["args"]
    assert verb == "serve"
    options = options_of("serve", args)
    assert pod["terminationGracePeriodSeconds"] > options["stop_delay"] + options["drain_timeout"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"greeting": options["listen"][0].port, "metrics": options["metrics"].port}
    assert [port["targetPort"] for port in service["spec"]["ports"]] == ["greeting"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels == deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    assert f"USER {pod['securityContext']['runAsUser']}:" in text("Containerfile")
    assert budget["spec"]["selector"]["matchLabels"] == labels
    assert budget["spec"]["maxUnavailable"] < deployment["spec"]["replicas"]
    (spread,) = pod["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == labels


@one_loop
async def test_the_probes_of_the_manifest_succeed() -> None:
    """Readiness ends with a stop signal, liveness does not."""
    (container,) = manifest()[0]["spec"]["template"]["spec"]["containers"]
    probes = {name: container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["httpGet"]["port"] for name, probe in probes.items()} == dict.fromkeys(
        probes, "metrics"
    )
    for name in ("readiness", "liveness"):
        assert probes[name]["timeoutSeconds"] > RESPONSE_TIMEOUT
    async with greeter_process(*local(container["args"]), ready='"event": "listening"') as service:
        address = json.loads(await service.line_with('"event": "metrics"'))["message"].split()[-1]

        async def codes() -> dict[str, bytes]:
            paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
            return {name: (await fetch(address, path)).split()[1] for name, path in paths.items()}

        assert set((await codes()).values()) == {b"200"}
        service.process.send_signal(signal.SIGTERM)
        await service.line_with('"event": "stop_delay"')
        assert await codes() == {"startup": b"200", "readiness": b"503", "liveness": b"200"}


# -- HAProxy ---------------------------------------------------------------------------------------------

HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin") or shutil.which("haproxy")
needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")


@needs_haproxy
def test_haproxy_accepts_the_configuration(tmp_path: Path) -> None:
    assert HAPROXY is not None
    done = subprocess.run([HAPROXY, "-c", "-f", DEPLOY / "haproxy.cfg"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()
    config = re.sub(r"option tcp-check\n.*expect.*\n", "", text("haproxy.cfg")).replace("#option", "option")
    config = config.replace("check inter", "check port 9998 inter")
    (tmp_path / "haproxy.cfg").write_text(config)
    assert "tcp-check" not in config
    done = subprocess.run([HAPROXY, "-c", "-f", tmp_path / "haproxy.cfg"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for verb, args in re.findall(r"(--stop-delay) (\d+ --metrics :\d+)", config):
        assert options_of("serve", [verb, *args.split()])["metrics"].port == 9998
    command = re.search(r"^#   greeter serve (.+)$", text("haproxy.cfg"), re.MULTILINE)
    assert command
    options = options_of("serve", command[1].split())
    assert options["proxy_protocol"]
    assert {str(options["listen"][0].port)} == set(re.findall(r"server .+:(\d+)$", text("haproxy.cfg"), re.M))
    patience = ServeOptions().greet_timeout + ServeOptions().linger_timeout
    assert {float(s) > patience for s in re.findall(r"timeout (?:client|server) (\d+)s", text("haproxy.cfg"))}


@one_loop
@needs_haproxy
@pytest.mark.parametrize("header", ["send-proxy-v2", "send-proxy"])
async def test_a_stop_behind_haproxy_loses_no_client(header: str, tmp_path: Path) -> None:
    assert HAPROXY is not None
    options = ("--greeting", "Thank you, $host $port", "--proxy-protocol", "--proxy-from", "127.0.0.0/8")
    args = ("serve", "--listen", "127.0.0.1:0", *options, "--no-access-log")
    async with contextlib.AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(greeter_process(*args)) for _ in range(2)]
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
        config = text("haproxy.cfg").replace("bind :9999", f"bind fd@{listener.fileno()}")
        config = config.replace("send-proxy-v2", header).replace("192.0.2.11:9999", first.address)
        config = config.replace("192.0.2.12:9999", second.address)
        assert "192.0.2.1" not in re.sub("#.*", "", config)
        (tmp_path / "haproxy.cfg").write_text(config)
        command = (HAPROXY, "-db", "-f", f"{tmp_path}/haproxy.cfg")
        balancer = await stack.enter_async_context(running(*command, fds=(listener.fileno(),), ready=""))

        def whole(data: bytes, port: int) -> bool:
            return data == f"Thank you, 127.0.0.1 {port}".encode()

        async with crowd(listener.getsockname()[1], clients=30, whole=whole) as clients:
            await clients.more(200)
            assert await first.stop() == 0
            await clients.more(200)
        assert clients.lost == []
        assert clients.refused == 0
        assert await second.stop() == 0
        balancer.process.terminate()
        await balancer.ended()
    greeted = []
    for service in (first, second):
        match = re.fullmatch(r"Stopped: (\d+) greeted of (\d+) accepted, 0 failed", service.lines[-1])
        assert match, service.lines
        assert match[1] == match[2]
        greeted.append(int(match[1]))
    assert min(greeted) >= 50
    # The checks, whose header says LOCAL or UNKNOWN, are greeted as well.
    assert sum(greeted) >= clients.greeted


@one_loop
@needs_haproxy
async def test_the_haproxy_health_check_needs_the_greeting(tmp_path: Path) -> None:
    """A service that accepts and sends something else is not used."""
    assert HAPROXY is not None
    args = ("serve", "--listen", "127.0.0.1:0", "--proxy-protocol", "--proxy-from", "127.0.0.0/8")
    async with contextlib.AsyncExitStack() as stack:
        ill, well = [
            await stack.enter_async_context(greeter_process(*args, "--greeting", greeting))
            for greeting in ("Go away", "Thank you for connecting")
        ]
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        config = text("haproxy.cfg").replace("bind :9999", f"bind fd@{listener.fileno()}")
        config = config.replace("192.0.2.11:9999", ill.address).replace("192.0.2.12:9999", well.address)
        # A check that fails is soon repeated. One that succeeds may take as long as it may by default.
        config = config.replace("fastinter 500ms", "fastinter 50ms")
        (tmp_path / "haproxy.cfg").write_text(config)
        command = (HAPROXY, "-db", "-f", f"{tmp_path}/haproxy.cfg")
        balancer = await stack.enter_async_context(running(*command, fds=(listener.fileno(),), ready="DOWN"))
        assert "greeters/greeter1 is DOWN" in balancer.lines[-1]
        for _ in range(10):
            assert (await greet(port=listener.getsockname()[1])).data == HELLO
        balancer.process.terminate()
        await balancer.ended()
        assert await well.stop() == 0
        assert await ill.stop() == 0
    assert well.lines[-1].endswith(" 0 failed")
    assert ill.lines[-1].endswith(" 0 failed")
