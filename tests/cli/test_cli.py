"""The commands: their output, exit codes and error lines, and no traceback.

Most tests run ``cli.run`` in this process. Tests of descriptors, signals, startup and exit run a process.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

import greeter
from greeter import GreetReset, Reply
from greeter.cli import cli
from greeter.client import oneshot
from tests.conftest import PATIENCE, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

HELLO = "Thank you for connecting"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GREETER_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Run a command in this process: its exit code, stdout and stderr."""

    def call(*args: str) -> tuple[int, str, str]:
        code = cli.run(args)
        out, err = capfd.readouterr()
        return code, out, err

    logger = logging.getLogger("greeter")
    level = logger.level
    yield call
    logger.setLevel(level)


def process(*args: str, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run a command that ends by itself, in its own process."""
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}  # stdout is buffered, as usual, and flushed at exit
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options = {**pipes, "text": True, "env": buffered, **options}
    command = [sys.executable, "-m", "greeter", *args]
    return subprocess.run(command, cwd=ROOT, timeout=PATIENCE, check=False, **options)


@contextlib.contextmanager
def serving(*greetings: bytes) -> Iterator[str]:
    """A blocking server that sends each of ``greetings`` to one client; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as sock:

        def serve() -> None:
            for greeting in greetings:
                client, _ = sock.accept()
                client.sendall(greeting)
                client.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{sock.getsockname()[1]}"
        thread.join(PATIENCE)


@pytest.fixture
def in_use() -> Iterator[str]:
    """An address that is in use."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield f"127.0.0.1:{sock.getsockname()[1]}"


@pytest.fixture
def refused() -> Iterator[str]:
    """An address without a listener, reserved while the test runs."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{sock.getsockname()[1]}"


# -- help and version ------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(run: Any, flag: str) -> None:
    assert run(flag) == (0, f"greeter {greeter.__version__}\n", "")


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["serve", "-h"], ["greet", "--help"], ["demo", "-h"]])
def test_help_goes_to_stdout(run: Any, args: list[str]) -> None:
    code, out, err = run(*args)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: greeter ")


@pytest.mark.parametrize("name", ["greet", "load"])
def test_help_shows_the_forms_of_a_target(run: Any, name: str) -> None:
    assert "HOST:PORT, :PORT (this machine), [::1]:PORT, unix:/path or unix:@name" in " ".join(
        run(name, "--help")[1].split()
    )


def test_help_shows_the_form_of_an_app(run: Any) -> None:
    assert "--app MODULE:NAME " in run("serve", "--help")[1]


def test_no_command_is_a_usage_error_with_help(run: Any) -> None:
    code, out, err = run()
    assert code in (2, 0)  # 0 before click 8.2
    assert "Usage: greeter " in out + err
    assert all(f"\n  {name} " in out + err for name in ("serve", "greet", "demo"))


def test_every_option_is_documented(run: Any) -> None:
    for name, command in cli.cli.commands.items():
        shown = " ".join(run(name, "--help")[1].split())
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.name != "help":
                assert parameter.help
                assert parameter.help.split()[0] in shown
                assert parameter.opts[0] in shown


