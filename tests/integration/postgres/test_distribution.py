"""Where rows are on a Citus cluster: every table says it, whether or not the tests run on one."""

from collections.abc import Iterator

import psycopg
import pytest

from server.postgres.distribution import DISTRIBUTED, LOCAL, undeclared_tables

COLUMNS = """
SELECT EXISTS (
    SELECT FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = 'organization_id' AND attnotnull
)
"""
UNIQUE_WITHOUT = """
SELECT indexrelid::regclass::text
FROM pg_index
WHERE indrelid = to_regclass(%s) AND indisunique AND NOT EXISTS (
    SELECT FROM pg_attribute WHERE attrelid = indrelid AND attname = 'organization_id' AND attnum = ANY(indkey)
)
"""


@pytest.fixture
def owner(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def test_every_table_is_declared_as_distributed_or_local(owner: psycopg.Connection) -> None:
    assert undeclared_tables(owner) == set()
    owner.execute("CREATE TABLE forgotten (organization_id text)")
    assert undeclared_tables(owner) == {"forgotten"}


def test_exactly_the_distributed_tables_have_organizations(owner: psycopg.Connection) -> None:
    found = {table for table in (*DISTRIBUTED, *LOCAL) if owner.execute(COLUMNS, [table]).fetchone() == (True,)}
    assert found == set(DISTRIBUTED)


def test_unique_constraints_of_distributed_tables_have_the_organization(owner: psycopg.Connection) -> None:
    without = [row[0] for table in DISTRIBUTED for row in owner.execute(UNIQUE_WITHOUT, [table]).fetchall()]
    assert without == []
