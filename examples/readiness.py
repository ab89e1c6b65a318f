"""Wait until a service is up: the client retries until the service has started."""

import asyncio
import os

import greeter


async def start_late(path: str) -> greeter.Server:
    await asyncio.sleep(0.2)
    return await greeter.serve("ready", path=path)


async def main() -> None:
    path = f"@greeter-readiness-{os.getpid()}"
    starting = asyncio.create_task(start_late(path))
    reply = await greeter.greet(path=path, wait=30.0)
    print(f"the service says {str(reply)!r}")
    await (await starting).drain()


asyncio.run(main())
