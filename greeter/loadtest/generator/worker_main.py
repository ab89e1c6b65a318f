"""The program of a worker process: one engine, controlled by its parent over pipes.

Both sides write lines of JSON:

=========  ==================================================================================
parent     ``plan``, ``target`` (null: resolve it here), ``index``, ``intervals`` (report them)
worker     ``ready`` (version of uvloop or null), ``local``, ``address``, ``notes``; or ``error``, ``usage``
parent     ``begin``: when to begin, of the monotonic clock, which all processes of a machine share
worker     ``interval``, for each interval, if the parent asked for them
parent     ``stop``, to end the run early
worker     ``metrics``, at the end of the run
=========  ==================================================================================

Invariants:

- The end of the input, because the parent has ended, ends the run.
- Signals are handled by the parent: SIGINT and SIGTERM are ignored.
- A worker that resolves the target runs the preflight checks too.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from greeter.errors import ConfigError, GreeterError
from greeter.loadtest.generator.engine import Engine
from greeter.loadtest.generator.kernel import uvloop_version
from greeter.loadtest.generator.preflight import preflight
from greeter.loadtest.generator.target import Target, resolve, with_tls
from greeter.loadtest.metrics.histogram import import_hdrh
from greeter.loadtest.plan.plan import LoadPlan
from greeter.system.loops import run

if TYPE_CHECKING:
    from greeter.loadtest.metrics.timeline import Interval


async def run_worker() -> None:
    """Carry out one job from standard input."""
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader(limit=2**24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    job = json.loads(await commands.readline())
    plan = LoadPlan.from_dict(job["plan"])
    notes: list[str] = []
    if job["target"] is not None:
        target = with_tls(Target.from_json(job["target"]), plan)
    else:
        try:
            import_hdrh()
            target = await resolve(plan)
            notes = preflight(plan, target, index=job["index"])
        except GreeterError as error:
            _send(error=str(error), usage=isinstance(error, ConfigError))
            return
    engine = Engine(plan, target, job["index"], _send_interval if job["intervals"] else None)
    _send(ready=uvloop_version(loop), local=target.local, address=target.text, notes=notes)
    begin = await commands.readline()
    if not begin:
        return  # the parent has cancelled the run, or has ended
    running = asyncio.create_task(engine.run(json.loads(begin)["begin"]))
    stopping = asyncio.create_task(commands.readline())
    await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        engine.stop()
    stopping.cancel()
    _send(metrics=(await running).to_json())


def _send(**message: Any) -> None:
    sys.stdout.write(json.dumps(message, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def _send_interval(interval: Interval, _: int) -> None:
    _send(interval=interval.to_json())


def main() -> None:
    """Run a worker, on uvloop where it is installed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # terminals and timeout(1) signal the group
        signal.signal(number, signal.SIG_IGN)
    with suppress(BrokenPipeError):  # the parent has ended
        run(run_worker())


if __name__ == "__main__":
    main()
