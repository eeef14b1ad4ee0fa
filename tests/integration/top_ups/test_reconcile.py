"""The drift report: it compares Stripe's invoices with the top-ups, and the top-ups with Stripe's invoices."""

from datetime import timedelta
from typing import Any

import pytest

from server.credits.stripe.reconcile import DriftReport, find_drift
from server.credits.top_ups.state_machine import TopUpStatus
from server.errors import PaymentProviderUnavailable
from server.jobs import report_drift
from server.postgres.pool import acquire
from tests.integration.top_ups.driver import TopUpDriver


async def _report(driver: TopUpDriver) -> DriftReport:
    return await find_drift(driver.pool, driver.replica.stripe_client, environment="test", now=driver.clock())


async def _edit(driver: TopUpDriver, query: str, *parameters: object) -> None:
    async with acquire(driver.pool) as connection:
        await connection.execute(query.encode(), parameters)


async def test_top_ups_of_every_status_have_no_drift(driver: TopUpDriver) -> None:
    paid = await driver.buy("paid")
    await driver.pay_hosted_invoice(paid)
    await driver.wait_for_status(paid, TopUpStatus.PAID)
    await driver.cancel(await driver.buy("canceled"))
    await driver.invoice_action(await driver.buy("uncollectible"), "mark_uncollectible")
    await driver.wait_for_events()
    await driver.buy("open")
    report = await _report(driver)
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
async def test_a_change_at_stripe_without_a_webhook_is_reported(
    driver: TopUpDriver, action: str, options: dict[str, Any], kind: str
) -> None:
    opened = await driver.buy()
    driver.sandbox.set_webhook_url("http://127.0.0.1:9/closed")
    await driver.invoice_action(opened, action, **options)
    report = await _report(driver)
    assert not report.holds
    assert kind in [drift.kind for drift in report.drifts]
    assert str(opened.stripe_invoice_id) in str(report)


async def test_a_second_invoice_for_one_top_up_is_reported(driver: TopUpDriver) -> None:
    await driver.inject_fault("POST /v1/invoices", "twice")
    await driver.buy()
    assert [drift.kind for drift in (await _report(driver)).drifts] == ["invoice_without_top_up"]


async def test_a_total_that_differs_from_the_paid_amount_is_reported(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.pay_hosted_invoice(opened)
    await driver.wait_for_status(opened, TopUpStatus.PAID)
    await _edit(driver, "UPDATE top_ups SET total = total + 1")
    assert [drift.kind for drift in (await _report(driver)).drifts] == ["amount_differs"]


async def test_a_top_up_that_needs_review_is_listed_and_is_no_drift(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.invoice_action(opened, "pay", out_of_band=True)
    await driver.wait_for_status(opened, TopUpStatus.REVIEW)
    report = await _report(driver)
    assert report.holds
    assert [(found.kind, found.detail) for found in report.attention] == [("review", "paid_out_of_band")]


async def test_top_ups_older_than_35_days_are_left_out(driver: TopUpDriver) -> None:
    await driver.buy()
    driver.clock.ahead = timedelta(days=36)
    assert (await _report(driver)).top_ups == 0


async def test_the_job_fails_when_stripe_does_not_answer(driver: TopUpDriver) -> None:
    await driver.inject_fault("GET /v1/invoices", "refuse", status=403)
    with pytest.raises(PaymentProviderUnavailable):
        await report_drift(driver.pool, driver.replica.stripe_client, environment="test", now=driver.clock())


async def test_the_job_returns_the_number_of_differences(driver: TopUpDriver) -> None:
    await driver.invoice_action(await driver.buy("voided"), "void")
    await driver.wait_for_events()
    stripe_client, now = driver.replica.stripe_client, driver.clock()
    assert await report_drift(driver.pool, stripe_client, environment="test", now=now) == 0
    await _edit(driver, "UPDATE top_ups SET status = 'OPEN', cancel_time = NULL")
    assert await report_drift(driver.pool, stripe_client, environment="test", now=now) == 1
