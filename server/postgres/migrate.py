"""Migrations: forward only, each applied once, beside servers that go on. Several replicas may migrate at once."""

import asyncio
import random
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import psycopg
import structlog
from psycopg import Connection, sql

from server.postgres.pool import APPLICATION_ROLE, BoundedConnection

MIGRATIONS = Path(__file__).parent / "migrations"
READ_ONLY: Final = "leads to a standby or a read-only database, which takes no writes"
ATTEMPTS: Final = 20
"""How often a migration tries to get its locks, in two to three minutes."""
TURN_SECONDS: Final = 300.0
"""How long a replica waits while another one migrates."""
_ADVISORY_LOCK: Final = 0x50756C7361
"""The key of the lock under which one replica migrates while the others wait: "Pulsa" in ASCII."""
_OLDEST_POSTGRES: Final = 150000
_LOOK_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.2
_LOCK_TIMEOUT, _LONGER_LOCK_TIMEOUT = "700ms", "1500ms"
"""Calls queue behind a migration that waits for a lock. The first is below PULSA_DATABASE_LOCK_SECONDS, so that none of
them fails. Every fourth attempt takes the second, above deadlock_timeout (1 s): only then PostgreSQL ends an autovacuum
that is in the way."""
_CONCURRENT_LOCK_TIMEOUT: Final = "5min"
"""No call queues behind CREATE INDEX CONCURRENTLY, which waits for the end of every older transaction."""
_IDLE_TIMEOUT: Final = "5s"
"""A migration whose process was frozen or cut off gives its locks back."""
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.25, 10.0

_HOLDS_TURN: Final = f"locktype = 'advisory' AND (classid::bigint << 32) + objid::bigint = {_ADVISORY_LOCK}"
_HOLDS_TABLE: Final = "locktype = 'relation' AND relation >= 16384"  # below are the catalogs

_OUTSIDE: Final = "-- outside a transaction"
_END_OF_STATEMENT: Final = re.compile(r";[ \t]*$", re.MULTILINE)

_log = structlog.get_logger(__name__)


class SchemaError(Exception):
    """The schema cannot be used or migrated as things are; the message is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One migration file: one transaction, unless its first line is `-- outside a transaction`.

    Then its statements, each of which ends a line, run one by one. After a crash they run again from the first.
    """

    version: int
    name: str
    text: str

    @property
    def title(self) -> str:
        """How messages name it."""
        return f"migration {self.version} ({self.name})"

    @property
    def statements(self) -> list[str] | None:
        """What runs outside a transaction; None for a migration that is one."""
        if not self.text.startswith(_OUTSIDE):
            return None
        return [statement for statement in _END_OF_STATEMENT.split(self.text) if statement.strip()]


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at a database has found."""

    postgres: int
    """PostgreSQL's version: 150004 for 15.4."""
    version: int
    """The newest applied migration; 0 for none."""
    newest: int
    """The newest migration that this code knows."""
    takes_writes: bool

    @property
    def is_newer(self) -> bool:
        """Whether a later version of this code has migrated the database."""
        return self.version > self.newest

    def require(self, *, writes: bool, may_be_newer: bool = False) -> None:
        """Raise SchemaError when this code cannot work on the database, or has to write where nobody can."""
        if self.postgres < _OLDEST_POSTGRES:
            raise SchemaError(f"PostgreSQL 15 or newer is required; this is {self.postgres // 10000}")
        if self.version < self.newest:
            raise SchemaError(
                f"the schema is at migration {self.version} of {self.newest}: run python -m server migrate"
            )
        if self.is_newer and not may_be_newer:
            raise SchemaError(_newer(self.version, self.newest))
        if writes and not self.takes_writes:
            raise SchemaError(READ_ONLY)


def _newer(version: int, newest: int) -> str:
    return f"the schema is at migration {version}, newer than this version of Pulsa, which knows {newest}"


async def look(url: str, *, role: str | None = APPLICATION_ROLE) -> Found:
    """Look at a database as `role`, without a write and for at most 5 seconds.

    With None only whether it answers is looked at, and the version is 0. Raises psycopg.OperationalError when it cannot
    be reached or does not answer, and SchemaError when the login of the URL may not act as the role.
    """
    try:
        async with asyncio.timeout(_LOOK_SECONDS):
            connection = await BoundedConnection.connect(url, autocommit=True)
            try:
                return await _look(connection, role)
            finally:
                await connection.close()
    except TimeoutError:
        raise psycopg.OperationalError(f"no answer within {_LOOK_SECONDS:g} s") from None
    except (psycopg.OperationalError, psycopg.errors.InsufficientPrivilege):
        raise
    except psycopg.Error as error:  # such as another program's schema_migrations
        raise SchemaError(first_line(error)) from error


