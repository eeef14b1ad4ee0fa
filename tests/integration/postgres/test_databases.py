"""The databases of the tests: each test finds one as migrate leaves it, whatever the one before has done."""

from collections.abc import Iterator

import psycopg
import pytest

from tests.databases import Databases


@pytest.fixture
def own(databases: Databases) -> Iterator[Databases]:
    """None of the other tests'."""
    own = Databases(databases.nodes, databases.template, prefix=f"own_{databases.prefix}")
    yield own
    own.close()


def test_a_database_in_which_only_rows_were_written_is_emptied_and_used_again(own: Databases) -> None:
    with own.new() as first, psycopg.connect(first, autocommit=True) as connection:
        connection.execute("INSERT INTO job_leases VALUES ('drift', gen_random_uuid(), now(), now())")
        connection.execute(
            "INSERT INTO accounts (organization_id, low_balance_threshold, window_start_time, create_time)"
            " SELECT number, 0, now(), now() FROM generate_series(1, 20) AS number"
        )
    with own.new() as second, psycopg.connect(second) as connection:
        assert second == first
        for table in ("job_leases", "accounts"):
            assert connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() == (0,)  # noqa: S608


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TABLE another ()",
        "ALTER TABLE accounts SET (fillfactor = 20)",
        "ALTER TABLE accounts DROP CONSTRAINT accounts_pkey CASCADE",
        "GRANT DELETE ON ledger_entries TO PUBLIC",
        "DELETE FROM schema_migrations WHERE version = 1",
        "DELETE FROM erased_destinations",
        "INSERT INTO job_leases VALUES ('drift', gen_random_uuid(), now(), now()); ANALYZE job_leases",
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET jit = on', current_database()); END $$",
    ],
)
def test_a_database_in_which_more_was_changed_is_not_used_again(own: Databases, change: str) -> None:
    with own.new() as first, psycopg.connect(first, autocommit=True) as connection:
        connection.execute(change.encode())
    with own.new() as second:
        assert second != first
