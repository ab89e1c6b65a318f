"""The commands of ``greeter``, and the exit code and error line of each.

Invariants:

- Results go to stdout. An error is one line on stderr, never a traceback.
- Exit codes: 0 success, 1 failure at run time, 2 usage error, 130 interrupted, 143 terminated; load and
  report also have 98 (the generator could have changed the verdict) and 99 (a threshold or the baseline
  was missed).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Literal, NoReturn

import click

from greeter import __version__
from greeter.cli.click_options import GroupedCommand, Option, parse_options, with_options
from greeter.cli.option_sources import source_file, spell
from greeter.config.check_options import CheckOptions
from greeter.config.discover_options import DiscoverOptions
from greeter.config.options import DemoOptions, GreetOptions, LoadOptions, ReportOptions, ServeOptions
from greeter.errors import ConfigError, GreeterError, os_error_text
from greeter.system import interrupt

if TYPE_CHECKING:
    from collections.abc import Sequence


CHECK_CONFIG = "greeter.check_config"  # the key in Context.meta under which --check-config is
CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=CONTEXT_SETTINGS)
@click.version_option(__version__, "-V", "--version", prog_name="greeter", message="%(prog)s %(version)s")
def cli() -> None:
    """A TCP greeting server, an async client, a load tester and a conformance suite.

    An option can also be given by an environment variable: --backlog of serve is GREETER_BACKLOG. The
    variables of load begin with GREETER_LOAD_, those of report with GREETER_REPORT_, those of check with
    GREETER_CHECK_, those of discover with GREETER_DISCOVER_. Several values are separated by spaces. The
    command line overrides the environment.

    \b
    Shell completion (bash; for zsh and fish, write zsh_source or fish_source):
      eval "$(_GREETER_COMPLETE=bash_source greeter)"
    """


SERVE_EPILOG = """
\b
Examples:
  greeter serve --listen :9999 --greeting 'Welcome to $hostname'
  greeter serve --workers auto --max-per-ip 100 --metrics 127.0.0.1:9998
  greeter serve --listen :9999 --tls-cert cert.pem --check-config

\b
Exit codes:
  0    stopped and drained; or the configuration that was checked is valid
  1    could not start
  2    usage error: an option, a file or a limit
  130  stopped at once by a second signal, at least a second after the first
"""


@cli.command(cls=GroupedCommand, epilog=SERVE_EPILOG, short_help="Greet every client that connects.")
@with_options(ServeOptions, config=True)
@click.option(
    "--check-config",
    cls=Option,
    is_flag=True,
    expose_value=False,
    callback=lambda ctx, _param, value: ctx.meta.update({CHECK_CONFIG: value}),
    help="Check the configuration, print it with its sources, and exit.",
)
@click.pass_context
def serve(ctx: click.Context, /, **_: object) -> int:
    """Greet every client that connects, until SIGTERM or SIGINT. SIGHUP reloads the configuration.

    An ENDPOINT is HOST:PORT, [::1]:PORT, :PORT (every interface), unix:/path, unix:@name, fd:N or fd:NAME;
    udp:HOST:PORT answers datagrams.

    Each option is also an environment variable (GREETER_BACKLOG for --backlog) and, except --config and
    --check-config, a key in the file that --config names.
    """
    from greeter.service.startup import check_service, run_service

    options = parse_options(ServeOptions, ctx)
    if ctx.meta[CHECK_CONFIG]:
        from greeter.cli.checkconfig import print_options

        check_service(options)
        print_options(options, ctx, click.echo)
        return 0

    def reread() -> ServeOptions:
        args = ctx.find_root().obj[1:]  # without the command's name
        try:
            return parse_options(ServeOptions, serve.make_context("serve", args, parent=ctx.parent))
        except click.ClickException as error:
            raise ConfigError(_one_line(error)) from error

    return run_service(options, reread, ctx.find_root().obj)


GREET_EPILOG = """
\b
Examples:
  greeter greet 127.0.0.1:9999 --wait 10
  greeter greet mail.example:25 --until reply --expect '220 ' --json
  greeter greet --until line --targets hosts.txt --limit 500

\b
Exit codes:
  0    greeted
  1    not greeted, or not as expected
  2    usage error
  130  interrupted
