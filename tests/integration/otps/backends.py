"""Backends of PostgreSQL that wait for a lock."""

import asyncio
from typing import Any

from psycopg import AsyncConnection

from server.postgres.pool import Pool

_WAITERS = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock'
"""
_WAITERS_ON_WORKERS = "SELECT citus_pid_for_gpid(waiting_gpid) FROM citus_lock_waits"


async def open_as_owner(pool: Pool) -> AsyncConnection[tuple[Any, ...]]:
    """A connection of the schema's owner, which may inspect and terminate the application's connections."""
    return await AsyncConnection[tuple[Any, ...]].connect(str(pool.conninfo), autocommit=True)


async def wait_for_blocked_backend(pool: Pool) -> int:
    """Return the process id of a backend of this database that waits for a lock, once there is one.

    On Citus the one at the coordinator, which waits for a worker that waits for the lock.
    """
    async with await open_as_owner(pool) as owner, asyncio.timeout(10):
        waiters = _WAITERS_ON_WORKERS if pool.shards.is_distributed else _WAITERS
        while True:
            row = await (await owner.execute(waiters)).fetchone()
            if row is not None:
                return int(row[0])
            await asyncio.sleep(0.005)
