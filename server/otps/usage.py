"""What an organization sent, day by day."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from server.channels.channel import ChannelName
from server.database.pool import Connection
from server.database.queries import load_queries
from server.ids import first_id

SQL = load_queries(__file__)

_LONGEST_CALL = timedelta(hours=1)
"""A delivery's id is made at most so long before the delivery is accepted."""
_FIRST_DAY, _LAST_DAY = date(1970, 1, 2), date(9999, 12, 30)
"""Between these, the hour before a day and the day after it have ids and times. Nothing was sent outside."""


@dataclass(frozen=True, slots=True)
class DailyUsage:
    """What was sent on one day, in UTC, through one channel."""

    date: date
    channel: ChannelName
    sends: int
    credits: int
    """Refunds deducted."""
    otps: int
    """Those first sent on that day and channel."""
    verified_otps: int


async def read_usage(connection: Connection, organization_id: str, *, start: date, end: date) -> list[DailyUsage]:
    """The days from start to end, both included, by date and channel; days without sends are left out."""
    start, end = (min(max(day, _FIRST_DAY), _LAST_DAY) for day in (start, end))
    start_time = datetime.combine(start, time(), UTC)
    end_time = datetime.combine(end + timedelta(days=1), time(), UTC)
    cursor = await connection.execute(
        SQL.read_usage,
        {
            "organization_id": organization_id,
            "first_id": first_id(start_time - _LONGEST_CALL),
            "start_time": start_time,
            "end_time": end_time,
            "end_id": first_id(end_time),
        },
    )
    return [DailyUsage(row[0], ChannelName(row[1]), *row[2:]) for row in await cursor.fetchall()]
