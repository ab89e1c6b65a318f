"""Many clients in one coroutine, at most 100 at a time."""

import asyncio

import greeter


async def main() -> None:
    slots = asyncio.Semaphore(100)

    async def client(port: int) -> greeter.Reply:
        async with slots:
            return await greeter.greet(port=port)

    async with greeter.serve(port=0, access_log=False) as server:
        async with asyncio.TaskGroup() as group:
            clients = [group.create_task(client(server.port)) for _ in range(1000)]
        times = sorted(task.result().total_time for task in clients)
        print(f"{len(times)} clients greeted, half of them within {times[500] * 1e3:.1f} ms")


asyncio.run(main())
