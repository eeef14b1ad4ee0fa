"""Pipelines: a transaction's statements are queued, and those that need no other's rows share a round trip.

psycopg's own pipeline uses the socket for each statement. This one queues statements in libpq and uses the socket only
when a result is awaited, or on `flush`, so that PostgreSQL starts early. A batch of sends has about twelve statements
and two round trips.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import count
from typing import Any, NamedTuple, Protocol

import psycopg
from psycopg import AsyncConnection, pq
from psycopg.abc import Buffer, PQGen
from psycopg.abc import Transformer as AnyTransformer
from psycopg.adapt import AdaptersMap, PyFormat, Transformer
from psycopg.waiting import Ready, Wait

Row = tuple[Any, ...]

_FAILED = (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.PIPELINE_ABORTED)
_PLACEHOLDER = re.compile(r"%\((\w+)\)s")


class Rows(Protocol):
    """The result of a statement."""

    async def fetchall(self) -> list[Row]:
        """Wait for the result; returns all rows."""
        ...


class Executor(Protocol):
    """Runs statements: a connection, or a pipeline."""

    async def execute(self, query: str, params: Mapping[str, Any], /) -> Rows:
        """Run the statement (a connection), or queue it (a pipeline)."""
        ...


class _OwnTypes(NamedTuple):
    """The context of a connection's transformer, without the connection.

    With it, each would keep the other when the connection is lost, until the garbage collector finds them: for hours,
    as a process without many calls seldom looks at its old objects. Texts are UTF-8 and times in UTC without it.
    """

    adapters: AdaptersMap
    connection: None = None


class PipelineConnection(AsyncConnection[Row]):
    """A connection that remembers the statements that its pipelines have prepared."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.prepared: dict[tuple[bytes, tuple[int, ...]], bytes] = {}
        """The names of prepared statements, by text and parameter types."""
        self.statement_numbers = count()
        self.pipelines = 0
        """The number of pipelines that have run on this connection."""
        self.transformer: AnyTransformer = Transformer(_OwnTypes(self.adapters))
        self.set_local = ""
        """A statement with which every transaction begins, on Citus: it sets on the workers what it sets here."""


