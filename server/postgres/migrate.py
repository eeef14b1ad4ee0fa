"""Migrations: forward only, each applied once, beside servers that go on. Several replicas may migrate at once."""

import asyncio
import random
import re
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, LiteralString

import psycopg
import structlog
from psycopg import Connection, sql

from server.postgres.distribution import (
    FIRST_TABLE,
    distribute_table,
    has_rows,
    is_citus,
    undistributed_tables,
)
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
_ONE_SHARD_AFTER_ANOTHER: Final = "SET LOCAL citus.multi_shard_modify_mode = 'sequential'"
"""Citus refuses a change of a domain after one of a table that it has made on all shards in parallel."""
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


_WITHHELD: Final[dict[LiteralString, set[str]]] = {
    "UPDATE, DELETE": {
        "ledger_entries",
        "ledger_macs",
        "entry_macs",
        "ledger_roots",
        "ledger_heads",
        "organization_settings",
        "consents",
    },
    "DELETE": {"accounts", "top_ups", "automatic_top_ups", "ledger_days"},
    "INSERT, UPDATE, DELETE": {"daily_usage", "schema_migrations"},
}
"""The rights on tables that the application's role does not have."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One migration file: one transaction, unless its first line is `-- outside a transaction`.

    Then after a crash its statements run again from the first.
    """

    version: int
    name: str
    text: str

    @property
    def title(self) -> str:
        """How messages name it."""
        return f"migration {self.version} ({self.name})"

    @property
    def is_transaction(self) -> bool:
        """Whether all of it is one transaction."""
        return not self.text.startswith(_OUTSIDE)

    @property
    def statements(self) -> list[str]:
        """Its statements, each of which ends a line: Citus passes a change of the schema on only if it comes alone."""
        statements, unfinished = [], ""
        for part in _END_OF_STATEMENT.split(self.text):
            unfinished += part
            if unfinished.count("$$") % 2:  # in the body of a function
                unfinished += ";"
            else:
                statements.append(unfinished)
                unfinished = ""
        return [statement for statement in statements if statement.strip()]


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
    url: str,
    *,
    folder: Path = MIGRATIONS,
    attempts: int = ATTEMPTS,
    turn_seconds: float = TURN_SECONDS,
    shards: int = 8,
) -> list[Migration]:
    """Apply the missing migrations, make the next partitions, and grant the application's rights.

    Where Citus is installed, also distribute the tables that are still empty; `shards` is the number of shards of the
    first. Returns the applied migrations.

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
            if is_citus(connection):
                _distribute_empty(connection, attempts, shards)
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
    if not migration.is_transaction:
        _set(connection, "lock_timeout", _CONCURRENT_LOCK_TIMEOUT)
    with connection.transaction() if migration.is_transaction else nullcontext():
        if migration.is_transaction and is_citus(connection):
            connection.execute(_ONE_SHARD_AFTER_ANOTHER)
        for statement in migration.statements:
            connection.execute(statement.encode())
        connection.execute(
            "INSERT INTO schema_migrations (version, name) VALUES (%s, %s)", [migration.version, migration.name]
        )


def _distribute_empty(connection: Connection, attempts: int, shards: int) -> None:
    """Distribute tables that have no rows: all of a new database, later those that a migration has made.

    Rows are moved by `python -m server distribute` only, as nobody may write meanwhile.
    """
    missing = undistributed_tables(connection)
    full = [table for table in missing if has_rows(connection, table)]
    if full:
        _log.warning("tables are not distributed; run python -m server distribute", tables=full)
    if FIRST_TABLE in full:
        return
    for table in missing:
        if table not in full:
            work = partial(distribute_table, connection, table, shards=shards)
            _with_locks(connection, f"distributing {table}", work, attempts)


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
    found = connection.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND pg_has_role(tableowner, 'USAGE')"
    ).fetchall()
    tables = {name for (name,) in found}
    role = sql.Identifier(APPLICATION_ROLE)
    changes = [
        sql.SQL("GRANT USAGE ON SCHEMA public TO {}").format(role),
        sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO {}").format(_names(tables), role),
    ]
    changes += [
        sql.SQL("REVOKE {} ON {} FROM {}").format(sql.SQL(rights), _names(tables & withheld), role)
        for rights, withheld in _WITHHELD.items()
        if tables & withheld
    ]
    with connection.transaction():
        connection.execute(sql.SQL("; ").join(changes))


def _names(tables: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier("public", table) for table in sorted(tables))
