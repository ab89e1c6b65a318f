"""A load test in a coroutine: response times at increasing rates of connections.

python examples/load_from_coroutine.py
"""

import asyncio

from greeter import serve
from greeter.loadtest import LoadPlan, load


async def main() -> None:
    async with serve(port=0) as server:
        for rate in (100, 200, 400):
            plan = LoadPlan(f"127.0.0.1:{server.port}", rate=rate, duration=0.4)
            # In a process of its own, the generator does not share this loop with the server.
            report = await load(plan, isolate=True)
            p50, p99 = (report.latency_us["response"][stat] for stat in ("p50", "p99"))
            print(f"{rate}/s: {report.connections['greeted']} greeted, p50 {p50} µs, p99 {p99} µs")


if __name__ == "__main__":
    asyncio.run(main())
