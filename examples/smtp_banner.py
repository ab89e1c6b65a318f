"""Greet another service that sends first: an SMTP server, which keeps the connection open."""

import asyncio
import sys

import greeter

try:
    from aiosmtpd.smtp import SMTP
except ImportError:
    sys.exit("this example needs aiosmtpd: pip install aiosmtpd")


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(None, hostname="mail.example"), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        reply = await greeter.greet(port=port, until="line")
        print(str(reply).strip())
        assert reply.data.startswith(b"220 ")


asyncio.run(main())
