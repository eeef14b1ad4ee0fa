"""The connection pool, and the ways to use it: a single connection, a transaction, a pipelined transaction.

A call that gets no connection, or loses it, raises DatabaseUnavailable.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import chain
from typing import TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from server.errors import DatabaseUnavailable
from server.postgres.columns import register_arrays
from server.postgres.pipeline import Pipeline, PipelineConnection, Row

Result = TypeVar("Result")
Connection = AsyncConnection[Row]
Pool = AsyncConnectionPool[PipelineConnection]

APPLICATION_ROLE = "pulsa_application"
"""The role of the server's connections: it may not change or delete a ledger entry. migrate.py grants its rights."""

# A pipeline's plans are made once and kept, possibly since the tables were empty. A plan that reads a whole table is
# cheap then and very expensive later. Every statement of the server finds its rows by key, so only plans that use an
# index are allowed.
_PLANNING = {
    "plan_cache_mode": "force_generic_plan",  # a plan per execution makes a tiny batch three times as expensive
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
_RETRY_AFTER_SECONDS = 1.0
_ATTEMPTS = 4
# 40001: serialization failure; 40P01: deadlock; 57P01 to 57P03: PostgreSQL is stopping or starting. Besides these 08…:
# a lost connection.
_TRANSIENT = ("40001", "40P01", "57P01", "57P02", "57P03")


async def open_pool(url: str, *, size: int, timeout_seconds: float, role: str = APPLICATION_ROLE) -> Pool:
    """Open a pool of `size` connections that act as `role`. Acquiring one waits at most timeout_seconds.

    Does not wait for the database: a server that starts during an outage answers DATABASE_UNAVAILABLE until it ends.
    """

    async def configure(connection: Connection) -> None:
        register_arrays(connection)
        settings = {"role": role, "jit": "off", **_PLANNING}
        await connection.execute(
            f"SELECT {', '.join(['set_config(%s, %s, false)'] * len(settings))}", list(chain(*settings.items()))
        )

    pool: Pool = AsyncConnectionPool(
        url,
        connection_class=PipelineConnection,
        # psycopg prepares no statements itself: on every rollback it would drop those that pipelines have prepared.
        kwargs={"autocommit": True, "prepare_threshold": None, "connect_timeout": max(2, round(timeout_seconds))},
        min_size=size,
        max_size=size,
        timeout=timeout_seconds,
        reconnect_timeout=timeout_seconds,
        configure=configure,
        open=False,
    )
    await pool.open(wait=False)
    return pool


@asynccontextmanager
async def transaction(pool: Pool) -> AsyncIterator[Connection]:
    """Acquire a connection and run the block in a transaction; roll back when the block raises.

    Raises DatabaseUnavailable when there is no connection or it is lost. After a lost connection the transaction may
    have been committed: only an idempotent caller may repeat it.
    """
    try:
        async with pool.connection() as connection, connection.transaction():
            yield connection
    except (PoolTimeout, psycopg.OperationalError) as error:
        raise await _unavailable(pool, error) from error


@asynccontextmanager
async def pipelined_transaction(pool: Pool) -> AsyncIterator[Pipeline]:
    """Run the block in a pipelined transaction: see Pipeline. Raises DatabaseUnavailable as `transaction` does.

    BEGIN is sent with the first statements and COMMIT with the last.
    """
    try:
        connection = await pool.getconn()
        pipeline = Pipeline(connection)
        try:
            pipeline.begin()
            yield pipeline
            await pipeline.commit()
        except BaseException:
            if pipeline.has_failed:
                await pipeline.rollback()
            else:
                # For example a cancelled caller, which does not wait for a rollback. PostgreSQL rolls back when the
                # connection closes, and the pool opens another one.
                await connection.close()
            raise
        finally:
            await pool.putconn(connection)
    except (PoolTimeout, psycopg.OperationalError) as error:
        raise await _unavailable(pool, error) from error


@asynccontextmanager
async def acquire(pool: Pool) -> AsyncIterator[Connection]:
    """Acquire a connection whose statements commit one by one. Raises DatabaseUnavailable as `transaction` does."""
    try:
        async with pool.connection() as connection:
            yield connection
    except (PoolTimeout, psycopg.OperationalError) as error:
        raise await _unavailable(pool, error) from error


async def allow_all_plans(connection: Connection) -> None:
    """Allow every kind of plan in the rest of this transaction, made for each statement's values: for audits."""
    for name in _PLANNING:
        value = "force_custom_plan" if name == "plan_cache_mode" else "on"
        await connection.execute("SELECT set_config(%s, %s, true)", [name, value])


async def retry_transient(work: Callable[[], Awaitable[Result]]) -> Result:
    """Run idempotent work, at most 4 times in all, while it fails with a transient error or a lost connection."""
    try:
        return await work()  # without tenacity, which creates about 25 objects that only the garbage collector frees
    except (DatabaseUnavailable, psycopg.OperationalError) as error:
        if not _is_transient(error):
            raise
    async for attempt in AsyncRetrying(
        retry=retry_if_exception(_is_transient),
        stop=stop_after_attempt(_ATTEMPTS - 1),
        wait=wait_random_exponential(multiplier=0.02, max=0.5),
        reraise=True,
    ):
        with attempt:
            return await work()
    raise AssertionError("unreachable: the last attempt returns or raises")


def _is_transient(error: BaseException) -> bool:
    cause = error.__cause__ if isinstance(error, DatabaseUnavailable) else error
    if isinstance(cause, PoolTimeout) or not isinstance(cause, psycopg.OperationalError):
        return False
    return cause.sqlstate is None or cause.sqlstate.startswith("08") or cause.sqlstate in _TRANSIENT


async def _unavailable(pool: Pool, error: Exception) -> DatabaseUnavailable:
    if isinstance(error, psycopg.OperationalError):
        # If one connection is dead, others of the pool probably are too: replace the dead ones before the next call.
        await pool.check()
    return DatabaseUnavailable(retry_after_seconds=_RETRY_AFTER_SECONDS)
