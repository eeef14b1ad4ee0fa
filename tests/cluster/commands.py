"""On a Citus cluster: `distribute` moves a database that was plain, and `doctor` says what is missing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from server.cli.cluster import check
from server.postgres.distribution import DISTRIBUTED, distribute_table, undistributed_tables
from server.postgres.migrate import MIGRATIONS, load_migrations, migrate
from tests.databases import Databases, add_nodes, new_cluster_database

ROWS = """
INSERT INTO accounts (organization_id, low_balance_threshold, window_start_time, create_time)
SELECT 'organization-' || number, 0, now(), now()
FROM generate_series(1, 100) AS number
"""
OTPS = """
INSERT INTO otps (
    organization_id, otp_id, purpose, channel, locale, destination_digest, code_key_id, code_length, context_digest,
    web_otp_domain, metadata, max_attempts, create_time, expire_time
)
SELECT organization_id, first_id(now()), 'login', 'SMS', 'en', '', 'k', 6, '', '', '{}', 3, now(), now()
FROM accounts
"""


FIRST_DISTRIBUTED = 10
"""The migration at which databases were first distributed."""


@contextmanager
def plain_database(databases: Databases, folder: Path = MIGRATIONS) -> Iterator[str]:
    """A database with rows, all of them on the coordinator."""
    with new_cluster_database(databases.nodes, f"plain_{os.getpid()}") as url:
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute("DROP EXTENSION citus")
            migrate(url, folder=folder)
            owner.execute(ROWS)
            owner.execute(OTPS)
            owner.execute("CREATE EXTENSION citus")
        yield url


@pytest.fixture
def plain(databases: Databases) -> Iterator[str]:
    with plain_database(databases) as url:
        yield url


def run(command: str, url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    settings = {"PULSA_DATABASE_URL": url, "PULSA_DATABASE_SHARDS": "4", "PULSA_DATA": str(folder)}
    arguments = [sys.executable, "-m", "server", command]
    return subprocess.run(arguments, env=os.environ | settings, capture_output=True, text=True, check=False)  # noqa: S603


def test_a_plain_database_is_moved_and_a_second_run_goes_on_where_the_first_one_stopped(
    plain: str, databases: Databases, tmp_path: Path
) -> None:
    add_nodes(plain, databases.nodes)
    with psycopg.connect(plain, autocommit=True) as owner:
        assert undistributed_tables(owner) == list(DISTRIBUTED)
        migrate(plain)  # moves no rows
        assert undistributed_tables(owner) == list(DISTRIBUTED)
        with pytest.raises(ValueError, match="not distributed: accounts, "):
            check(owner)
        refused = run("distribute", plain, tmp_path)
        assert (refused.returncode, "stop every replica first" in refused.stderr) == (2, True)
        for table in DISTRIBUTED[:3]:
            distribute_table(owner, table, shards=4)
    moved = run("distribute", plain, tmp_path)
    assert (moved.returncode, moved.stderr) == (0, "")
    assert moved.stdout.startswith(f"1 of {len(DISTRIBUTED) - 3}: {DISTRIBUTED[3]}, ")
    with psycopg.connect(plain, autocommit=True) as owner:
        assert undistributed_tables(owner) == []
        for table in ("accounts", "otps"):
            assert owner.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() == (100,)  # noqa: S608
        with pytest.raises(UserWarning, match=r"4 shards on \d+ workers.* may change the ledger"):
            check(owner)
    assert run("distribute", plain, tmp_path).stdout == f"{len(DISTRIBUTED)} tables are distributed\n"


def test_a_distributed_database_gets_every_later_migration(databases: Databases, tmp_path: Path) -> None:
    for path in sorted(MIGRATIONS.glob("[0-9]*.sql"))[:FIRST_DISTRIBUTED]:
        shutil.copy(path, tmp_path)
    with plain_database(databases, tmp_path) as url, psycopg.connect(url, autocommit=True) as owner:
        add_nodes(url, databases.nodes)
        for table in DISTRIBUTED:
            if owner.execute("SELECT to_regclass(%s) IS NOT NULL", [table]).fetchone() == (True,):
                distribute_table(owner, table, shards=4)
        assert migrate(url) == load_migrations()[FIRST_DISTRIBUTED:]
        assert undistributed_tables(owner) == []
