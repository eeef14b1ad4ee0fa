"""OTPs and their deliveries: the dataclasses, and the queries that read, list and cancel OTPs."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple
from uuid import UUID

from server.credits.accounts import Request, RequestKey
from server.errors import (
    DomainError,
    OtpAlreadyVerified,
    OtpAttemptsExhausted,
    OtpCanceled,
    OtpExpired,
    OtpNotFound,
)
from server.ids import first_otp_id
from server.postgres.columns import TableColumns, texts, uuids
from server.postgres.pipeline import Executor, Rows
from server.postgres.pool import Connection
from server.postgres.queries import load_queries
from server.providers.provider import Channel

DIGEST_BYTES: Final = 16
"""Length of the keyed digest of a destination."""


class OtpStatus(StrEnum):
    """The status of an OTP. EXPIRED is never stored: it is PENDING after `expire_time`."""

    PENDING = "PENDING"
    VERIFIED = "VERIFIED"
    EXPIRED = "EXPIRED"
    CANCELED = "CANCELED"
    ATTEMPTS_EXHAUSTED = "ATTEMPTS_EXHAUSTED"


class DeliveryStatus(StrEnum):
    """The status of a delivery; each is defined in pulsa.otp.v1.DeliveryStatus."""

    QUEUED = "QUEUED"
    SENT = "SENT"
    DELIVERED = "DELIVERED"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"


@dataclass(slots=True)
class Otp:
    """One OTP, without its code: `Crypto.code_of` derives that when it is needed."""

    organization_id: str
    otp_id: UUID
    purpose: str
    locale: str
    destination_digest: bytes
    """By the current digest key; then by the other one, if the ring had two."""
    code_key_id: str
    code_length: int
    context_digest: bytes
    web_otp_domain: str
    """As Message.web_otp_domain."""
    metadata: dict[str, str]
    status: OtpStatus
    attempts: int
    max_attempts: int
    create_time: datetime
    expire_time: datetime
    verify_time: datetime | None = None
    verify_request_id: UUID | None = None
    to_phone: bool = False
    """Whether any of its deliveries may be to a phone."""

    @property
    def guess_budget_keys(self) -> list[tuple[str, bytes]]:
        """The keys of its guess budgets: organization, and the destination's digest by each key that made it.

        Wrong guesses count in all of them, so that OTPs that have only one key in common share their guesses.
        """
        digests = self.destination_digest
        return [
            (self.organization_id, digests[start : start + DIGEST_BYTES])
            for start in range(0, len(digests), DIGEST_BYTES)
        ]

    def status_at(self, now: datetime) -> OtpStatus:
        """The status at `now`: EXPIRED for a pending OTP whose time has passed."""
        if self.status is OtpStatus.PENDING and now >= self.expire_time:
            return OtpStatus.EXPIRED
        return self.status


@dataclass(slots=True)
class Delivery:
    """One charged send of an OTP through one channel."""

    organization_id: str
    delivery_id: UUID
    otp_id: UUID
    purpose: str
    channel: Channel
    destination_digest: bytes
    destination_sealed: bytes | None
    """The encrypted destination; None once retention has erased it."""
    masked_destination: str
    credits: int
    ledger_sequence: int
    balance_after: int
    status: DeliveryStatus
    refunded: bool
    failure_reason: str
    create_time: datetime
    update_time: datetime
    """Of the last change of its status."""
    areas: str = ""
    """The areas of its recipient: see Recipient.areas."""
    provider: str = ""
    """Empty until one answered."""
    earlier_changes: list[list[str]] | None = None
    """Statuses that reports replaced, and since when it had them."""
    settings_version: int = 0
    """The version of the organization's settings that it was sent with."""

    @property
    def changes(self) -> list[tuple[DeliveryStatus, datetime]]:
        """Each status after QUEUED, oldest first, and since when."""
        if self.status is DeliveryStatus.QUEUED:
            return []
        earlier = [
            (DeliveryStatus(status), datetime.fromisoformat(time)) for status, time in self.earlier_changes or ()
        ]
        return [*earlier, (self.status, self.update_time)]

    def report(self, status: DeliveryStatus, *, failure_reason: str, report_time: datetime, now: datetime) -> None:
        """Change the status as a provider reported it, at its time if that is between the last change and now."""
        if self.status is not DeliveryStatus.QUEUED:
            self.earlier_changes = [*(self.earlier_changes or ()), [self.status.value, self.update_time.isoformat()]]
        self.status, self.failure_reason = status, failure_reason
        self.update_time = min(max(report_time, self.update_time), now)


OtpKey = tuple[str, UUID]
"""An OTP's primary key."""

CLOSED: Final[Mapping[OtpStatus, type[DomainError]]] = {
    OtpStatus.VERIFIED: OtpAlreadyVerified,
    OtpStatus.CANCELED: OtpCanceled,
    OtpStatus.ATTEMPTS_EXHAUSTED: OtpAttemptsExhausted,
    OtpStatus.EXPIRED: OtpExpired,
}
"""The error that a send or a guess gets for an OTP that is not pending."""
OTP_COLUMNS: Final = TableColumns(Otp)
DELIVERY_COLUMNS: Final = TableColumns(Delivery)
SQL = load_queries(__file__, otp=OTP_COLUMNS, delivery=DELIVERY_COLUMNS)


