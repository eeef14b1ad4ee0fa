"""Connections act as the application's role."""

from server.database.pool import APPLICATION_ROLE, Pool, connection


async def test_connections_act_as_the_application(pool: Pool) -> None:
    async with connection(pool) as lent:
        row = await (await lent.execute("SELECT current_user")).fetchone()
    assert row == (APPLICATION_ROLE,)
