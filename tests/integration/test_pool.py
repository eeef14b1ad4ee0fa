"""Connections act as the application's role."""

import psycopg
import pytest

from server.database.pool import APPLICATION_ROLE, Pool, connection


async def test_connections_act_as_the_application(pool: Pool) -> None:
    async with connection(pool) as lent:
        row = await (await lent.execute("SELECT current_user")).fetchone()
    assert row == (APPLICATION_ROLE,)


@pytest.mark.parametrize("statement", ["UPDATE ledger_entries SET credits = 1", "DELETE FROM ledger_entries"])
async def test_the_application_cannot_rewrite_the_ledger(pool: Pool, statement: str) -> None:
    async with connection(pool) as lent:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await lent.execute(statement.encode())
