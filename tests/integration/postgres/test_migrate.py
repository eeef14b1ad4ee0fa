"""Migrations: calls go on beside them, several processes take turns, and what goes wrong is one clear line."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from structlog.testing import capture_logs

from server.postgres.migrate import (
    _ADVISORY_LOCK,
    MIGRATIONS,
    SchemaError,
    current_version,
    load_migrations,
    look,
    migrate,
)
from server.postgres.pool import APPLICATION_ROLE
from tests.fault_proxy import Fault, proxy_to
from tests.waiting import until

KNOWN = len(load_migrations())
READ = "SELECT available_credits FROM accounts WHERE organization_id = 'acme'"
WAITS = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'accounts'::regclass AND mode = 'AccessExclusiveLock'"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The migrations, to which a test adds some."""
    return Path(shutil.copytree(MIGRATIONS, tmp_path / "migrations"))


@contextmanager
def login(postgres: str, name: str, options: str = "") -> Iterator[str]:
    """A database of its own for a login that may do no more than its options say."""
    with psycopg.connect(postgres, autocommit=True) as administrator:
        administrator.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret' {options}".encode())
        administrator.execute(f"CREATE DATABASE {name} OWNER {name}".encode())
        yield make_conninfo(postgres, dbname=name, user=name, password="secret")
        administrator.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
        administrator.execute(f"DROP ROLE {name}".encode())


async def test_calls_go_on_while_a_migration_waits_for_a_reader(database_url: str, folder: Path) -> None:
    (folder / f"{KNOWN + 1:04}_extra.sql").write_text("ALTER TABLE accounts ADD COLUMN extra bigint;")
    with (
        psycopg.connect(database_url) as reader,
        psycopg.connect(database_url, autocommit=True) as caller,
        ThreadPoolExecutor() as executor,
    ):
        reader.execute("SELECT count(*) FROM accounts")  # a dump, an audit, a session left open
        migrating = executor.submit(migrate, database_url, folder=folder)
        try:
            caller.execute("SET statement_timeout = '20s'")
            for _ in range(2):
                await until(lambda: caller.execute(WAITS).fetchone())
                caller.execute(READ)  # queues behind the migration, which steps back
                assert current_version(caller) == KNOWN
        finally:
            reader.rollback()
        assert [migration.name for migration in migrating.result()] == ["extra"]


def test_a_migration_gives_up_and_names_who_holds_the_lock(database_url: str, folder: Path) -> None:
    (folder / f"{KNOWN + 1:04}_extra.sql").write_text("ALTER TABLE accounts ADD COLUMN extra bigint;")
    with psycopg.connect(make_conninfo(database_url, application_name="a dump")) as reader:
        reader.execute("SELECT count(*) FROM accounts")
        with capture_logs() as logs, pytest.raises(SchemaError) as refused:
            migrate(database_url, folder=folder, attempts=2)
        assert f"process {reader.info.backend_pid} of postgres (a dump)" in str(refused.value)
        assert [line["event"] for line in logs] == ["a migration did not get a lock"]
        assert current_version(reader) == KNOWN


def test_an_index_is_built_outside_a_transaction_and_again_after_a_crash(database_url: str, folder: Path) -> None:
    (folder / f"{KNOWN + 1:04}_index.sql").write_text(
        "-- outside a transaction: the table is large.\n"
        "DROP INDEX CONCURRENTLY IF EXISTS guesses;\n"
        "CREATE UNIQUE INDEX CONCURRENTLY guesses ON guess_budgets (organization_id);\n"
    )
    guess = (
        "INSERT INTO guess_budgets (organization_id, destination_digest, last_guess_time) VALUES ('acme', %s, now())"
    )
    with psycopg.connect(database_url, autocommit=True) as connection:
        for digest in (b"one", b"two"):
            connection.execute(guess, [digest])
        with pytest.raises(SchemaError, match=r"migration \d+ \(index\): could not create unique index"):
            migrate(database_url, folder=folder)
        assert current_version(connection) == KNOWN
        connection.execute("DELETE FROM guess_budgets WHERE destination_digest = 'two'")

        assert [migration.name for migration in migrate(database_url, folder=folder)] == ["index"]
        assert connection.execute(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = 'guesses'::regclass"
        ).fetchone() == (True,)
        assert current_version(connection) == KNOWN + 1


