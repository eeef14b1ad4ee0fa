"""Connections to PostgreSQL, and what becomes of a call when there are none."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import chain
from typing import TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from server.database.arrays import register_arrays
from server.database.pipeline import Pipeline, PipelineConnection, Row
from server.errors import DatabaseUnavailable

Result = TypeVar("Result")
Connection = AsyncConnection[Row]

APPLICATION_ROLE = "pulsa_application"
"""What the server may do: everything it needs, and no change or removal of a ledger entry. See migrate.py."""

# A pipeline's plans are made once and kept for a while, maybe since the tables were empty: reading a whole table is
# cheap then and ruinous later. Every statement of the server finds its rows by key, so only such plans are allowed.
_PLANNING = {
    "plan_cache_mode": "force_generic_plan",  # a tiny batch with a plan of its own costs three times as much
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
_RETRY_AFTER_SECONDS = 1.0
_ATTEMPTS = 4
# 40001 serialization failure, 40P01 deadlock, 57P01..57P03 the server goes down or comes up; 08… a lost connection.
_TRANSIENT = ("40001", "40P01", "57P01", "57P02", "57P03")


class Pool(AsyncConnectionPool[PipelineConnection]):
    """psycopg's pool, with the connection that came back last at hand for whoever asks next, unless somebody waits.

    To take one out of psycopg's queue and put it back is 6 % of a lone send.
    """

    seconds_at_hand = 1.0
    """How often one goes to the end of psycopg's queue all the same: so none lies idle, or gets older than an hour."""
    _at_hand: PipelineConnection | None = None
    _asking = 0
    _turn_time = 0.0

    async def getconn(self, timeout: float | None = None) -> PipelineConnection:  # noqa: ASYNC109 - psycopg's
        """As psycopg's."""
        lent, self._at_hand = self._at_hand, None
        if lent is not None:
            return lent
        self._asking += 1
        try:
            return await super().getconn(timeout)
        finally:
            self._asking -= 1

    async def putconn(self, conn: PipelineConnection) -> None:
        """As psycopg's, which replaces a connection that is broken."""
        now = time.monotonic()
        is_whole = conn.pgconn.transaction_status == TransactionStatus.IDLE
        if is_whole and now < self._turn_time and not (self._at_hand or self._asking or self.closed):
            self._at_hand = conn
            return
        if now >= self._turn_time:
            self._turn_time = now + self.seconds_at_hand
        await super().putconn(conn)

    async def check(self) -> None:
        """As psycopg's."""
        await self._put_away()
        await super().check()

    async def close(self, timeout: float = 5.0) -> None:  # noqa: ASYNC109 - psycopg's
        """As psycopg's."""
        await super().close(timeout)
        await self._put_away()

    async def _put_away(self) -> None:
        lent, self._at_hand = self._at_hand, None
        if lent is not None:
            await super().putconn(lent)


async def open_pool(url: str, *, size: int, timeout_seconds: float, role: str = APPLICATION_ROLE) -> Pool:
    """A pool of `size` connections that act as `role`. Waits at most timeout_seconds for each connection it lends.

    Does not wait for the database: a server that starts during an outage answers DATABASE_UNAVAILABLE until it is over.
    """

    async def configure(connection: Connection) -> None:
        register_arrays(connection)
        settings = {"role": role, "jit": "off", **_PLANNING}
        await connection.execute(
            f"SELECT {', '.join(['set_config(%s, %s, false)'] * len(settings))}", list(chain(*settings.items()))
        )

    pool = Pool(
        url,
        connection_class=PipelineConnection,
        # psycopg prepares nothing, as at any rollback it would drop what pipelines have prepared.
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
    """A connection inside BEGIN … COMMIT; rolled back when the block raises.

    Raises DatabaseUnavailable when there is no connection or it breaks. The transaction may then have been
    committed all the same: only an idempotent caller may repeat it.
    """
    try:
        async with pool.connection() as connection, connection.transaction():
            yield connection
    except (PoolTimeout, psycopg.OperationalError) as error:
        raise await _unavailable(pool, error) from error


@asynccontextmanager
async def pipelined_transaction(pool: Pool) -> AsyncIterator[Pipeline]:
    """As `transaction`, with its statements sent without waiting for each other's results: see Pipeline.

    BEGIN leaves with the first statements and COMMIT with the last.
    """
    try:
        lent = await pool.getconn()
        pipeline = Pipeline(lent)
        try:
            pipeline.begin()
            yield pipeline
            await pipeline.commit()
        except BaseException:
            if pipeline.is_refused:
                await pipeline.rollback()
            else:
                # PostgreSQL rolls back for a caller that leaves, and the pool opens another connection.
                await lent.close()
            raise
        finally:
            await pool.putconn(lent)
    except (PoolTimeout, psycopg.OperationalError) as error:
        raise await _unavailable(pool, error) from error


@asynccontextmanager
async def connection(pool: Pool) -> AsyncIterator[Connection]:
    """A connection whose statements each commit alone. Raises DatabaseUnavailable as `transaction` does."""
    try:
        async with pool.connection() as lent:
            yield lent
    except (PoolTimeout, psycopg.OperationalError) as error:
        raise await _unavailable(pool, error) from error


async def allow_all_plans(connection: Connection) -> None:
    """Let the rest of this transaction read whole tables, each statement planned for its values: for audits."""
    for name in _PLANNING:
        value = "force_custom_plan" if name == "plan_cache_mode" else "on"
        await connection.execute("SELECT set_config(%s, %s, true)", [name, value])


async def repeat_transient(work: Callable[[], Awaitable[Result]]) -> Result:
    """Run idempotent work again, up to 4 times, when PostgreSQL asks for it or the connection was lost."""
    try:
        return await work()  # outside of tenacity, which makes some 25 objects that only the collector frees
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
        # One dead connection means that its neighbours are dead as well: replace them all before the next call asks.
        await pool.check()
    return DatabaseUnavailable(retry_after_seconds=_RETRY_AFTER_SECONDS)
