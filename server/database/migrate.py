"""Brings a database to the newest schema: forward only, once per migration, safe when many replicas start at once."""

from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import Connection, sql

from server.database.pool import APPLICATION_ROLE

MIGRATIONS = Path(__file__).parent / "migrations"
# A number of our own; PostgreSQL's advisory locks are only this cluster's queue of starting replicas.
_QUEUE = 0x50756C7361


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema's history."""

    version: int
    name: str
    text: str


def load_migrations(folder: Path = MIGRATIONS) -> list[Migration]:
    """The migrations of a folder, oldest first: `0001_name.sql`, numbered without gaps."""
    migrations = [
        Migration(int(path.name[:4]), path.stem[5:], path.read_text()) for path in sorted(folder.glob("[0-9]*.sql"))
    ]
    if [migration.version for migration in migrations] != list(range(1, len(migrations) + 1)):
        raise ValueError(f"the migrations in {folder} are not numbered 1, 2, 3, …")
    return migrations


def migrate(url: str) -> list[Migration]:
    """Apply what is missing, each migration in a transaction of its own, and say what that was.

    `url` must own the schema and, the first time, be allowed to create the application's role. A second replica waits
    for the first and finds nothing left to do. Raises ValueError when the database is newer than this code.
    """
    migrations = load_migrations()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [_QUEUE])
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
    """The newest migration that the database has; 0 for none."""
    if connection.execute("SELECT to_regclass('schema_migrations') IS NULL").fetchone() == (True,):
        return 0
    row = connection.execute("SELECT coalesce(max(version), 0) FROM schema_migrations").fetchone()
    return int(row[0]) if row else 0


def _grant(connection: Connection) -> None:
    """Let the application's role do its work, and nothing to a ledger entry but add and read it.

    Whole tables only: Citus knows no rights to columns.
    """
    role = sql.Identifier(APPLICATION_ROLE)
    known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [APPLICATION_ROLE]).fetchone()
    with connection.transaction():
        if not known:
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