def test_help_of_the_commands_is_whole_sentences(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run("--help")[1]
    listed = shown.partition("Commands:\n")[2].splitlines()
    assert {line.split()[0] for line in listed} == set(cli.cli.commands)
    for line in listed:
        assert re.fullmatch(r"  \w+ +[A-Z][^.]+\.", line), line


HEADINGS = (
    "Listening",
    "Greeting",
    "Limits",
    "Timeouts",
    "TLS",
    "PROXY protocol",
    "Processes",
    "Logs and metrics",
    "Other options",
)


def test_help_of_serve_is_grouped_and_ends_with_examples_and_exit_codes(run: Any) -> None:
    shown = run("serve", "--help")[1]
    assert tuple(re.findall(r"^(\w[\w ]+):$", shown, re.M)) == HEADINGS
    options = {flag for param in cli.cli.commands["serve"].params for flag in param.opts}
    assert options <= set(re.findall(r"^  (--[\w-]+)", shown, re.M))
    examples, codes = shown.split("  Examples:\n")[1].split("\n\n")
    lines = [line.strip() for line in examples.splitlines()]
    assert len(lines) == 3
    for line in lines:  # each example must parse
        command, *args = shlex.split(line.removeprefix("greeter "))
        group = click.Context(cli.cli, **cli.cli.context_settings)
        with cli.cli.commands[command].make_context(command, args, parent=group):
            pass
    assert re.findall(r"^    (\d+) ", codes, re.M) == ["0", "1", "2", "130"]


@pytest.mark.parametrize("name", sorted(set(cli.cli.commands) - {"demo"}))
def test_help_names_the_environment_once(run: Any, name: str) -> None:
    shown = run(name, "--help")[1]
    options = {param.envvar for param in cli.cli.commands[name].params if isinstance(param, click.Option)}
    named = re.findall(r"GREETER_\w+", shown)
    assert len(named) == 1
    assert named[0] in options
    assert "env var" not in shown


def test_help_of_an_option_is_a_line() -> None:
    for command in cli.cli.commands.values():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                text = parameter.help or ""
                assert len(text) <= 70, parameter.opts
                assert text == " ".join(text.split())
                assert text[0].isupper()
                assert text.endswith(".")


def test_the_shell_can_complete_commands_and_options() -> None:
    def completed(args: str, index: int) -> list[str]:
        env = {**os.environ, "_GREETER_COMPLETE": "bash_complete", "COMP_WORDS": args}
        done = process(env={**env, "COMP_CWORD": str(index)})
        assert (done.returncode, done.stderr) == (0, "")
        return str(done.stdout).split()

    assert completed("greeter se", 1) == ["plain,serve"]
    assert completed("greeter serve --linger", 2) == ["plain,--linger-timeout"]
    assert completed("greeter serve --loop ", 3) == ["plain,auto", "plain,asyncio", "plain,uvloop"]


@pytest.mark.parametrize("start", [[sys.executable, "-m", "greeter"], ["greeter"]])
def test_module_and_console_script_are_equivalent(start: list[str]) -> None:
    command = shutil.which(start[0], path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if command is None:
        pytest.skip("the console script is not installed")
    done = subprocess.run([command, *start[1:], "--version"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"greeter {greeter.__version__}\n", "")


def test_it_starts_by_its_path_without_installation(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout" / "greeter"
    shutil.copytree(ROOT / "greeter", checkout, ignore=shutil.ignore_patterns("__pycache__"))
    with (checkout / "__init__.py").open("a") as file:
        file.write("\n__version__ = 'of the checkout'\n")
    command = [sys.executable, "-P", str(checkout / "__main__.py"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "greeter of the checkout\n", "")


# -- bad input -------------------------------------------------------------------------------------------


def error_of(result: tuple[int, str, str]) -> tuple[int, str]:
    """The exit code and the error line of a command that failed."""
    code, out, err = result
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("greeter: ")
    assert line.isprintable()
    return code, line.removeprefix("greeter: ")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["nope"], "No such command 'nope'."),
        (["--nope"], "No such option"),
        (["serve", "--lissten", ":1"], "Did you mean"),
        (["serve", "extra"], "Got unexpected extra argument (extra)"),
        (["serve", "--listen"], "Option '--listen' requires an argument."),
        (["serve", "--listen", "localhost"], "endpoint 'localhost' has no port, as in localhost:9999"),
        (["serve", "--listen", "::1:9999"], "endpoint '::1:9999' has an IPv6 address without brackets"),
        (["serve", "--listen", "h:70000"], "endpoint 'h:70000' has port 70000, which is not in 0-65535"),
        (["serve", "--backlog", "9" * 99], "is not a whole number from 1 to 2147483647"),
        (["serve", "--greeting", "$user"], "greeting has the unknown name $user; known are $host $port"),
        (["serve", "--greeting", "5 $"], "greeting has a lone $ in '$'; write $$ for a dollar"),
        (["serve", "--greeting-file", "/no/such"], "greeting file '/no/such': no such file or directory"),
        (["serve", "--greeting-file", "/"], "cannot read the greeting file '/': is a directory"),
        (["serve", "--app", "nothing"], "'nothing' is not of the form MODULE:NAME"),
        (["serve", "--app", "no_such_module:x"], "'no_such_module:x': there is no module 'no_such_module'"),
        (["serve", "--app", "json:nothing"], "'json:nothing': module 'json' has no 'nothing'"),
        (["serve", "--app", "math:pi"], "'math:pi': a greeting must be text, bytes or a callable, not float"),
        (["serve", "--app", "m:n", "--greeting", "x"], "give one of --greeting and --app"),
        (["serve", "--loop", "trio"], "'trio' is not one of 'auto', 'asyncio', 'uvloop'"),
        (["serve", "--config", "/no/such.toml"], "configuration '/no/such.toml': no such file or directory"),
        (["greet", "localhost"], "endpoint 'localhost' has no port"),
        (["greet", ":1", "--timeout", "0"], "must be greater than 0 seconds"),
        (
            ["greet", ":1", "--until", "word"],
            "bytes:N or idle:DURATION, not 'word'",
        ),
        (["greet", ":1", "--tls-ca", "ca.pem"], "--tls-ca needs --tls"),
        (["greet", ":1", "--tls-cert", "cert.pem"], "--tls-cert needs --tls"),
        (["greet", ":1", "--server-name", "a.example"], "--server-name needs --tls"),
        (["greet", ":1", "--tls", "--tls-key", "key.pem"], "--tls-key needs --tls-cert"),
        (["load", ":1", "--rate", "0"], "--rate must be greater than 0, not 0"),
        (["greet", ":1", "--tls", "--tls-cert", "/no/such"], "certificate '/no/such': no such file or direc"),
        (["greet", "127.0.0.1:nosuchservice"], "this machine knows no service 'nosuchservice'"),
        (["serve", "--listen", ":nosuchservice"], "endpoint ':nosuchservice': this machine knows no service"),
        (["greet", ":1", "--tls", "--tls-ca", "/no/such"], "authority '/no/such': no such file or directory"),
        (["greet", "unix:/x", "--tls"], "--tls to unix:/x needs --server-name, the name to verify"),
        (["greet", ":1", "--tls", "--server-name", ".x"], "'.x' is not a host name"),
        (["greet", ":1", ":2", "--raw"], "--raw needs a single target"),
        (["greet", "--targets", "/no/such"], "cannot read the targets '/no/such': no such file or directory"),
        (["greet", "--targets", "/dev/null"], "no targets in '/dev/null'"),
        (["greet", "http://h:80/x"], "endpoint 'http://h:80/x' is a URL; write h:80"),
        (["greet", ":1", "--send", r"a\q"], r"unknown escape \q in a\q: the escapes are \r \n \t \\ \xNN"),
        (["greet", ":1", "--expect", ""], "must not be empty"),
        (["greet", ":1", "--until", "idle:x"], "until 'idle:x': 'x' is not a duration, as in 500ms"),
        (["load", ":1", ":2"], "Got unexpected extra argument (:2)"),
        (["demo", "--clients", "some"], "'some' is not a whole number"),
        (["greet", "a\x1b[2J\nb:1"], "has invalid characters in host name 'a\\x1b[2J\\nb'"),
        (["no\x1b[2J\nsuch"], "No such command "),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_usage_error_exits_with_2(run: Any, args: list[str], line: str) -> None:
    code, message = error_of(run(*args))
    assert code == 2
    assert line in message


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("GREETER_ACCEPT", "stream", "'stream' is not one of 'auto', 'direct', 'streams'"),
        ("GREETER_LISTEN", "localhost", "endpoint 'localhost' has no port"),
        ("GREETER_BACKLOG", "many", "'many' is not a whole number"),
        ("GREETER_ACCESS_LOG", "maybe", "'maybe' is not a valid boolean"),
        ("GREETER_LOG_FORMAT", "xml", "'xml' is not one of 'text', 'json'"),
        ("GREETER_GREETING", "$user", "greeting has the unknown name $user"),
        ("GREETER_CONFIG", "/no/such.toml", "cannot read the configuration '/no/such.toml'"),
    ],
)
def test_an_error_names_the_environment_variable(
    run: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: str, line: str
) -> None:
    monkeypatch.setenv(name, value)
    code, message = error_of(run("serve"))
    assert code == 2
    assert line in message
    if name != "GREETER_CONFIG":
        assert message.startswith(f"Invalid value for the environment variable '{name}': ")


@pytest.mark.parametrize(
    ("args", "name", "value", "line"),
    [
        (["serve"], "GREETER_ACCEPT", "direct", "Invalid value for '--accept': 'stream' is not one of"),
        (["load"], "GREETER_LOAD_UNTIL", "line", "Invalid value for '--until': until must be eof, "),
    ],
)
def test_an_error_of_the_command_line_does_not_name_the_variable(
    run: Any, monkeypatch: pytest.MonkeyPatch, args: list[str], name: str, value: str, line: str
) -> None:
    monkeypatch.setenv(name, value)
    flag = "--" + name.rpartition("_")[2].lower()
    code, message = error_of(run(*args, flag, "stream"))
    assert code == 2
    assert message.startswith(line)
    assert "GREETER" not in message


@pytest.mark.parametrize(
    ("args", "variables", "line"),
    [
        (["load"], {"GREETER_LOAD_RATE": "0"}, "GREETER_LOAD_RATE must be greater than 0, not 0"),
        (
            ["load", "-z", "1s"],
            {"GREETER_LOAD_STAGE": "1s:5"},
            "--duration cannot be combined with GREETER_LOAD_STAGE, which set the duration",
        ),
        (["load"], {"GREETER_LOAD_TLS_CA": "x"}, "GREETER_LOAD_TLS_CA requires --tls"),
        (["greet"], {"GREETER_TLS_CA": "x"}, "GREETER_TLS_CA needs --tls"),
        (["greet"], {"GREETER_JSON": "1", "GREETER_RAW": "1"}, "give one of GREETER_JSON and GREETER_RAW"),
    ],
)
def test_contradicting_options_are_named_as_their_sources_spell_them(
    run: Any, monkeypatch: pytest.MonkeyPatch, args: list[str], variables: dict[str, str], line: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert error_of(run(*args)) == (2, line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("lissten = ':1'", "unknown key 'lissten'; did you mean 'listen'?"),
        ("backlog = 'many'", "Invalid value for 'backlog': 'many' is not a whole number"),
        ("accept = 'stream'", "Invalid value for 'accept': 'stream' is not one of"),
        ("log-level = 'loud'", "Invalid value for 'log-level'"),
        ("backlog = [1]", "backlog is one value, not [1]"),
        ("listen = ['localhost']", "endpoint 'localhost' has no port"),
        ("greeting = 'x'\napp = 'm:n'", "give one of greeting and app"),
        ("backlog", "not TOML: "),
    ],
)
def test_an_error_names_the_configuration_file(run: Any, tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "greeter.toml"
    file.write_text(text)
    code, message = error_of(run("serve", "--config", str(file)))
    assert code == 2
    assert message.startswith(f"{file}: ")
    assert line in message


def test_an_error_of_another_source_does_not_name_the_file(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "greeter.toml"
    file.write_text("backlog = 5")
    assert str(file) not in error_of(run("serve", "--config", str(file), "--backlog", "x"))[1]


def test_a_module_that_fails_while_importing(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cli_broken_app.py").write_text("raise ValueError('two\\nlines \\x1b[31m')\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    code, message = error_of(run("serve", "--app", "cli_broken_app:x"))
    assert code == 2
    assert message.startswith(
        "'cli_broken_app:x': module 'cli_broken_app' failed while importing: "
        "ValueError: two\\nlines \\x1b[31m ("
    )


def test_uvloop_that_is_not_installed(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    for command in (["serve", "--listen", "127.0.0.1:0"], ["demo"]):
        code, message = error_of(run(*command, "--loop", "uvloop"))
        assert (code, message) == (
            2,
            "--loop uvloop needs an optional package: pip install '.[uvloop]' in greeter's source tree",
        )


def test_a_failure_at_run_time_exits_with_1(run: Any, in_use: str, refused: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    for args, line in (
        (["serve", "--listen", in_use], f"cannot listen on {in_use}: address already in use"),
        (["serve", "--listen", "127.0.0.1:0", "--listen", in_use], f"cannot listen on {in_use}: address alr"),
        (["serve", "--listen", "nosuch.invalid:0"], "cannot listen on nosuch.invalid:0: "),
        (["serve", "--listen", "192.0.2.1:0"], "192.0.2.1:0: cannot assign requested address"),
        (["serve", "--listen", f"unix:{tmp_path}/x"], "the file exists and is not a socket"),
        (["serve", "--listen", "fd:999"], "cannot listen on fd:999: bad file descriptor"),
        (["greet", refused], f"cannot connect to {refused}: connection refused"),
        (["greet", "nosuch.invalid:1"], "cannot connect to nosuch.invalid:1: "),
        (["greet", f"unix:{tmp_path}/no"], f"cannot connect to unix:{tmp_path}/no: no such file"),
        (["greet", "fd:999"], "cannot connect to fd:999: bad file descriptor"),
        (["greet", in_use, "--timeout", "0.5"], f"{in_use}: connected, but no greeting within 0.5 s"),
    ):
        quiet = ["--log-level", "error"] * (args[0] == "serve")  # without the warning about running as root
        code, message = error_of(run(*args, *quiet))
        assert code == 1
        assert line in message


# -- greet -----------------------------------------------------------------------------------------------


def test_greet_prints_the_greeting_and_a_newline(run: Any) -> None:
    with serving(HELLO.encode()) as address:
        assert run("greet", address) == (0, HELLO + "\n", "")
    with serving(b"220 here\r\n") as address:
        assert run("greet", address) == (0, "220 here\n", "")
    with serving(b"220-here\r\n220 ready\r\n250 more\r\n", b"220-here\r\n22") as address:
        assert run("greet", address, "--until", "reply") == (0, "220-here\n220 ready\n", "")
        cut = f"greeter: {address}: closed before the greeting ended (12 bytes received)\n"
        assert run("greet", address, "--until", "reply") == (1, "", cut)


def test_greet_escapes_control_characters(run: Any) -> None:
    data = "\x1b[2Jgrüße\x07".encode() + b"\xff\n"
    with serving(data, data) as address:
        assert run("greet", address) == (0, "\\x1b[2Jgrüße\\x07\\xff\n", "")
        assert process("greet", address, "--raw", text=False).stdout == data


def test_greet_rejects_two_output_forms(run: Any) -> None:
    assert run("greet", "--json", "--raw") == (2, "", "greeter: give one of --json and --raw\n")


def test_greet_json(run: Any) -> None:
    with serving(b"gr\xc3\xbc\xff\x00") as address:
        code, out, err = run("greet", address, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["target"], found["greeting"]) == (address, "grü\\xff\0")
    assert (found["size_bytes"], found["reset"]) == (6, False)
    assert 0 < found["connect_us"] <= found["first_byte_us"] <= found["total_us"]


def test_greet_reports_an_empty_greeting(run: Any) -> None:
    with serving(b"", b"", b"") as address:
        for form in ((), ("--json",), ("--raw",)):
            message = f"greeter: {address}: closed without a greeting\n"
            assert run("greet", address, *form) == (1, "", message)


def test_greet_reports_a_reset(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def reset_after(*_: object, **__: object) -> Reply:
        return Reply(HELLO.encode(), "x:1", 0.1, 0.2, 0.3, reset=True)

    async def reset_before(*_: object, **__: object) -> Reply:
        raise GreetReset("x:1")

    monkeypatch.setattr(oneshot, "greet", reset_after)
    assert run("greet") == (0, HELLO + "\n", "greeter: x:1: connection reset after the greeting\n")
    monkeypatch.setattr(oneshot, "greet", reset_before)
    assert error_of(run("greet")) == (1, "x:1: connection reset before the greeting")


def test_greet_takes_a_line_or_a_bound(run: Any) -> None:
    with serving(b"220 here\n250 more\n", b"220 here\n250 more\n") as address:
        assert run("greet", address, "--until", "line")[:2] == (0, "220 here\n")
        code, message = error_of(run("greet", address, "--max-bytes", "9"))
    assert (code, message) == (1, f"{address}: the greeting is longer than 9 bytes")


def test_greet_waits_until_the_service_is_up(run: Any) -> None:
    with serving(b"", HELLO.encode()) as address:
        assert run("greet", address, "--wait", "10")[:2] == (0, HELLO + "\n")


def test_greet_escapes_what_the_encoding_of_stdout_lacks() -> None:
    with serving("grüße 你好".encode()) as address:
        done = process(
            "greet", address, encoding="latin-1", env={**os.environ, "PYTHONIOENCODING": "latin-1"}
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "grüße \\u4f60\\u597d\n", "")


# -- a stdout that cannot be written ---------------------------------------------------------------------


@pytest.mark.parametrize("args", [["--version"], ["serve", "--help"], []])
def test_a_full_disk_behind_stdout(args: list[str]) -> None:
    with open("/dev/full", "w") as full, serving(*[HELLO.encode()] * (not args)) as address:
        done = process(*(args or ["greet", address]), stdout=full)
    assert (done.returncode, done.stderr) == (1, "greeter: no space left on device\n")


def test_a_closed_pipe_as_stdout() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with serving(HELLO.encode()) as address:
        done = process("greet", address, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_no_stdout_at_all() -> None:
    with serving(HELLO.encode()) as address:
        command = [sys.executable, "-m", "greeter", "greet", address]
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, cwd=ROOT, timeout=PATIENCE
        )
    assert (done.returncode, done.stderr) == (0, b"")


# -- interrupts ------------------------------------------------------------------------------------------


def test_an_interrupt_exits_with_130(in_use: str) -> None:
    host, _, port = in_use.rpartition(":")
    with subprocess.Popen(
        [sys.executable, "-m", "greeter", "greet", "--wait", "60", in_use],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        # Wait until it is connected: it is in the accept queue, and is not accepted.
        while f"{int(port):04X} " not in established(int(port)):
            assert child.poll() is None
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=PATIENCE)
    assert (child.returncode, out, err.strip()) == (130, b"", b"")
    assert host == "127.0.0.1"


def established(port: int) -> str:
    """The kernel's lines about established connections to ``port`` (proc(5), /proc/net/tcp)."""
    lines = Path("/proc/net/tcp").read_text().splitlines()
    return "\n".join(line for line in lines if f":{port:04X} 01 " in line)


def test_run_returns_130_for_an_interrupt(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.cli, "main", interrupted)
    assert run("greet")[0] == 130


def test_main_exits_with_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["greeter", "--nope"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2


def test_an_os_error_is_one_line(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise OSError(24, "Too many open files", "/some/\nfile")

    kept = os.dup(1)
    monkeypatch.setattr(cli.cli, "main", broken)
    try:
        assert run("greet") == (1, "", "greeter: '/some/\\nfile': too many open files\n")
    finally:
        os.dup2(kept, 1)
        os.close(kept)
