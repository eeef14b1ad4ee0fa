"""Alerts: the threshold, the e-mail address, and one notice for each time that the balance becomes low."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from server.credits.alerts import Alerts, update_alerts
from server.credits.ledger import adjust_credits
from server.postgres.pool import Pool, acquire

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


async def adjust(pool: Pool, credits: int) -> None:
    await adjust_credits(
        pool,
        "acme",
        request_id=uuid4(),
        credits=credits,
        reason="test",
        created_by="test",
        low_balance_threshold=100,
        now=NOW,
    )


async def update(pool: Pool, *, threshold: int | None = None, email: str | None = None) -> Alerts:
    return await update_alerts(
        pool, "acme", low_balance_threshold=threshold, alert_email=email, default_threshold=100, now=NOW
    )


async def fetch(pool: Pool, query: str) -> list[tuple[Any, ...]]:
    async with acquire(pool) as connection:
        return await (await connection.execute(query.encode())).fetchall()


async def low_since(pool: Pool) -> datetime | None:
    [(since,)] = await fetch(pool, "SELECT low_balance_since FROM accounts")
    return since if since is None else datetime.fromisoformat(str(since))


async def test_a_setting_that_is_not_given_stays_as_it_is(pool: Pool) -> None:
    await update(pool, threshold=300, email="billing@example.com")
    after_threshold = await update(pool, threshold=200)
    after_email = await update(pool, email="")
    assert (after_threshold.balance.low_balance_threshold, after_threshold.alert_email) == (200, "billing@example.com")
    assert (after_email.balance.low_balance_threshold, after_email.alert_email) == (200, "")


async def test_an_organization_without_an_account_can_set_its_alerts(pool: Pool) -> None:
    alerts = await update(pool, email="billing@example.com")
    assert (alerts.balance.available_credits, alerts.balance.low_balance, alerts.balance.low_balance_threshold) == (
        0,
        True,
        100,
    )


async def test_a_new_threshold_alone_can_make_a_balance_low_and_no_longer_low(pool: Pool) -> None:
    await adjust(pool, 1000)
    assert await low_since(pool) is None
    assert (await update(pool, threshold=1001)).balance.low_balance
    assert await low_since(pool) == NOW
    assert not (await update(pool, threshold=1000)).balance.low_balance
    assert await low_since(pool) is None


async def test_a_low_balance_gives_one_notice_and_another_only_after_credits_were_added(pool: Pool) -> None:
    await update(pool, threshold=100, email="billing@example.com")
    await adjust(pool, 150)
    await adjust(pool, -100)
    await adjust(pool, -1)
    await adjust(pool, 500)
    await adjust(pool, -500)
    notices = await fetch(pool, "SELECT kind, reference_id, email, details FROM notices ORDER BY reference_id")
    assert [notice[:3] for notice in notices] == [
        ("BALANCE_LOW", "2", "billing@example.com"),
        ("BALANCE_LOW", "5", "billing@example.com"),
    ]
    assert [notice[3]["available_credits"] for notice in notices] == [50, 49]


async def test_a_raised_threshold_that_makes_the_balance_low_gives_one_notice(pool: Pool) -> None:
    await update(pool, email="billing@example.com")
    await adjust(pool, 500)
    await update(pool, threshold=600)
    await update(pool, threshold=700)
    [(details,)] = await fetch(pool, "SELECT details FROM notices")
    assert details == {"available_credits": 500, "low_balance_threshold": 600}


async def test_without_an_alert_email_there_is_no_notice(pool: Pool) -> None:
    await adjust(pool, 150)
    await adjust(pool, -100)
    assert await fetch(pool, "SELECT 1 FROM notices") == []