def test_what_a_failed_migration_has_done_is_undone_and_those_before_it_stay(database_url: str, folder: Path) -> None:
    (folder / f"{KNOWN + 1:04}_first.sql").write_text("CREATE TABLE first ();")
    (folder / f"{KNOWN + 2:04}_second.sql").write_text("CREATE TABLE second (); SELECT 1 / 0;")
    with pytest.raises(SchemaError, match=r"migration \d+ \(second\): division by zero"):
        migrate(database_url, folder=folder)
    with psycopg.connect(database_url) as connection:
        assert current_version(connection) == KNOWN + 1
        assert connection.execute("SELECT to_regclass('second')").fetchone() == (None,)


async def test_a_process_waits_for_another_ones_turn_and_says_whose_it_is(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as other, ThreadPoolExecutor() as executor:
        other.execute("SELECT pg_advisory_lock(%s)", [_ADVISORY_LOCK])
        holder = f"process {other.info.backend_pid} of postgres"
        with pytest.raises(SchemaError, match=holder):
            migrate(database_url, turn_seconds=0.1)
        with capture_logs() as logs:
            waiting = executor.submit(migrate, database_url)
            await until(lambda: logs)
            assert holder in logs[0]["holder"]
            assert not waiting.done()
            other.execute("SELECT pg_advisory_unlock_all()")
            assert waiting.result() == []


def test_postgresql_ends_a_migration_that_idles_with_its_locks(database_url: str, folder: Path) -> None:
    (folder / f"{KNOWN + 1:04}_timeout.sql").write_text(
        "CREATE TABLE seen AS SELECT current_setting('idle_in_transaction_session_timeout') AS seconds;"
    )
    migrate(database_url, folder=folder)
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT seconds FROM seen").fetchone() == ("5s",)


def test_a_table_of_another_owner_is_left_alone(postgres: str) -> None:
    with (
        login(postgres, "an_owner") as url,
        psycopg.connect(make_conninfo(postgres, dbname="an_owner"), autocommit=True) as administrator,
    ):
        administrator.execute("CREATE TABLE public.of_another_program ()")
        migrate(url)
        may_read = administrator.execute(
            "SELECT has_table_privilege(%s, 'of_another_program', 'SELECT'),"
            " has_table_privilege(%s, 'accounts', 'SELECT')",
            [APPLICATION_ROLE, APPLICATION_ROLE],
        ).fetchone()
    assert may_read == (False, True)


def test_a_table_of_another_program_with_one_of_our_names_is_named(postgres: str) -> None:
    with login(postgres, "an_owner") as url:
        with psycopg.connect(make_conninfo(postgres, dbname="an_owner"), autocommit=True) as administrator:
            administrator.execute("CREATE TABLE public.accounts ()")
        with pytest.raises(SchemaError, match=r'migration 1 \(\w+\): relation "accounts" already exists'):
            migrate(url)


def test_only_the_owner_of_the_schema_may_migrate(postgres: str, database_url: str) -> None:
    with login(postgres, "a_reader") as url, pytest.raises(SchemaError, match=r"a_reader may not change the schema"):
        migrate(make_conninfo(url, dbname=psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]))


def test_a_newer_schema_is_not_migrated(database_url: str, folder: Path) -> None:
    (folder / f"{KNOWN + 1:04}_extra.sql").write_text("CREATE TABLE extra ();")
    migrate(database_url, folder=folder)
    with pytest.raises(SchemaError, match=f"the schema is at migration {KNOWN + 1}, newer than this version"):
        migrate(database_url)


async def test_a_look_at_a_silent_database_ends(database_url: str) -> None:
    async with proxy_to(database_url) as (proxy, url):
        proxy.set(Fault.NO_ANSWER)
        with pytest.raises(psycopg.OperationalError, match="no answer within 5 s"):
            await look(make_conninfo(url, connect_timeout=600))


def test_migrations_have_no_gaps(folder: Path) -> None:
    (folder / "0002_otps_and_deliveries.sql").unlink()
    with pytest.raises(ValueError, match="are not numbered"):
        load_migrations(folder)
