"""Delivery reports: what a provider says later about a message that it took, or may have taken."""

from datetime import datetime
from uuid import UUID

from server.credits.accounts import lock_accounts
from server.credits.ledger import LedgerEntryKind, append_entry
from server.database.pool import Connection, Pool, repeat_transient, transaction
from server.database.queries import load_queries
from server.errors import DeliveryNotFound
from server.otps.otp import Delivery, DeliveryStatus, delivery_of

SQL = load_queries(__file__)

_SETTLES = {
    DeliveryStatus.SENT: {DeliveryStatus.QUEUED, DeliveryStatus.UNKNOWN},
    DeliveryStatus.DELIVERED: {DeliveryStatus.QUEUED, DeliveryStatus.UNKNOWN, DeliveryStatus.SENT},
    DeliveryStatus.FAILED: {DeliveryStatus.QUEUED, DeliveryStatus.UNKNOWN, DeliveryStatus.SENT},
}
"""Which states a report ends. One that comes late, twice or in the wrong order ends none and changes nothing."""


async def report_delivery(
    pool: Pool,
    organization_id: str,
    delivery_id: UUID,
    *,
    status: DeliveryStatus,
    failure_reason: str,
    refund_accepted: bool,
    now: datetime,
) -> Delivery:
    """The delivery as it stands after the report.

    A failure gives the credits back once: those of an UNKNOWN delivery always, those of one that the provider had
    accepted only with refund_accepted. A report that overtakes the answer to our call says that it had accepted.
    Raises DeliveryNotFound, also for another organization's.
    """

    async def once() -> Delivery:
        async with transaction(pool) as connection:
            return await _settle(
                connection,
                organization_id,
                delivery_id,
                status=status,
                failure_reason=failure_reason,
                refund_accepted=refund_accepted,
                now=now,
            )

    return await repeat_transient(once)


async def _settle(
    connection: Connection,
    organization_id: str,
    delivery_id: UUID,
    *,
    status: DeliveryStatus,
    failure_reason: str,
    refund_accepted: bool,
    now: datetime,
) -> Delivery:
    key = {"organization_id": organization_id, "delivery_id": delivery_id}
    failed = status is DeliveryStatus.FAILED
    # Every transaction locks accounts, then the outbox, then deliveries; only a refund needs the account.
    accounts = await lock_accounts(connection, [organization_id]) if failed else {}
    await connection.execute(SQL.lock_outbox, key)
    row = await (await connection.execute(SQL.lock_delivery, key)).fetchone()
    if row is None:
        raise DeliveryNotFound
    delivery = delivery_of(row)
    if delivery.status not in _SETTLES[status]:
        return delivery
    delivery.refunded = failed and (delivery.status is DeliveryStatus.UNKNOWN or refund_accepted)
    delivery.status = status
    delivery.failure_reason = failure_reason if failed else ""
    await connection.execute(
        SQL.write_report,
        {
            **key,
            "status": delivery.status.value,
            "refunded": delivery.refunded,
            "failure_reason": delivery.failure_reason,
            "now": now,
        },
    )
    await connection.execute(SQL.remove_from_outbox, key)
    if delivery.refunded:
        await append_entry(
            connection,
            accounts[organization_id],
            kind=LedgerEntryKind.REFUND,
            credits=delivery.credits,
            reference_id=delivery_id,
            now=now,
        )
    return delivery
