"""The command ``greet``: greet one target or many, and print what came.

Invariants:

- Results go to stdout, and failures to stderr; with ``--json`` and several targets, both are objects on
  stdout.
- What is printed has no character that a terminal obeys, except with ``--raw``.
"""

from __future__ import annotations

import sys
from base64 import b64encode
from contextlib import aclosing
from json import dumps
from typing import TYPE_CHECKING, Any

from greeter.client import many, oneshot
from greeter.config.values import endpoint
from greeter.core.endpoint import DEFAULT_ENDPOINT, Endpoint
from greeter.core.escapes import escape, hex_dump, is_binary, is_utf8, printable
from greeter.errors import ConfigError, GreetFailed, GreetTimeout, NoGreeting, os_error_text
from greeter.system import loops
from greeter.system.input_files import read_input
from greeter.system.tls import client_context

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greeter.config.options import GreetOptions
    from greeter.core.replies import Reply

    PrintError = Callable[[str], None]


def run_greet(
    options: GreetOptions, echo: Callable[..., None], print_error: PrintError, spell: Callable[[str], str]
) -> int:
    """Run the command.

    Args:
        options: Its options.
        echo: Prints text or bytes to stdout; with ``nl=False``, without a line end.
        print_error: Prints an error to stderr.
        spell: Returns the option of a field as it was given.

    Returns:
        The exit code: 0, or 1 if a target was not greeted.

    Raises:
        ConfigError: Options contradict each other, or a file of targets is wrong.
    """
    for name in ("tls_ca", "tls_cert", "tls_key", "server_name"):
        if getattr(options, name) and not options.tls:
            raise ConfigError(f"{spell(name)} needs --tls")
    if options.tls_key and not options.tls_cert:
        raise ConfigError("--tls-key needs --tls-cert")
    exchange: dict[str, Any] = {
        "timeout": options.timeout,
        "connect_timeout": options.connect_timeout,
        "max_bytes": options.max_bytes,
        "until": options.until,
        "send": options.send,
        "expect": options.expect,
        "proxy_protocol": options.proxy_protocol,
        "wait": options.wait,
        "server_hostname": options.server_name,
    }
    if options.tls:
        exchange["ssl"] = client_context(options.tls_ca, options.tls_cert, options.tls_key)
    if len(options.target) <= 1 and options.targets is None:
        _check_targets(options.target, options, spell)
        target = options.target[0] if options.target else Endpoint.parse(DEFAULT_ENDPOINT)
        return _greet_one(target, options, exchange, echo, print_error)
    if options.raw:
        raise ConfigError(f"{spell('raw')} needs a single target")
    targets = [*options.target, *(_read_targets(options.targets) if options.targets is not None else [])]
    _check_targets(targets, options, spell)
    return loops.run(_greet_many(targets, options, exchange, echo, print_error))


def _check_targets(targets: Sequence[Endpoint], options: GreetOptions, spell: Callable[[str], str]) -> None:
    """Raise ConfigError if an option needs a stream, a host or another connection, and a target has none."""
    for name in ("tls", "until", "proxy_protocol"):
        if getattr(options, name) not in (False, "eof", None):
            for target in targets:
                target.require_stream(spell(name))
    for target in targets:
        if options.tls and not options.server_name and target.kind != "tcp":
            raise ConfigError(f"{spell('tls')} to {target} needs --server-name, the name to verify")
        if options.wait and target.kind == "fd":
            raise ConfigError(f"{spell('wait')} cannot be combined with {target}")


def _greet_one(
    target: Endpoint,
    options: GreetOptions,
    exchange: dict[str, Any],
    echo: Callable[..., None],
    print_error: PrintError,
) -> int:
    try:
        reply = loops.run(oneshot.greet(target, **exchange), "asyncio")  # loads faster than uvloop
    except GreetFailed as error:
        print_error(f"{error}{_advice(error, options)}")
        return 1
    if not reply:
        print_error(str(NoGreeting(reply.target)))
        return 1
    if options.json:
        echo(_as_json(reply))
    elif options.raw:
        echo(reply.data, nl=False)
    else:
        text = hex_dump(reply.data) if is_binary(reply.data) else printable(reply.text)
        echo(text.removesuffix("\n"))
    if remark := _remark(reply):
        print_error(f"{reply.target}: {remark}")
    return int(reply.truncated)


async def _greet_many(
    targets: list[Endpoint],
    options: GreetOptions,
    exchange: dict[str, Any],
    echo: Callable[..., None],
    print_error: PrintError,
) -> int:
    code = 0
    async with aclosing(many.greet_many(targets, limit=options.limit, **exchange)) as results:
        async for target, found in results:
            result = found or NoGreeting(str(target))
            if isinstance(result, GreetFailed):
                code = 1
                line = f"{result}{_advice(result, options)}"
                if options.json:
                    echo(dumps({"target": str(target), "error": line, "class": type(result).__name__}))
                else:
                    print_error(line)
                continue
            if options.json:
                echo(_as_json(result))
            else:
                greeting, remark = escape(result.data.rstrip(b"\r\n")), _remark(result)
                echo(f"{target}: {greeting}" + (f" ({remark})" if remark else ""))
            code = code or int(result.truncated)
    return code


def _read_targets(name: str) -> list[Endpoint]:
    """Read targets from a file, one a line. Empty lines, and lines that begin with ``#``, are skipped.

    Raises:
        ConfigError: The file cannot be read, or has no target or a wrong one.
    """
    try:
        lines = (sys.stdin.read() if name == "-" else read_input(name).decode()).splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read the targets {name!r}: {os_error_text(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read the targets {name!r}: not UTF-8") from error
    targets = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if line and not line.startswith("#"):
            try:
                targets.append(endpoint(line))
            except ConfigError as error:
                raise ConfigError(f"{name}, line {number}: {error}") from None
    if not targets:
        raise ConfigError(f"no targets in {name!r}, the file of --targets")
    return targets


def _advice(error: GreetFailed, options: GreetOptions) -> str:
    """Return which option may help against a failure, as the end of its line."""
    if not isinstance(error, GreetTimeout):
        return ""
    if error.phase == "first byte" and not options.tls:
        need = "" if options.send else ", one that waits for its client --send"
        return f"; a service that speaks TLS needs --tls{need}"
    if error.phase == "handshake":
        return "; a service that does not speak TLS needs no --tls"
    if error.phase == "end" and options.until == "eof":
        received = error.received
        if b"\n" not in received:
            return "; --until idle:1s ends it"
        return f"; --until {'reply' if received[:3].isdigit() and received[3:4] == b'-' else 'line'} ends it"
    return ""


def _remark(reply: Reply) -> str:
    if reply.truncated:
        return "the TLS stream ended without close_notify, the greeting may be truncated"
    return "connection reset after the greeting" if reply.reset else ""


def _as_json(reply: Reply) -> str:
    first_byte = reply.first_byte_time
    found = {
        "target": reply.target,
        "greeting": reply.text,
        "size_bytes": len(reply.data),
        "connect_us": round(reply.connect_time * 1e6),
        "first_byte_us": None if first_byte is None else round(first_byte * 1e6),
        "total_us": round(reply.total_time * 1e6),
        "reset": reply.reset,
        "truncated": reply.truncated,
        "attempts": reply.attempts,
    }
    if not is_utf8(reply.data):
        found["data_base64"] = b64encode(reply.data).decode()
    return dumps(found)
