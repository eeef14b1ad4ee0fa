"""The connection pool, and the ways to use it: a single connection, a transaction, a pipelined transaction.

Every wait is bounded: for a connection, for a lock, a statement and an idle transaction by PostgreSQL, and the use of a
connection as a whole. A connection that does not answer in time is closed. While the database cannot be reached, calls
fail at once with DatabaseUnavailable, and a task looks for it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, Self, TypeVar

import psycopg
import structlog
from prometheus_client import Gauge
from psycopg import AsyncConnection
from psycopg.abc import PQGen
from psycopg.waiting import wait_async
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from server.background import until_done
from server.clock import DatabaseClock
from server.errors import AccountBusy, DatabaseUnavailable
from server.postgres.columns import register_types
from server.postgres.conninfo import Timeouts, address_of, each_host, milliseconds, with_timeouts
from server.postgres.pipeline import Pipeline, PipelineConnection, Row
from server.postgres.queries import Queries
from server.postgres.sessions import set_up_session
from server.postgres.shards import READ_HASHES, ShardMap
from server.postgres.sqlstates import meaning_of
from server.traces import POSTGRESQL, child_span

Result = TypeVar("Result")
Connection = AsyncConnection[Row]
OnConnect = Callable[[Connection], Awaitable[None]]

APPLICATION_ROLE: Final = "pulsa_application"
"""The role of the server's connections: it may not change or delete a ledger entry. migrate.py grants its rights."""
AVAILABLE: Final = Gauge(
    "pulsa_database_available",
    "1 while the database can be reached, 0 otherwise; with several workers, 0 when one of them cannot.",
    multiprocess_mode="livemin",
)

_RETRY_AFTER_SECONDS: Final = 1.0
_ATTEMPTS: Final = 4
_PROBE_SECONDS: Final = 0.25
"""Between two probes of a database that cannot be reached."""
_SUSPICION_SECONDS: Final = 1.5
"""A lost connection is no outage when another can be opened within this time."""
_SILENT_SUSPICION_SECONDS: Final = 0.3
"""As _SUSPICION_SECONDS, after a caller has waited in vain for an answer."""
_INTERVAL: Final = 0.1
"""psycopg's own: how often a wait looks whether it was interrupted, in seconds."""

_log = structlog.get_logger(__name__)


class BoundedConnection(PipelineConnection):
    """A connection that a time-out ends at once."""

    @classmethod
    async def connect(cls, conninfo: str = "", **options: Any) -> Self:
        """As psycopg's. After a time-out or a cancellation the socket is closed at once."""
        try:
            return await super().connect(conninfo, **options)
        except (psycopg.Error, asyncio.CancelledError) as error:
            # Its traceback would keep the socket until the garbage collector finds it: one more with every attempt.
            raise error.with_traceback(None) from None

    async def wait(self, gen: PQGen[Result], interval: float = _INTERVAL, timeout: float | None = None) -> Result:  # noqa: ASYNC109 - psycopg's signature
        """Wait for PostgreSQL. A cancelled caller closes the connection.

        psycopg would ask PostgreSQL to cancel the statement, and wait up to 10 seconds for a host that may be gone.
        """
        try:
            return await wait_async(gen, self.pgconn.socket, interval=interval, timeout=timeout)
        except asyncio.CancelledError:
            self.pgconn.finish()
            raise