"""


@cli.command(cls=GroupedCommand, epilog=GREET_EPILOG, short_help="Print the greeting of a service.")
@with_options(GreetOptions)
@click.pass_context
def greet(ctx: click.Context, /, **_: object) -> int:
    """Connect to TARGET (default 127.0.0.1:9999), print its greeting and close; usable as a health check.

    With several targets, a line or a JSON object is printed for each as it ends.

    A TARGET is HOST:PORT, :PORT (this machine), [::1]:PORT, unix:/path or unix:@name; for datagrams,
    udp:HOST:PORT. A DURATION is written as 500ms, 10s or 2m; a bare number is in seconds.

    Each option except --proxy-protocol, --tls-cert and --tls-key is also an environment variable
    (GREETER_TIMEOUT for --timeout).
    """
    from greeter.cli.greetcommand import run_greet

    options = parse_options(GreetOptions, ctx)
    return run_greet(options, click.echo, _print_error, lambda field: spell(ctx, field))


LOAD_EPILOG = """
\b
Examples:
  greeter load 127.0.0.1:9999 --rate 1000 --duration 10s --threshold 'response:p99<20ms'
  greeter load mail.example:25 -c 100 -n 10k --until line --html report.html

\b
Exit codes; if several apply, the first of 130, 99 (a threshold on errors), 98, 99, 1:
  0    clients were greeted, and every limit was kept
  1    no client was greeted, a part of the load was lost, or a file was not written
  2    usage error
  98   the generator could have changed the verdict: this machine did not make the load
  99   a threshold or the baseline was missed
  130  interrupted; the report covers what was measured
"""


@cli.command(cls=GroupedCommand, epilog=LOAD_EPILOG, short_help="Measure how a service greets many clients.")
@with_options(LoadOptions, prefix="GREETER_LOAD_")
@click.pass_context
def load(ctx: click.Context, /, **_: object) -> int:
    """Load TARGET (default 127.0.0.1:9999) with connections and report how it greeted them.

    A TARGET is HOST:PORT, :PORT (this machine), [::1]:PORT, unix:/path or unix:@name; for datagrams,
    udp:HOST:PORT.

    With --rate or --stage, connections start on schedule whether or not earlier ones have ended (open loop),
    and the response time counts from the scheduled start. Without them, --connections clients connect again
    as soon as they are done (closed loop).

    A duration is written as 500ms, 10s or 2m, a number as 250, 10k or 1.5M. Each option is also an
    environment variable (GREETER_LOAD_RATE for --rate).
    """
    from greeter.cli.loadcommand import run_load

    def spelled(field: str) -> str:
        return spell(ctx, {"stages": "stage", "source_ips": "source_ip"}.get(field, field))

    return run_load(parse_options(LoadOptions, ctx), click.echo, _report_exception, spelled)


CHECK_EPILOG = """
\b
Examples:
  greeter check 127.0.0.1:9999
  greeter check mail.example:25 --profile smtp
  greeter check :8443 --tls --restart 'systemctl reload myservice' --junit out.xml

\b
Exit codes; if several apply, the first of 130, 2, 1, 99, 98:
  0    loses no client that was tried
  1    the service never greeted, or a file was not written
  2    usage error
  98   a check that must be kept has no verdict
  99   a check that must be kept is broken
  130  interrupted
"""


@cli.command(
    cls=GroupedCommand, epilog=CHECK_EPILOG, short_help="Tell which clients a service loses, and why."
)
@with_options(CheckOptions, prefix="GREETER_CHECK_")
@click.pass_context
def check(ctx: click.Context, /, **_: object) -> int:
    """Ask TARGET (default 127.0.0.1:9999) for one behaviour at a time, and tell which clients it loses.

    A TARGET is HOST:PORT, :PORT (this machine), [::1]:PORT, unix:/path, unix:@name or udp:HOST:PORT, whose
    service answers datagrams and has checks of its own.

    Against another machine, only gentle checks run, with at most 4 connections at a time; --yes runs all.
    Even those can get this machine's address blocked (fail2ban, postscreen, MariaDB's max_connect_errors).

    Each option except --list and --explain is also an environment variable (GREETER_CHECK_TIMEOUT for
    --timeout).
    """
    from greeter.cli.checkcommand import run_check

    options = parse_options(CheckOptions, ctx)
    return run_check(options, click.echo, lambda field: spell(ctx, field))


DISCOVER_EPILOG = """
\b
Exit codes:
  0    a service replied
  1    none replied, or there is no network
  2    usage error
  130  interrupted
