"""A client in a coroutine: the greeting, its duration, and the errors.

usage: client.py [HOST:PORT]
"""

import asyncio
import sys

import greeter


async def main(target: str) -> int:
    try:
        reply = await greeter.greet(greeter.Endpoint.parse(target), timeout=5)
    except greeter.GreetTimeout as error:
        print(f"{error} (gave up in the phase {error.phase!r})")
    except greeter.GreeterError as error:  # the base class of all errors, including an invalid target
        print(error)
    else:
        print(f"{reply} ({len(reply.data)} bytes in {reply.total_time * 1e3:.1f} ms)")
        return 0
    return 1


sys.exit(asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9999")))
