"""Usage of an organization per day and channel: sends, credits, OTPs, and how many were verified."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from server.ids import first_id, first_otp_id
from server.postgres.pool import Connection
from server.postgres.queries import load_queries
from server.providers.provider import Channel

SQL = load_queries(__file__)

_CLOCK_SKEW = timedelta(hours=1)
"""By how much ids may be younger than their rows: another replica may have made them."""
_FIRST_DAY, _LAST_DAY = date(1970, 1, 2), date(9999, 12, 30)
"""Bounds within which the hour before a day and the day after it are valid ids and times. Nothing was sent outside."""


@dataclass(frozen=True, slots=True)
class DailyUsage:
    """What an organization sent on one day, in UTC, through one channel."""

    date: date
    channel: Channel
    sends: int
    credits: int
    """Charged, less refunds."""
    otps: int
    """OTPs whose first delivery was on that day and channel."""
    verified_otps: int
    """How many of those were verified, by now."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What became of the sends to one country through one channel and provider."""

    country: str
    """Or a calling code; empty for e-mail."""
    channel: Channel
    provider: str
    sends: int
    credits: int
    """Charged, less refunds."""
    verified_sends: int
    """Those that did not fail, of OTPs that are verified by now."""


async def read_usage(connection: Connection, organization_id: str, *, start: date, end: date) -> list[DailyUsage]:
    """Read the usage from `start` to `end`, both included, ordered by date and channel; skips days without sends."""
    cursor = await connection.execute(SQL.read_usage, _range(organization_id, start, end))
    return [DailyUsage(row[0], Channel(row[1]), *row[2:]) for row in await cursor.fetchall()]


async def read_conversions(
    connection: Connection, organization_id: str, *, start: date, end: date
) -> tuple[date, list[Conversion]]:
    """Read what became of the sends from `start` to `end`, both included, and from which day on it is known.

    Of earlier days OTPs were removed, in part or all.
    """
    cursor = await connection.execute(SQL.read_last_removed, {"organization_id": organization_id})
    ((removed,),) = await cursor.fetchall()
    if removed is not None:
        start = max(start, removed + timedelta(days=1))
    cursor = await connection.execute(SQL.read_conversions, _range(organization_id, start, end))
    return start, [Conversion(row[0], Channel(row[1]), *row[2:]) for row in await cursor.fetchall()]


def _range(organization_id: str, start: date, end: date) -> dict[str, object]:
    start, end = (min(max(day, _FIRST_DAY), _LAST_DAY) for day in (start, end))
    start_time = datetime.combine(start, time(), UTC)
    end_time = datetime.combine(end + timedelta(days=1), time(), UTC)
    return {
        "organization_id": organization_id,
        "start": start,
        "end": end,
        "first_id": first_otp_id(start_time),
        "start_time": start_time,
        "end_time": end_time,
        "end_id": first_id(end_time + _CLOCK_SKEW),
    }
