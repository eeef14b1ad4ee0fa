#!/bin/sh
# A connect that ends with ConnectionTimeout keeps its socket open until the garbage collector runs.
#
# psycopg 3.3.9 (binary), Python 3.11.
#
# A guess would be that psycopg.AsyncConnection.connect, when it has raised ConnectionTimeout, has closed what it had
# opened. But the error, its traceback and the frame of `connect`, which holds the unfinished connection, refer to each
# other, so that only the garbage collector ends them. A service that calmed its collector (gc.freeze, gc.disable, high
# thresholds) and that looks for a database behind a silent host keeps one more socket with each attempt. A connect that
# asyncio.timeout ends leaves nothing behind.
#
# What helps: error.with_traceback(None) where the error is caught, or asyncio.timeout around the call.
#
# Seen:
#   psycopg 3.3.9
#   3 connects, ended by asyncio.timeout: 0 sockets left
#   3 connects, ended by connect_timeout: 3 sockets left
#   the same, without the traceback: 0 sockets left
#
# Exit code 0 while the behaviour is as described, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'psycopg[binary]==3.3.9'
cat > "$folder/show.py" <<'PYTHON'
import asyncio
import gc
import os
import socket
import sys

import psycopg


async def by_asyncio(url):
    async with asyncio.timeout(0.5):
        await psycopg.AsyncConnection.connect(url)


async def by_psycopg(url):
    await psycopg.AsyncConnection.connect(url, connect_timeout=2)


async def without_traceback(url):
    try:
        await psycopg.AsyncConnection.connect(url, connect_timeout=2)
    except psycopg.errors.ConnectionTimeout as error:
        raise error.with_traceback(None) from None


def sockets():
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            pass
    return sum(link.startswith("socket:") for link in links)


async def left_after(connect, url):
    gc.collect()
    before = sockets()
    for _ in range(3):
        try:
            await connect(url)
        except (TimeoutError, psycopg.errors.ConnectionTimeout):
            pass
        await asyncio.sleep(0.1)
    return sockets() - before


async def main():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://anyone@127.0.0.1:{silent.getsockname()[1]}/any"
        print("psycopg", psycopg.__version__)
        first = await left_after(by_asyncio, url)
        print("3 connects, ended by asyncio.timeout:", first, "sockets left")
        second = await left_after(by_psycopg, url)
        print("3 connects, ended by connect_timeout:", second, "sockets left")
        third = await left_after(without_traceback, url)
        print("the same, without the traceback:", third, "sockets left")
    return 0 if (first, second, third) == (0, 3, 0) else 1


gc.disable()
sys.exit(asyncio.run(main()))
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