"""


@cli.command(
    cls=GroupedCommand, epilog=DISCOVER_EPILOG, short_help="Find the services on the local networks."
)
@with_options(DiscoverOptions, prefix="GREETER_DISCOVER_")
@click.pass_context
def discover(ctx: click.Context, /, **_: object) -> int:
    """Ask <broadcast> on every interface for services on PORT (default 9999), and list those that reply.

    Services are found that answer datagrams over IPv4 on all addresses, as after greeter serve --listen
    udp::9999. PORT is a number or a service name.

    Each option is also an environment variable (GREETER_DISCOVER_TIMEOUT for --timeout).
    """
    from greeter.cli.discovercommand import run_discover

    return run_discover(parse_options(DiscoverOptions, ctx), click.echo, _print_error)


REPORT_EPILOG = """
\b
Examples:
  greeter report run.json last-week.json --html report.html
  greeter report --merge a.json b.json --json run.json
  greeter load --json - | greeter report - --csv timeline.csv

The exit code is that of the run.
"""


@cli.command(cls=GroupedCommand, epilog=REPORT_EPILOG, short_help="Show saved runs of greeter load.")
@with_options(ReportOptions, prefix="GREETER_REPORT_")
@click.pass_context
def report(ctx: click.Context, /, **_: object) -> int:
    """Show a saved run of greeter load (RUN.json), or compare it with an older one (RUN.json BASELINE.json).
    A RUN.json of - is standard input.

    With --merge, the files are parts of one run, made by several generators.

    Each option is also an environment variable (GREETER_REPORT_HTML for --html).
    """
    from greeter.cli.loadcommand import run_report

    interrupt.restore_keyboard_interrupt()  # so that a file is written completely or not at all
    return run_report(parse_options(ReportOptions, ctx), click.echo, _report_exception)


@cli.command(cls=GroupedCommand, short_help="Run server, client and load test on this machine.")
@with_options(DemoOptions)
@click.pass_context
def demo(ctx: click.Context, /, **_: object) -> int:
    """Serve on a free port of this machine, greet, load-test and check, and print what happens."""
    from greeter.cli.demo import run_demo

    options = parse_options(DemoOptions, ctx)
    return run_demo(click.echo, clients=options.clients, loop=options.loop)


def _print_error(line: str, argv: Sequence[str] = ()) -> None:
    """Print one line without terminal escapes, whatever the arguments or the exception contain.

    Args:
        line: The error.
        argv: The command line, if the error ends the command. That of ``serve`` is a line of its log.
    """
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    if argv and argv[0] == "serve":
        from greeter.service.log_format import error_line

        click.echo(error_line(shown, _log_format(argv), _stderr_fd()), err=True)
    else:
        click.echo(f"greeter: {shown}", err=True)


def _log_format(argv: Sequence[str]) -> Literal["text", "json"]:
    """Return the format of the log of ``serve``, as far as its options can be read."""
    ctx = serve.make_context("serve", list(argv[1:]), resilient_parsing=True)
    return "json" if ctx.params.get("log_format") == "json" else "text"


def _stderr_fd() -> int:
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError):  # closed, or not a file
        return -1


def _report_exception(error: GreeterError | OSError, argv: Sequence[str] = ()) -> None:
    if isinstance(error, GreeterError):
        _print_error(str(error), argv)
        return
    # An operating system error: a full disk behind stdout, or no free descriptor.
    text = os_error_text(error)
    _print_error(f"{error.filename!r}: {text}" if error.filename else text, argv)
    # Prevent a second error when Python flushes stdout at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def run(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        args: The command line without the program's name; None for that of this process.

    Returns:
        The exit code of the command.
    """
    if hasattr(sys.stdout, "reconfigure"):  # the encoding of stdout may lack characters of a greeting
        sys.stdout.reconfigure(errors="backslashreplace")
    argv = sys.argv[1:] if args is None else list(args)
    try:
        return int(cli.main(args=argv, obj=list(argv), prog_name="greeter", standalone_mode=False) or 0)
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 and newer; the message is the help
            click.echo(error.format_message(), err=True)
        else:
            _print_error(_one_line(error), argv)
        return error.exit_code
    except (GreeterError, OSError) as error:
        _report_exception(error, argv)
        return 2 if isinstance(error, ConfigError) else 1
    except MemoryError:
        _print_error("out of memory", argv)
        return 1
    except (KeyboardInterrupt, click.Abort):
        return interrupt.INTERRUPTED


def _one_line(error: click.ClickException) -> str:
    """Return click's message on one line, prefixed with the configuration file that the value came from."""
    message = " ".join(error.format_message().split())
    ctx, param = getattr(error, "ctx", None), getattr(error, "param", None)
    if ctx is not None and param is not None and (file := source_file(ctx, param.name)):
        message = f"{file}: {message}"
    return message


def main() -> NoReturn:
    """Run the command of this process, and exit with its exit code."""
    code = run()
    interrupt.exit_on_interrupt()  # from here on, KeyboardInterrupt would print a traceback during shutdown
    sys.exit(code)
