"""The drift report: it compares Stripe's invoices with the top-ups, and the top-ups with Stripe's invoices."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from server.credits.pricing import load_pricing
from server.credits.stripe.reconcile import DriftReport, RestoredTopUps, find_drift, restore_top_ups
from server.credits.top_ups.state_machine import TopUp, TopUpStatus
from server.errors import PaymentProviderUnavailable
from server.jobs import report_drift
from server.postgres.pool import acquire
from tests.integration.top_ups.driver import TopUpDriver, purchase
from tests.waiting import SECONDS

_TOTAL = 15_000_000
"""Of 1,000 credits, in minor units."""

Lose = Callable[[TopUp], None]


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


async def test_an_older_one_that_needs_a_person_is_listed(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.invoice_action(opened, "pay", out_of_band=True)
    await driver.wait_for_status(opened, TopUpStatus.REVIEW)
    driver.clock.ahead = timedelta(days=36)
    report = await _report(driver)
    assert report.top_ups == 0
    assert [found.top_up_id for found in report.attention] == [opened.top_up_id]


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


@pytest.fixture
def lose(driver: TopUpDriver, database_url: str) -> Lose:
    """Make the database as it was before the top-up, and unreachable for webhooks."""

    def lose(top_up: TopUp) -> None:
        driver.sandbox.set_webhook_url(None)
        with psycopg.connect(database_url) as owner:
            owner.execute("DELETE FROM requests WHERE answer_id = %s", [top_up.top_up_id])
            owner.execute("DELETE FROM top_ups WHERE top_up_id = %s", [top_up.top_up_id])
            owner.execute("UPDATE accounts SET stripe_customer_id = NULL")

    return lose


async def _restore(driver: TopUpDriver) -> RestoredTopUps:
    stripe_client, since = driver.replica.stripe_client, driver.clock() - timedelta(hours=1)
    return await restore_top_ups(driver.replica.store, stripe_client, load_pricing(None), since=since)


async def test_a_lost_top_up_comes_back_and_is_credited_once(driver: TopUpDriver, lose: Lose) -> None:
    ordered = purchase()
    lost = await driver.top_ups.create(ordered, created_by="ann", wait_seconds=SECONDS)
    lose(lost)
    await driver.invoice_action(lost, "pay")

    [restored] = (await _restore(driver)).restored
    again = await _restore(driver)

    assert (restored.top_up_id, restored.status, restored.created_by) == (lost.top_up_id, TopUpStatus.PAID, "restored")
    assert again == RestoredTopUps((), ())
    assert await driver.credits() == 1000
    assert (await driver.top_ups.create(ordered, created_by="ann", wait_seconds=0)).top_up_id == lost.top_up_id
    assert await driver.query_value("SELECT stripe_customer_id FROM accounts") == lost.stripe_customer_id
    assert (await _report(driver)).holds


async def test_an_unpaid_lost_top_up_can_be_paid_after_it_came_back(driver: TopUpDriver, lose: Lose) -> None:
    lost = await driver.buy()
    lose(lost)
    [restored] = (await _restore(driver)).restored
    await driver.invoice_action(lost, "pay")
    await _restore(driver)

    assert restored.status is TopUpStatus.OPEN
    assert await driver.credits() == 1000


async def test_a_lost_top_up_waits_for_the_end_of_the_one_before_it(driver: TopUpDriver, lose: Lose) -> None:
    first = await driver.buy()
    await driver.invoice_action(first, "void")
    await driver.wait_for_status(first, TopUpStatus.CANCELED)
    second = await driver.buy()
    lose(second)
    canceled = "UPDATE top_ups SET status = %s, cancel_time = %s"
    await _edit(driver, canceled, "OPEN", None)
    [problem] = (await _restore(driver)).problems
    await _edit(driver, canceled, "CANCELED", driver.clock())
    [restored] = (await _restore(driver)).restored

    assert f"top-up {second.top_up_id}" in problem
    assert "An unpaid top-up is open" in problem
    assert restored.top_up_id == second.top_up_id


@pytest.mark.parametrize("is_lost", [True, False])
async def test_a_part_that_an_earlier_overpayment_paid_counts(
    driver: TopUpDriver, lose: Lose, *, is_lost: bool
) -> None:
    """Stripe's list does not say so: the open invoice would be voided, and the paid one go to REVIEW."""
    first = await driver.buy()
    await driver.invoice_action(first, "pay", amount=_TOTAL + _TOTAL // 2)
    await driver.wait_for_status(first, TopUpStatus.PAID)
    await driver.wait_for_events()
    second = await driver.buy()
    driver.sandbox.set_webhook_url(None)
    if is_lost:
        lose(second)
    await _restore(driver)
    opened = await driver.stored(second)
    await driver.invoice_action(second, "pay")
    await _restore(driver)

    assert (opened.status, opened.failure_reason) == (TopUpStatus.OPEN, "")
    assert (await driver.stored(second)).status is TopUpStatus.PAID
    assert await driver.credits() == 2000


async def test_a_request_id_that_was_used_again_is_a_problem_of_its_invoice_alone(
    driver: TopUpDriver, lose: Lose
) -> None:
    ordered = purchase()
    lost = await driver.top_ups.create(ordered, created_by="ann", wait_seconds=SECONDS)
    lose(lost)
    await driver.invoice_action(lost, "pay")
    await driver.cancel(await driver.top_ups.create(ordered, created_by="ann", wait_seconds=SECONDS))
    other = await driver.buy("other")
    lose(other)
    report = await _restore(driver)

    assert [each.top_up_id for each in report.restored] == [other.top_up_id]
    assert [f"top-up {lost.top_up_id}" in each for each in report.problems] == [True]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"status": "draft"}, "nobody can pay it"),
        ({"metadata.credits": "2000"}, "its credits have another price today"),
        ({"metadata.credits": "many"}, "invalid literal"),
        ({"metadata.request_id": None}, "it does not say what it buys"),
    ],
)
async def test_a_lost_top_up_whose_invoice_is_in_doubt_is_left_to_a_person(
    driver: TopUpDriver, lose: Lose, fields: dict[str, Any], problem: str
) -> None:
    lost = await driver.buy()
    lose(lost)
    await driver.invoice_action(lost, "change", fields=fields)
    report = await _restore(driver)

    assert report.restored == ()
    assert [problem in each for each in report.problems] == [True]


async def test_events_that_a_restore_has_lost_are_processed_again(driver: TopUpDriver, database_url: str) -> None:
    paid = await driver.buy()
    await driver.pay_hosted_invoice(paid)
    await driver.wait_for_status(paid, TopUpStatus.PAID)
    await driver.invoice_action(paid, "refund")
    await driver.wait_for_events()
    with psycopg.connect(database_url) as owner:
        owner.execute("DELETE FROM stripe_events")
        owner.execute("UPDATE top_ups SET flags = '{}'")
    undelivered = await driver.inbox.collect_undelivered(now=driver.clock())

    count = await driver.inbox.process_again(since=driver.clock() - timedelta(hours=1))
    again = await driver.inbox.process_again(since=driver.clock() - timedelta(hours=1))

    assert (undelivered, count > 0, again) == (0, True, 0)
    assert (await driver.stored(paid)).flags == ("REFUNDED",)
