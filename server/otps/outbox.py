"""Who works on which delivery: takes over what a crash left or waits for another try, and keeps what is in work."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import structlog
from cryptography.exceptions import InvalidTag

from server.database.pipeline import Statements
from server.database.pool import Pool, connection, transaction
from server.database.queries import load_queries
from server.otps.errands import DeliveryKey, Errand
from server.otps.otp import Delivery, OtpStatus, delivery_of, otp_of
from server.otps.vault import Vault

SQL = load_queries(__file__)

_log = structlog.get_logger(__name__)
_BEFORE_DELIVERY = 2
_BEFORE_OTP = _BEFORE_DELIVERY + len(Delivery.__slots__)


async def find_due(pool: Pool, *, now: datetime, limit: int) -> list[str]:
    """At most `limit` organizations that have deliveries to take over, the longest waiting first."""
    async with connection(pool) as lent:
        cursor = await lent.execute(SQL.find_due, {"now": now, "limit": limit})
        return [row[0] for row in await cursor.fetchall()]


async def claim_due(
    pool: Pool, vault: Vault, organization_id: str, *, lease: timedelta, now: datetime, limit: int
) -> list[Errand]:
    """At most `limit` deliveries of one organization, the longest waiting first; they are ours until now + lease."""
    key = {"organization_id": organization_id}
    async with transaction(pool) as lent:
        rows = await (await lent.execute(SQL.lock_due, {**key, "now": now, "limit": limit})).fetchall()
        errands = [_errand(row, vault, lease_expire_time=now + lease, now=now) for row in rows]
        if errands:
            ids = [errand.delivery.delivery_id for errand in errands]
            await lent.execute(SQL.lease, {**key, "delivery_ids": ids, "lease_expire_time": now + lease})
    return errands


async def renew(
    connection: Statements, errands: Sequence[Errand], *, lease: timedelta, now: datetime
) -> dict[DeliveryKey, Errand]:
    """The errands that are still ours, now until now + lease, each with its OTP's status as it stands."""
    cursor = await connection.execute(
        SQL.renew,
        {
            "organization_ids": [errand.delivery.organization_id for errand in errands],
            "delivery_ids": [errand.delivery.delivery_id for errand in errands],
            "otp_ids": [errand.otp.otp_id for errand in errands],
            "held_until": [errand.lease_expire_time for errand in errands],
            "lease_expire_time": now + lease,
        },
    )
    statuses = {(row[0], row[1]): OtpStatus(row[2]) for row in await cursor.fetchall()}
    return {
        errand.key: replace(
            errand,
            otp=replace(errand.otp, status=statuses[errand.key]),
            lease_expire_time=now + lease,
            read_time=now,
        )
        for errand in errands
        if errand.key in statuses
    }


def _errand(row: tuple[Any, ...], vault: Vault, *, lease_expire_time: datetime, now: datetime) -> Errand:
    delivery = delivery_of(row[_BEFORE_DELIVERY:_BEFORE_OTP])
    return Errand(
        otp=otp_of(row[_BEFORE_OTP:]),
        delivery=delivery,
        destination=_destination(delivery, vault),
        lease_expire_time=lease_expire_time,
        read_time=now,
        fallbacks_sealed=row[0],
        attempts=row[1],
    )


def _destination(delivery: Delivery, vault: Vault) -> str:
    if delivery.destination_sealed is None:
        return ""
    try:
        return vault.unseal(delivery.destination_sealed, organization_id=delivery.organization_id)
    except (KeyError, InvalidTag):
        _log.error("no key opens a delivery's destination", delivery_id=str(delivery.delivery_id))
        return ""
