"""greeter's handler in an asyncio server of your own, with an orderly stop on SIGTERM and Ctrl-C.

usage: own_server.py [PORT]
"""

import asyncio
import signal
import sys

import greeter


async def hello(peer: greeter.Peer) -> str:
    print(f"{peer.host} connected")
    await asyncio.sleep(0.5)  # for example, a database query
    return f"Hello {peer.host}"


async def main(port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    callback = greeter.handler(hello, greet_timeout=5, linger_timeout=2)
    server = await asyncio.start_server(callback, "127.0.0.1", port)
    async with server:
        print(f"listening on port {server.sockets[0].getsockname()[1]}")
        await stop.wait()
        print("stopping")
        server.close()  # stop accepting; open connections stay
        # Each open connection is a task. The deadlines above end it within 7 seconds.
        if connections := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(connections)
    print("stopped")


asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 9999))
