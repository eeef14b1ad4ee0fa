"""Expired OTPs: an event for each OTP whose time passed without its code, in organizations that have events.

Nothing is written when an OTP expires: its status is PENDING, and its expire_time has passed. So the OTPs of the last
minutes are read, which their ids find, as they are ordered by time.

One statement finds what has expired in all organizations, and a transaction writes the events of hundreds of OTPs. An
organization in which nothing expires is only looked at by that statement, and written every other minute.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from server.errors import AccountBusy
from server.events.log import EventSwitches, insert_events
from server.ids import first_id
from server.otps.otp import OtpKey, OtpStatus
from server.otps.otp_events import otp_ended
from server.postgres.columns import bigints, texts, times, uuids
from server.postgres.pipeline import Executor, Rows
from server.postgres.pool import Pool, pipelined_transaction
from server.postgres.queries import load_queries
from server.postgres.workers import find_everywhere

_LONGEST_LIFE: Final = timedelta(minutes=11)
"""From the making of an OTP's id to its end: the longest SendOtpRequest.ttl, and the wait for a locked account."""
_SETTLED: Final = timedelta(seconds=5)
"""After its end a code is refused by every replica, whose estimates of the time differ."""
_BEHIND: Final = timedelta(minutes=2)
"""For so long nothing is written of an organization in which nothing expires: its OTPs of so long are read again."""
_MOST_FOUND: Final = 10_000
"""OTPs, or organizations, that are found at once."""
_MOST_WRITTEN: Final = 200
"""OTPs, or organizations, of one transaction, and those that expired at the same time as its last."""


class _Expired(NamedTuple):
    organization_id: str
    since: datetime
    """What expired until then has its events."""
    expire_time: datetime
    otp_id: UUID


class _Span(NamedTuple):
    """What expired in an organization after `since`, until `until`."""

    organization_id: str
    since: datetime
    until: datetime
    otp_ids: Sequence[UUID]


SQL = load_queries(__file__)


async def tell_expired(pool: Pool, switches: EventSwitches, *, now: datetime) -> int:
    """Write the events of OTPs that have expired; returns how many. Each OTP has one, whichever replica writes it."""
    if switches.are_all_off:
        return 0
    told, until = 0, now - _SETTLED
    busy: dict[str, AccountBusy] = {}
    """The organizations of which a row stayed locked: the next run finds what they have not told."""
    while True:
        behind = await _find_behind(pool, until - _BEHIND, without=busy)
        oldest = min(behind.values(), default=until - _BEHIND)
        expired, found_until = await _find_expired(pool, until, oldest=oldest, without=busy)
        by_shard: dict[int, list[_Span]] = defaultdict(list)
        for span in _spans(expired, behind, found_until):
            by_shard[await pool.shards.ask(span.organization_id)].append(span)
        for spans in by_shard.values():
            for step in _steps(spans):
                told += await _write_free(pool, step, busy, now=now)
        if found_until == until:
            break
    for error in busy.values():
        raise error
    return told


async def _find_behind(pool: Pool, before: datetime, *, without: Collection[str]) -> dict[str, datetime]:
    """The organizations of which nothing was written for long, and until when what expired has its events."""
    values = {"before": before, "limit": _MOST_FOUND, "without": [*without]}
    parse, seconds = datetime.fromisoformat, pool.timeouts.job
    found = await find_everywhere(pool, SQL.find_behind, values, parse=parse, seconds=seconds)
    return {row[0]: row[1] for row in found.rows}


async def _find_expired(
    pool: Pool, until: datetime, *, oldest: datetime, without: Collection[str]
) -> tuple[Sequence[_Expired], datetime]:
    """The OTPs that have expired, in their order, and until when these are all of them."""
    values = {
        "first_otp_id": first_id(oldest - _LONGEST_LIFE),
        "oldest": oldest,
        "until": until,
        "limit": _MOST_FOUND,
        "without": [*without],
    }
    found = await find_everywhere(pool, SQL.find_expired, values, parse=UUID, seconds=pool.timeouts.job)
    expired = sorted(map(_expired, found.rows), key=lambda each: each.expire_time)
    if len(expired) >= _MOST_FOUND:
        until = expired[_MOST_FOUND - 1].expire_time  # any worker has found as many, or all of its own
        expired = [each for each in expired if each.expire_time <= until]
    return expired, until


