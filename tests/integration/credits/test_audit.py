"""The audit: it finds nothing in ledgers that hold, and every kind of damage where there is some."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from server.credits.accounts import lock_or_create_account
from server.credits.audit import MAXIMUM_FINDINGS, AuditReport, audit_all, audit_organization, audit_snapshot
from server.credits.ledger import LedgerEntryKind, adjust_credits, append_entry
from server.postgres.pool import Connection, Pool, transaction

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


async def fund(pool: Pool, organization_id: str, credits: int = 1000) -> None:
    await adjust_credits(
        pool,
        organization_id,
        request_id=uuid4(),
        credits=credits,
        reason="test",
        created_by="test",
        low_balance_threshold=100,
        now=NOW,
    )


async def send(pool: Pool, organization_id: str, *, credits: int = 3, refunded: bool = False) -> UUID:
    """Write a charged delivery as a send does, refunded or not."""
    delivery_id = uuid4()
    async with transaction(pool) as connection:
        account = await lock_or_create_account(connection, organization_id, low_balance_threshold=100, now=NOW)
        entry = await append_entry(
            connection, account, kind=LedgerEntryKind.SEND, credits=-credits, reference_id=delivery_id, now=NOW
        )
        await connection.execute(
            "INSERT INTO deliveries (organization_id, delivery_id, otp_id, request_id, request_fingerprint, purpose,"
            " channel, destination_digest, masked_destination, credits, ledger_sequence, balance_after, status,"
            " refunded, create_time, update_time)"
            " VALUES (%(organization_id)s, %(id)s, %(id)s, %(id)s, '', 'login', 'SMS', '', '', %(credits)s,"
            " %(sequence)s, %(balance_after)s, 'FAILED', %(refunded)s, %(now)s, %(now)s)",
            {
                "organization_id": organization_id,
                "id": delivery_id,
                "credits": credits,
                "sequence": entry.sequence,
                "balance_after": entry.balance_after,
                "refunded": refunded,
                "now": NOW,
            },
        )
        await connection.execute(
            "INSERT INTO otps (organization_id, otp_id, purpose, locale, destination_digest, code_key_id, code_length,"
            " context_digest, web_otp_domain, metadata, max_attempts, create_time, expire_time)"
            " VALUES (%s, %s, 'login', '', '', 'key', 6, '', '', '{}', 5, %s, %s)",
            [organization_id, delivery_id, NOW, NOW],
        )
        if refunded:
            await append_entry(
                connection, account, kind=LedgerEntryKind.REFUND, credits=credits, reference_id=delivery_id, now=NOW
            )
    return delivery_id


async def buy(pool: Pool, organization_id: str) -> None:
    """Write a paid top-up as a purchase does."""
    top_up_id = uuid4()
    async with transaction(pool) as connection:
        account = await lock_or_create_account(connection, organization_id, low_balance_threshold=100, now=NOW)
        await append_entry(
            connection, account, kind=LedgerEntryKind.TOP_UP, credits=1000, reference_id=top_up_id, now=NOW
        )
        await connection.execute(
            "INSERT INTO top_ups (organization_id, top_up_id, request_id, request_fingerprint, status, credits,"
            " currency_code, unit_price, total, created_by, create_time, stripe_parameters, attempt_time,"
            " stripe_invoice_id, paid_time, next_check_time)"
            " VALUES (%(organization_id)s, %(id)s, %(id)s, '', 'PAID', 1000, 'IDR', 150, 150000, '', %(now)s, '{}',"
            " %(now)s, 'in_1', %(now)s, %(now)s)",
            {"organization_id": organization_id, "id": top_up_id, "now": NOW},
        )


@pytest.fixture
async def ledgers(pool: Pool) -> Pool:
    """Two organizations: acme with funds, a send, a refunded send, a send and a top-up; other with funds."""
    await fund(pool, "acme")
    await send(pool, "acme")
    await send(pool, "acme", refunded=True)
    await send(pool, "acme", credits=1)
    await buy(pool, "acme")
    await fund(pool, "other")
    return pool


@pytest.fixture
async def damaged(ledgers: Pool) -> AsyncIterator[Connection]:
    """A transaction of the schema's owner on those ledgers, for damage that is rolled back at the end."""
    async with await psycopg.AsyncConnection[tuple[Any, ...]].connect(str(ledgers.conninfo)) as connection:
        yield connection
        await connection.rollback()


async def audit_within(connection: Connection, organization_id: str | None = None) -> AuditReport:
    return await audit_snapshot(connection, organization_id, None, verify_time=NOW)


async def test_ledgers_that_hold_are_counted(ledgers: Pool) -> None:
    report = await audit_all(ledgers)
    of_acme = await audit_organization(ledgers, "acme")
    of_unknown = await audit_organization(ledgers, "unknown")
    assert (report.holds, report.organization_count, report.entry_count) == (True, 2, 7)
    assert (of_acme.holds, of_acme.organization_count, of_acme.entry_count) == (True, 1, 6)
    assert (of_unknown.holds, of_unknown.entry_count) == (True, 0)


