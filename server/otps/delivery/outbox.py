"""The outbox: deliveries that are not yet sent. A replica claims them under a lease, so only one sends each."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID

import structlog
from cryptography.exceptions import InvalidTag

from server.clock import DatabaseClock
from server.otps.admission import Admitted, Send, send_again
from server.otps.crypto import Crypto
from server.otps.otp import (
    DELIVERY_COLUMNS,
    OTP_COLUMNS,
    Delivery,
    DeliveryStatus,
    Otp,
    OtpKey,
    OtpRecord,
    OtpStatus,
    Recipient,
    delivery_from_row,
    otp_from_row,
)
from server.otps.settings_cache import SettingsCache
from server.postgres.pipeline import Executor
from server.postgres.pool import Pool, read_time, transaction
from server.postgres.queries import load_queries
from server.postgres.workers import find_keys
from server.providers.provider import OPERATOR, Identity, Message

SQL = load_queries(__file__, delivery=DELIVERY_COLUMNS, otp=OTP_COLUMNS)

_log = structlog.get_logger(__name__)
_DUE_ROWS = 1000
_OUTBOX_COLUMNS = 3
"""The columns that lock_due_deliveries selects before those of the delivery and the OTP."""
_END_OF_DELIVERY = _OUTBOX_COLUMNS + len(DELIVERY_COLUMNS.names)
_ORGANIZATION_ID, _SETTINGS_VERSION = (
    _OUTBOX_COLUMNS + DELIVERY_COLUMNS.names.index(name) for name in ("organization_id", "settings_version")
)

DeliveryKey = tuple[str, UUID]
_Identities = Mapping[tuple[str, int], Identity]
"""As whom deliveries are sent, by organization and version of its settings."""
_OLD_TIME: Final = timedelta(seconds=10)
"""For so long another replica may give leases by the old time after the database's clock stepped."""


@dataclass(slots=True)
class DeliveryJob:
    """The job to send a leased delivery and to record its outcome."""

    admitted: Admitted
    """What is sent. Its destination is empty when no key of the key ring decrypts it."""
    lease_expire_time: datetime
    """Equal to next_attempt_time in the outbox, until another replica takes the delivery over."""
    read_time: datetime
    """When the OTP's status was read."""
    attempts: int = 0
    has_arrived: bool = False
    """Whether its OTP was verified and no other message can have brought the code: a crash lost this one's outcome."""

    @property
    def send(self) -> Send:
        """The send that is delivered."""
        return self.admitted.send

    @property
    def key(self) -> DeliveryKey:
        """The delivery's primary key."""
        send = self.admitted.send
        return send.organization_id, send.delivery_id

    @property
    def otp_key(self) -> OtpKey:
        """The OTP's primary key."""
        send = self.admitted.send
        return send.organization_id, send.otp_id

    def otp_status(self, now: datetime) -> OtpStatus:
        """The status of the OTP at `now`, as far as it is known here: a new one is pending."""
        resent = self.admitted.send.resent
        if resent is not None:
            return resent.otp.status_at(now)
        return OtpStatus.EXPIRED if now >= self.admitted.expire_time else OtpStatus.PENDING

    def message(self, code: str) -> Message:
        """The message for the provider."""
        send = self.admitted.send
        options, recipient, identity = send.options, send.recipient, send.identity
        return Message(
            send.delivery_id,
            recipient.channel,
            recipient.destination,
            code,
            options.purpose,
            options.locale,
            self.admitted.expire_time,
            self.lease_expire_time,
            options.web_otp_domain,
            f"{send.organization_id}/{send.delivery_id.hex}",
            identity,
            identity.sender_id(recipient.channel, recipient.areas.partition(" ")[0]) if identity.sender_ids else "",
        )


def job_for(admitted: Admitted, *, lease: timedelta) -> DeliveryJob:
    """The delivery job of an accepted send; `lease` is that of the Sender that accepted it."""
    accepted = admitted.create_time
    return DeliveryJob(admitted, accepted + lease, accepted)


def stored_job(
    otp: Otp,
    delivery: Delivery,
    destination: str,
    *,
    lease_expire_time: datetime,
    read_time: datetime,
    fallbacks_sealed: bytes | None = None,
    attempts: int = 0,
    has_arrived: bool = False,
    identity: Identity = OPERATOR,
) -> DeliveryJob:
    """The job of a delivery that was read; `identity` is that of its settings_version."""
    recipient = Recipient(
        delivery.channel,
        delivery.credits,
        destination,
        delivery.destination_digest,
        delivery.destination_sealed or b"",
        delivery.masked_destination,
        delivery.areas,
    )
    send = send_again(
        OtpRecord(otp, ()),
        recipient,
        request_id=delivery.delivery_id,
        request_fingerprint=b"",
        delivery_id=delivery.delivery_id,
        fallbacks_sealed=fallbacks_sealed,
        identity=identity,
    )
    admitted = Admitted(send, delivery.ledger_sequence, delivery.balance_after, False, delivery.create_time)  # noqa: FBT003
    return DeliveryJob(admitted, lease_expire_time, read_time, attempts, has_arrived)


async def find_due(pool: Pool, *, now: datetime, limit: int = _DUE_ROWS) -> dict[str, list[UUID]]:
    """Find due deliveries of each organization, longest overdue first: `limit` of the longest overdue in all.

    If there are more, also `limit` of those that became due last: behind the backlog of one organization, the others
    are found as soon as they are due.
    """
    found: dict[str, list[UUID]] = {}
    values = {"now": now, "limit": limit}
    rows = await find_keys(pool, SQL.find_longest_due, values)
    if len(rows) >= limit:
        rows += reversed(await find_keys(pool, SQL.find_latest_due, values))
    for organization_id, delivery_id in dict.fromkeys(rows):
        found.setdefault(organization_id, []).append(delivery_id)
    return found


