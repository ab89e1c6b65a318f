"""Greet many targets, a limited number at a time.

Invariants:

- Every target has exactly one result. The failure of one neither cancels nor delays another.
- Arguments are validated before the first connection.
- When the generator ends, is closed or is cancelled, no task and no descriptor of it is left.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from greeter.client.arguments import (
    CONNECT_TIMEOUT,
    MAX_BYTES,
    TIMEOUT,
    check_datagrams,
    check_exchange,
    check_seconds,
    check_wait,
    destination,
    name_to_verify,
)
from greeter.client.oneshot import exchange_once, exchange_within
from greeter.errors import ConfigError, GreetFailed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from greeter.client.arguments import TLS, Target
    from greeter.core.proxy_protocol import ProxyVersion
    from greeter.core.replies import Reply, Until

LIMIT = 100  # connections at a time


async def greet_many(
    targets: Iterable[Target],
    *,
    limit: int = LIMIT,
    rate: float | None = None,
    ssl: TLS = None,
    server_hostname: str | None = None,
    timeout: float = TIMEOUT,
    connect_timeout: float = CONNECT_TIMEOUT,
    max_bytes: int = MAX_BYTES,
    until: str | Until = "eof",
    send: bytes | bytearray | memoryview | None = None,
    expect: str | bytes | None = None,
    proxy_protocol: ProxyVersion | None = None,
    wait: float = 0.0,
) -> AsyncGenerator[tuple[Target, Reply | GreetFailed], None]:
    """Greet many targets, and yield each with its result as soon as there is one.

    To leave the loop early, close the generator (``contextlib.aclosing``), which ends what is under way.

    Args:
        targets: The targets, as for ``greet()``. They are read at once.
        limit: How many connections to make at a time.
        rate: How many attempts may begin per second; ``None`` for no such limit.
        ssl: As for ``greet()``, like all arguments that follow. They apply to each target.

    Yields:
        A target as it was given, and its Reply or the GreetFailed that ``greet()`` would raise.

    Raises:
        ConfigError: An argument or a target is invalid.

    Example::

        async for target, result in greeter.greet_many(["a.example:25", "b.example:25"], until="line"):
            print(target, result)
    """
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise ConfigError(f"limit must be an integer of at least 1, not {limit!r}")
    if rate is not None and (not isinstance(rate, int | float) or isinstance(rate, bool) or not rate > 0):
        raise ConfigError(f"rate must be a positive number per second, not {rate!r}")
    if isinstance(targets, str):  # an iterable of characters
        raise ConfigError(f"targets must be several targets, not the string {targets!r}")
    exchange = check_exchange(ssl, timeout, connect_timeout, max_bytes, until, send, expect, proxy_protocol)
    check_seconds("wait", wait, zero=True)
    calls = []
    for target in targets:
        where = destination(target)
        check_wait(wait, where)
        check_datagrams(where, exchange)
        calls.append((target, where, name_to_verify(where, ssl, server_hostname)))
    loop = asyncio.get_running_loop()
    results: asyncio.Queue[tuple[Target, Reply | GreetFailed | BaseException]] = asyncio.Queue(limit)
    waiting = iter(calls)
    begin = loop.time()  # of the next attempt

    async def work() -> None:
        """Greet one target after the other."""
        nonlocal begin
        for target, where, name in waiting:
            if rate is not None:
                begin = max(begin, loop.time())
                pause, begin = begin - loop.time(), begin + 1 / rate
                await asyncio.sleep(pause)
            result: Reply | BaseException
            try:
                if wait:
                    result = await exchange_within(wait, where, exchange, name)
                else:
                    result = await exchange_once(where, exchange, name)
            except Exception as error:  # the generator raises what is no GreetFailed
                result = error
            await results.put((target, result))

    workers = [loop.create_task(work()) for _ in range(min(limit, len(calls)))]
    try:
        for _ in calls:
            target, result = await results.get()
            if isinstance(result, BaseException) and not isinstance(result, GreetFailed):
                raise result
            yield target, result
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
