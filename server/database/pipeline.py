"""Transactions whose statements travel together: what does not wait for another's rows shares a round trip.

psycopg's own pipeline turns to the socket for each statement. Here libpq is given one after the other, and the socket
is turned to when something is awaited, or when PostgreSQL may already begin: a batch of sends has some twelve
statements and two round trips.
"""

import re
import time
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import count
from typing import Any, Final, Protocol

import psycopg
from psycopg import AsyncConnection, pq
from psycopg.abc import Buffer, PQGen
from psycopg.abc import Transformer as AnyTransformer
from psycopg.adapt import PyFormat, Transformer
from psycopg.waiting import Ready, Wait

from server.database.pause import pause

Row = tuple[Any, ...]

CONTRADICTIONS: Final = (psycopg.errors.UniqueViolation, psycopg.errors.DivisionByZero)
"""What a transaction fails with that presumed something else than there is: a row that there may be once is there, or
an expectation is not met. Those are written as a division by zero, which is how a plain statement stops the others."""

_LOOK_SECONDS: Final = 0.001
"""How long results are looked for in every turn of the event loop, before the loop is left to be woken by them: to be
woken is 5 to 10 % of a lone send. A loop with nothing else to do keeps a processor busy for so long at most."""

_FAILED = (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.PIPELINE_ABORTED)
_PLACEHOLDER = re.compile(r"%\((\w+)\)s")


class Rows(Protocol):
    """What a statement gives."""

    async def fetchall(self) -> list[Row]:
        """All rows, once they are here."""
        ...


class Statements(Protocol):
    """What runs statements: a connection, or a pipeline."""

    async def execute(self, query: str, params: Mapping[str, Any], /) -> Rows:
        """Run the statement, or put it on its way."""
        ...


