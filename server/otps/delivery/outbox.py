"""The outbox: deliveries that are not yet sent. A replica claims them under a lease, so only one sends each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from cryptography.exceptions import InvalidTag

from server.otps.admission import Admitted
from server.otps.crypto import Crypto
from server.otps.otp import (
    DELIVERY_COLUMNS,
    OTP_COLUMNS,
    Delivery,
    Otp,
    OtpKey,
    OtpStatus,
    delivery_from_row,
    otp_from_row,
)
from server.postgres.pipeline import Executor
from server.postgres.pool import Pool, acquire, transaction
from server.postgres.queries import load_queries
from server.providers.provider import Message

SQL = load_queries(__file__, delivery=DELIVERY_COLUMNS, otp=OTP_COLUMNS)

_log = structlog.get_logger(__name__)
_DUE_ROWS = 1000
_OUTBOX_COLUMNS = 2
"""The outbox's columns, which lock_due_deliveries selects before those of the delivery and the OTP."""
_END_OF_DELIVERY = _OUTBOX_COLUMNS + len(DELIVERY_COLUMNS.names)

DeliveryKey = tuple[str, UUID]


@dataclass(slots=True)
class DeliveryJob:
    """The job to send a leased delivery and to record its outcome."""

    otp: Otp
    delivery: Delivery
    destination: str
    """In clear text; empty when no key of the key ring decrypts it."""
    lease_expire_time: datetime
    """Equal to next_attempt_time in the outbox, until another replica takes the delivery over."""
    read_time: datetime
    """When `otp` was read."""
    fallbacks_sealed: bytes | None = None
    attempts: int = 0

    @property
    def key(self) -> DeliveryKey:
        """The delivery's primary key."""
        return self.delivery.organization_id, self.delivery.delivery_id

    @property
    def otp_key(self) -> OtpKey:
        """The OTP's primary key."""
        return self.delivery.organization_id, self.delivery.otp_id

    def message(self, code: str) -> Message:
        """The message for the provider."""
        otp, delivery = self.otp, self.delivery
        return Message(
            delivery_id=delivery.delivery_id,
            channel=delivery.channel,
            destination=self.destination,
            code=code,
            purpose=otp.purpose,
            locale=otp.locale,
            expire_time=otp.expire_time,
            web_otp_domain=otp.web_otp_domain,
            reference=f"{delivery.organization_id}/{delivery.delivery_id.hex}",
        )


def job_for(admitted: Admitted, *, lease: timedelta) -> DeliveryJob:
    """The delivery job of an accepted send; `lease` is that of the Sender that accepted it."""
    send, delivery = admitted.send, admitted.delivery
    accepted = delivery.create_time
    return DeliveryJob(
        send.otp, delivery, send.recipient.destination, accepted + lease, accepted, send.fallbacks_sealed
    )


async def find_due(pool: Pool, *, now: datetime, limit: int = _DUE_ROWS) -> dict[str, list[UUID]]:
    """Find due deliveries of each organization, longest overdue first: `limit` of the longest overdue in all.

    If there are more, also `limit` of those that became due last: behind the backlog of one organization, the others
    are found as soon as they are due.
    """
    found: dict[str, list[UUID]] = {}
    async with acquire(pool) as connection:
        cursor = await connection.execute(SQL.find_longest_due, {"now": now, "limit": limit})
        rows: list[DeliveryKey] = await cursor.fetchall()
        if len(rows) == limit:
            cursor = await connection.execute(SQL.find_latest_due, {"now": now, "limit": limit})
            rows += reversed(await cursor.fetchall())
    for organization_id, delivery_id in dict.fromkeys(rows):
        found.setdefault(organization_id, []).append(delivery_id)
    return found


async def claim_due(
    pool: Pool, crypto: Crypto, organization_id: str, delivery_ids: Sequence[UUID], *, lease: timedelta, now: datetime
) -> list[DeliveryJob]:
    """Claim those of an organization's deliveries that are still due, longest overdue first, until now + lease."""
    key = {"organization_id": organization_id}
    async with transaction(pool) as connection:
        wanted = {**key, "delivery_ids": list(delivery_ids), "now": now}
        rows = await (await connection.execute(SQL.lock_due_deliveries, wanted)).fetchall()
        jobs = [_job(row, crypto, lease_expire_time=now + lease, now=now) for row in rows]
        if jobs:
            ids = [job.delivery.delivery_id for job in jobs]
            await connection.execute(SQL.set_lease, {**key, "delivery_ids": ids, "lease_expire_time": now + lease})
    return jobs


async def renew(
    connection: Executor, jobs: Sequence[DeliveryJob], *, lease: timedelta, now: datetime
) -> dict[DeliveryKey, DeliveryJob]:
    """Renew the leases that this replica still holds, to now + lease; returns those jobs with their OTP's status."""
    cursor = await connection.execute(
        SQL.renew_leases,
        {
            "organization_ids": [job.delivery.organization_id for job in jobs],
            "delivery_ids": [job.delivery.delivery_id for job in jobs],
            "otp_ids": [job.otp.otp_id for job in jobs],
            "lease_expire_times": [job.lease_expire_time for job in jobs],
            "new_lease_expire_time": now + lease,
        },
    )
    statuses = {(row[0], row[1]): OtpStatus(row[2]) for row in await cursor.fetchall()}
    return {
        job.key: replace(
            job,
            otp=replace(job.otp, status=statuses[job.key]),
            lease_expire_time=now + lease,
            read_time=now,
        )
        for job in jobs
        if job.key in statuses
    }


def _job(row: tuple[Any, ...], crypto: Crypto, *, lease_expire_time: datetime, now: datetime) -> DeliveryJob:
    delivery = delivery_from_row(row[_OUTBOX_COLUMNS:_END_OF_DELIVERY])
    return DeliveryJob(
        otp=otp_from_row(row[_END_OF_DELIVERY:]),
        delivery=delivery,
        destination=open_destination(delivery, crypto),
        lease_expire_time=lease_expire_time,
        read_time=now,
        fallbacks_sealed=row[0],
        attempts=row[1],
    )


def open_destination(delivery: Delivery, crypto: Crypto) -> str:
    """Decrypt a delivery's destination; empty when it was erased, or no key decrypts it, which is logged."""
    if delivery.destination_sealed is None:
        return ""
    try:
        return crypto.unseal(delivery.destination_sealed, organization_id=delivery.organization_id)
    except (KeyError, InvalidTag, ValueError):
        _log.error("no key decrypts a delivery's destination", delivery_id=str(delivery.delivery_id))
        return ""
