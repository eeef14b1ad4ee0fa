"""The databases of the tests: each test finds one as migrate leaves it, whatever the one before has done."""

from collections.abc import Iterator

import psycopg
import pytest

from tests.databases import TEMPLATE, Databases

pytestmark = pytest.mark.plain_postgres  # on a cluster each test has a new one


@pytest.fixture
def own(postgres: str) -> Iterator[Databases]:
    """None of the other tests'."""
    databases = Databases([postgres], TEMPLATE, prefix="own")
    yield databases
    for name in databases._emptied:
        databases._execute(f"DROP DATABASE {name}")


def test_a_database_in_which_only_rows_were_written_is_emptied_and_used_again(own: Databases) -> None:
    with own.new() as first, psycopg.connect(first, autocommit=True) as connection:
        connection.execute("INSERT INTO job_leases VALUES ('drift', gen_random_uuid(), now(), now())")
    with own.new() as second, psycopg.connect(second) as connection:
        assert second == first
        assert connection.execute("SELECT count(*) FROM job_leases").fetchone() == (0,)


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
