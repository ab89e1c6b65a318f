"""Start the process that ``greeter serve`` asks for: a single process, a parent of workers, or a worker.

Invariants:

- A wrong configuration is reported before the first socket is opened.
- What a parent process, systemd or a shell passes to this process is read once, here.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from greeter.config.loading import load_server_config
from greeter.core.endpoint import DEFAULT_ENDPOINT, Endpoint
from greeter.errors import ConfigError, GreeterError, os_error_text
from greeter.service.channel import WorkerChannel
from greeter.service.logs import LogStream, log_python_output
from greeter.service.loop_errors import log_loop_errors
from greeter.service.service import Reread, ServiceProcess, load_config
from greeter.service.serving_worker import serve_as_worker
from greeter.service.single_process import SingleProcess
from greeter.service.systemd import Notifier, claim_sockets, listen_fds, unclaimed_sockets
from greeter.system.fdlimit import raise_fd_limit
from greeter.system.listeners import close_inherited
from greeter.system.loops import choose_loop, run
from greeter.system.processors import usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from greeter.config.options import ServeOptions

logger = logging.getLogger("greeter")

# At the end, a greeting callable that was cancelled has so many seconds more.
STUCK_SECONDS = 0.1


def run_service(options: ServeOptions, reread: Reread, argv: Sequence[str] = ()) -> int:
    """Serve until a stop signal.

    Args:
        options: The options of ``greeter serve``.
        reread: Returns the options anew, from the same command line and environment, for a reload; raises
            ConfigError.
        argv: That command line, with which workers are started.

    Returns:
        The exit code.

    Raises:
        GreeterError: The service cannot start. A worker tells its parent instead.
    """
    channel = WorkerChannel.from_environment()
    if channel is None:
        return _run(options, reread, argv)
    try:
        return _run(options, reread, argv, channel)
    except (GreeterError, OSError) as error:  # which the parent logs
        channel.failed(str(error) if isinstance(error, GreeterError) else os_error_text(error))
        return 2 if isinstance(error, ConfigError) else 1


def _run(
    options: ServeOptions, reread: Reread, argv: Sequence[str], channel: WorkerChannel | None = None
) -> int:
    """As ``run_service``, as a worker if there is a channel to the parent."""
    files = contextlib.ExitStack()
    if channel is not None:
        from greeter.service.multi_process import unpacked_options

        options = files.enter_context(unpacked_options(channel.task))
    with _logging(options) as log:
        with files:
            config = load_config(options, log)
        raise_fd_limit()
        main: Callable[[], Coroutine[Any, Any, int]]
        if channel is not None:
            main = functools.partial(serve_as_worker, channel, config)
        else:
            options, endpoints, reread = _claimed(options, reread)
            count = usable_cores() if options.workers == "auto" else options.workers
            main = _process_factory(argv, count)(
                options=options,
                config=config,
                endpoints=endpoints,
                reread=reread,
                log=log,
                notifier=Notifier.from_environment(),
            ).run
        code = run(_run_to_end(main, log), options.loop)
        _exit_despite_stuck_threads(log, code)
        return code


def check_service(options: ServeOptions) -> None:
    """Check what a start checks before it opens a socket: files, the greeting, what has to be installed.

    Args:
        options: The options of ``greeter serve``.

    Raises:
        ConfigError: A start would fail.
    """
    load_server_config(options)
    choose_loop(options.loop)
    if options.metrics is not None:
        from greeter.service.prometheus import render
        from greeter.service.snapshot import Counters

        render(Counters())


def _claimed(options: ServeOptions, reread: Reread) -> tuple[ServeOptions, tuple[Endpoint, ...], Reread]:
    """Return what ``run_service`` got with the sockets of systemd in it, and the endpoints to listen on."""
    names = listen_fds()
    options = claim_sockets(options, names)
    others = unclaimed_sockets(options, names)
    if options.listen and others:
        logger.warning(
            "no option names the sockets %s of systemd: closed",
            ", ".join(map(str, others)),
            extra={"event": "systemd"},
        )
        close_inherited(others)
    endpoints = options.listen or others or (Endpoint.parse(DEFAULT_ENDPOINT),)
    return options, endpoints, lambda: claim_sockets(reread(), names)


def _process_factory(argv: Sequence[str], workers: int) -> Callable[..., ServiceProcess]:
    if workers == 1:
        return SingleProcess
    from greeter.service.multi_process import MultiProcess  # not loaded in every worker

    return functools.partial(MultiProcess, argv, workers)


@contextlib.contextmanager
def _logging(options: ServeOptions) -> Iterator[LogStream]:
    """Install the log of a service on stderr, and remove it afterwards."""
    # If stderr is closed (2>&-), descriptor 2 may belong to a socket by now.
    fd = sys.stderr.fileno() if sys.stderr is not None else os.open(os.devnull, os.O_WRONLY)
    log = LogStream(fd, options.log_format, options.log_level.upper())
    old_level = logger.level
    logging.getLogger().addHandler(log)
    logger.setLevel(options.log_level.upper())
    try:
        with log_python_output():
            yield log
    finally:
        log.flush()
        logging.getLogger().removeHandler(log)
        logger.setLevel(old_level)


async def _run_to_end(main: Callable[[], Coroutine[Any, Any, int]], log: LogStream) -> int:
    """Run ``main``, and exit despite an async greeting that ignores its cancellation.

    asyncio would wait for it forever.
    """
    log_loop_errors(asyncio.get_running_loop())
    code = await main()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        _, stuck = await asyncio.wait(tasks, timeout=STUCK_SECONDS)
        if stuck:
            _exit_despite(len(stuck), log, code)
    return code


def _exit_despite_stuck_threads(log: LogStream, code: int) -> None:
    """Exit now if a sync greeting callable never returns: Python would wait for its thread forever."""
    stuck = [thread for thread in threading.enumerate() if thread.name.startswith("greeter-callable")]
    for thread in stuck:
        thread.join(STUCK_SECONDS)
    if any(thread.is_alive() for thread in stuck):
        _exit_despite(len(stuck), log, code)


def _exit_despite(count: int, log: LogStream, code: int) -> None:
    """End the process although ``count`` greeting callables do not return."""
    text = "leaving a greeting callable that does not return"
    if count > 1:
        text = f"leaving {count} greeting callables that do not return"
    logger.warning(text, extra={"event": "stuck"})
    log.flush()
    os._exit(code)
