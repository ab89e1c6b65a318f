"""``greeter serve --check-config``: what it prints, what it finds, and that it serves nothing."""

from __future__ import annotations

import json
import os
import socket
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from greeter.cli.checkconfig import _toml
from greeter.cli.cli import cli
from tests.conftest import one_loop, run_greeter

if TYPE_CHECKING:
    from pathlib import Path

FILE = """
backlog = 100
listen = [":9999", "unix:@greeter"]
access-log = false
greeting = "from the file"
"""


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GREETER_")]:
        monkeypatch.delenv(name)


def check(*args: str, env: dict[str, str] | None = None) -> str:
    """What it prints of a configuration that is valid."""
    argv = ["serve", "--check-config", *args]
    result = CliRunner().invoke(cli, argv, obj=argv, env=env, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def source_of(name: str, text: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} = ")]
    return line.rpartition("  # ")[2]


def test_it_prints_the_options_in_effect_with_their_sources(tmp_path: Path) -> None:
    path = tmp_path / "greeter.toml"
    path.write_text(FILE)
    text = check("--config", str(path), "--greet-timeout", "2.5", env={"GREETER_BACKLOG": "200"})
    found = tomllib.loads(text)
    assert (found["greet-timeout"], found["backlog"], found["linger-timeout"]) == (2.5, 200, 2)
    assert (found["listen"], found["access-log"]) == ([":9999", "unix:@greeter"], False)
    assert source_of("greet-timeout", text) == "command line"
    assert source_of("backlog", text) == "environment GREETER_BACKLOG"
    assert source_of("listen", text) == f"file {path}"
    assert source_of("linger-timeout", text) == "default"
    assert "# max-connections: what the descriptor limit allows\n" in text


def test_what_it_prints_is_a_configuration_file_that_means_the_same(tmp_path: Path) -> None:
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(f"{tmp_path}/c.pem")
    args = ["--listen", "[::1]:0", "--listen", "unix:/run/x", "--unix-mode", "060", "--tls-cert"]
    args += [f"{tmp_path}/c.pem", "--rate-per-ip", "0.5", "--allow", "10.0.0.0/8", "--deny", "10.1.0.0/16"]
    args += ["--proxy-protocol", "--proxy-from", "::1", "--workers", "auto", "--metrics", ":9998"]
    args += ["--max-connections", "7", "--greeting", 'a "quoted" \\ $host\n\x7f\u2028', "--no-access-log"]
    first = tomllib.loads(check(*args))
    (tmp_path / "printed.toml").write_text(check(*args))
    text = check("--config", f"{tmp_path}/printed.toml")
    assert tomllib.loads(text) == first
    assert first["unix-mode"] == "060"
    assert first["greeting"] == 'a "quoted" \\ $host\n\x7f\u2028'
    assert {line.rpartition("  # ")[2] for line in text.splitlines() if not line.startswith("#")} == {
        f"file {tmp_path}/printed.toml"
    }


@given(st.text(st.characters(codec="utf-8")))
@pytest.mark.thorough
def test_any_text_is_a_toml_string(text: str) -> None:
    assert tomllib.loads(f"key = {_toml(text)}") == {"key": text}


@pytest.mark.parametrize("source", ["command line", "file"])
def test_of_the_greetings_the_one_in_use_is_shown(source: str, tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(b"Hello")
    (tmp_path / "greeter.toml").write_text(FILE if source == "command line" else "")
    args = ["--greeting-file", f"{tmp_path}/hello", "--config", f"{tmp_path}/greeter.toml"]
    text = check(*args)
    assert "greeting" not in tomllib.loads(text)
    assert "# greeting: not used\n# app: not used\n" in text.replace(
        next(line for line in text.splitlines(keepends=True) if line.startswith("greeting-file")), ""
    )


def test_as_json() -> None:
    found = json.loads(check("--log-format", "json", "--app", "json:dumps"))["options"]
    assert found["app"] == {"value": "json:dumps", "source": "command line"}
    assert found["backlog"] == {"value": 2048, "source": "default"}
    assert found["tls-cert"] == {"value": None, "source": "default"}
    assert "greeting" not in found


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--config", "/no/such.toml"], "/no/such.toml"),
        (["--backlog", "0"], "'0'"),
        (["--tls-cert", "/no/such.pem"], "/no/such.pem"),
        (["--tls-key", "/no/such.pem"], "--tls-cert"),
        (["--greeting-file", "/no/such/file"], "/no/such/file"),
        (["--greeting", "$nothing"], "$nothing"),
        (["--app", "no_such_module:greet"], "no_such_module"),
        (["--app", "json:no_such_name"], "no_such_name"),
        (["--proxy-protocol"], "--proxy-from"),
    ],
)
@pytest.mark.parametrize("log_format", ["text", "json"])
@one_loop
async def test_a_mistake_is_one_line_and_2(args: list[str], text: str, log_format: str) -> None:
    code, out, err = await run_greeter("serve", "--check-config", "--log-format", log_format, *args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert text in (json.loads(err)["message"] if log_format == "json" else err)


@one_loop
async def test_it_opens_no_socket() -> None:
    """The address is in use: a service runs there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        args = ("--listen", address, "--metrics", address, "--listen", "unix:/no/such/folder/x")
        code, out, err = await run_greeter("serve", "--check-config", *args)
    assert (code, err) == (0, "")
    assert tomllib.loads(out)["listen"] == [address, "unix:/no/such/folder/x"]


@one_loop
async def test_an_extra_that_is_not_installed_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "uvloop.py").write_text("raise ImportError")
    args: dict[str, Any] = {"env": {"PYTHONPATH": str(tmp_path)}}
    code, _, err = await run_greeter("serve", "--check-config", "--loop", "uvloop", **args)
    assert code == 2
    assert "uvloop" in err