async def _look(connection: BoundedConnection, role: str | None) -> Found:
    await connection.execute("BEGIN READ ONLY")
    cursor = await connection.execute(
        "SELECT NOT pg_is_in_recovery() AND current_setting('default_transaction_read_only') = 'off',"
        " to_regclass('schema_migrations') IS NOT NULL"
    )
    takes_writes, has_schema = await cursor.fetchone() or (False, False)
    version = 0
    if has_schema and role:
        try:
            await connection.execute(f"SET LOCAL ROLE {role}")
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidParameterValue) as error:
            raise SchemaError(f"{first_line(error)}: grant {role} to {connection.info.user}") from None
        row = await (await connection.execute("SELECT coalesce(max(version), 0) FROM schema_migrations")).fetchone()
        version = int(row[0]) if row else 0
    await connection.execute("ROLLBACK")
    return Found(connection.info.server_version, version, len(load_migrations()), bool(takes_writes))


def load_migrations(folder: Path = MIGRATIONS) -> list[Migration]:
    """Read the migrations of a folder, oldest first: `0001_name.sql`, `0002_…`. Raises ValueError for a gap."""
    migrations = [
        Migration(int(path.name[:4]), path.stem[5:], path.read_text()) for path in sorted(folder.glob("[0-9]*.sql"))
    ]
    if [migration.version for migration in migrations] != list(range(1, len(migrations) + 1)):
        raise ValueError(f"the migrations in {folder} are not numbered 1, 2, 3, …")
    return migrations


def migrate(
    url: str, *, folder: Path = MIGRATIONS, attempts: int = ATTEMPTS, turn_seconds: float = TURN_SECONDS
) -> list[Migration]:
    """Apply the missing migrations, make the next partitions, and grant the application's rights.

    Returns the applied migrations.

    The user of `url` must own the schema and, the first time, be allowed to create the application's role. A second
    replica waits for the first and finds nothing to apply. A migration that does not get a lock soon steps back, so
    that calls go on, and tries again. Raises SchemaError, with what was applied before kept, and
    psycopg.OperationalError when the database cannot be reached.
    """
    migrations = load_migrations(folder)
    with psycopg.connect(url, autocommit=True) as connection:
        _set(connection, "lock_timeout", _LOCK_TIMEOUT)
        _set(connection, "idle_in_transaction_session_timeout", _IDLE_TIMEOUT)
        try:
            _wait_for_turn(connection, turn_seconds)
            connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_migrations"
                " (version integer PRIMARY KEY, name text NOT NULL, apply_time timestamptz NOT NULL DEFAULT now())"
            )
            applied = current_version(connection)
            if applied > len(migrations):
                raise SchemaError(_newer(applied, len(migrations)))
            _create_role(connection)
            for migration in migrations[applied:]:
                _with_locks(connection, migration.title, partial(_apply, connection, migration), attempts)
                _log.info("migrated", version=migration.version, name=migration.name)
            _with_locks(connection, "making partitions", partial(_create_partitions, connection), attempts)
            _with_locks(connection, "granting rights", partial(_grant, connection), attempts)
        except psycopg.errors.ReadOnlySqlTransaction:
            raise SchemaError(READ_ONLY) from None
        except psycopg.errors.InsufficientPrivilege as error:
            raise SchemaError(
                f"{connection.info.user} may not change the schema, as its owner may: {first_line(error)}"
            ) from None
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:  # such as a table of another program that has the name of one of ours
            raise SchemaError(first_line(error)) from error
        return migrations[applied:]


def current_version(connection: Connection) -> int:
    """The number of the newest applied migration; 0 for none."""
    if connection.execute("SELECT to_regclass('schema_migrations') IS NULL").fetchone() == (True,):
        return 0
    row = connection.execute("SELECT coalesce(max(version), 0) FROM schema_migrations").fetchone()
    return int(row[0]) if row else 0


def first_line(error: BaseException) -> str:
    """What an error of PostgreSQL says, without the lines that may quote a row."""
    return (str(error).splitlines() or ["no answer"])[0]


def _set(connection: Connection, name: str, value: str) -> None:
    connection.execute("SELECT set_config(%s, %s, false)", [name, value])


def _wait_for_turn(connection: Connection, seconds: float) -> None:
    """Take the advisory lock. Says who holds it, and raises SchemaError when that does not end."""
    deadline, announced = time.monotonic() + seconds, False
    while connection.execute("SELECT pg_try_advisory_lock(%s)", [_ADVISORY_LOCK]).fetchone() != (True,):
        holder = _named(_holders(connection, _HOLDS_TURN).values())
        if not announced:
            _log.info("another process migrates", holder=holder, wait_seconds=seconds)
            announced = True
        if time.monotonic() > deadline:
            raise SchemaError(f"another process has migrated for {seconds:g} s: {holder}")
        time.sleep(_POLL_SECONDS)


