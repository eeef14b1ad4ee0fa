"""Alerts: the threshold, who is told, and that each crossing is announced once."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from server.credits.adjustments import adjust_credits
from server.credits.alerts import Alerts, update_alerts
from server.database.pool import Pool, connection

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
    async with connection(pool) as lent:
        return await (await lent.execute(query.encode())).fetchall()


async def low_since(pool: Pool) -> datetime | None:
    [(since,)] = await fetch(pool, "SELECT low_balance_since FROM accounts")
    return since if since is None else datetime.fromisoformat(str(since))


async def test_what_is_not_given_stays_as_it_is(pool: Pool) -> None:
    await update(pool, threshold=300, email="billing@example.com")
    after_threshold = await update(pool, threshold=200)
    after_email = await update(pool, email="")
    assert (after_threshold.balance.low_balance_threshold, after_threshold.alert_email) == (200, "billing@example.com")
    assert (after_email.balance.low_balance_threshold, after_email.alert_email) == (200, "")


async def test_an_organization_that_never_bought_can_set_its_alerts(pool: Pool) -> None:
    alerts = await update(pool, email="billing@example.com")
    assert (alerts.balance.available_credits, alerts.balance.low_balance, alerts.balance.low_balance_threshold) == (
        0,
        True,
        100,
    )


async def test_the_threshold_alone_can_make_a_balance_low_and_high_again(pool: Pool) -> None:
    await adjust(pool, 1000)
    assert await low_since(pool) is None
    assert (await update(pool, threshold=1001)).balance.low_balance
    assert await low_since(pool) == NOW
    assert not (await update(pool, threshold=1000)).balance.low_balance
    assert await low_since(pool) is None


async def test_each_crossing_is_announced_once_and_a_top_up_arms_the_next(pool: Pool) -> None:
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


async def test_a_raised_threshold_announces_a_balance_that_is_low_by_it(pool: Pool) -> None:
    await update(pool, email="billing@example.com")
    await adjust(pool, 500)
    await update(pool, threshold=600)
    await update(pool, threshold=700)
    [(details,)] = await fetch(pool, "SELECT details FROM notices")
    assert details == {"available_credits": 500, "low_balance_threshold": 600}


async def test_nobody_to_tell_means_no_notice(pool: Pool) -> None:
    await adjust(pool, 150)
    await adjust(pool, -100)
    assert await fetch(pool, "SELECT 1 FROM notices") == []