async def claim_due(
    pool: Pool,
    crypto: Crypto,
    keys: Sequence[DeliveryKey],
    *,
    lease: timedelta,
    clock: DatabaseClock,
    settings: SettingsCache | None = None,
) -> list[DeliveryJob]:
    """Claim those of the deliveries, of organizations of one shard, that are still due, for `lease`.

    Returns them longest overdue first. They are due by the database's time at the claim. Claims nothing for a while
    after the database's clock jumped forward: leases from before the jump last as long as they would have without it.
    """
    async with transaction(pool) as connection:
        now = await clock.measure(partial(read_time, connection))
        if clock.has_stepped(within=lease + _OLD_TIME):
            return []
        rows = await (await connection.execute(SQL.lock_due_deliveries, {**_ids(keys), "now": now})).fetchall()
        identities = await _identities(connection, rows, settings)
        jobs = [_job(row, crypto, identities, lease_expire_time=now + lease, now=now) for row in rows]
        if jobs:
            claimed = _ids([job.key for job in jobs])
            await connection.execute(SQL.set_lease, {**claimed, "lease_expire_time": now + lease})
    return jobs


def _ids(keys: Iterable[DeliveryKey]) -> dict[str, list[Any]]:
    organization_ids, delivery_ids = zip(*keys, strict=True)
    return {"organization_ids": sorted(set(organization_ids)), "delivery_ids": list(delivery_ids)}


async def find_due_fallbacks(pool: Pool, *, now: datetime, limit: int = _DUE_ROWS) -> dict[str, list[UUID]]:
    """Find deliveries of each organization whose fallbacks are due, longest overdue first, `limit` in all."""
    found: dict[str, list[UUID]] = {}
    for organization_id, delivery_id in await find_keys(pool, SQL.find_due_fallbacks, {"now": now, "limit": limit}):
        found.setdefault(organization_id, []).append(delivery_id)
    return found


async def lock_due_fallbacks(
    connection: Executor,
    organization_id: str,
    delivery_ids: Sequence[UUID],
    *,
    now: datetime,
    settings: SettingsCache | None = None,
) -> list[tuple[DeliveryJob, DeliveryStatus]]:
    """Lock those deliveries whose fallbacks are still due; returns their jobs, without destination, and statuses."""
    wanted = {"organization_id": organization_id, "delivery_ids": list(delivery_ids), "now": now}
    rows = await (await connection.execute(SQL.lock_due_fallbacks, wanted)).fetchall()
    identities = await _identities(connection, rows, settings)
    found = []
    for row in rows:
        delivery = delivery_from_row(row[_OUTBOX_COLUMNS:_END_OF_DELIVERY])
        otp = otp_from_row(row[_END_OF_DELIVERY:])
        job = stored_job(
            otp,
            delivery,
            "",
            lease_expire_time=now,
            read_time=now,
            fallbacks_sealed=row[0],
            identity=identities[organization_id, delivery.settings_version],
        )
        found.append((job, delivery.status))
    return found


async def renew(
    connection: Executor, jobs: Sequence[DeliveryJob], *, lease: timedelta, now: datetime
) -> dict[DeliveryKey, DeliveryJob]:
    """Renew the leases that this replica still holds, to now + lease; returns those jobs with their OTP's status."""
    cursor = await connection.execute(
        SQL.renew_leases,
        {
            "organization_ids": [job.send.organization_id for job in jobs],
            "delivery_ids": [job.send.delivery_id for job in jobs],
            "otp_ids": [job.send.otp_id for job in jobs],
            "first_otp_id": min(job.send.otp_id for job in jobs),
            "lease_expire_times": [job.lease_expire_time for job in jobs],
            "new_lease_expire_time": now + lease,
        },
    )
    statuses = {(row[0], row[1]): OtpStatus(row[2]) for row in await cursor.fetchall()}
    return {
        job.key: replace(
            job,
            admitted=_with_status(job.admitted, statuses[job.key]),
            lease_expire_time=now + lease,
            read_time=now,
        )
        for job in jobs
        if job.key in statuses
    }


def _with_status(admitted: Admitted, status: OtpStatus) -> Admitted:
    otp, deliveries = admitted.send.resent or admitted.record
    return admitted._replace(send=admitted.send._replace(resent=OtpRecord(replace(otp, status=status), deliveries)))


async def _identities(
    connection: Executor, rows: Sequence[tuple[Any, ...]], settings: SettingsCache | None
) -> _Identities:
    versions: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        versions[row[_ORGANIZATION_ID]].add(row[_SETTINGS_VERSION])
    if settings is None:
        return {(own, version): OPERATOR for own, several in versions.items() for version in several}
    found = {own: await settings.at(connection, own, several) for own, several in versions.items()}
    return {(own, version): each.identity for own, several in found.items() for version, each in several.items()}


def _job(
    row: tuple[Any, ...],
    crypto: Crypto,
    identities: _Identities,
    *,
    lease_expire_time: datetime,
    now: datetime,
) -> DeliveryJob:
    delivery = delivery_from_row(row[_OUTBOX_COLUMNS:_END_OF_DELIVERY])
    return stored_job(
        otp_from_row(row[_END_OF_DELIVERY:]),
        delivery,
        open_destination(delivery, crypto),
        lease_expire_time=lease_expire_time,
        read_time=now,
        fallbacks_sealed=row[0],
        attempts=row[1],
        has_arrived=row[2],
        identity=identities[delivery.organization_id, delivery.settings_version],
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
