"""On a Citus cluster: a statement is one task of one worker, or is known to ask all shards."""

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from server.postgres.queries import Queries
from tests.databases import Databases
from tests.integration.postgres.test_named_queries import FILES, SERVER, numbered, queries_of

OF_ALL_SHARDS = {
    "credits/audit.sql": {
        *("digest_covered_entries", "digest_days", "digest_day", "digest_next_entries", "find_next_accounts"),
    },
    "credits/notices.sql": {"find_due_notices", "find_old_notices"},
    "credits/questions.sql": {"count_top_ups_to_resolve"},
    "credits/receipts.sql": {"read_macs"},
    "credits/stripe/reconcile.sql": {"list_since", "list_to_resolve"},
    "credits/top_ups/automatic_service.sql": {"find_due_automatic", "find_thresholds"},
    "credits/top_ups/cards.sql": {"find_card", "find_methods_to_detach"},
    "credits/top_ups/store.sql": {"find_due_top_ups"},
    "events/log.sql": {"find_switched", "find_next_stream"},
    "otps/delivery/outbox.sql": {"find_longest_due", "find_latest_due", "find_due_fallbacks"},
    "otps/delivery/reports.sql": {"find_deliveries"},
    "otps/delivery/suppressions.sql": {"find_organization", "find_new"},
    "otps/expiry.sql": {"find_expired", "find_behind"},
    "otps/key_rotation.sql": {
        *("find_destinations", "find_fallbacks", "count_destinations", "count_fallbacks", "count_live_otps"),
        "find_digest_uses",
    },
    "otps/send.sql": {"accept_unchanged"},
    "otps/settings_cache.sql": {"find_new"},
    "otps/retention.sql": {
        *("find_next_otps", "find_old_requests", "find_old_guess_budgets", "find_old_unverified"),
        "find_old_suppressions",
    },
}
"""Of periodic jobs, commands, and of reports and events that do not know their organization. No other call waits for
all workers; accept_unchanged is run on plain PostgreSQL only, as Citus makes a statement of each of its parts."""
VALUES = {
    "text": "'acme'",
    "uuid": "'01890000-0000-7000-8000-000000000000'",
    "timestamp with time zone": "'2026-11-29'",
    "bytea": "''",
    "bigint": "1",
    "integer": "1",
    "smallint": "1",
    "boolean": "true",
    "jsonb": "'{}'",
    "date": "'2026-11-29'",
    "interval": "'1 s'",
    "numeric": "1",
    "double precision": "1",
    "delivery_status": "'SENT'",
    "spending_rpc": "'SendOtp'",
    "credit_count": "1",
    "entry_count": "1",
    "entry_sequence": "1",
}
PLACES = [(str(path.relative_to(SERVER)), name) for path in FILES for name, _ in queries_of(path)]


@pytest.fixture(scope="module")
def cluster(databases: Databases) -> Iterator[psycopg.Connection]:
    before = Queries.name_shards
    Queries.use_shards(name_shards=True)
    with databases.new() as url, psycopg.connect(url, autocommit=True) as connection:
        yield connection
    Queries.use_shards(name_shards=before)


def plan_of(cluster: psycopg.Connection, query: str) -> str:
    """Its plan for values of one organization.

    They are in the text: Citus executes a prepared INSERT … SELECT from distributed tables, but cannot explain it.
    """
    cluster.execute(f"PREPARE planned AS {numbered(query)}".encode())
    try:
        ((types,),) = cluster.execute(
            "SELECT parameter_types::text[] FROM pg_prepared_statements WHERE name = 'planned'"
        ).fetchall()
    finally:
        cluster.execute("DEALLOCATE planned")
    text = re.sub(r"\$(\d+)", lambda match: value_of(types[int(match[1]) - 1]), numbered(query))
    return "\n".join(line for (line,) in cluster.execute(f"EXPLAIN {text}".encode()).fetchall())


def value_of(name: str) -> str:
    element = name.removesuffix("[]")
    return f"ARRAY[{VALUES[element]}]::{name}" if element != name else f"{VALUES[name]}::{name}"


@pytest.mark.parametrize(("file", "name"), PLACES, ids=[f"{file}:{name}" for file, name in PLACES])
def test_a_statement_of_one_organization_is_one_task(cluster: psycopg.Connection, file: str, name: str) -> None:
    query = dict(queries_of(Path(SERVER, file)))[name]
    tasks = {int(count) for count in re.findall(r"Task Count: (\d+)", plan_of(cluster, query))}
    if name in OF_ALL_SHARDS.get(file, ()):
        assert max(tasks) > 1
    else:  # without a task it is of a local table, or inserts what the coordinator passes on
        assert tasks <= {1}
