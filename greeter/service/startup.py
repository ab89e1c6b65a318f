"""From the options of ``greeter serve`` to the kind of process that serves them.

The law: what can be wrong is found before the first socket is opened, and what a parent, systemd or a
shell has handed over is taken once, here.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import threading
from typing import TYPE_CHECKING

from greeter.config.server_config import prepare
from greeter.core.endpoint import DEFAULT_ENDPOINT, Endpoint
from greeter.service.channel import WorkerChannel
from greeter.service.logs import LogStream
from greeter.service.service import Process, Reread, Single, serve_as_worker
from greeter.service.systemd import Notifier, listen_fds
from greeter.system.fdlimit import raise_fd_limit
from greeter.system.loops import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from greeter.config.options import ServeOptions

logger = logging.getLogger("greeter")


def run_service(options: ServeOptions, reread: Reread, argv: Sequence[str] = ()) -> int:
    """Serve until a signal says stop; returns the exit code. Raises GreeterError when it cannot start.

    ``reread`` gives the options anew, from the same command line and environment, for a reload; it raises
    ConfigError. ``argv`` is that command line, for workers.
    """
    channel = WorkerChannel.from_environment()
    files = contextlib.ExitStack()
    if channel is not None:
        from greeter.service.multi_process import unpacked

        options = files.enter_context(unpacked(channel.task))
    with _logging(options) as log:
        with files:
            prepared = prepare(options)
        raise_fd_limit()
        if channel is not None:
            code = run(serve_as_worker(channel, options, prepared, log), options.loop)
        else:
            inherited = tuple(map(Endpoint.inherited, listen_fds()))
            count = _cores() if options.workers == "auto" else options.workers
            process = _kind(argv, count)(
                options=options,
                prepared=prepared,
                endpoints=options.listen or inherited or (Endpoint.parse(DEFAULT_ENDPOINT),),
                reread=reread,
                log=log,
                notifier=Notifier.from_environment(),
            )
            code = run(process.run(), options.loop)
        _leave_no_thread_behind(log, code)
        return code


def _kind(argv: Sequence[str], workers: int) -> Callable[..., Process]:
    if workers == 1:
        return Single
    from greeter.service.multi_process import Parent  # not in every worker

    return functools.partial(Parent, argv, workers)


@contextlib.contextmanager
def _logging(options: ServeOptions) -> Iterator[LogStream]:
    """The log of a service, on stderr."""
    # Without a stderr (2>&-), Python has none either, and its number may belong to a socket by now.
    fd = sys.stderr.fileno() if sys.stderr is not None else os.open(os.devnull, os.O_WRONLY)
    log = LogStream(fd, options.log_format, options.log_level.upper())
    before = logger.level
    logging.getLogger().addHandler(log)
    logger.setLevel(options.log_level.upper())
    try:
        yield log
    finally:
        log.flush()
        logging.getLogger().removeHandler(log)
        logger.setLevel(before)


def _cores() -> int:
    """How many cores we may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _leave_no_thread_behind(log: LogStream, code: int) -> None:
    """A sync greeting that never returns holds a thread, and Python would wait for it for ever."""
    stuck = [thread for thread in threading.enumerate() if thread.name.startswith("greeter-callable")]
    for thread in stuck:
        thread.join(0.1)
    if any(thread.is_alive() for thread in stuck):
        logger.warning(
            "leaving %d greeting callables that do not return", len(stuck), extra={"event": "stuck"}
        )
        log.flush()
        os._exit(code)
