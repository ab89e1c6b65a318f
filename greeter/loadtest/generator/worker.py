"""A worker process: one engine, told by its parent over pipes what to do and when to begin.

The law: a worker does nothing of its own accord. It reads a job (one line of JSON) from standard input and
says that it is ready; reads the moment to begin, of the clock that all processes of a machine share; tells
of each interval, if it was asked to; and writes its figures when the run is over. A line ``stop``, or the
end of its input because its parent is gone, ends the run at once. Interrupts are for the parent. A job
without an address is that of a machine of its own: the worker looks it up, and makes room, itself.
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
from greeter.loadtest.generator.target import Target, dress, resolve
from greeter.loadtest.metrics.histogram import package
from greeter.loadtest.plan.plan import LoadPlan
from greeter.system.loops import run

if TYPE_CHECKING:
    from greeter.loadtest.metrics.timeline import Interval


async def work() -> None:
    """The whole life of a worker."""
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(limit=2**24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    job = json.loads(await orders.readline())
    plan = LoadPlan.from_dict(job["plan"])
    notes: list[str] = []
    if job["target"] is not None:
        target = dress(Target.from_json(job["target"]), plan)
    else:
        try:
            package()
            target = await resolve(plan)
            notes = preflight(plan, target)
        except GreeterError as error:
            _tell(error=str(error), usage=isinstance(error, ConfigError))
            return
    engine = Engine(plan, target, job["index"], _tell_interval if job["intervals"] else None)
    _tell(ready=uvloop_version(loop), local=target.local, notes=notes)
    begin = await orders.readline()
    if not begin:
        return  # the parent has thought better of it, or is gone
    running = asyncio.create_task(engine.run(json.loads(begin)["begin"]))
    stopping = asyncio.create_task(orders.readline())
    await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        engine.stop()
    stopping.cancel()
    _tell(metrics=(await running).to_json())


def _tell(**message: Any) -> None:
    sys.stdout.write(json.dumps(message, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def _tell_interval(interval: Interval, _: int) -> None:
    _tell(interval=interval.to_json())


def main() -> None:
    """Run a worker, on uvloop where it is installed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal and timeout(1) signal the whole group
        signal.signal(number, signal.SIG_IGN)
    with suppress(BrokenPipeError):  # the parent is gone, and its figures with it
        run(work())


if __name__ == "__main__":
    main()