def _expired(row: Sequence[Any]) -> _Expired:
    """A row of `find_everywhere`, whose times are texts when workers were asked by themselves."""
    organization_id, since, expire_time, otp_id = row
    if isinstance(since, str):
        since, expire_time = datetime.fromisoformat(since), datetime.fromisoformat(expire_time)
    return _Expired(organization_id, since, expire_time, otp_id)


def _spans(expired: Sequence[_Expired], behind: Mapping[str, datetime], until: datetime) -> Iterator[_Span]:
    """A span for each time at which OTPs of an organization expired; and one, without OTPs, for others behind."""
    otp_ids: dict[tuple[str, datetime], list[UUID]] = defaultdict(list)
    for each in expired:
        otp_ids[each.organization_id, each.expire_time].append(each.otp_id)
    since = {each.organization_id: each.since for each in expired}
    quiet = [(own, told) for own, told in behind.items() if own not in since and told < until]
    for (organization_id, expire_time), ids in otp_ids.items():
        yield _Span(organization_id, since[organization_id], expire_time, ids)
        since[organization_id] = expire_time
    for organization_id, told in quiet:
        yield _Span(organization_id, told, until, ())


def _steps(spans: Sequence[_Span]) -> Iterator[Sequence[_Span]]:
    """Divide the spans of a shard into those of one transaction each."""
    step: list[_Span] = []
    size = 0
    for span in spans:
        step.append(span)
        size += len(span.otp_ids) or 1
        if size >= _MOST_WRITTEN:
            yield step
            step, size = [], 0
    if step:
        yield step


async def _write_free(pool: Pool, step: Sequence[_Span], busy: dict[str, AccountBusy], *, now: datetime) -> int:
    """As `_write`; an organization of which a row stays locked is put into `busy`, and delays no other."""
    spans = [span for span in step if span.organization_id not in busy]
    own: dict[str, list[_Span]] = defaultdict(list)
    try:
        return await _write(pool, spans, now=now) if spans else 0
    except AccountBusy as error:
        for span in spans:
            own[span.organization_id].append(span)
        if len(own) == 1:
            busy[spans[0].organization_id] = error
            return 0
    return sum([await _write_free(pool, each, busy, now=now) for each in own.values()])


async def _write(pool: Pool, spans: Sequence[_Span], *, now: datetime) -> int:
    """Write the events of the spans, in order, but for organizations that another replica has advanced meanwhile."""
    since = {span.organization_id: span.since for span in reversed(spans)}
    until = {span.organization_id: span.until for span in spans}
    keys = [(span.organization_id, otp_id) for span in spans for otp_id in span.otp_ids]
    async with pipelined_transaction(pool, near=spans[0].organization_id) as pipeline:
        # OTPs before streams, as every transaction locks them: a guess in progress may still verify one.
        expired = await _lock_expired(pipeline, keys) if keys else None
        wanted = {"organization_ids": texts(since), "since": times(since.values())}
        locked = await pipeline.execute(SQL.lock_streams, wanted)
        purposes = {(row[0], row[1]): row[2] for row in await expired.fetchall()} if expired else {}
        last_numbers: dict[str, int] = {row[0]: row[1] for row in await locked.fetchall()}
        events = [otp_ended(*key, OtpStatus.EXPIRED, purposes[key]) for key in keys if key in purposes]
        told = await insert_events(pipeline, events, last_numbers, now=now)
        if last_numbers:
            values = {
                "organization_ids": texts(last_numbers),
                "until": times(until[organization_id] for organization_id in last_numbers),
                "last_numbers": bigints(last_numbers.values()),
            }
            await pipeline.execute(SQL.advance, values)
    return told


async def _lock_expired(connection: Executor, keys: Sequence[OtpKey]) -> Rows:
    values = {
        "organization_ids": texts(key[0] for key in keys),
        "otp_ids": uuids(key[1] for key in keys),
        "first_otp_id": min(key[1] for key in keys),
    }
    return await connection.execute(SQL.lock_expired, values)