class Pipeline:
    """The executor of one transaction, on a connection that it uses exclusively.

    The error of a statement is raised at the next round trip: by `fetchall` or by `commit`. After it only `rollback` is
    allowed.
    """

    def __init__(self, connection: PipelineConnection) -> None:
        self._connection = connection
        self._pending: list[_PendingResult] = []
        self._newly_prepared: list[tuple[bytes, tuple[int, ...]]] = []
        self.has_failed = False
        """Whether a statement has failed; PostgreSQL then skips the statements after it."""
        self.is_done = False
        """Whether the transaction has ended, so that the connection can be used for another one."""

    def begin(self, *, alone: bool = False) -> None:
        """Start the transaction; without BEGIN for a statement that is `alone`."""
        connection = self._connection
        connection.pgconn.enter_pipeline_mode()
        connection.pipelines += 1
        if connection.pipelines & (connection.pipelines - 1) == 0:
            # Each time the number has doubled: at 1, 2, 4, … A plan that was made for an empty table may read the whole
            # table, which becomes expensive as it grows. PostgreSQL keeps the plan until it next analyzes the table.
            self._command(b"DISCARD PLANS")
        if not alone:
            self._queue(b"BEGIN")
            if connection.set_local:
                self._queue(connection.set_local.encode())

    def flush(self) -> None:
        """Send the queued statements, so that PostgreSQL starts them while the caller queues more."""
        self._connection.pgconn.flush()

    async def commit(self, *, alone: bool = False) -> None:
        """Wait until all queued statements are done and committed. Raises the first one's error that failed."""
        if not alone:
            self._queue(b"COMMIT")
        await self.round_trip()
        self._connection.pgconn.exit_pipeline_mode()
        self.is_done = True

    async def rollback(self) -> None:
        """Roll back the transaction after a failed statement."""
        self._command(b"ROLLBACK")
        await self.round_trip()
        self._connection.pgconn.exit_pipeline_mode()
        self.is_done = True

    async def execute(self, query: str, params: Mapping[str, Any], /) -> Rows:
        """Queue a statement with its named parameters."""
        transformer = self._connection.transformer
        text, names = _numbered(query)
        values = transformer.dump_sequence([params[name] for name in names], [PyFormat.AUTO] * len(names))
        return self._queue(text, transformer.types or (), values, transformer.formats)

    async def round_trip(self) -> None:
        """Wait for the queued statements. Raises the error of the first failed one; PostgreSQL skips those after it."""
        self._connection.pgconn.pipeline_sync()
        pending, self._pending = self._pending, []
        newly_prepared, self._newly_prepared = self._newly_prepared, []
        results = await self._connection.wait(_results(self._connection.pgconn))
        for pending_result, result in zip(pending, results, strict=True):
            if result.status in _FAILED:
                self.has_failed = True
                for statement in newly_prepared:  # those after the failed one were not prepared
                    del self._connection.prepared[statement]
                raise psycopg.errors.error_from_result(result)
            pending_result.result = result

    def _queue(
        self,
        text: bytes,
        types: tuple[int, ...] = (),
        values: Sequence[Buffer | None] | None = None,
        formats: Sequence[pq.Format] | None = None,
    ) -> "_PendingResult":
        """Queue a statement, prepared on first use. Also BEGIN and COMMIT: parsing them took 2 % of a lone send."""
        pgconn, prepared = self._connection.pgconn, self._connection.prepared
        name = prepared.get((text, types))
        if name is None:
            name = b"%s_%d" % (text if values is None else b"pulsa", next(self._connection.statement_numbers))
            prepared[text, types] = name
            self._newly_prepared.append((text, types))
            pgconn.send_prepare(name, text, types)
            self._expect_result()
        pgconn.send_query_prepared(name, values, formats, pq.Format.BINARY)
        return self._expect_result()

    def _command(self, text: bytes) -> None:
        """Queue a statement that is too rare to be worth preparing."""
        self._connection.pgconn.send_query_params(text, None)
        self._expect_result()

    def _expect_result(self) -> "_PendingResult":
        pending_result = _PendingResult(self, self._connection.transformer)
        self._pending.append(pending_result)
        return pending_result


class _PendingResult:
    """The rows of a queued statement."""

    __slots__ = ("_pipeline", "_transformer", "result")

    def __init__(self, pipeline: Pipeline, transformer: AnyTransformer) -> None:
        self._pipeline = pipeline
        self._transformer = transformer
        self.result: pq.abc.PGresult | None = None

    async def fetchall(self) -> list[Row]:
        if self.result is None:
            await self._pipeline.round_trip()
        assert self.result is not None  # noqa: S101 - a round trip sets the result of every queued statement
        self._transformer.set_pgresult(self.result)
        return self._transformer.load_rows(0, self.result.ntuples, tuple)


def _results(pgconn: pq.abc.PGconn) -> PQGen[list[pq.abc.PGresult]]:
    """Send the queued statements up to a sync, and receive the result of each."""
    while pgconn.flush():
        if (yield Wait.RW) & Ready.R:
            pgconn.consume_input()
    results: list[pq.abc.PGresult] = []
    while True:
        while pgconn.is_busy():
            yield Wait.R
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:  # between the results of two statements, and always on a lost connection
            if pgconn.status == pq.ConnStatus.BAD:
                raise psycopg.OperationalError("the connection is lost")
            continue
        if result.status == pq.ExecStatus.PIPELINE_SYNC:
            return results
        results.append(result)


@cache
def _numbered(query: str) -> tuple[bytes, list[str]]:
    """Replace named parameters by PostgreSQL's own $1, $2, …; returns the query and the names in that order."""
    names = list(dict.fromkeys(_PLACEHOLDER.findall(query)))
    return _PLACEHOLDER.sub(lambda match: f"${names.index(match[1]) + 1}", query).encode(), names
