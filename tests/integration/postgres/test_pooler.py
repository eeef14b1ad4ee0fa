"""Poolers: one that shares sessions between clients is found out at the start, before it does harm."""

import asyncio
import sys

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from server.cli.database import SharedSession, check_own_sessions
from server.postgres.pool import acquire, open_pool
from tests.integration.postgres.session_pooler import pooler_to


async def test_a_direct_connection_has_its_own_session(database_url: str) -> None:
    await check_own_sessions(database_url)


@pytest.mark.parametrize("sessions", [1, 2])
async def test_a_pooler_in_session_mode_gives_each_client_its_own(database_url: str, sessions: int) -> None:
    async with pooler_to(database_url, sessions=sessions, per_transaction=False) as url:
        await check_own_sessions(url)  # also when it has no session left for another client


@pytest.mark.parametrize("sessions", [1, 2, 3])
async def test_a_pooler_in_transaction_mode_is_found_out(database_url: str, sessions: int) -> None:
    async with pooler_to(database_url, sessions=sessions, per_transaction=True) as url:
        with pytest.raises(SharedSession):
            await check_own_sessions(url)


async def test_a_database_that_does_not_answer_is_not_taken_for_a_pooler() -> None:
    await check_own_sessions("postgresql://127.0.0.1:9/closed")


async def test_a_promoted_standby_is_found_behind_a_pooler_that_still_reports_a_standby(database_url: str) -> None:
    async with pooler_to(database_url, sessions=2, per_transaction=False, remembers_standby=True) as url:
        port = conninfo_to_dict(url)["port"]
        pool = await open_pool(make_conninfo(url, host="127.0.0.1,127.0.0.1", port=f"9,{port}"), size=1)
        async with acquire(pool) as connection:
            rows = await connection.execute("SHOW transaction_read_only")
            assert await rows.fetchone() == ("off",)
        await pool.close()


async def test_no_command_begins_behind_a_pooler_in_transaction_mode(database_url: str) -> None:
    async with pooler_to(database_url, sessions=2, per_transaction=True) as url:
        command = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "server", "migrate"),
            env={"PULSA_DATABASE_URL": url, "PYTHONPATH": ":".join(sys.path)},
            stderr=asyncio.subprocess.PIPE,
        )
        _, printed = await command.communicate()
    assert command.returncode != 0
    assert b"PULSA_DATABASE_URL: leads to a pooler in transaction or statement mode" in printed