def _with_locks(connection: Connection, what: str, work: Callable[[], None], attempts: int) -> None:
    """Run `work` until it gets its locks. Raises SchemaError when it does not, or when PostgreSQL refuses it."""
    for attempt in range(1, attempts + 1):
        _set(connection, "lock_timeout", _LOCK_TIMEOUT if attempt % 4 else _LONGER_LOCK_TIMEOUT)
        before = _holders(connection, _HOLDS_TABLE)
        try:
            return work()
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            after = _holders(connection, _HOLDS_TABLE)
        except (psycopg.errors.InsufficientPrivilege, psycopg.OperationalError):
            raise
        except psycopg.Error as error:
            raise SchemaError(f"{what}: {first_line(error)}") from error
        holder = _named(after[transaction] for transaction in after if transaction in before)
        if attempt < attempts:
            _log.warning("a migration did not get a lock", what=what, attempt=attempt, holder=holder)
            longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**attempt)
            time.sleep(random.uniform(longest / 2, longest))  # noqa: S311 - no secret
    raise SchemaError(f"{what}: a lock was not free in {attempts} attempts; it was held by {holder}; run this again")


def _holders(connection: Connection, condition: str) -> dict[str, str]:
    """Who holds such locks: a process by its transaction. Every login may see as much of the others."""
    rows = connection.execute(
        "SELECT virtualtransaction, format('process %s of %s (%s)', pid, coalesce(usename, backend_type), "  # noqa: S608
        "application_name) FROM pg_locks JOIN pg_stat_activity USING (pid) JOIN pg_database ON database = oid"
        f" WHERE granted AND pid <> pg_backend_pid() AND pg_database.datname = current_database() AND {condition}"
    )
    return dict(rows.fetchall())


def _named(holders: Iterable[str]) -> str:
    return ", ".join(sorted(holders)[:3]) or "processes that have ended"


def _apply(connection: Connection, migration: Migration) -> None:
    """Apply a migration and record it, in one transaction if it may be."""
    record = "INSERT INTO schema_migrations (version, name) VALUES (%s, %s)", [migration.version, migration.name]
    if migration.statements is None:
        with connection.transaction():
            connection.execute(migration.text.encode())
            connection.execute(*record)
        return
    _set(connection, "lock_timeout", _CONCURRENT_LOCK_TIMEOUT)
    for statement in migration.statements:
        connection.execute(statement.encode())
    connection.execute(*record)


def _create_role(connection: Connection) -> None:
    """Create the application's role, unless it exists."""
    if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [APPLICATION_ROLE]).fetchone():
        return
    role = sql.Identifier(APPLICATION_ROLE)
    try:
        with connection.transaction():
            connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(role))
            connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(role))
    except psycopg.errors.InsufficientPrivilege:
        raise SchemaError(
            f"{connection.info.user} may not create the role {APPLICATION_ROLE}: let an administrator run"
            f" CREATE ROLE {APPLICATION_ROLE} NOLOGIN, and grant it to the server's login"
        ) from None


def _create_partitions(connection: Connection) -> None:
    """Make the next partitions, as the periodic job does: a server may not have run for weeks."""
    for table in ("deliveries", "otps"):
        connection.execute("SELECT create_partitions(%s)", [table])


def _grant(connection: Connection) -> None:
    """Grant the application's role the rights that it needs. It may only insert and read ledger entries and their MACs.

    Rights are granted on whole tables, because Citus does not support rights on columns. Other owners' tables are left
    alone.
    """
    tables = connection.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND pg_has_role(tableowner, 'USAGE')"
    ).fetchall()
    with connection.transaction():
        connection.execute(
            sql.SQL(
                "GRANT USAGE ON SCHEMA public TO {0};"
                " GRANT SELECT, INSERT, UPDATE, DELETE ON {1} TO {0};"
                " REVOKE UPDATE, DELETE ON ledger_entries, ledger_macs, entry_macs FROM {0};"
                " REVOKE DELETE ON accounts, top_ups, ledger_days FROM {0};"
                " REVOKE INSERT, UPDATE, DELETE ON daily_usage FROM {0};"
                " REVOKE INSERT, UPDATE, DELETE ON schema_migrations FROM {0}"
            ).format(
                sql.Identifier(APPLICATION_ROLE),
                sql.SQL(", ").join(sql.Identifier("public", table) for (table,) in tables),
            )
        )
