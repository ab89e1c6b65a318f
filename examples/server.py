"""A greeting service in a coroutine. At the end of the block, it drains."""

import asyncio

import greeter


async def main() -> None:
    async with greeter.serve("Welcome to $hostname, client $count", port=0) as server:
        print(f"listening on {server.addresses[0]}")
        for _ in range(2):
            print(await greeter.greet(port=server.port))
    print(f"greeted {server.stats.greeted}, failed {sum(server.stats.failed.values())}")


asyncio.run(main())
