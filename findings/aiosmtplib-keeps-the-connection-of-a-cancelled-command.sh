#!/bin/sh
# A command that asyncio.timeout ends leaves its connection to the mail server open, for as long as the server lets it.
#
# aiosmtplib 5.1.3, Python 3.11.
#
# A guess would be that it is closed: aiosmtplib closes it when its own `timeout` ends a command, and also when
# asyncio.timeout ends `connect`; and that a client without a reference left is closed by the garbage collector at last.
# But a command that is cancelled (EHLO, MAIL, RCPT …) closes nothing, and the event loop keeps the transport. A service
# that bounds its steps by asyncio.timeout opens one more connection for each slow answer, until the server refuses more.
#
# What helps: client.close() on any way out, cancellation included; it takes no waiting.
#
# Seen:
#   aiosmtplib 5.1.3
#   3 EHLO, ended by aiosmtplib's timeout: 0 connections left
#   3 connects, ended by asyncio.timeout: 0 connections left
#   3 EHLO, ended by asyncio.timeout: 3 connections left
#   the same, then close(): 0 connections left
#
# Exit code 0 while the behaviour is as described, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'aiosmtplib==5.1.3'
cat > "$folder/show.py" <<'PYTHON'
import asyncio
import gc
import sys
from importlib.metadata import version

import aiosmtplib

SECONDS = 0.5


class Server:
    """Greets, unless it is silent, and answers nothing else."""

    def __init__(self):
        self.open = 0
        self.is_silent = False
        self.writers = []

    async def serve(self, reader, writer):
        self.open += 1
        self.writers.append(writer)
        if not self.is_silent:
            writer.write(b"220 ready\r\n")
        while await reader.read(1000):
            pass
        self.open -= 1
        writer.close()


def client(port):
    return aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False, timeout=60)


async def by_library(port):
    smtp = client(port)
    await smtp.connect()
    await smtp.ehlo(timeout=SECONDS)


async def at_connect(port):
    async with asyncio.timeout(SECONDS):
        await client(port).connect()


async def by_asyncio(port):
    smtp = client(port)
    await smtp.connect()
    async with asyncio.timeout(SECONDS):
        await smtp.ehlo()


async def closed(port):
    smtp = client(port)
    try:
        await smtp.connect()
        async with asyncio.timeout(SECONDS):
            await smtp.ehlo()
    finally:
        smtp.close()


async def left_after(step, *, is_silent=False):
    server = Server()
    server.is_silent = is_silent
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    for _ in range(3):
        try:
            await step(listening.sockets[0].getsockname()[1])
        except (TimeoutError, aiosmtplib.SMTPTimeoutError):
            pass
    gc.collect()
    await asyncio.sleep(1)
    listening.close()
    left = server.open
    for writer in server.writers:
        writer.transport.abort()
    await asyncio.sleep(0.1)
    return left


async def main():
    print("aiosmtplib", version("aiosmtplib"))
    first = await left_after(by_library)
    print("3 EHLO, ended by aiosmtplib's timeout:", first, "connections left")
    second = await left_after(at_connect, is_silent=True)
    print("3 connects, ended by asyncio.timeout:", second, "connections left")
    third = await left_after(by_asyncio)
    print("3 EHLO, ended by asyncio.timeout:", third, "connections left")
    fourth = await left_after(closed)
    print("the same, then close():", fourth, "connections left")
    return 0 if (first, second, third, fourth) == (0, 0, 3, 0) else 1


sys.exit(asyncio.run(main()))
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