class Pool:
    """Connections that act as one role.

    When a connection is lost, or does not answer in time, a task probes the database. As soon as the database takes
    writes, all connections are replaced, as the others are probably dead too. A URL may name several hosts: the
    connections go to the one that takes writes. With `read_only` they take none, and any host will do.
    """

    def __init__(
        self,
        url: str,
        *,
        size: int,
        timeouts: Timeouts,
        role: str,
        clock: DatabaseClock,
        read_only: bool = False,
        on_connect: OnConnect | None = None,
        is_entry: bool = False,
    ) -> None:
        """`is_entry`: of a further entry node, whose loss is no outage."""
        self.conninfo = with_timeouts(url, timeouts)
        self.clock = clock
        """The database's time; measured on every new connection, before its first use."""
        self.max_size = size
        self.timeouts = timeouts
        self.shards = ShardMap(self._read_hashes)
        """Where organizations live; read on every new connection."""
        self.entries: Sequence[Pool] = ()
        """Further entry nodes of a Citus cluster, for the transactions of one shard."""
        self.is_available = True
        """False while the database cannot be reached: every call fails at once then."""
        self.on_change: Callable[[bool], object] = lambda _: None
        """Called with the new value when `is_available` changes."""
        self._role = role
        self._read_only = read_only
        self._on_connect = on_connect
        self._is_entry = is_entry
        self._pool = self._new_pool(self.conninfo)
        self._probing: asyncio.Task[None] | None = None
        self._is_decided = asyncio.Event()
        """Set while no probe runs, and once the running one has found the database, or has declared an outage."""
        self._is_decided.set()
        self._holds_calls = False
        """Whether calls wait for the running probe: at the start, and after a time-out."""
        self._is_read_only = False
        """Whether a refused write is among them: then reads that succeed prove nothing."""
        self.last_success = 0.0
        """When a connection was last used without an error: time.monotonic()."""
        self._closing: set[asyncio.Task[None]] = set()

    def now(self) -> datetime:
        """The database's time, in UTC, as `clock` tells it: written out, as each rpc asks several times."""
        clock = self.clock
        return clock.boot + timedelta(0, 0, clock.since_boot() // 1000)

    async def open(self) -> None:
        """Start to connect, without waiting for the database."""
        await self._pool.open(wait=False)
        if not self._is_entry:
            AVAILABLE.set(1)
        self._holds_calls = True
        self._probe(replace=False, suspicion_seconds=self.timeouts.connection)

    async def close(self) -> None:
        """Close every connection."""
        if self._probing is not None:
            self._probing.cancel()
        await asyncio.gather(self._pool.close(), *self._closing, *(entry.close() for entry in self.entries))

    def near(self, organization_id: str) -> "Pool":
        """The entry node for an organization's transaction: its worker, or one of the others; without entries this."""
        shard = self.shards.locate(organization_id) if self.entries else None
        entries = [entry for entry in self.entries if entry.is_available]
        if shard is None or not entries:
            return self
        own = [entry for entry in entries if address_of(entry.conninfo) == (shard.host, shard.port)]
        return own[0] if own else entries[shard.shard_id % len(entries)]

    async def getconn(self) -> BoundedConnection:
        """A connection, which goes back with `putconn`. Raises DatabaseUnavailable while the database is away."""
        if self._holds_calls and not self._is_decided.is_set():
            await self._is_decided.wait()
        if not self.is_available:
            raise DatabaseUnavailable(retry_after_seconds=_RETRY_AFTER_SECONDS)
        return await self._pool.getconn(timeout=self.timeouts.connection)

    async def putconn(self, connection: BoundedConnection) -> None:
        """Take a connection back; a closed one is replaced."""
        pool: AsyncConnectionPool[BoundedConnection] = connection._pool  # type: ignore[assignment]  # noqa: SLF001
        await pool.putconn(connection)

    def get_stats(self) -> dict[str, int]:
        """The statistics of psycopg's pool."""
        return self._pool.get_stats()

    async def recover(self, error: BaseException) -> None:
        """Probe the database after an error; returns when it is there, or when an outage is certain."""
        silent = isinstance(error, TimeoutError | PoolTimeout)
        self._holds_calls = self._holds_calls or silent
        self._is_read_only = self._is_read_only or isinstance(error, psycopg.errors.ReadOnlySqlTransaction)
        self._probe(
            replace=meaning_of(error).lost,
            suspicion_seconds=_SILENT_SUSPICION_SECONDS if silent else _SUSPICION_SECONDS,
        )
        await self._is_decided.wait()

    def _probe(self, *, replace: bool, suspicion_seconds: float) -> None:
        if self._probing is None:
            self._is_decided.clear()
            self._probing = asyncio.create_task(
                self._probe_until_found(replace=replace, suspicion_seconds=suspicion_seconds)
            )

    async def _probe_until_found(self, *, replace: bool, suspicion_seconds: float) -> None:
        began, loop = time.monotonic(), asyncio.get_running_loop()
        lost = loop.call_later(suspicion_seconds, self._lose, began)

        async def probe() -> None:
            while (conninfo := await self._find_primary()) is None:
                if self.is_available and self._works_since(began):
                    return  # only the probe finds no place, for example as PostgreSQL has too many connections
                await asyncio.sleep(_PROBE_SECONDS)
            if replace or not self.is_available or conninfo != self._pool.conninfo:
                await self._replace(conninfo)
            self._set_available(available=True)

        try:
            await until_done("database probe", probe, pause_seconds=_PROBE_SECONDS)
        finally:
            lost.cancel()
            self._probing, self._holds_calls, self._is_read_only = None, False, False
            self._is_decided.set()

    async def _find_primary(self) -> str | None:
        """The URL of the first host to answer that it takes writes; None when none does. All are asked at once."""
        probes = [asyncio.create_task(self._takes_writes(conninfo)) for conninfo in each_host(self.conninfo)]
        try:
            for probe in asyncio.as_completed(probes):
                if (conninfo := await probe) is not None:
                    return conninfo
            return None
        finally:
            for task in probes:
                task.cancel()

    async def _takes_writes(self, conninfo: str) -> str | None:
        """The URL when its host takes writes, otherwise None."""
        try:
            async with asyncio.timeout(self.timeouts.connection):
                connection = await BoundedConnection.connect(conninfo, autocommit=True)
                try:
                    rows = await connection.execute("SHOW transaction_read_only")
                    return conninfo if await rows.fetchone() == ("off",) or self._read_only else None
                finally:
                    await connection.close()
        except (psycopg.Error, TimeoutError):
            return None

    async def _replace(self, conninfo: str) -> None:
        """Open new connections to the host and close the idle old ones; those in use are closed when they come back."""
        old, self._pool = self._pool, self._new_pool(conninfo)
        await self._pool.open(wait=False)
        closing = asyncio.create_task(old.close(timeout=0))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _lose(self, began: float) -> None:
        """Declare an outage, unless a connection has worked since the probe began."""
        self._is_decided.set()
        if not self._works_since(began):
            self._set_available(available=False)

    def _works_since(self, began: float) -> bool:
        return self.last_success > began and not self._is_read_only

    def _set_available(self, *, available: bool) -> None:
        self._is_decided.set()
        if available is self.is_available:
            return
        self.is_available = available
        if self._is_entry:
            host, port = address_of(self.conninfo)
            _log.warning(
                "an entry node was found again" if available else "an entry node was lost", host=host, port=port
            )
            return
        AVAILABLE.set(available)
        self.on_change(available)
        if available:
            _log.warning("the database was found again")
        else:
            _log.error("the database was lost")

    def _new_pool(self, conninfo: str) -> AsyncConnectionPool[BoundedConnection]:
        return AsyncConnectionPool(
            conninfo,
            connection_class=BoundedConnection,
            # psycopg prepares no statements itself: on every rollback it would drop those that pipelines have prepared.
            kwargs={"autocommit": True, "prepare_threshold": None},
            min_size=self.max_size,
            max_size=self.max_size,
            timeout=self.timeouts.connection,
            reconnect_timeout=self.timeouts.connection,
            configure=self._configure,
            open=False,
        )

    async def _read_hashes(self, organization_ids: Sequence[str]) -> list[Row]:
        async with acquire(self) as connection:
            return await (await connection.execute(READ_HASHES, [organization_ids])).fetchall()

    async def _configure(self, connection: BoundedConnection) -> None:
        register_types(connection)
        settings = {
            "role": self._role,
            "lock_timeout": milliseconds(self.timeouts.lock),
            "statement_timeout": milliseconds(self.timeouts.job),
            "idle_in_transaction_session_timeout": milliseconds(self.timeouts.idle_in_transaction),
        }
        if self._read_only:
            settings["default_transaction_read_only"] = "on"
        if await set_up_session(connection, settings):
            await self.shards.read(connection)
        Queries.use_shards(name_shards=self.shards.is_distributed)
        await self.clock.measure(partial(read_time, connection))
        if self._on_connect:
            await self._on_connect(connection)


async def open_pool(
    url: str,
    *,
    size: int,
    timeouts: Timeouts | None = None,
    role: str = APPLICATION_ROLE,
    read_only: bool = False,
    clock: DatabaseClock | None = None,
    on_connect: OnConnect | None = None,
    entry_urls: Sequence[str] = (),
) -> Pool:
    """Open a pool of `size` connections that act as `role`, and with `read_only` may not write; and of each entry node.

    `clock` learns the database's time; None: a new one. `on_connect` runs on each new connection before its first use.
    Does not wait for the database: a server that starts during an outage answers DATABASE_UNAVAILABLE until it ends.
    """
    pool = Pool(
        url,
        size=size,
        timeouts=timeouts or Timeouts(),
        role=role,
        clock=clock or DatabaseClock(),
        read_only=read_only,
        on_connect=on_connect,
    )
    await pool.open()
    pool.entries = [
        Pool(entry, size=size, timeouts=pool.timeouts, role=role, clock=DatabaseClock(), is_entry=True)
        for entry in entry_urls
    ]
    await asyncio.gather(*(entry.open() for entry in pool.entries))
    return pool


@asynccontextmanager
async def transaction(pool: Pool, *, seconds: float | None = None) -> AsyncIterator[BoundedConnection]:
    """Acquire a connection and run the block in a transaction; roll back when the block raises.

    Raises AccountBusy and DatabaseUnavailable as `acquire` does. After a lost connection the transaction may have been
    committed: only an idempotent caller may repeat it.
    """
    async with acquire(pool, seconds=seconds) as connection, connection.transaction():
        if connection.set_local:
            await connection.execute(connection.set_local)
        yield connection


@asynccontextmanager
async def acquire(pool: Pool, *, seconds: float | None = None) -> AsyncIterator[BoundedConnection]:
    """Acquire a connection whose statements commit one by one, for at most `seconds`: by default a call's time.

    Raises AccountBusy for a row that stayed locked, and DatabaseUnavailable when there is no connection, or it is lost
    or takes longer.
    """
    async with _translated_errors(pool):
        connection = await pool.getconn()
        try:
            async with asyncio.timeout(seconds or pool.timeouts.transaction):
                yield connection
            pool.last_success = time.monotonic()
        finally:
            await pool.putconn(connection)


async def execute_alone(pool: Pool, query: str, values: Mapping[str, Any]) -> list[Row]:
    """Run one statement, which is a transaction by itself, and return its rows. Raises as `transaction` does."""
    async with pipelined_transaction(pool, alone=True) as pipeline:
        result = await pipeline.execute(query, values)
    return await result.fetchall()


@asynccontextmanager
async def pipelined_transaction(pool: Pool, *, near: str | None = None, alone: bool = False) -> AsyncIterator[Pipeline]:
    """Run the block in a pipelined transaction: see Pipeline. Raises as `transaction` does.

    `near` is one of its organizations, which are of one shard: through the entry node of that.

    BEGIN is sent with the first statements and COMMIT with the last; neither for a statement that is `alone`.
    """
    if near is not None:
        pool = pool.near(near)
    async with _translated_errors(pool):
        connection = await pool.getconn()
        pipeline = Pipeline(connection)
        try:
            async with asyncio.timeout(pool.timeouts.transaction):
                try:
                    pipeline.begin(alone=alone)
                    yield pipeline
                    await pipeline.commit(alone=alone)
                    pool.last_success = time.monotonic()
                except BaseException:
                    if pipeline.has_failed:
                        await pipeline.rollback()
                    raise
        except BaseException:
            if not pipeline.is_done:
                # For example a cancelled caller, which does not wait for a rollback. PostgreSQL rolls back when the
                # connection closes, and the pool opens another one.
                await connection.close()
            raise
        finally:
            await pool.putconn(connection)


async def read_time(connection: Connection) -> datetime:
    """The database's time at this statement, in UTC."""
    row = await (await connection.execute("SELECT clock_timestamp()")).fetchone()
    assert row is not None  # noqa: S101 - the query returns one row
    time_read: datetime = row[0]
    return time_read.astimezone(UTC)


async def refresh_shards(pool: Pool) -> int:
    """Read the shards once more, as they may have moved; returns 0, as a periodic job without items."""
    if pool.shards.is_distributed:
        async with acquire(pool) as connection:
            await pool.shards.read(connection)
    return 0


async def measure_clock(pool: Pool) -> int:
    """Let the pool's clock learn the database's time once more; returns 0, as a periodic job without items."""
    async with acquire(pool) as connection:
        await pool.clock.measure(partial(read_time, connection))
    return 0


async def run_idempotent(
    pool: Pool, work: Callable[[Connection], Awaitable[Result]], *, seconds: float | None = None
) -> Result:
    """Run idempotent work, such as a read, on a connection of `acquire`, and repeat it as `retry_transient` does."""

    async def once() -> Result:
        async with acquire(pool, seconds=seconds) as connection:
            return await work(connection)

    return await retry_transient(once)


async def retry_transient(work: Callable[[], Awaitable[Result]]) -> Result:
    """Run idempotent work, at most 4 times in all, while it fails with an error that sqlstates.py says to repeat."""
    try:
        return await work()  # without tenacity, which creates about 25 objects that only the garbage collector frees
    except (DatabaseUnavailable, psycopg.Error) as error:
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
    return cause is not None and meaning_of(cause).repeat


@asynccontextmanager
async def _translated_errors(pool: Pool) -> AsyncIterator[None]:
    """Turn an error of the database into what the caller hears; see sqlstates.py. The block is traced."""
    try:
        with child_span("database", POSTGRESQL):
            yield
    except psycopg.errors.LockNotAvailable as error:
        raise AccountBusy(retry_after_seconds=_RETRY_AFTER_SECONDS) from error
    except (TimeoutError, psycopg.Error) as error:
        meaning = meaning_of(error)
        if not meaning.unavailable:
            raise
        if meaning.probe:
            await pool.recover(error)
        raise DatabaseUnavailable(retry_after_seconds=_RETRY_AFTER_SECONDS) from error