class PipelineConnection(AsyncConnection[Row]):
    """A connection that knows what its pipelines have prepared on it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.prepared: dict[tuple[bytes, tuple[int, ...]], bytes] = {}
        self.statement_numbers = count()
        self.pipelines = 0
        """How many pipelines it has carried."""
        self.transformer: AnyTransformer = Transformer(self)


class Pipeline:
    """Statements of one transaction on a connection that nobody else uses meanwhile.

    An error surfaces at the next round trip: at a `fetchall`, or at the end. Then there is only `rollback` left.
    """

    def __init__(self, connection: PipelineConnection) -> None:
        self._connection = connection
        self._under_way: list[_Arriving] = []
        self._newly_prepared: list[tuple[bytes, tuple[int, ...]]] = []
        self._commit_is_sent = False
        self.is_refused = False
        """Whether PostgreSQL has refused a statement, and so all that came after it."""

    def begin(self) -> None:
        """Let what follows be one transaction."""
        connection = self._connection
        connection.pgconn.enter_pipeline_mode()
        connection.pipelines += 1
        if connection.pipelines & (connection.pipelines - 1) == 0:
            # Whenever their number has doubled. A plan that was made while a table was empty may read all of it, which
            # is cheap then and ruinous later, and PostgreSQL keeps it until it next analyzes the table.
            self._command(b"DISCARD PLANS")
        self._queue(b"BEGIN")

    def hasten(self) -> None:
        """Let PostgreSQL begin with what is queued, while the next statements are made."""
        self._connection.pgconn.flush()

    def send_commit(self) -> None:
        """Let PostgreSQL do all of it and commit, while the caller does something else. Nothing may be queued then."""
        self._queue(b"COMMIT")
        self._connection.pgconn.pipeline_sync()
        self._connection.pgconn.flush()
        self._commit_is_sent = True

    async def commit(self) -> None:
        """Return once all that was queued is done and committed."""
        if not self._commit_is_sent:
            self.send_commit()
        await self._arrival()
        self._connection.pgconn.exit_pipeline_mode()

    async def rollback(self) -> None:
        """Undo all of it, once a statement was refused."""
        self._command(b"ROLLBACK")
        await self.round_trip()
        self._connection.pgconn.exit_pipeline_mode()

    async def execute(self, query: str, params: Mapping[str, Any], /) -> Rows:
        """Queue a statement."""
        transformer = self._connection.transformer
        text, names = _numbered(query)
        values = transformer.dump_sequence([params[name] for name in names], [PyFormat.AUTO] * len(names))
        return self._queue(text, transformer.types or (), values, transformer.formats)

    async def round_trip(self) -> None:
        """Wait for what was queued. Raises the error of the first statement that failed; the later ones did not run."""
        self._connection.pgconn.pipeline_sync()
        await self._arrival()

    async def _arrival(self) -> None:
        await self._look_out()
        results = await self._connection.wait(_results(self._connection.pgconn))
        under_way, self._under_way = self._under_way, []
        newly_prepared, self._newly_prepared = self._newly_prepared, []
        for arriving, result in zip(under_way, results, strict=True):
            if result.status in _FAILED:
                self.is_refused = True
                for statement in newly_prepared:  # some of them came after it
                    del self._connection.prepared[statement]
                raise psycopg.errors.error_from_result(result)
            arriving.result = result

    async def _look_out(self) -> None:
        """Return when there are results, or none for a while."""
        pgconn, end = self._connection.pgconn, time.monotonic() + _LOOK_SECONDS
        if pgconn.flush():  # not all has left yet
            return
        while pgconn.is_busy() and time.monotonic() < end:
            await pause()
            pgconn.consume_input()

    def _queue(
        self,
        text: bytes,
        types: tuple[int, ...] = (),
        values: Sequence[Buffer | None] | None = None,
        formats: Sequence[pq.Format] | None = None,
    ) -> "_Arriving":
        """Queue a statement that the connection keeps prepared; to parse BEGIN and COMMIT took 2 % of a lone send."""
        pgconn, prepared = self._connection.pgconn, self._connection.prepared
        name = prepared.get((text, types))
        if name is None:
            name = b"%s_%d" % (text if values is None else b"pulsa", next(self._connection.statement_numbers))
            prepared[text, types] = name
            self._newly_prepared.append((text, types))
            pgconn.send_prepare(name, text, types)
            self._arriving()
        pgconn.send_query_prepared(name, values, formats, pq.Format.BINARY)
        return self._arriving()

    def _command(self, text: bytes) -> None:
        """Queue what is too rare to be kept prepared."""
        self._connection.pgconn.send_query_params(text, None)
        self._arriving()

    def _arriving(self) -> "_Arriving":
        arriving = _Arriving(self, self._connection.transformer)
        self._under_way.append(arriving)
        return arriving


class _Arriving:
    """The rows of a statement that is under way."""

    __slots__ = ("_pipeline", "_transformer", "result")

    def __init__(self, pipeline: Pipeline, transformer: AnyTransformer) -> None:
        self._pipeline = pipeline
        self._transformer = transformer
        self.result: pq.abc.PGresult | None = None

    async def fetchall(self) -> list[Row]:
        if self.result is None:
            await self._pipeline.round_trip()
        assert self.result is not None  # noqa: S101 - a round trip brings the result of all that was queued
        self._transformer.set_pgresult(self.result)
        return self._transformer.load_rows(0, self.result.ntuples, tuple)


def _results(pgconn: pq.abc.PGconn) -> PQGen[list[pq.abc.PGresult]]:
    """Send what is queued, up to a sync, and take in the result of each statement."""
    while pgconn.flush():
        if (yield Wait.RW) & Ready.R:
            pgconn.consume_input()
    results: list[pq.abc.PGresult] = []
    while True:
        while pgconn.is_busy():
            yield Wait.R
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:  # between the results of two statements, or for ever
            if pgconn.status == pq.ConnStatus.BAD:
                raise psycopg.OperationalError("the connection is lost")
            continue
        if result.status == pq.ExecStatus.PIPELINE_SYNC:
            return results
        results.append(result)


@cache
def _numbered(query: str) -> tuple[bytes, list[str]]:
    """The query with $1, $2, … for its named parameters, as PostgreSQL itself has them, and their names."""
    names = list(dict.fromkeys(_PLACEHOLDER.findall(query)))
    return _PLACEHOLDER.sub(lambda match: f"${names.index(match[1]) + 1}", query).encode(), names
