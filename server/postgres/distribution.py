"""Which tables Citus distributes, and how: `migrate` and `distribute` do it, `doctor` checks it.

Citus is an extension of PostgreSQL that keeps a table's rows on several servers, its workers, in shards. The tables of
organizations are distributed by organization_id and colocated: all rows of an organization are on one shard, and so a
transaction of one organization, or of several of one shard, runs on one worker.

On plain PostgreSQL nothing here does anything.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from psycopg import Connection, sql

FIRST_TABLE: Final = "accounts"
"""The others are colocated with it."""
DISTRIBUTED: Final = (
    FIRST_TABLE,
    "ledger_entries",
    "entry_macs",
    "ledger_macs",
    "ledger_roots",
    "requests",
    "notices",
    "otps",
    "deliveries",
    "daily_usage",
    "outbox",
    "suppressions",
    "guess_budgets",
    "unverified_credits",
    "top_ups",
    "event_streams",
    "events",
    "organization_settings",
    "automatic_top_ups",
    "consents",
)
"""The tables of organizations' rows. Every unique constraint of theirs has organization_id."""
LOCAL: Final[Mapping[str, str]] = {
    "schema_migrations": "one row for each migration, and only migrations write it",
    "job_leases": "one row for each job that one replica at a time runs",
    "lost_times": "one row for each restore of the whole cluster",
    "ledger_days": "one row for each day, of the MACs of all organizations",
    "ledger_heads": "one row for each day, of the receipts of all organizations",
    "erased_destinations": "one row for all organizations",
    "stripe_events": "an event is stored before it is known which organization it is about",
}
"""The tables without an organization, which stay on the coordinator, each with the reason.

No transaction needs one of them and a distributed table to be atomic.
"""

_TABLES: Final = """
SELECT relname
FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
    AND pg_has_role(relowner, 'USAGE')
ORDER BY relname
"""
_DISTRIBUTED_TABLES: Final = "SELECT logicalrelid::regclass::text FROM pg_dist_partition WHERE partmethod = 'h'"


class UndeclaredTable(Exception):
    """A table of the schema is neither in DISTRIBUTED nor in LOCAL: its author must say where its rows are."""

    def __str__(self) -> str:
        return f"{', '.join(self.args)}: neither DISTRIBUTED nor LOCAL in distribution.py says where its rows are"


def is_citus(connection: Connection) -> bool:
    """Whether the database has the extension."""
    return connection.execute("SELECT FROM pg_extension WHERE extname = 'citus'").fetchone() is not None


def undeclared_tables(connection: Connection) -> set[str]:
    """The tables of the schema that are neither in DISTRIBUTED nor in LOCAL."""
    return {name for (name,) in connection.execute(_TABLES)} - {*DISTRIBUTED, *LOCAL}


def undistributed_tables(connection: Connection) -> list[str]:
    """The tables of DISTRIBUTED that a database with Citus has only on its coordinator, in their order."""
    done = {name for (name,) in connection.execute(_DISTRIBUTED_TABLES)}
    return [table for table in DISTRIBUTED if table not in done]


def has_rows(connection: Connection, table: str) -> bool:
    """Whether the table has a row."""
    query = sql.SQL("SELECT EXISTS (SELECT 1 FROM {})").format(sql.Identifier("public", table))
    return connection.execute(query).fetchone() == (True,)


def distribute(connection: Connection, *, shards: int) -> Iterator[str]:
    """Distribute what is not yet, one table after another, with its rows; yields the name of each before it begins.

    Each table is one transaction, so that a repeat goes on where this one stopped. `shards` counts only for the first.
    Nobody may write meanwhile.
    """
    for table in undistributed_tables(connection):
        yield table
        distribute_table(connection, table, shards=shards)


def distribute_table(connection: Connection, table: str, *, shards: int) -> None:
    """Distribute a table with its rows, and drop the coordinator's copy of them."""
    name = f"public.{table}"
    with connection.transaction():
        if table == FIRST_TABLE:
            query = "SELECT create_distributed_table(%s, 'organization_id', colocate_with => 'none', shard_count => %s)"
            connection.execute(query, [name, shards])
        else:
            query = "SELECT create_distributed_table(%s, 'organization_id', colocate_with => %s)"
            connection.execute(query, [name, f"public.{FIRST_TABLE}"])
        # The rows that were here before are only hidden until then.
        connection.execute("SELECT truncate_local_data_after_distributing_table(%s)", [name])
