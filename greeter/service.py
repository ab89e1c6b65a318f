"""``greeter serve``: a Server with signals, a log and an end.

The law: the first SIGTERM or SIGINT closes the door in order and finishes with everybody inside; the
second one ends the process at once. Whatever the log was told is written before it ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from greeter.fdlimit import raise_fd_limit
from greeter.greeting import Greeting
from greeter.logs import LogStream
from greeter.loops import choose_loop, run
from greeter.server import Server, serve
from greeter.sources import greeting_from_app, greeting_from_file

if TYPE_CHECKING:
    from greeter.options import ServeOptions

logger = logging.getLogger("greeter")

INTERRUPTED = 130


def run_service(options: ServeOptions) -> int:
    """Serve until a signal says stop; returns the exit code. Raises GreeterError when it cannot start."""
    greeting = greeting_of(options)  # before the loop, the sockets and the log: it may be wrong
    raise_fd_limit()
    log = LogStream(sys.stderr.fileno(), options.log_format, options.log_level.upper())
    logging.getLogger().addHandler(log)
    logger.setLevel(options.log_level.upper())
    try:
        return run(_serve(options, greeting, log), options.loop)
    finally:
        log.flush()
        logging.getLogger().removeHandler(log)
        _leave_no_thread_behind(log)


def greeting_of(options: ServeOptions) -> Greeting:
    """The greeting that the options name. Raises ConfigError."""
    if options.app is not None:
        return greeting_from_app(options.app)
    if options.greeting_file is not None:
        return greeting_from_file(options.greeting_file)
    return Greeting(options.greeting)


async def _serve(options: ServeOptions, greeting: Greeting, log: LogStream) -> int:
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        logger.warning("running as root, which greeting needs only for ports below 1024")
    server = await serve(
        greeting,
        listen=options.listen,
        accept=options.accept,
        backlog=options.backlog,
        greet_timeout=options.greet_timeout,
        linger_timeout=options.linger_timeout,
        drain_timeout=options.drain_timeout,
        access_log=log.connection if options.access_log and logger.isEnabledFor(logging.INFO) else False,
    )
    stop = _stop_on_signals(log)
    _announce(server, choose_loop(options.loop)[0])
    signal_name = await stop
    logger.info("%s: closing the door", signal_name, extra={"event": "stopping", "reason": signal_name})
    await server.drain()
    stats = server.stats
    lost = sum(stats.failed.values())
    logger.info(
        "Stopped: %d greeted of %d accepted, %d failed",
        stats.greeted,
        stats.accepted,
        lost,
        extra={"event": "stopped"},
    )
    return 0


def _announce(server: Server, loop: str) -> None:
    for address in server.addresses:
        logger.info(
            "Listening on %s (%s, %s)",
            address,
            loop,
            server.path,
            extra={"event": "listening", "address": address, "loop": loop, "path": server.path},
        )


def _stop_on_signals(log: LogStream) -> asyncio.Future[str]:
    """A future of the name of the first stop signal; the second one does not return."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[str] = loop.create_future()

    def on_signal(name: str) -> None:
        if not stop.done():
            stop.set_result(name)
            return
        logger.warning("%s again: leaving at once", name)
        log.flush()
        os._exit(INTERRUPTED)

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, on_signal, number.name)
        except NotImplementedError:  # no such thing on this system: Ctrl-C is KeyboardInterrupt then
            break
    return stop


def _leave_no_thread_behind(log: LogStream) -> None:
    """A sync greeting that never returns holds a thread, and Python would wait for it for ever."""
    stuck = [thread for thread in threading.enumerate() if thread.name.startswith("greeter-callable")]
    if stuck and sys.exc_info()[0] is None:
        for thread in stuck:
            thread.join(0.1)
        if any(thread.is_alive() for thread in stuck):
            logger.warning("leaving %d greeting callables that do not return", len(stuck))
            log.flush()
            os._exit(0)
