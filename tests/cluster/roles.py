"""On a Citus cluster: the server's login inherits pulsa_application, and nowhere more than it."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from server.postgres.distribution import undistributed_tables
from server.postgres.pool import APPLICATION_ROLE
from tests.databases import Databases, url_of

LOGIN = "pulsa_cluster_login"
ENTRY = "INSERT INTO ledger_entries VALUES ('acme', {}, 'TOP_UP', 5, 5, gen_random_uuid(), '', '', now())"
REWRITES = (
    "UPDATE ledger_entries SET credits = 9 WHERE organization_id = 'acme'",
    "DELETE FROM ledger_entries WHERE organization_id = 'acme'",
    "TRUNCATE ledger_entries",
    "UPDATE ledger_macs SET mac = '' WHERE organization_id = 'acme'",
)


@pytest.fixture
def login(databases: Databases, database_url: str) -> Iterator[list[str]]:
    """The database on each node, as a login that Citus makes on every node."""
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {LOGIN} LOGIN IN ROLE {APPLICATION_ROLE}".encode())
        try:
            yield [make_conninfo(url_of(url, str(name)), user=LOGIN) for url in databases.nodes]
        finally:
            owner.execute("DELETE FROM ledger_entries")  # of no account, which the audit would find
            owner.execute(f"DROP ROLE {LOGIN}".encode())


def test_every_table_of_an_organization_is_distributed(database_url: str) -> None:
    with psycopg.connect(database_url) as owner:
        assert undistributed_tables(owner) == []


def test_the_ledger_is_append_only_at_every_node(login: list[str]) -> None:
    for number, url in enumerate(login, start=1):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(ENTRY.format(number).encode())
            for statement in REWRITES:
                with pytest.raises(psycopg.DatabaseError) as refused:
                    connection.execute(statement.encode())
                assert (statement, refused.value.sqlstate) == (statement, "42501")
    with psycopg.connect(login[0]) as connection:
        connection.execute("DELETE FROM requests")  # it may do what the server does


def test_the_ledger_is_append_only_in_the_shards_themselves(login: list[str]) -> None:
    for url in login[1:]:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SET citus.enable_manual_changes_to_shards = on")
            shards = connection.execute(
                "SELECT shard_name(logicalrelid, shardid) FROM pg_dist_shard JOIN pg_dist_placement USING (shardid)"
                " WHERE logicalrelid = 'ledger_entries'::regclass"
                " AND groupid = (SELECT groupid FROM pg_dist_local_group)"
            ).fetchall()
            assert shards
            for (shard,) in shards:
                for statement in (f"UPDATE {shard} SET credits = 9", f"DELETE FROM {shard}", f"TRUNCATE {shard}"):  # noqa: S608
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        connection.execute(statement.encode())
