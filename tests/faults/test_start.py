"""Starting: several at once, and with something wrong."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from server.database.migrate import load_migrations
from tests.faults.processes import Process
from tests.faults.site import listening

WRONG = {
    "PULSA_LISTN": "127.0.0.1:0",
    "PULSA_PRICING": "/there/is/no/such/file",
    "PULSA_TOKEN_KEYS": "/there/is/no/such/file",
    "PULSA_SECRET_KEYS": "test:short",
    "PULSA_SMTP_SENDER": "",
    "PULSA_STRIPE_LEASE_SECONDS": "30",
    "PULSA_DATABASE_URL": "postgresql://127.0.0.1:1/nobody-is-there",
}
"""All but the first show only when they are used; test_environment.py has more of its kind."""


@pytest.fixture
def fresh_database_url(postgres: str) -> Iterator[str]:
    """An empty database, without a schema."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE fresh")
        yield psycopg.conninfo.make_conninfo(postgres, dbname="fresh")
        connection.execute("DROP DATABASE fresh WITH (FORCE)")


async def test_servers_that_start_at_once_migrate_a_fresh_database_once(
    settings: dict[str, str], fresh_database_url: str, tmp_path: Path
) -> None:
    settings["PULSA_DATABASE_URL"] = fresh_database_url
    folders = [tmp_path / f"replica-{number}" for number in range(3)]
    for folder in folders:
        folder.mkdir()

    replicas = await asyncio.gather(*(listening("serve", dict(settings), folder) for folder in folders))
    told = sum(replica.output.count('"migrated"') for replica in replicas)
    for replica in replicas:
        await replica.kill()

    with psycopg.connect(fresh_database_url) as connection:
        versions = connection.execute("SELECT version FROM schema_migrations ORDER BY version").fetchall()
    assert versions == [(migration.version,) for migration in load_migrations()]
    assert told == len(versions)


async def test_a_wrong_setting_is_one_line_that_names_it(settings: dict[str, str], tmp_path: Path) -> None:
    processes = {}
    for name, value in WRONG.items():
        processes[name] = Process("serve", settings | {name: value}, output=tmp_path / f"{name}.log")

    codes = {name: await process.ended() for name, process in processes.items()}

    assert codes == dict.fromkeys(WRONG, 2)
    for name, process in processes.items():
        [line] = [line for line in process.output.splitlines() if not line.startswith("{")]
        assert name in line


async def test_a_taken_port_is_one_line_that_names_it(settings: dict[str, str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        processes = [
            Process("serve", settings | {"PULSA_LISTEN": address}, output=tmp_path / "rpc.log"),
            Process("serve", settings | {"PULSA_METRICS_LISTEN": address}, output=tmp_path / "metrics.log"),
        ]
        codes = [await process.ended() for process in processes]

    assert codes == [2, 2]
    for process in processes:
        [line] = [line for line in process.output.splitlines() if not line.startswith("{")]
        assert address.rpartition(":")[2] in line
