"""Waits until something holds, instead of for a time."""

import asyncio
from collections.abc import Callable
from typing import Any

from psycopg import AsyncConnection

from server.database.pool import Pool

_WAITERS = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


async def open_as_owner(pool: Pool) -> AsyncConnection[tuple[Any, ...]]:
    """A connection of the schema's owner, who may look at and end the application's connections."""
    return await AsyncConnection[tuple[Any, ...]].connect(str(pool.conninfo), autocommit=True)


async def someone_waits_for_a_lock(pool: Pool) -> int:
    """The process id of a connection to this database that waits for another one's lock, once there is one."""
    async with await open_as_owner(pool) as owner, asyncio.timeout(10):
        while True:
            row = await (await owner.execute(_WAITERS)).fetchone()
            if row is not None:
                return int(row[0])
            await asyncio.sleep(0.005)


async def until(holds: Callable[[], bool]) -> None:
    """Return once something that other tasks bring about holds."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - what is watched has no event of its own
            await asyncio.sleep(0.001)
