"""Ledgers for the audit's tests: written as the server writes them, without its services."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

from server.credits.accounts import lock_or_create_account
from server.credits.ledger import AuditKeys, LedgerEntryKind, adjust_credits, append_entry
from server.postgres.pool import Pool, transaction

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


async def fund(
    pool: Pool, organization_id: str, credits: int = 1000, *, audit_keys: AuditKeys | None = None, now: datetime = NOW
) -> None:
    """Adjust credits."""
    await adjust_credits(
        pool,
        organization_id,
        request_id=uuid4(),
        credits=credits,
        reason="test",
        created_by="test",
        low_balance_threshold=100,
        now=now,
        audit_keys=audit_keys,
    )


async def send(
    pool: Pool, organization_id: str, *, credits: int = 3, refunded: bool = False, now: datetime = NOW
) -> UUID:
    """Write a charged delivery as a send does, refunded or not."""
    delivery_id = uuid4()
    async with transaction(pool) as connection:
        account = await lock_or_create_account(connection, organization_id, low_balance_threshold=100, now=now)
        entry = await append_entry(
            connection, account, kind=LedgerEntryKind.SEND, credits=-credits, reference_id=delivery_id, now=now
        )
        await connection.execute(
            "INSERT INTO deliveries (organization_id, delivery_id, otp_id, purpose,"
            " channel, destination_digest, masked_destination, credits, ledger_sequence, balance_after, status,"
            " refunded, create_time, update_time)"
            " VALUES (%(organization_id)s, %(id)s, %(id)s, 'login', 'SMS', '', '', %(credits)s,"
            " %(sequence)s, %(balance_after)s, 'FAILED', %(refunded)s, %(now)s, %(now)s)",
            {
                "organization_id": organization_id,
                "id": delivery_id,
                "credits": credits,
                "sequence": entry.sequence,
                "balance_after": entry.balance_after,
                "refunded": refunded,
                "now": now,
            },
        )
        await connection.execute(
            "INSERT INTO otps (organization_id, otp_id, purpose, channel, locale, destination_digest, code_key_id,"
            " code_length, context_digest, web_otp_domain, metadata, max_attempts, create_time, expire_time)"
            " VALUES (%s, %s, 'login', 'EMAIL', '', '', 'key', 6, '', '', '{}', 5, %s, %s)",
            [organization_id, delivery_id, now, now],
        )
        if refunded:
            await append_entry(
                connection, account, kind=LedgerEntryKind.REFUND, credits=credits, reference_id=delivery_id, now=now
            )
    return delivery_id


async def buy(pool: Pool, organization_id: str, *, audit_keys: AuditKeys | None = None) -> None:
    """Write a paid top-up as a purchase does."""
    top_up_id = uuid4()
    async with transaction(pool) as connection:
        account = await lock_or_create_account(connection, organization_id, low_balance_threshold=100, now=NOW)
        await append_entry(
            connection,
            account,
            kind=LedgerEntryKind.TOP_UP,
            credits=1000,
            reference_id=top_up_id,
            now=NOW,
            audit_keys=audit_keys,
        )
        await connection.execute(
            "INSERT INTO top_ups (organization_id, top_up_id, status, credits,"
            " currency_code, unit_price, total, created_by, create_time, stripe_parameters, attempt_time,"
            " stripe_invoice_id, paid_time, next_check_time)"
            " VALUES (%(organization_id)s, %(id)s, 'PAID', 1000, 'IDR', 150, 150000, '', %(now)s, '{}',"
            " %(now)s, 'in_1', %(now)s, %(now)s)",
            {"organization_id": organization_id, "id": top_up_id, "now": NOW},
        )


async def fill(pool: Pool, audit_keys: AuditKeys | None = None) -> None:
    """Two organizations: acme with funds, a send, a refunded send, a send and a top-up; other with funds."""
    await fund(pool, "acme", audit_keys=audit_keys)
    await send(pool, "acme")
    await send(pool, "acme", refunded=True)
    await send(pool, "acme", credits=1)
    await buy(pool, "acme", audit_keys=audit_keys)
    await fund(pool, "other", audit_keys=audit_keys)
