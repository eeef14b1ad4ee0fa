"""Removes notices and Stripe's events that are done and old: a bounded number a step; never a ledger entry."""

from datetime import datetime

from psycopg.rows import dict_row

from server.database.pool import Pool, connection
from server.database.queries import load_queries

SQL = load_queries(__file__)


async def remove_notices(pool: Pool, *, before: datetime, limit: int) -> int:
    """Remove mails of before then that went out or never will; how many, 0 at the end."""
    async with connection(pool) as lent, lent.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(SQL.find_old_notices, {"before": before, "limit": limit})
        found = await cursor.fetchall()
        if found:
            await cursor.executemany(SQL.remove_notice, found)
    return len(found)


async def remove_stripe_events(pool: Pool, *, before: datetime, limit: int) -> int:
    """Remove events of before then that are done or rejected; how many, 0 at the end.

    One that Stripe sends once more is processed once more, which changes nothing. Dead ones wait for a person.
    """
    async with connection(pool) as lent:
        cursor = await lent.execute(SQL.find_old_events, {"before": before, "limit": limit})
        event_ids = [row[0] for row in await cursor.fetchall()]
        return (await lent.execute(SQL.remove_events, {"event_ids": event_ids})).rowcount if event_ids else 0
