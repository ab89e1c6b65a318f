"""A greeting from async code, called for each client. An error affects only the client it was called for.

The same function works from the command line: greeter serve --app dynamic_greeting:greeting
"""

import asyncio

import greeter

VISITS: dict[str, int] = {}


async def greeting(peer: greeter.Peer) -> str:
    await asyncio.sleep(0.01)  # for example, a database query
    VISITS[peer.host] = VISITS.get(peer.host, 0) + 1
    return f"Hello {peer.host}, this is visit {VISITS[peer.host]}"


async def main() -> None:
    async with greeter.serve(greeting, port=0, greet_timeout=2.0) as server:
        for _ in range(3):
            print(await greeter.greet(port=server.port))


if __name__ == "__main__":
    asyncio.run(main())