@pytest.mark.parametrize(
    ("damage", "where", "rules"),
    [
        ("DELETE FROM ledger_entries", "sequence = 2", {"broken_chain", "wrong_balance", "delivery_not_in_ledger"}),
        ("DELETE FROM ledger_entries", "sequence = 6", {"wrong_balance", "top_up_not_in_ledger"}),
        ("UPDATE ledger_entries SET balance_after = 5", "sequence = 2", {"broken_chain", "delivery_not_in_ledger"}),
        ("UPDATE ledger_entries SET credits = 999", "sequence = 1", {"broken_chain", "wrong_balance"}),
        ("UPDATE accounts SET available_credits = available_credits + 1", "true", {"wrong_balance"}),
        ("UPDATE accounts SET last_sequence = last_sequence + 1", "true", {"wrong_balance"}),
        ("DELETE FROM accounts", "true", {"wrong_balance"}),
        ("UPDATE deliveries SET credits = 2", "credits = 1", {"delivery_not_in_ledger"}),
        ("UPDATE deliveries SET refunded = false", "refunded", {"delivery_not_in_ledger"}),
        ("UPDATE deliveries SET refunded = true", "credits = 1", {"delivery_not_in_ledger"}),
        ("UPDATE deliveries SET ledger_sequence = 9", "credits = 1", {"delivery_not_in_ledger"}),
        ("UPDATE deliveries SET balance_after = 9", "credits = 1", {"delivery_not_in_ledger"}),
        ("DELETE FROM deliveries", "credits = 1", {"send_without_delivery"}),
        ("UPDATE top_ups SET credits = 999", "true", {"top_up_not_in_ledger"}),
        ("UPDATE top_ups SET status = 'OPEN', paid_time = NULL", "true", {"top_up_not_in_ledger"}),
        ("DELETE FROM top_ups", "true", {"credit_without_top_up"}),
        (
            "UPDATE ledger_entries SET reference_id = gen_random_uuid()",
            "kind = 'REFUND'",
            {"delivery_not_in_ledger", "refund_without_send"},
        ),
        ("UPDATE deliveries SET status = 'QUEUED'", "credits = 1", {"delivery_not_in_outbox"}),
        ("DELETE FROM otps", "true", {"delivery_without_otp"}),
        ("UPDATE ledger_entries SET created_by = ''", "kind = 'ADJUSTMENT'", {"adjustment_without_author"}),
        ("UPDATE ledger_entries SET reason = ''", "kind = 'ADJUSTMENT'", {"adjustment_without_author"}),
    ],
)
async def test_every_damage_is_found_in_its_organization(
    damaged: Connection, damage: str, where: str, rules: set[str]
) -> None:
    await damaged.execute(f"{damage} WHERE organization_id = 'acme' AND {where}".encode())
    report = await audit_within(damaged)
    assert not report.holds
    assert {finding.rule for finding in report.findings} == rules
    assert {finding.organization_id for finding in report.findings} == {"acme"}
    assert set((await audit_within(damaged, "acme")).findings) == set(report.findings)
    assert (await audit_within(damaged, "other")).holds


@pytest.mark.parametrize("otp_id", ["delivery_id", "gen_random_uuid()"])
async def test_a_settled_delivery_in_the_outbox_is_found(damaged: Connection, otp_id: str) -> None:
    await damaged.execute(
        "INSERT INTO outbox (organization_id, delivery_id, otp_id, next_attempt_time)"  # noqa: S608 - of this file
        f" SELECT organization_id, delivery_id, {otp_id}, now() FROM deliveries WHERE credits = 1".encode()
    )
    report = await audit_within(damaged)
    assert [(finding.rule, finding.organization_id) for finding in report.findings] == [
        ("outbox_without_delivery", "acme")
    ]
    assert (await audit_within(damaged, "acme")).findings == report.findings


async def test_the_number_of_findings_is_limited(damaged: Connection) -> None:
    await damaged.execute(
        b"INSERT INTO accounts (organization_id, available_credits, low_balance_threshold, window_start_time,"
        b" create_time) SELECT number::text, 1, 100, now(), now() FROM generate_series(1, 1000) AS number"
    )
    assert len((await audit_within(damaged)).findings) == MAXIMUM_FINDINGS


async def test_sends_older_than_the_kept_deliveries_need_no_delivery(
    damaged: Connection,
) -> None:
    await damaged.execute("DELETE FROM deliveries")
    after = await audit_snapshot(damaged, None, NOW + timedelta(seconds=1), verify_time=NOW)
    before = await audit_snapshot(damaged, None, NOW, verify_time=NOW)
    assert after.holds
    assert len(before.findings) == 3


async def test_the_audit_finds_nothing_while_credits_change(pool: Pool) -> None:
    async def spend(organization_id: str) -> None:
        await fund(pool, organization_id)
        for _ in range(20):
            await send(pool, organization_id, refunded=True)

    spending = [asyncio.create_task(spend(f"organization-{number % 2}")) for number in range(4)]
    reports = []
    while not all(task.done() for task in spending):
        reports.append(await audit_all(pool))
    await asyncio.gather(*spending)
    assert [report.findings for report in reports if not report.holds] == []
    assert (await audit_all(pool)).entry_count == 4 + 4 * 20 * 2
