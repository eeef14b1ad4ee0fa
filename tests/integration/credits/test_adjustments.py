"""An operator's corrections: each is applied once, and none makes the balance negative."""

import asyncio
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from server.credits.accounts import MAXIMUM_CREDITS
from server.credits.audit import audit_all
from server.credits.balances import Balance
from server.credits.ledger import LedgerEntry, adjust_credits, list_entries
from server.errors import BalanceAboveMaximum, InsufficientCredits, RequestIdReused
from server.postgres.pool import Pool, acquire
from server.providers.provider import OutcomeKind
from tests.integration.otps.replica import Replica


async def adjust(
    pool: Pool, credits: int, *, request_id: UUID | None = None, reason: str = "goodwill"
) -> tuple[LedgerEntry, Balance]:
    return await adjust_credits(
        pool,
        "acme",
        request_id=request_id or uuid4(),
        credits=credits,
        reason=reason,
        created_by="operator",
        low_balance_threshold=100,
        now=datetime.now(UTC),
    )


async def entries_of(pool: Pool, organization_id: str) -> list[LedgerEntry]:
    async with acquire(pool) as connection:
        return await list_entries(connection, organization_id, before_sequence=1 << 62, limit=500)


async def test_a_correction_is_a_ledger_entry_with_its_reason_and_author(pool: Pool) -> None:
    await adjust(pool, 1000)
    entry, balance = await adjust(pool, -40, reason="entered twice")
    assert (entry.sequence, entry.credits, entry.balance_after) == (2, -40, 960)
    assert (entry.reason, entry.created_by) == ("entered twice", "operator")
    assert balance == Balance("acme", 960, 100, 2)
    assert (await entries_of(pool, "acme"))[0] == entry


async def test_fifty_equal_simultaneous_corrections_are_applied_once(pool: Pool) -> None:
    request_id = uuid4()
    answers = await asyncio.gather(*(adjust(pool, 500, request_id=request_id) for _ in range(50)))
    assert {entry for entry, _ in answers} == {answers[0][0]}
    assert [entry.credits for entry in await entries_of(pool, "acme")] == [500]


async def test_a_repeat_returns_the_first_entry_and_the_current_balance(pool: Pool) -> None:
    request_id = uuid4()
    first, _ = await adjust(pool, 500, request_id=request_id)
    await adjust(pool, 7)
    again, balance = await adjust(pool, 500, request_id=request_id)
    assert again == first
    assert balance.available_credits == 507


@pytest.mark.parametrize(("credits", "reason"), [(501, "goodwill"), (500, "another reason")])
async def test_a_request_id_with_other_arguments_is_refused(pool: Pool, credits: int, reason: str) -> None:
    request_id = uuid4()
    await adjust(pool, 500, request_id=request_id)
    with pytest.raises(RequestIdReused):
        await adjust(pool, credits, request_id=request_id, reason=reason)
    assert len(await entries_of(pool, "acme")) == 1


async def test_a_correction_cannot_make_the_balance_negative(pool: Pool) -> None:
    await adjust(pool, 10)
    with pytest.raises(InsufficientCredits) as refused:
        await adjust(pool, -11)
    assert refused.value.metadata == {"required_credits": "11", "available_credits": "10"}
    assert len(await entries_of(pool, "acme")) == 1


async def test_a_correction_beyond_what_an_account_can_hold_is_refused_and_writes_nothing(pool: Pool) -> None:
    await adjust(pool, MAXIMUM_CREDITS - 7)
    with pytest.raises(BalanceAboveMaximum) as refused:
        await adjust(pool, 8)
    assert refused.value.metadata == {"maximum_credits": str(MAXIMUM_CREDITS)}
    assert len(await entries_of(pool, "acme")) == 1
    _, balance = await adjust(pool, 7)
    assert balance.available_credits == MAXIMUM_CREDITS
    await adjust(pool, -1)


async def test_a_refund_fits_into_an_account_that_holds_the_maximum(pool: Pool) -> None:
    replica = Replica(pool)
    await adjust(pool, MAXIMUM_CREDITS)
    sent = await replica.send()
    await adjust(pool, sent.delivery.credits)
    await replica.record_outcome(sent, OutcomeKind.REJECTED_DESTINATION)
    assert (await entries_of(pool, "acme"))[0].balance_after == MAXIMUM_CREDITS + 1


async def test_a_refused_first_correction_leaves_no_account(pool: Pool) -> None:
    with pytest.raises(InsufficientCredits):
        await adjust(pool, -1)
    async with acquire(pool) as connection:
        assert await (await connection.execute("SELECT count(*) FROM accounts")).fetchone() == (0,)


async def test_of_many_simultaneous_corrections_only_those_that_the_balance_covers_succeed(pool: Pool) -> None:
    await adjust(pool, 10)
    outcomes = await asyncio.gather(*(adjust(pool, -1) for _ in range(30)), return_exceptions=True)
    assert sum(isinstance(outcome, InsufficientCredits) for outcome in outcomes) == 20
    report = await audit_all(pool)
    assert (report.holds, report.entry_count) == (True, 11)
