"""The log of events: who has one, and how a transaction adds to it.

An organization without events costs its transactions nothing: every process knows who has them.
"""

import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, NamedTuple

from server.postgres.columns import BIGINT, JSONB, TEXT, RowSource, bigints, texts
from server.postgres.pipeline import Executor
from server.postgres.pool import Pool, acquire, retry_transient, transaction
from server.postgres.queries import load_queries

_OVERLAP: Final = timedelta(minutes=1)
"""For switches that were committed late, or by a clock that is behind."""
_KNOWN_SECONDS: Final = 4.0
"""How long a process relies on what it knows of the switches."""


class EventKind(StrEnum):
    """What an event tells; the names are those of the messages in pulsa.event.v1."""

    DELIVERY_CHANGED = "DELIVERY_CHANGED"
    OTP_ENDED = "OTP_ENDED"
    BALANCE_LOW = "BALANCE_LOW"
    BALANCE_RECOVERED = "BALANCE_RECOVERED"
    TOP_UP_CHANGED = "TOP_UP_CHANGED"
    LIMIT_REACHED = "LIMIT_REACHED"


class Event(NamedTuple):
    """A change that is not stored yet."""

    organization_id: str
    kind: EventKind
    details: dict[str, Any]
    """The fields of the kind's message, as JSON; never a destination or a code."""


class _Numbered(NamedTuple):
    organization_id: str
    number: int
    kind: str
    details: str


_NEW_EVENTS: RowSource[_Numbered] = RowSource(organization_id=TEXT, number=BIGINT, kind=TEXT, details=JSONB)
SQL = load_queries(__file__, new_event=_NEW_EVENTS)


async def append_events(connection: Executor, events: Sequence[Event], *, now: datetime) -> None:
    """Store the events of organizations that have them enabled. Call it last in the transaction of the changes.

    Locks the organizations' streams, in their order: a transaction that locked anything else after them could wait for
    another that waits for a stream.
    """
    if not events:
        return
    counts = Counter(event.organization_id for event in events)
    values = {"organization_ids": texts(counts), "counts": bigints(counts.values())}
    taken = await connection.execute(SQL.take_numbers, values)
    await insert_events(
        connection, events, {row[0]: row[1] - counts[row[0]] for row in await taken.fetchall()}, now=now
    )


async def insert_events(
    connection: Executor, events: Sequence[Event], last_numbers: dict[str, int], *, now: datetime
) -> int:
    """Store the events of organizations in `last_numbers`, whose streams are locked; returns how many.

    Counts on the numbers, which the caller has to write.
    """
    numbered: list[_Numbered] = []
    for organization_id, kind, details in events:
        if organization_id in last_numbers:
            last_numbers[organization_id] += 1
            numbered.append(_Numbered(organization_id, last_numbers[organization_id], kind, json.dumps(details)))
    if numbered:
        await _NEW_EVENTS.write(connection, SQL.insert_events, rows=numbered, now=now)
    return len(numbered)


async def enable_events(pool: Pool, organization_id: str, *, now: datetime) -> None:
    """Store the organization's events from now on. A repeat changes nothing.

    Leaves out a number, so that a reader of earlier events learns that some are not stored.
    """

    async def once() -> None:
        async with acquire(pool) as connection:
            await connection.execute(SQL.enable, {"organization_id": organization_id, "now": now})

    await retry_transient(once)


async def disable_events(pool: Pool, organization_id: str, *, now: datetime) -> bool:
    """Store no more events of the organization; returns whether they were on. Those that are stored can be read."""

    async def once() -> bool:
        async with acquire(pool) as connection:
            rows = await connection.execute(SQL.disable, {"organization_id": organization_id, "now": now})
            return bool(await rows.fetchall())

    return await retry_transient(once)


class EventSwitches:
    """Which organizations have events, as this process knows it: so that the others cost no statement."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._on: set[str] = set()
        self._since = datetime.min.replace(tzinfo=UTC)
        self._known_until = 0.0
        """In seconds of time.monotonic()."""

    def may_be_on(self, organization_id: str) -> bool:
        """Whether the organization may have events: `append_events` decides. True when it is not known any more."""
        return organization_id in self._on or time.monotonic() > self._known_until

    @property
    def are_all_off(self) -> bool:
        """Whether no organization had events at the last refresh."""
        return not self._on

    async def refresh(self, now: datetime) -> int:
        """Learn which switches were turned; returns 0, as a job that has nothing to tell."""
        began = time.monotonic()
        async with acquire(self._pool) as connection:
            rows = await (await connection.execute(SQL.find_switched, {"since": self._since})).fetchall()
        self._on.update(row[0] for row in rows if row[1])
        self._on.difference_update(row[0] for row in rows if not row[1])
        self._since = now - _OVERLAP
        self._known_until = began + _KNOWN_SECONDS
        return 0


async def remove_events(pool: Pool, *, before: datetime, limit: int) -> AsyncIterator[int]:
    """Delete events that were created earlier, oldest first, at most `limit` in each step; yields how many.

    Numbers grow with time: each organization's oldest events have its lowest numbers, and no index of times is needed.
    """
    values: dict[str, object] = {"organization_id": "", "before": before, "limit": limit}
    while (organization_id := await _next_stream(pool, values)) is not None:
        values["organization_id"] = organization_id
        while count := await _remove_next(pool, values):
            yield count


async def _next_stream(pool: Pool, after: dict[str, object]) -> str | None:
    async with acquire(pool, seconds=pool.timeouts.job) as connection:
        row = await (await connection.execute(SQL.find_next_stream, after)).fetchone()
    return row[0] if row else None


async def _remove_next(pool: Pool, values: dict[str, object]) -> int:
    async with transaction(pool, seconds=pool.timeouts.job) as connection:
        rows = await (await connection.execute(SQL.find_old_events, values)).fetchall()
        if not rows:
            return 0
        remove = {"organization_id": values["organization_id"], "last_number": rows[-1][0]}
        return (await connection.execute(SQL.remove_events, remove)).rowcount
