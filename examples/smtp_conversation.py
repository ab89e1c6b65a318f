"""A conversation with an SMTP server: read its greeting, then continue with asyncio's streams.

usage: smtp_conversation.py [HOST:PORT]
"""

import asyncio
import sys

import greeter


async def read_reply(reader: asyncio.StreamReader) -> str:
    lines = [await reader.readline()]
    while lines[-1][3:4] == b"-":  # RFC 5321, section 4.2.1: a hyphen means that more lines follow
        lines.append(await reader.readline())
    return b"".join(lines).decode(errors="backslashreplace")


async def main(target: str) -> int:
    try:
        reply, reader, writer = await greeter.open_connection(target, until="reply", timeout=5)
    except greeter.GreeterError as error:
        print(error)
        return 1
    print("S:", str(reply).rstrip())
    try:
        async with asyncio.timeout(5):
            for command in ("EHLO client.example", "QUIT"):
                print("C:", command)
                writer.write(f"{command}\r\n".encode())
                print("S:", (await read_reply(reader)).rstrip().replace("\r\n", "\nS: "))
    finally:
        writer.close()
        await writer.wait_closed()
    return 0


sys.exit(asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:25")))
