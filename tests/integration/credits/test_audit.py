"""The audit: it finds nothing in ledgers that hold, and every kind of damage where there is some."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from server.credits.audit import MAXIMUM_FINDINGS, AuditReport, audit_all, audit_organization, audit_snapshot
from server.postgres.pool import Connection, Pool
from tests.integration.credits.ledgers import NOW, fill, fund, send


@pytest.fixture
async def ledgers(pool: Pool) -> Pool:
    await fill(pool)
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
            "UPDATE ledger_entries SET reference_id = '00000000-0000-7000-8000-000000000000'",
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
