"""Startup: several servers at once, and servers with a wrong setting."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from server.postgres.migrate import load_migrations
from tests.faults.process_deployment import start_process
from tests.faults.processes import Process

WRONG = {
    "PULSA_LISTN": "127.0.0.1:0",
    "PULSA_PRICING": "/there/is/no/such/file",
    "PULSA_TOKEN_KEYS": "/there/is/no/such/file",
    "PULSA_SECRET_KEYS": "test:short",
    "PULSA_SMTP_SENDER": "",
    "PULSA_STRIPE_LEASE_SECONDS": "30",
    "PULSA_DATABASE_URL": "postgresql://127.0.0.1:1/unreachable",
}
"""Except for the first, each is wrong only when it is used. test_environment.py tests unknown names."""


@pytest.fixture
def fresh_database_url(postgres: str) -> Iterator[str]:
    """An empty database, without a schema."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE fresh")
        yield psycopg.conninfo.make_conninfo(postgres, dbname="fresh")
        connection.execute("DROP DATABASE fresh WITH (FORCE)")


async def test_servers_that_start_at_the_same_time_migrate_a_new_database_once(
    settings: dict[str, str], fresh_database_url: str, tmp_path: Path
) -> None:
    settings |= {"PULSA_DATABASE_URL": fresh_database_url, "PULSA_DATABASE_MIGRATE": "true"}
    folders = [tmp_path / f"replica-{number}" for number in range(3)]
    for folder in folders:
        folder.mkdir()

    replicas = await asyncio.gather(*(start_process("serve", dict(settings), folder) for folder in folders))
    migrated = sum(replica.output.count('"migrated"') for replica in replicas)
    for replica in replicas:
        await replica.kill()

    with psycopg.connect(fresh_database_url) as connection:
        versions = connection.execute("SELECT version FROM schema_migrations ORDER BY version").fetchall()
    assert versions == [(migration.version,) for migration in load_migrations()]
    assert migrated == len(versions)


async def test_a_wrong_setting_is_reported_in_one_line_that_names_it(settings: dict[str, str], tmp_path: Path) -> None:
    processes, settings["PULSA_DATABASE_MIGRATE"] = {}, "true"
    for name, value in WRONG.items():
        processes[name] = Process("serve", settings | {name: value}, output=tmp_path / f"{name}.log")

    codes = {name: await process.wait_for_exit() for name, process in processes.items()}

    assert codes == dict.fromkeys(WRONG, 2)
    for name, process in processes.items():
        [line] = [line for line in process.output.splitlines() if not line.startswith("{")]
        assert name in line


async def test_a_port_in_use_is_reported_in_one_line_that_names_it(settings: dict[str, str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        processes = [
            Process("serve", settings | {"PULSA_LISTEN": address}, output=tmp_path / "rpc.log"),
            Process("serve", settings | {"PULSA_METRICS_LISTEN": address}, output=tmp_path / "metrics.log"),
        ]
        codes = [await process.wait_for_exit() for process in processes]

    assert codes == [2, 2]
    for process in processes:
        [line] = [line for line in process.output.splitlines() if not line.startswith("{")]
        assert address.rpartition(":")[2] in line
