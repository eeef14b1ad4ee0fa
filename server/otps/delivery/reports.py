"""Delivery reports: a provider's later report on a message that it accepted or may have accepted."""

from collections.abc import Collection
from datetime import datetime
from uuid import UUID

from psycopg.types.json import Jsonb

from server.credits.accounts import lock_accounts
from server.credits.ledger import LedgerEntryKind, append_entry
from server.errors import DeliveryNotFound
from server.events.log import EventSwitches, append_events
from server.ids import first_otp_id
from server.otps.otp import DELIVERY_COLUMNS, Delivery, DeliveryStatus, OtpStatus, delivery_from_row
from server.otps.otp_events import delivery_changed
from server.otps.settings_cache import SettingsCache
from server.otps.sms_pumping import subtract_refunded
from server.postgres.columns import uuids
from server.postgres.pool import Connection, Pool, acquire, retry_transient, transaction
from server.postgres.queries import load_queries

SQL = load_queries(__file__, delivery=DELIVERY_COLUMNS)

_REPLACES = {
    DeliveryStatus.SENT: {DeliveryStatus.QUEUED, DeliveryStatus.UNKNOWN},
    DeliveryStatus.DELIVERED: {DeliveryStatus.QUEUED, DeliveryStatus.UNKNOWN, DeliveryStatus.SENT},
    DeliveryStatus.FAILED: {DeliveryStatus.QUEUED, DeliveryStatus.UNKNOWN, DeliveryStatus.SENT},
}
"""The statuses that a reported status replaces. Any other report is late, repeated or out of order: it is ignored."""


async def report_delivery(
    pool: Pool,
    organization_id: str,
    delivery_id: UUID,
    *,
    status: DeliveryStatus,
    failure_reason: str,
    refund_accepted: bool,
    now: datetime,
    report_time: datetime | None = None,
    switches: EventSwitches | None = None,
    settings: SettingsCache | None = None,
) -> Delivery:
    """Apply a report; returns the delivery after it. `report_time` is the provider's; None: now.

    Without `switches` no organization has events.

    A failure refunds the credits once: of an UNKNOWN delivery always, of one that the provider had accepted only with
    refund_accepted, or if the settings that it was sent with say so. A QUEUED delivery counts as accepted: the report
    arrived before the answer to the provider call.
    Raises DeliveryNotFound, also for a delivery of another organization, and DatabaseUnavailable.
    """

    async def once() -> Delivery:
        async with transaction(pool) as connection:
            delivery, is_changed = await _apply(
                connection,
                organization_id,
                delivery_id,
                status=status,
                failure_reason=failure_reason,
                refund_accepted=refund_accepted,
                now=now,
                report_time=report_time or now,
                settings=settings,
            )
            if is_changed and switches and switches.may_be_on(organization_id):
                event = delivery_changed(
                    organization_id,
                    delivery.otp_id,
                    delivery_id,
                    channel=delivery.channel,
                    status=delivery.status,
                    failure_reason=delivery.failure_reason,
                    refunded=delivery.refunded,
                )
                await append_events(connection, [event], now=now)
            return delivery

    return await retry_transient(once)


async def find_missing(pool: Pool, delivery_ids: Collection[UUID]) -> set[UUID]:
    """Which of these deliveries are not stored, of any organization. For a command: Citus asks every shard."""
    async with acquire(pool, seconds=pool.timeouts.job) as connection:
        rows = await connection.execute(SQL.find_deliveries, {"delivery_ids": uuids(delivery_ids)})
        return set(delivery_ids) - {row[0] for row in await rows.fetchall()}


async def _apply(
    connection: Connection,
    organization_id: str,
    delivery_id: UUID,
    *,
    status: DeliveryStatus,
    failure_reason: str,
    refund_accepted: bool,
    now: datetime,
    report_time: datetime,
    settings: SettingsCache | None,
) -> tuple[Delivery, bool]:
    """The delivery after the report, and whether the report has changed it."""
    key = {
        "organization_id": organization_id,
        "delivery_id": delivery_id,
        "first_otp_id": first_otp_id(delivery_id),
    }
    failed = status is DeliveryStatus.FAILED
    # Every transaction locks accounts, then outbox, OTPs, deliveries, unverified credits. Only a failure may refund,
    # and needs the account and the OTP.
    accounts = await lock_accounts(connection, [organization_id]) if failed else {}
    await connection.execute(SQL.lock_outbox, key)
    otp = await (await connection.execute(SQL.lock_otp, key)).fetchone() if failed else None
    row = await (await connection.execute(SQL.lock_delivery, key)).fetchone()
    if row is None:
        raise DeliveryNotFound
    delivery = delivery_from_row(row)
    if delivery.status not in _REPLACES[status]:
        return delivery, False
    if failed and settings is not None:
        sent_with = await settings.at(connection, organization_id, [delivery.settings_version])
        refund_accepted |= sent_with[delivery.settings_version].refund_reported_failures
    delivery.refunded = failed and (delivery.status is DeliveryStatus.UNKNOWN or refund_accepted)
    delivery.report(status, failure_reason=failure_reason if failed else "", report_time=report_time, now=now)
    await connection.execute(
        SQL.write_report,
        {
            **key,
            "status": delivery.status.value,
            "refunded": delivery.refunded,
            "failure_reason": delivery.failure_reason,
            "update_time": delivery.update_time,
            "earlier_changes": Jsonb(delivery.earlier_changes) if delivery.earlier_changes else None,
        },
    )
    if status is not DeliveryStatus.DELIVERED:
        # A periodic job sends the fallback, or looks when it is due.
        await connection.execute(SQL.fall_back, {**key, "now": now})
    await connection.execute(SQL.remove_from_outbox, {**key, "keep": status is not DeliveryStatus.DELIVERED})
    if delivery.refunded and delivery.credits:
        await append_entry(
            connection,
            accounts[organization_id],
            kind=LedgerEntryKind.REFUND,
            credits=delivery.credits,
            reference_id=delivery_id,
            now=now,
        )
        statuses = {(organization_id, delivery.otp_id): OtpStatus(otp[0])} if otp else {}
        await subtract_refunded(connection, [delivery], statuses)
    return delivery, True