class Recipient(NamedTuple):
    """Where one send goes and what it costs."""

    channel: Channel
    credits: int
    destination: str
    """Normalized, in clear text: never stored, kept in memory only until the message is sent."""
    destination_digest: bytes
    destination_sealed: bytes
    masked_destination: str
    areas: str = ""
    """The areas in which its unverified credits are counted, separated by spaces: the phone number's country, and the
    digest of its prefix by each digest key where prefixes are counted. Empty for an e-mail address."""
    other_digest: bytes = b""
    """The digest by the other key of the digest ring, if it has two."""

    @property
    def all_digests(self) -> bytes:
        """The digests by every key of the ring, one after another."""
        return self.destination_digest + self.other_digest


def otp_from_row(row: tuple[Any, ...]) -> Otp:
    """Build an OTP from a row of OTP_COLUMNS."""
    otp = Otp(*row)
    otp.status = OtpStatus(otp.status)
    return otp


def delivery_from_row(row: tuple[Any, ...]) -> Delivery:
    """Build a delivery from a row of DELIVERY_COLUMNS."""
    delivery = Delivery(*row)
    delivery.channel = Channel(delivery.channel)
    delivery.status = DeliveryStatus(delivery.status)
    return delivery


class OtpRecord(NamedTuple):
    """An OTP and its deliveries, oldest first."""

    otp: Otp
    deliveries: Sequence[Delivery]

    @property
    def verified_destination(self) -> str:
        """Of a verified OTP: the masked destination, if its code can have been read at one only; empty otherwise."""
        if self.otp.status is not OtpStatus.VERIFIED:
            return ""
        read_at = {one.destination_digest: one for one in self.deliveries if one.status is not DeliveryStatus.FAILED}
        return next(iter(read_at.values())).masked_destination if len(read_at) == 1 else ""


async def read_otp(connection: Connection, organization_id: str, otp_id: UUID) -> OtpRecord:
    """Read one OTP and its deliveries. Raises OtpNotFound, also for an OTP of another organization."""
    cursor = await connection.execute(SQL.read_otp, {"organization_id": organization_id, "otp_id": otp_id})
    row = await cursor.fetchone()
    if row is None:
        raise OtpNotFound
    deliveries = await read_deliveries(connection, organization_id, [otp_id])
    return OtpRecord(otp_from_row(row), deliveries[otp_id])


async def read_answers(connection: Executor, requests: Mapping[RequestKey, Request]) -> dict[UUID, Delivery]:
    """The deliveries that accepted requests made, by delivery_id, unless they were removed."""
    if not requests:
        return {}
    keys = {
        "organization_ids": texts(key[0] for key in requests),
        "delivery_ids": uuids(request.answer_id for request in requests.values()),
        "first_otp_id": first_otp_id(min(request.answer_id for request in requests.values())),
    }
    rows = await (await connection.execute(SQL.read_answers, keys)).fetchall()
    return {delivery.delivery_id: delivery for delivery in map(delivery_from_row, rows)}


async def queue_lock_statuses(connection: Executor, keys: Iterable[OtpKey]) -> Rows:
    """Queue the query that locks OTPs until this transaction ends, for `fetch_statuses`.

    Every transaction that verifies an OTP, adds a delivery to it or refunds one holds this lock: unverified credits are
    then subtracted once. It is taken after those of accounts and the outbox, and before those of deliveries.
    """
    wanted = sorted(set(keys))
    return await connection.execute(
        SQL.lock_otp_statuses,
        {
            "organization_ids": texts(key[0] for key in wanted),
            "otp_ids": uuids(key[1] for key in wanted),
            "first_otp_id": min(key[1] for key in wanted),
        },
    )


async def fetch_statuses(rows: Rows) -> dict[OtpKey, OtpStatus]:
    """Fetch the statuses of the OTPs that `queue_lock_statuses` locked."""
    return {(row[0], row[1]): OtpStatus(row[2]) for row in await rows.fetchall()}


async def list_otps(
    connection: Connection, organization_id: str, *, before_otp_id: UUID, limit: int
) -> list[OtpRecord]:
    """Read at most `limit` OTPs that are older than `before_otp_id`, newest first."""
    cursor = await connection.execute(
        SQL.list_otps, {"organization_id": organization_id, "before_otp_id": before_otp_id, "limit": limit}
    )
    otps = [otp_from_row(row) for row in await cursor.fetchall()]
    deliveries = await read_deliveries(connection, organization_id, [otp.otp_id for otp in otps])
    return [OtpRecord(otp, deliveries[otp.otp_id]) for otp in otps]


async def cancel_otp(connection: Connection, organization_id: str, otp_id: UUID, *, now: datetime) -> OtpRecord:
    """Cancel a pending OTP: its code no longer works. A repeat changes nothing.

    Raises OtpNotFound, OtpExpired, OtpAlreadyVerified or OtpAttemptsExhausted.
    """
    await connection.execute(SQL.cancel_otp, {"organization_id": organization_id, "otp_id": otp_id, "now": now})
    record = await read_otp(connection, organization_id, otp_id)
    status = record.otp.status_at(now)
    if status is not OtpStatus.CANCELED:
        raise CLOSED[status]
    return record


async def read_deliveries(
    connection: Connection, organization_id: str, otp_ids: Sequence[UUID]
) -> dict[UUID, list[Delivery]]:
    """The deliveries of each of the OTPs, oldest first."""
    if not otp_ids:
        return {}
    cursor = await connection.execute(
        SQL.read_deliveries,
        {"organization_id": organization_id, "otp_ids": list(otp_ids), "first_otp_id": min(otp_ids)},
    )
    deliveries = defaultdict(list)
    for delivery in map(delivery_from_row, await cursor.fetchall()):
        deliveries[delivery.otp_id].append(delivery)
    return deliveries
