"""Migrations: forward only, each applied once. Several replicas may migrate at the same time."""

from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import Connection, sql

from server.postgres.pool import APPLICATION_ROLE

MIGRATIONS = Path(__file__).parent / "migrations"
_ADVISORY_LOCK = 0x50756C7361
"""The key of the lock under which one replica migrates while the others wait: "Pulsa" in ASCII."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One migration file."""

    version: int
    name: str
    text: str


def load_migrations(folder: Path = MIGRATIONS) -> list[Migration]:
    """Read the migrations of a folder, oldest first: `0001_name.sql`, `0002_…`. Raises ValueError for a gap."""
    migrations = [
        Migration(int(path.name[:4]), path.stem[5:], path.read_text()) for path in sorted(folder.glob("[0-9]*.sql"))
    ]
    if [migration.version for migration in migrations] != list(range(1, len(migrations) + 1)):
        raise ValueError(f"the migrations in {folder} are not numbered 1, 2, 3, …")
    return migrations


def migrate(url: str) -> list[Migration]:
    """Apply the missing migrations, each in its own transaction, and grant the application's rights.

    Returns the applied migrations. The user of `url` must own the schema and, the first time, be allowed to create the
    application's role. A second replica waits for the first and finds nothing to apply. Raises ValueError when the
    database is newer than this code.
    """
    migrations = load_migrations()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [_ADVISORY_LOCK])
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations"
            " (version integer PRIMARY KEY, name text NOT NULL, apply_time timestamptz NOT NULL DEFAULT now())"
        )
        applied = current_version(connection)
        if applied > len(migrations):
            raise ValueError(f"the database is at migration {applied}, newer than this server's {len(migrations)}")
        for migration in migrations[applied:]:
            with connection.transaction():
                connection.execute(migration.text.encode())
                connection.execute(
                    "INSERT INTO schema_migrations (version, name) VALUES (%s, %s)", [migration.version, migration.name]
                )
        _grant(connection)
        return migrations[applied:]


def current_version(connection: Connection) -> int:
    """The number of the newest applied migration; 0 for none."""
    if connection.execute("SELECT to_regclass('schema_migrations') IS NULL").fetchone() == (True,):
        return 0
    row = connection.execute("SELECT coalesce(max(version), 0) FROM schema_migrations").fetchone()
    return int(row[0]) if row else 0


def _grant(connection: Connection) -> None:
    """Grant the application's role the rights that it needs. It may only insert and read ledger entries.

    Rights are granted on whole tables, because Citus does not support rights on columns.
    """
    role = sql.Identifier(APPLICATION_ROLE)
    exists = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [APPLICATION_ROLE]).fetchone()
    with connection.transaction():
        if not exists:
            connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(role))
            connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(role))
        connection.execute(
            sql.SQL(
                "GRANT USAGE ON SCHEMA public TO {0};"
                " GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {0};"
                " REVOKE UPDATE, DELETE ON ledger_entries FROM {0};"
                " REVOKE DELETE ON accounts, top_ups FROM {0};"
                " REVOKE INSERT, UPDATE, DELETE ON schema_migrations FROM {0}"
            ).format(role)
        )
