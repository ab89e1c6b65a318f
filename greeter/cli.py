"""The command line: the only place that prints and exits.

The law: stdout carries results, stderr carries one line for each error, and no user sees a traceback.
Exit codes: 0 success, 1 failed at run time, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from greeter import __version__, interrupt
from greeter.commandline import collect, with_options
from greeter.errors import ConfigError, GreeterError, reason
from greeter.options import DemoOptions, GreetOptions, LoadOptions, ReportOptions, ServeOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greeter.replies import Reply


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", prog_name="greeter", message="%(prog)s %(version)s")
def cli() -> None:
    """Accept, say the first byte, close; and lose nobody.

    Options can also be given as environment variables: the name in upper case behind GREETER_, for
    load behind GREETER_LOAD_, for report behind GREETER_REPORT_; several values with spaces between them.
    """


@cli.command()
@with_options(ServeOptions, config=True)
@click.pass_context
def serve(ctx: click.Context, /, **_: object) -> int:
    """Greet whoever connects, until SIGTERM or SIGINT.

    An ENDPOINT is HOST:PORT, [::1]:PORT, :PORT (every interface), unix:/path, unix:@name or fd:N.
    """
    from greeter.startup import run_service

    def reread() -> ServeOptions:
        args = ctx.find_root().obj[1:]  # behind the verb
        try:
            return collect(ServeOptions, serve.make_context("serve", args, parent=ctx.parent))
        except click.ClickException as error:
            raise ConfigError(_one_line(error)) from error

    return run_service(collect(ServeOptions, ctx), reread, ctx.find_root().obj)


@cli.command()
@with_options(GreetOptions)
@click.pass_context
def greet(ctx: click.Context, /, **_: object) -> int:
    """Be greeted by TARGET (default 127.0.0.1:9999) and print what it said.

    A TARGET is HOST:PORT, :PORT (this machine), [::1]:PORT, unix:/path or unix:@name.

    Exit code 0 means greeted, so this is a health check too.
    """
    from greeter import client, loops
    from greeter.tls import client_context

    options = collect(GreetOptions, ctx)
    if not options.tls and (options.tls_ca or options.tls_cert or options.tls_key or options.server_name):
        raise ConfigError("--tls-ca, --tls-cert, --tls-key and --server-name go with --tls")
    if options.tls_key and not options.tls_cert:
        raise ConfigError("--tls-key goes with --tls-cert")
    context = None
    if options.tls:
        context = client_context(options.tls_ca, options.tls_cert, options.tls_key)
    reply = loops.run(
        client.greet_within(
            options.wait,
            options.target,
            timeout=options.timeout,
            connect_timeout=options.connect_timeout,
            max_bytes=options.max_bytes,
            until=options.until,
            ssl=context,
            server_hostname=options.server_name,
        ),
        "asyncio",  # which is loaded sooner than uvloop
    )
    if not reply.data:
        _complain(f"{reply.target}: closed without a greeting")
        return 1
    if options.json:
        click.echo(_as_json(reply))
    elif options.raw:
        click.echo(reply.data, nl=False)
    else:
        click.echo(client.printable(str(reply)).removesuffix("\n"))
    if reply.reset:
        _complain(f"{reply.target}: connection reset after the greeting")
    return 0


@cli.command()
@with_options(LoadOptions, prefix="GREETER_LOAD_")
@click.pass_context
def load(ctx: click.Context, /, **_: object) -> int:
    """Load TARGET (default 127.0.0.1:9999) with connections and tell how it greeted them.

    A TARGET is HOST:PORT, :PORT (this machine), [::1]:PORT, unix:/path or unix:@name.

    With a rate or stages the loop is open: connections begin on time, and latency counts from when they
    should have begun. Exit code 99 is a missed threshold or baseline, 98 a generator at its limit.
    """
    from greeter.loadcommand import run_load

    return run_load(collect(LoadOptions, ctx), click.echo, _explain)


@cli.command()
@with_options(ReportOptions, prefix="GREETER_REPORT_")
@click.pass_context
def report(ctx: click.Context, /, **_: object) -> int:
    """Show a run of greeter load again, from its JSON: RUN.json, or RUN.json BASELINE.json.

    With --merge, the files are the parts of one run that several machines made. The exit code is that of
    the run.
    """
    from greeter.loadcommand import run_report

    interrupt.raise_again()  # a file is written whole or not at all
    return run_report(collect(ReportOptions, ctx), click.echo, _explain)


@cli.command()
@with_options(DemoOptions)
@click.pass_context
def demo(ctx: click.Context, /, **_: object) -> int:
    """Show all of it on a free port of this machine; needs nothing running."""
    from greeter.demo import run_demo

    options = collect(DemoOptions, ctx)
    return run_demo(click.echo, clients=options.clients, loop=options.loop)


def _as_json(reply: Reply) -> str:
    import json

    first_byte = reply.first_byte_time
    return json.dumps(
        {
            "target": reply.target,
            "greeting": str(reply),
            "size_bytes": len(reply.data),
            "connect_us": round(reply.connect_time * 1e6),
            "first_byte_us": None if first_byte is None else round(first_byte * 1e6),
            "total_us": round(reply.total_time * 1e6),
            "reset": reply.reset,
        }
    )


def _complain(line: str) -> None:
    # One line, and no terminal escapes, whatever was typed or raised.
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    click.echo(f"greeter: {shown}", err=True)


def _explain(error: GreeterError | OSError) -> None:
    if isinstance(error, GreeterError):
        _complain(str(error))
        return
    # A full disk behind stdout, or no descriptor left.
    _complain(f"{error.filename!r}: {reason(error)}" if error.filename else reason(error))
    # Python would complain once more when it flushes stdout at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def run(args: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    if hasattr(sys.stdout, "reconfigure"):  # a terminal need not know the letters of a greeting
        sys.stdout.reconfigure(errors="backslashreplace")
    argv = sys.argv[1:] if args is None else list(args)
    try:
        return int(cli.main(args=argv, obj=list(argv), prog_name="greeter", standalone_mode=False) or 0)
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # from click 8.2 on; its message is the help
            click.echo(error.format_message(), err=True)
        else:
            _complain(_one_line(error))
        return error.exit_code
    except (GreeterError, OSError) as error:
        _explain(error)
        return 2 if isinstance(error, ConfigError) else 1
    except (KeyboardInterrupt, click.Abort):
        return interrupt.INTERRUPTED


def _one_line(error: click.ClickException) -> str:
    """click's message, with the file named when a value came from there."""
    message = " ".join(error.format_message().split())
    ctx = getattr(error, "ctx", None)
    param = getattr(error, "param", None)
    if ctx is not None and param is not None and "greeter.config" in ctx.meta:
        from click.core import ParameterSource

        if ctx.get_parameter_source(param.name) == ParameterSource.DEFAULT_MAP:
            message = f"{ctx.meta['greeter.config']}: {message}"
    return message


def main() -> NoReturn:
    """Run the command of this process, and exit."""
    code = run()
    interrupt.leave_at_once()  # all is done, and the interpreter would show an exception on its way out
    sys.exit(code)
