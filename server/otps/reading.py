"""Reads OTPs with their deliveries, and cancels them."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from server.database.pool import Connection
from server.database.queries import load_queries
from server.errors import OtpNotFound
from server.otps.admission import CLOSED
from server.otps.otp import Delivery, Otp, OtpStatus, delivery_of, otp_of

SQL = load_queries(__file__)


class OtpRecord(NamedTuple):
    """An OTP and its deliveries, oldest first."""

    otp: Otp
    deliveries: Sequence[Delivery]


async def read_otp(connection: Connection, organization_id: str, otp_id: UUID) -> OtpRecord:
    """One OTP. Raises OtpNotFound, also for another organization's."""
    cursor = await connection.execute(SQL.read_otp, {"organization_id": organization_id, "otp_id": otp_id})
    row = await cursor.fetchone()
    if row is None:
        raise OtpNotFound
    deliveries = await _read_deliveries(connection, organization_id, [otp_id])
    return OtpRecord(otp_of(row), deliveries[otp_id])


async def list_otps(
    connection: Connection, organization_id: str, *, before_otp_id: UUID, limit: int
) -> list[OtpRecord]:
    """At most `limit` OTPs, newest first, from the one before `before_otp_id`."""
    cursor = await connection.execute(
        SQL.list_otps, {"organization_id": organization_id, "before_otp_id": before_otp_id, "limit": limit}
    )
    otps = [otp_of(row) for row in await cursor.fetchall()]
    deliveries = await _read_deliveries(connection, organization_id, [otp.otp_id for otp in otps])
    return [OtpRecord(otp, deliveries[otp.otp_id]) for otp in otps]


async def cancel_otp(connection: Connection, organization_id: str, otp_id: UUID, *, now: datetime) -> OtpRecord:
    """Make the code stop working. A repeat finds it canceled. Raises OtpNotFound, or why it was closed before."""
    await connection.execute(SQL.cancel_otp, {"organization_id": organization_id, "otp_id": otp_id, "now": now})
    record = await read_otp(connection, organization_id, otp_id)
    status = record.otp.status_at(now)
    if status is not OtpStatus.CANCELED:
        raise CLOSED[status]
    return record


async def _read_deliveries(
    connection: Connection, organization_id: str, otp_ids: Sequence[UUID]
) -> dict[UUID, list[Delivery]]:
    cursor = await connection.execute(
        SQL.read_deliveries, {"organization_id": organization_id, "otp_ids": list(otp_ids)}
    )
    deliveries = defaultdict(list)
    for delivery in map(delivery_of, await cursor.fetchall()):
        deliveries[delivery.otp_id].append(delivery)
    return deliveries
