"""The report that compares Stripe with the table, both ways."""

from datetime import timedelta
from typing import Any

import pytest

from server.credits.drift import DriftReport, find_drift
from server.credits.top_up_states import TopUpStatus
from server.database.pool import connection
from server.watch.top_ups import watch_drift
from tests.integration.top_ups.shop import Shop


async def _report(shop: Shop) -> DriftReport:
    return await find_drift(shop.pool, shop.desk.payments, environment="test", now=shop.clock())


async def _edit(shop: Shop, query: str, *parameters: object) -> None:
    async with connection(shop.pool) as lent:
        await lent.execute(query.encode(), parameters)


async def test_a_full_life_has_no_drift(shop: Shop) -> None:
    paid = await shop.buy("paid")
    await shop.press_pay(paid)
    await shop.becomes(paid, TopUpStatus.PAID)
    await shop.cancel(await shop.buy("canceled"))
    await shop.act(await shop.buy("uncollectible"), "mark_uncollectible")
    await shop.all_events_done()
    await shop.buy("open")
    report = await _report(shop)
    assert report.holds, str(report)
    assert (report.invoices, report.top_ups) == (4, 4)
    assert "all agree" in str(report)


@pytest.mark.parametrize(
    ("action", "options", "kind"),
    [
        ("pay", {}, "status_differs"),
        ("void", {}, "status_differs"),
        ("mark_uncollectible", {}, "status_differs"),
        ("change", {"fields": {"metadata": {}}}, "invoice_missing"),
        ("change", {"fields": {"metadata.environment": "other"}}, "invoice_missing"),
        (
            "change",
            {"fields": {"metadata.top_up_id": "01890000-0000-7000-8000-000000000000"}},
            "invoice_without_top_up",
        ),
    ],
)
async def test_what_changed_at_stripe_unseen_is_reported(
    shop: Shop, action: str, options: dict[str, Any], kind: str
) -> None:
    opened = await shop.buy()
    shop.sandbox.set_webhook_url("http://127.0.0.1:9/closed")
    await shop.act(opened, action, **options)
    report = await _report(shop)
    assert not report.holds
    assert kind in [drift.kind for drift in report.drifts]
    assert str(opened.stripe_invoice_id) in str(report)


async def test_a_second_invoice_for_one_top_up_is_reported(shop: Shop) -> None:
    await shop.fault("POST /v1/invoices", "twice")
    await shop.buy()
    assert [drift.kind for drift in (await _report(shop)).drifts] == ["invoice_without_top_up"]


async def test_an_amount_that_is_not_what_was_paid_is_reported(shop: Shop) -> None:
    opened = await shop.buy()
    await shop.press_pay(opened)
    await shop.becomes(opened, TopUpStatus.PAID)
    await _edit(shop, "UPDATE top_ups SET total = total + 1")
    assert [drift.kind for drift in (await _report(shop)).drifts] == ["amount_differs"]


async def test_what_needs_a_person_is_listed_and_is_no_drift(shop: Shop) -> None:
    opened = await shop.buy()
    await shop.act(opened, "pay", out_of_band=True)
    await shop.becomes(opened, TopUpStatus.REVIEW)
    report = await _report(shop)
    assert report.holds
    assert [(found.kind, found.detail) for found in report.attention] == [("review", "paid_out_of_band")]


async def test_older_top_ups_than_35_days_are_left_out(shop: Shop) -> None:
    await shop.buy()
    shop.clock.ahead = timedelta(days=36)
    assert (await _report(shop)).top_ups == 0


async def test_the_night_watch_counts_what_does_not_agree(shop: Shop) -> None:
    await shop.act(await shop.buy("voided"), "void")
    await shop.all_events_done()
    payments, now = shop.desk.payments, shop.clock()
    assert await watch_drift(shop.pool, payments, environment="test", now=now) == 0
    await _edit(shop, "UPDATE top_ups SET status = 'OPEN', cancel_time = NULL")
    assert await watch_drift(shop.pool, payments, environment="test", now=now) == 1
