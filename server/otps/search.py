"""Searches an organization's OTPs: by destination, time, status, purpose and channel.

A destination is found by the index of its digests, and a time by the ids of OTPs, which are ordered by time. The other
filters have no index, as one would cost every send: they narrow what those two find, of which a page looks at a bounded
number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from server.ids import first_id, first_otp_id
from server.otps.otp import OTP_COLUMNS, OtpRecord, OtpStatus, otp_from_row, read_deliveries
from server.postgres.pool import Connection
from server.postgres.queries import load_queries
from server.providers.provider import Channel

_MATCHES: Final = """create_time >= %(start_time)s AND create_time < %(end_time)s
    AND (cardinality(%(purposes)s::text[]) = 0 OR purpose = ANY(%(purposes)s::text[]))
    AND (cardinality(%(channels)s::text[]) = 0 OR channel = ANY(%(channels)s::text[]))
    AND (
        cardinality(%(statuses)s::text[]) = 0
        OR CASE WHEN status = 'PENDING' AND expire_time <= %(now)s THEN 'EXPIRED' ELSE status::text END
            = ANY(%(statuses)s::text[])
    )"""
SQL = load_queries(__file__, otp=OTP_COLUMNS, matches=_MATCHES)

LOOKED_AT: Final = 10_000
"""The most OTPs that one page looks at, unless a destination is given."""
_FIRST_TIME, _LAST_TIME = datetime(1970, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)
"""Bounds whose neighbouring hours are valid ids and times."""
_CLOCK_SKEW: Final = timedelta(hours=1)
"""By how much ids may be younger than their rows: another replica may have made them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OtpSearch:
    """What is searched for; an empty sequence and None admit all."""

    digests: Sequence[bytes] = ()
    """The digests of a destination by every key of the ring."""
    statuses: Sequence[OtpStatus] = ()
    """At the time of the search, so that EXPIRED is one."""
    purposes: Sequence[str] = ()
    channels: Sequence[Channel] = ()
    """Of the first delivery."""
    start_time: datetime | None = None
    end_time: datetime | None = None
    """Exclusive."""


async def search_otps(
    connection: Connection,
    organization_id: str,
    search: OtpSearch,
    *,
    before_otp_id: UUID,
    limit: int,
    now: datetime,
    looked_at: int = LOOKED_AT,
) -> tuple[list[OtpRecord], UUID | None]:
    """At most `limit` matching OTPs that are older than `before_otp_id`, newest first, and before which id to go on.

    That id is None when all were looked at. Without a destination at most `looked_at` OTPs are.
    """
    start, end = (
        min(max(time or default, _FIRST_TIME), _LAST_TIME)
        for time, default in ((search.start_time, _FIRST_TIME), (search.end_time, _LAST_TIME))
    )
    before_otp_id = min(before_otp_id, first_id(end + _CLOCK_SKEW))
    values = {
        "organization_id": organization_id,
        "before_otp_id": before_otp_id,
        "first_otp_id": first_otp_id(start),
        "start_time": start,
        "end_time": end,
        "purposes": list(search.purposes),
        "channels": [channel.value for channel in search.channels],
        "statuses": [status.value for status in search.statuses],
        "now": now,
        "limit": limit,
    }
    bound = None
    if search.digests:
        sent_to = await _rows(connection, SQL.find_sent_to, {**values, "digests": list(search.digests)})
        otp_ids = [row[0] for row in sent_to if row[0] < before_otp_id]
        rows = await _rows(connection, SQL.find_otps_among, {**values, "otp_ids": otp_ids}) if otp_ids else []
    else:
        for row in await _rows(connection, SQL.find_bound, {**values, "looked_at": looked_at}):
            bound = values["first_otp_id"] = row[0]
        rows = await _rows(connection, SQL.find_otps, values)
    otps = [otp_from_row(row) for row in rows]
    deliveries = await read_deliveries(connection, organization_id, [otp.otp_id for otp in otps])
    return [OtpRecord(otp, deliveries[otp.otp_id]) for otp in otps], otps[-1].otp_id if len(otps) == limit else bound


async def _rows(connection: Connection, query: str, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query, values)).fetchall()
