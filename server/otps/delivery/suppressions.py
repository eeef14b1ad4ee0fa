"""Suppressions: addresses that refused an organization's mail for good, or whose owner complained, get no more mail.

Each replica holds a short hash of every suppressed address, so that a mail to any other costs no query.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, NamedTuple
from uuid import UUID

from server.clock import Clock
from server.errors import DeliveryNotFound
from server.ids import new_id
from server.otps.crypto import Crypto
from server.otps.otp import Delivery
from server.postgres.pipeline import Row
from server.postgres.pool import Connection, Pool, acquire, run_idempotent
from server.postgres.queries import load_queries
from server.postgres.workers import find_everywhere
from server.providers.provider import Message, Outcome, OutcomeKind, Provider, Subject

SQL = load_queries(__file__)

_OVERLAP: Final = timedelta(minutes=1)
"""For rows that were committed late, or by a clock that is behind."""


class SuppressionReason(StrEnum):
    """Why an address is suppressed; see pulsa.otp.v1.SuppressionReason."""

    BOUNCE = "BOUNCE"
    COMPLAINT = "COMPLAINT"


class Suppression(NamedTuple):
    """A suppressed address of an organization."""

    suppression_id: UUID
    masked_destination: str
    reason: SuppressionReason
    create_time: datetime
    expire_time: datetime


class Suppressions:
    """The suppressed addresses of all organizations. Another replica's are known after the next `refresh`."""

    def __init__(self, pool: Pool, crypto: Crypto, *, period: timedelta, clock: Clock) -> None:
        """`period` is how long an address is suppressed."""
        self._pool = pool
        self._crypto = crypto
        self._period = period
        self._clock = clock
        self._hashes: set[int] = set()
        self._since = datetime.min.replace(tzinfo=UTC)

    async def refresh(self, now: datetime) -> int:
        """Learn the new suppressions of other replicas; returns 0, as a job that has nothing to tell."""
        found = await find_everywhere(self._pool, SQL.find_new, {"since": self._since}, parse=_parse_bytea)
        self._hashes.update(map(hash, found.rows))
        if found.is_complete:
            self._since = now - _OVERLAP
        return 0

    async def organization_of(self, mail_token: str) -> tuple[str, UUID]:
        """The organization and delivery of a mail's token. Raises DeliveryNotFound."""
        try:
            delivery_id = self._crypto.open_mail_token(mail_token)
        except ValueError:
            raise DeliveryNotFound from None
        row = await self._find(SQL.find_organization, {"delivery_id": delivery_id})
        if row is None:
            raise DeliveryNotFound
        return row[0], delivery_id

    async def add(self, delivery: Delivery, reason: SuppressionReason) -> None:
        """Suppress the address of a delivery from now on. A repeat begins the period again."""
        now = self._clock()
        values = {
            "organization_id": delivery.organization_id,
            "suppression_id": new_id(),
            "destination_digest": delivery.destination_digest,
            "masked_destination": delivery.masked_destination,
            "reason": reason.value,
            "now": now,
            "expire_time": now + self._period,
        }
        await run_idempotent(self._pool, lambda connection: connection.execute(SQL.add, values))
        self._hashes.add(hash((delivery.organization_id, delivery.destination_digest)))

    async def holds(self, organization_id: str, address: str) -> bool:
        """Whether the normalized address is suppressed. Asks the database only if it may be."""
        if not self._hashes:
            return False
        digests = self._digests(address)
        if all(hash((organization_id, digest)) not in self._hashes for digest in digests):
            return False
        values = {"organization_id": organization_id, "digests": digests, "now": self._clock()}
        row = await self._find(SQL.is_suppressed, values)
        if row is None:  # lifted, or over
            self._hashes.difference_update(hash((organization_id, digest)) for digest in digests)
        return row is not None

    async def page(self, organization_id: str, *, before_id: UUID, limit: int) -> Sequence[Suppression]:
        """At most `limit` suppressions that are older than `before_id`, newest first."""
        values = {"organization_id": organization_id, "before_id": before_id, "now": self._clock(), "limit": limit}
        async with acquire(self._pool) as connection:
            rows = await (await connection.execute(SQL.page, values)).fetchall()
        return [Suppression(row[0], row[1], SuppressionReason(row[2]), row[3], row[4]) for row in rows]

    async def lift(self, organization_id: str, address: str) -> bool:
        """Let mail go to the normalized address again; returns whether it was suppressed."""
        values = {"organization_id": organization_id, "digests": self._digests(address)}
        async with acquire(self._pool) as connection:
            return (await connection.execute(SQL.lift, values)).rowcount > 0

    async def _find(self, query: str, values: Mapping[str, Any]) -> Row | None:
        async def find(connection: Connection) -> Row | None:
            return await (await connection.execute(query, values)).fetchone()

        return await run_idempotent(self._pool, find)

    def _digests(self, address: str) -> list[bytes]:
        return [digest for digest in (self._crypto.digest(address), self._crypto.other_digest(address)) if digest]


class Unsuppressed:
    """A Provider of mail that refuses suppressed addresses, and asks another provider for the rest."""

    def __init__(self, provider: Provider, suppressions: Suppressions) -> None:
        self.name = provider.name
        self._provider = provider
        self._suppressions = suppressions

    async def deliver(self, message: Message) -> Outcome:
        """The provider's outcome, or a refused destination with the reason `suppressed`. Raises DatabaseUnavailable."""
        organization_id = message.reference.partition("/")[0]
        if await self._suppressions.holds(organization_id, message.destination):
            refused = OutcomeKind.REJECTED_DESTINATION
            return Outcome(refused, "", failure_reason="suppressed", about=Subject.DESTINATION)
        return await self._provider.deliver(message)

    async def close(self) -> None:
        """Close the provider."""
        await self._provider.close()


def _parse_bytea(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("\\x"))
