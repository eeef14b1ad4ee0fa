"""Each group of faults at Stripe, on automatic top-ups: a crossing is charged once, or not at all."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from server.credits.top_ups.state_machine import TopUpStatus
from tests.integration.top_ups.cards import add_card, bought, enable, open_page, settle, spend, to_day_of_next_month
from tests.integration.top_ups.driver import ACME, BAD_ANSWERS, TopUpDriver
from tests.integration.top_ups.failpoints import SimulatedCrash, restart
from tests.waiting import until

_S = TopUpStatus
_CALLS = ["POST /v1/customers*", "POST /v1/invoices", "POST /v1/invoiceitems", "POST */finalize", "POST */pay"]
_CARD_CALLS = ["POST /v1/customers", "POST /v1/checkout/sessions", "GET /v1/checkout/sessions/*"]


async def ready(driver: TopUpDriver) -> None:
    """One credit above the threshold."""
    await driver.adjust(100)
    await add_card(driver)
    await enable(driver)
    await settle(driver)


async def run_jobs_until_paid(driver: TopUpDriver) -> None:
    async def is_paid() -> bool:
        await driver.run_jobs()
        await settle(driver)
        driver.clock.ahead += timedelta(minutes=6)
        return [each.status for each in await bought(driver)] == [_S.PAID]

    await until(is_paid)


async def paid_invoices(driver: TopUpDriver) -> int:
    charges = driver.sandbox.account.objects["charge"]
    invoices = [each["status"] for each in await driver.invoices()]
    assert len(charges) == invoices.count("paid")
    return len(charges)


@pytest.mark.parametrize(("fault", "options"), BAD_ANSWERS)
async def test_bad_answers_to_every_call_end_with_one_charge(
    driver: TopUpDriver, fault: str, options: dict[str, Any]
) -> None:
    await ready(driver)
    faults = [await driver.inject_fault(call, fault, **options) for call in _CALLS]
    await spend(driver, 1)
    await settle(driver)
    for number in range(3):  # the repeats of a call that fails reach the next one only later
        driver.clock.ahead += timedelta(seconds=61 * number)
        await driver.run_jobs()
    for each in faults:
        await driver.control(f"DELETE /faults/{each['id']}")
    await run_jobs_until_paid(driver)
    assert await paid_invoices(driver) == 1
    assert await driver.credits() == 1099
    assert (await driver.automatic.read(ACME)).row.failed_charges == 0


@pytest.mark.parametrize(("fault", "options"), [BAD_ANSWERS[6], BAD_ANSWERS[8], BAD_ANSWERS[12]])
async def test_a_charge_whose_answer_is_lost_is_not_made_again_and_is_no_failure(
    driver: TopUpDriver, fault: str, options: dict[str, Any]
) -> None:
    await ready(driver)
    injected = await driver.inject_fault("POST */pay", fault, **options)
    await spend(driver, 1)
    await settle(driver)
    await driver.control(f"DELETE /faults/{injected['id']}")
    assert await paid_invoices(driver) == 1
    await run_jobs_until_paid(driver)
    assert await paid_invoices(driver) == 1
    assert await driver.query_value("SELECT count(*) FROM notices WHERE kind LIKE 'AUTOMATIC%%'") == 0


async def test_a_charge_that_succeeds_after_its_timeout_is_credited_once(driver: TopUpDriver) -> None:
    driver.start(timeout_seconds=0.3)
    await ready(driver)
    await driver.inject_fault("POST */pay", "hold_after")
    await spend(driver, 1)
    await settle(driver)
    await run_jobs_until_paid(driver)
    assert await paid_invoices(driver) == 1


@pytest.mark.parametrize("pass_time", [timedelta(seconds=61), timedelta(hours=25)])
async def test_a_charge_that_a_crash_forgot_is_found_at_stripe(driver: TopUpDriver, pass_time: timedelta) -> None:
    await ready(driver)
    crash = SimulatedCrash()
    reached = asyncio.Event()

    async def failpoint(point: str) -> None:
        if point == "stripe pay":
            reached.set()
            await asyncio.Event().wait()

    replica = driver.start(failpoint=failpoint)
    await driver.automatic.refresh(driver.clock())
    await spend(driver, 1)
    await reached.wait()
    await restart(driver, replica, crash)
    if pass_time > timedelta(hours=24):
        await driver.control("POST /keys/prune")
    driver.clock.ahead += pass_time
    await run_jobs_until_paid(driver)
    assert await paid_invoices(driver) == 1
    assert await driver.credits() == 1099


@pytest.mark.parametrize("call", _CARD_CALLS)
@pytest.mark.parametrize(("fault", "options"), [BAD_ANSWERS[6], BAD_ANSWERS[8], BAD_ANSWERS[9], BAD_ANSWERS[12]])
async def test_bad_answers_while_a_card_is_saved_end_with_the_card(
    driver: TopUpDriver, call: str, fault: str, options: dict[str, Any]
) -> None:
    injected = await driver.inject_fault(call, fault, **options)
    asked = asyncio.create_task(add_card(driver))
    await asyncio.wait({asked})
    await driver.control(f"DELETE /faults/{injected['id']}")
    if asked.exception():
        await add_card(driver)
    row = (await driver.automatic.read(ACME)).row
    assert row.payment_method_id
    await driver.adjust(99)
    await enable(driver)
    await settle(driver)
    assert await driver.credits() == 1099


@pytest.mark.parametrize(
    "change",
    [
        {"multiply": {"unit_amount_decimal": 100}},
        {"set": {"amount": "100", "unit_amount_decimal": ""}},
    ],
)
async def test_an_invoice_of_another_amount_is_voided_and_never_charged(
    driver: TopUpDriver, change: dict[str, Any]
) -> None:
    await ready(driver)
    await driver.inject_fault("POST /v1/invoiceitems", "change_parameters", **change)
    await spend(driver, 1)
    await settle(driver)
    await driver.run_jobs()
    assert await paid_invoices(driver) == 0
    assert {each.status for each in await bought(driver)} <= {_S.REVIEW, _S.FAILED}
    assert await driver.credits() == 99


@pytest.mark.parametrize("options", [{"amount": 500_000}, {"amount": -1_000_000}])
async def test_a_balance_of_the_customer_that_is_not_money_is_not_taken(
    driver: TopUpDriver, options: dict[str, Any]
) -> None:
    await driver.buy()
    [manual] = await driver.top_ups.list(ACME, limit=1)
    await driver.cancel(manual)
    await driver.invoice_action(manual, "set_customer_balance", **options)
    await ready(driver)
    await spend(driver, 1)
    await settle(driver)
    assert await paid_invoices(driver) == 0
    assert (await bought(driver))[0].status is _S.FAILED
    assert (await driver.automatic.read(ACME)).row.failed_charges == 1


async def test_events_again_and_in_any_order_credit_once(driver: TopUpDriver) -> None:
    held = await driver.inject_fault("invoice.*", "hold", times=0)
    await ready(driver)
    await spend(driver, 1)
    await settle(driver)
    await driver.control(f"DELETE /faults/{held['id']}")
    await driver.control("POST /events/release", {"reverse": True})
    [paid] = (await driver.control("GET /events?type=invoice.paid"))["events"]
    await driver.control(f"POST /events/{paid['id']}/deliver", {"times": 50})
    invoice = (await driver.invoices())[0]
    await driver.control("POST /events", {"type": "invoice.paid", "object": invoice})
    await driver.control("POST /events", {"type": "invoice.payment_failed", "object": invoice | {"status": "open"}})
    await driver.wait_for_events()
    assert await driver.credits() == 1099
    assert (await driver.automatic.read(ACME)).row.failed_charges == 0


async def test_a_cancellation_during_the_charge_ends_equally_in_both_systems(driver: TopUpDriver) -> None:
    for number in range(3):
        organization_id = f"organization-{number}"
        await driver.adjust(99, organization_id)
        await add_card(driver, organization_id)
        held = await driver.inject_fault("POST */pay", "hold_before")
        await enable(driver, organization_id)
        await driver.control(f"GET /faults/{held['id']}/met")
        [waiting] = await bought(driver, organization_id)
        canceling = asyncio.create_task(driver.cancel(waiting))
        await driver.wait_for_status(waiting, _S.CANCELING)
        await driver.control(f"POST /faults/{held['id']}/release")
        await asyncio.gather(canceling, return_exceptions=True)
        await settle(driver)
        await driver.wait_for_events()
        ended = await driver.stored(waiting)
        status = next(each["status"] for each in await driver.invoices() if each["id"] == ended.stripe_invoice_id)
        assert (ended.status, status) in {(_S.PAID, "paid"), (_S.CANCELED, "void")}
        assert await driver.credits(organization_id) == (1099 if status == "paid" else 99)


async def test_without_any_webhook_a_page_and_a_charge_are_still_known(driver: TopUpDriver) -> None:
    driver.sandbox.set_webhook_url("http://127.0.0.1:9/closed")
    await driver.adjust(100)
    await open_page(driver)
    await driver.run_jobs()
    await enable(driver)
    await spend(driver, 1)
    await settle(driver)
    assert await driver.credits() == 1099


async def test_a_cap_that_was_lowered_leaves_automatic_top_ups_on(driver: TopUpDriver) -> None:
    """The declined top-up would expire before the next month: it is canceled, and that month orders another one."""
    to_day_of_next_month(driver, 6)
    await ready(driver)
    await spend(driver, 1)
    await settle(driver)
    card = (await driver.automatic.read(ACME)).row.payment_method_id
    await driver.control(f"POST /cards/{card}/declined")
    await spend(driver, 1000)
    await settle(driver)
    await enable(driver, monthly_credit_cap=1500)
    await settle(driver)

    async def is_canceled() -> bool:
        driver.clock.ahead += timedelta(minutes=10)
        await driver.run_jobs()
        await settle(driver)
        return [each.status for each in await bought(driver)] == [_S.CANCELED, _S.PAID]

    await until(is_canceled)
    view = await driver.automatic.read(ACME)
    assert (view.state, view.row.is_enabled) == ("CAP_REACHED", True)
    await driver.control(f"POST /cards/{card}/works")
    await enable(driver, monthly_credit_cap=2000)
    await settle(driver)
    assert [each.status for each in await bought(driver)] == [_S.PAID, _S.CANCELED, _S.PAID]
