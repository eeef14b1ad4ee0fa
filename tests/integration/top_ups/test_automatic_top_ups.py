"""Automatic top-ups: what orders one, what charges the card, and what switches them off."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from server.credits.top_ups.automatic import AutomaticTopUpState, next_month
from server.credits.top_ups.state_machine import TopUpFlag, TopUpStatus
from server.errors import OrganizationSuspended, RequestIdReused
from server.ids import new_id
from tests.integration.top_ups.cards import (
    add_card,
    bought,
    charges,
    enable,
    is_off,
    notices,
    off_reason,
    open_page,
    ready,
    settle,
    spend,
    switch_off,
    to_day_of_next_month,
)
from tests.integration.top_ups.driver import ACME, TopUpDriver
from tests.waiting import until

_S = TopUpStatus
_PAUSE = timedelta(hours=4)


async def test_only_the_spend_that_crosses_the_threshold_orders_and_needs_no_job(driver: TopUpDriver) -> None:
    await ready(driver, credits=102)
    await spend(driver, 2)
    await settle(driver)
    assert await bought(driver) == []

    await asyncio.gather(*(spend(driver, 1) for _ in range(5)))
    await settle(driver)

    assert [each.status for each in await bought(driver)] == [_S.PAID]
    assert await driver.credits() == 1095
    [invoice] = await driver.invoices()
    assert (invoice["collection_method"], invoice["status"], invoice["auto_advance"]) == (
        "charge_automatically", "paid", False
    )  # fmt: skip


async def test_a_crossing_that_the_process_forgot_is_ordered_by_the_job_of_any_replica(driver: TopUpDriver) -> None:
    await ready(driver)
    await driver.adjust(-1)
    driver.start()

    await driver.run_jobs()
    await settle(driver)

    assert await driver.credits() == 1099
    assert await driver.automatic.order_due(now=driver.clock(), limit=16) == 0


async def test_another_replica_learns_the_threshold(driver: TopUpDriver) -> None:
    await ready(driver, threshold_credits=80)
    driver.start()
    await driver.automatic.refresh(driver.clock())
    assert driver.automatic.thresholds == {ACME: 80}
    await switch_off(driver)
    await driver.automatic.refresh(driver.clock())
    assert driver.automatic.thresholds == {}


async def test_replicas_that_order_at_once_order_once(driver: TopUpDriver) -> None:
    await ready(driver)
    driver.start()
    await driver.adjust(-1)

    await asyncio.gather(
        *(replica.automatic.order_due(now=driver.clock(), limit=16) for replica in driver.replicas * 5)
    )
    for replica in driver.replicas:
        await replica.top_ups.close()

    assert [each.status for each in await bought(driver)] == [_S.PAID]


async def test_nothing_is_ordered_while_the_organization_is_suspended(driver: TopUpDriver) -> None:
    await ready(driver)
    await driver.query_value(
        "UPDATE accounts SET suspend_time = now(), suspend_reason = 'x', suspended_by = 'x' RETURNING 1"
    )
    await spend(driver, 1)
    await driver.run_jobs()
    await settle(driver)
    assert await bought(driver) == []
    with pytest.raises(OrganizationSuspended):
        await add_card(driver)


async def test_failed_charges_pause_longer_each_time_and_then_switch_off(driver: TopUpDriver) -> None:
    await ready(driver, credits=99, behaviour="declined")
    attempts = [(await bought(driver))[0].charge_time]
    for pause in (_PAUSE, 2 * _PAUSE):
        count = await charges(driver)
        driver.clock.ahead += pause - timedelta(minutes=1)
        await driver.run_jobs()
        assert await charges(driver) == count
        driver.clock.ahead += timedelta(minutes=7)  # a top-up is looked at every five minutes
        await driver.run_jobs()
        attempts.append((await bought(driver))[0].charge_time)

    assert attempts[-1] is None
    assert await off_reason(driver) == "CHARGES_FAILED"
    assert await notices(driver) == ["AUTOMATIC_TOP_UP_DECLINED", "AUTOMATIC_TOP_UP_OFF"]
    [waiting] = await bought(driver)
    assert waiting.status is _S.OPEN
    driver.clock.ahead += timedelta(days=9)
    await driver.run_jobs()
    assert (await driver.stored(waiting)).status is _S.EXPIRED
    assert await driver.credits() == 99


async def test_a_customer_who_pays_on_the_page_meanwhile_is_not_charged(driver: TopUpDriver) -> None:
    await ready(driver, credits=99, behaviour="authentication")
    [waiting] = await bought(driver)
    await driver.pay_hosted_invoice(waiting)
    driver.clock.ahead += _PAUSE + timedelta(minutes=1)
    await driver.run_jobs()
    assert await driver.credits() == 1099
    row = (await driver.automatic.read(ACME)).row
    assert (row.failed_charges, row.last_failure, row.is_enabled) == (0, "", True)


async def test_after_a_success_the_count_of_failures_begins_again(driver: TopUpDriver) -> None:
    await ready(driver, credits=99, behaviour="declined")
    [card] = (await driver.control("GET /cards"))["cards"]
    await driver.control(f"POST /cards/{card['id']}/works")
    driver.clock.ahead += _PAUSE + timedelta(minutes=1)
    await driver.run_jobs()
    assert await driver.credits() == 1099
    await driver.control(f"POST /cards/{card['id']}/declined")
    await spend(driver, 1099)
    await settle(driver)
    assert (await driver.automatic.read(ACME)).row.failed_charges == 1


async def test_the_cap_is_of_a_calendar_month(driver: TopUpDriver) -> None:
    await ready(driver, credits=99, monthly_credit_cap=1500)
    await spend(driver, 1099)
    await settle(driver)
    assert await driver.credits() == 0
    assert (await driver.automatic.read(ACME)).row.next_attempt_time == next_month(driver.clock())
    await driver.run_jobs()
    assert await notices(driver) == ["PAYMENT_CONFIRMED", "BALANCE_LOW", "AUTOMATIC_TOP_UP_CAP_REACHED"]

    driver.clock.ahead += next_month(driver.clock()) - driver.clock()
    await driver.run_jobs()
    await settle(driver)

    assert await driver.credits() == 1000
    assert (await driver.automatic.read(ACME)).month_credits == 1000


async def test_a_charge_beyond_the_cap_of_its_month_waits(driver: TopUpDriver) -> None:
    await ready(driver, monthly_credit_cap=1999)
    await spend(driver, 1)
    await settle(driver)
    to_day_of_next_month(driver, 28)  # the invoice is due in the month after
    [card] = (await driver.control("GET /cards"))["cards"]
    await driver.control(f"POST /cards/{card['id']}/declined")
    await spend(driver, 1099)
    await settle(driver)
    waiting, first = await bought(driver)
    # As if the first, which is of an earlier month, had been paid on its page only now.
    await driver.query_value("UPDATE top_ups SET paid_time = %s WHERE top_up_id = %s RETURNING 1", driver.clock(),
                             first.top_up_id)  # fmt: skip
    driver.clock.ahead += _PAUSE + timedelta(minutes=1)

    await driver.run_jobs()

    assert await charges(driver) == 2
    assert (await driver.stored(waiting)).charge_time == next_month(driver.clock())


async def test_a_cap_below_what_waits_to_be_charged_is_told(driver: TopUpDriver) -> None:
    to_day_of_next_month(driver, 28)
    await ready(driver, credits=99, monthly_credit_cap=2000)
    [card] = (await driver.control("GET /cards"))["cards"]
    await driver.control(f"POST /cards/{card['id']}/declined")
    await spend(driver, 1099)
    await settle(driver)
    await driver.control(f"POST /cards/{card['id']}/works")

    await enable(driver, monthly_credit_cap=1999)
    await settle(driver)

    assert (await driver.automatic.read(ACME)).state is AutomaticTopUpState.CAP_REACHED
    assert (await notices(driver))[-1] == "AUTOMATIC_TOP_UP_CAP_REACHED"
    assert await charges(driver) == 2
    await enable(driver, monthly_credit_cap=2000)
    await settle(driver)
    assert await driver.credits() == 1000
    assert (await driver.automatic.read(ACME)).state is AutomaticTopUpState.READY


async def test_a_card_that_its_bank_renewed_is_shown_as_it_is_now(driver: TopUpDriver) -> None:
    await ready(driver)
    [card] = (await driver.control("GET /cards"))["cards"]
    await driver.control(f"POST /cards/{card['id']}/renew")
    await until(lambda: is_done(driver, "payment_method.automatically_updated"))
    row = (await driver.automatic.read(ACME)).row
    assert (row.card_last4, row.card_expire_year, row.is_enabled) == ("4243", 2044, True)
    await spend(driver, 1)
    await settle(driver)
    assert await driver.credits() == 1099


@pytest.mark.parametrize(
    ("action", "reason"),
    [("mark_uncollectible", "UNCOLLECTIBLE"), ("void", "CANCELED")],
)
async def test_a_top_up_that_ends_unpaid_switches_off(driver: TopUpDriver, action: str, reason: str) -> None:
    await ready(driver, credits=99, behaviour="declined")
    [waiting] = await bought(driver)
    await driver.invoice_action(waiting, action)
    await until(lambda: is_off(driver, reason))
    await driver.run_jobs()
    assert len(await bought(driver)) == 1


async def test_a_payment_that_does_not_match_is_reviewed_and_no_second_one_is_charged(driver: TopUpDriver) -> None:
    await driver.inject_fault("POST */pay", "act_before", action="pay", options={"out_of_band": True})
    await ready(driver, credits=99)
    await driver.run_jobs()
    await settle(driver)
    assert [each.status for each in await bought(driver)] == [_S.REVIEW]
    assert await off_reason(driver) == "REVIEW"
    assert await driver.credits() == 99


async def test_a_payment_in_review_counts_for_the_cap(driver: TopUpDriver) -> None:
    await driver.inject_fault("POST */pay", "act_before", action="pay", options={"out_of_band": True})
    await ready(driver, credits=99, monthly_credit_cap=1999)
    await enable(driver, monthly_credit_cap=1999)
    await settle(driver)
    assert [each.status for each in await bought(driver)] == [_S.REVIEW]
    assert (await driver.automatic.read(ACME)).month_credits == 1000


@pytest.mark.parametrize(("action", "flag"), [("refund", TopUpFlag.REFUNDED), ("dispute", TopUpFlag.DISPUTED)])
async def test_a_payment_that_is_taken_back_later_switches_off(
    driver: TopUpDriver, action: str, flag: TopUpFlag
) -> None:
    driver.terms = replace(driver.terms, freeze_disputed=True)
    driver.start()
    await ready(driver, credits=99)
    [first] = await bought(driver)
    await spend(driver, 1099)
    await settle(driver)
    assert await driver.credits() == 1000
    await driver.invoice_action(first, action)
    await until(lambda: is_off(driver, flag.value))
    await driver.run_jobs()
    await settle(driver)
    assert len(await bought(driver)) == 2


async def test_what_stripe_refuses_to_make_counts_as_a_failure(driver: TopUpDriver) -> None:
    fault = await driver.inject_fault("POST /v1/invoices", "refuse", code="no_such_luck", times=0)
    await ready(driver, credits=99)
    row = (await driver.automatic.read(ACME)).row
    assert (row.failed_charges, row.last_failure) == (1, "stripe_no_such_luck")
    await driver.control(f"DELETE /faults/{fault['id']}")
    await driver.run_jobs()
    assert len(await bought(driver)) == 1
    driver.clock.ahead += _PAUSE + timedelta(minutes=1)
    await driver.run_jobs()
    await settle(driver)
    assert [each.status for each in await bought(driver)] == [_S.PAID, _S.FAILED]


async def test_switched_off_between_order_and_charge_the_card_is_not_charged(driver: TopUpDriver) -> None:
    held = await driver.inject_fault("POST */finalize", "hold_before")
    await driver.adjust(99)
    await add_card(driver)
    await enable(driver)
    await until(lambda: is_met(driver, held["id"]))
    await switch_off(driver)
    await driver.control(f"POST /faults/{held['id']}/release")
    await settle(driver)
    [waiting] = await bought(driver)
    assert (waiting.status, waiting.charge_time) == (_S.OPEN, None)
    assert await charges(driver) == 0
    # The same order, agreed to again, goes on.
    await enable(driver)
    await settle(driver)
    assert await driver.credits() == 1099


@pytest.mark.parametrize("changes", [{"credits": 2000}, {"currency_code": "USD", "credits": 2000}])
async def test_another_order_replaces_the_one_that_waits(driver: TopUpDriver, changes: dict[str, Any]) -> None:
    await ready(driver, credits=99, behaviour="declined")
    [card] = (await driver.control("GET /cards"))["cards"]
    await driver.control(f"POST /cards/{card['id']}/works")
    await enable(driver, **changes)
    await settle(driver)
    await driver.run_jobs()
    await driver.run_jobs()
    await settle(driver)
    assert [each.status for each in await bought(driver)] == [_S.PAID, _S.CANCELED]
    assert await driver.credits() == 2099
    assert await off_reason(driver) == "it is on"


async def test_a_payment_in_review_of_a_former_order_switches_off_too(driver: TopUpDriver) -> None:
    await ready(driver, credits=99, behaviour="declined")
    await driver.inject_fault("POST */void", "act_before", action="pay", options={"out_of_band": True})
    await enable(driver, credits=2000)
    await settle(driver)
    await driver.run_jobs()
    await driver.run_jobs()
    await settle(driver)
    assert [each.status for each in await bought(driver)] == [_S.REVIEW]
    assert await off_reason(driver) == "REVIEW"


async def test_a_charge_that_another_order_meets_is_credited_and_not_made_again(driver: TopUpDriver) -> None:
    held = await driver.inject_fault("POST */pay", "hold_after")
    await driver.adjust(99)
    await add_card(driver)
    await enable(driver)
    await driver.wait_until_held(held)
    await enable(driver, credits=2000)
    await driver.control(f"POST /faults/{held['id']}/release")
    await settle(driver)
    await driver.run_jobs()
    await settle(driver)
    assert [each.status for each in await bought(driver)] == [_S.PAID]
    assert await driver.credits() == 1099
    assert await charges(driver) == 1


async def is_met(driver: TopUpDriver, fault_id: str) -> bool:
    faults = (await driver.control("GET /faults"))["faults"]
    return any(fault["used"] for fault in faults if fault["id"] == fault_id)


async def test_of_two_pages_the_card_of_the_later_one_stays(driver: TopUpDriver) -> None:
    first, second = new_id(), new_id()
    await add_card(driver, request_id=first)
    await driver.control("POST /clock", {"advance_seconds": 5})
    await add_card(driver, request_id=second)
    kept = (await driver.automatic.read(ACME)).row
    await add_card(driver, request_id=first)  # its event comes again
    assert (await driver.automatic.read(ACME)).row == kept
    await driver.run_jobs()
    customers = [card["customer"] is None for card in (await driver.control("GET /cards"))["cards"]]
    assert customers == [True, False]


async def test_a_removed_card_does_not_come_back_with_a_late_event(driver: TopUpDriver) -> None:
    request_id = new_id()
    await add_card(driver, request_id=request_id)
    await driver.automatic.remove_card(ACME)
    await driver.run_jobs()
    await add_card(driver, request_id=request_id)
    assert (await driver.automatic.read(ACME)).row.payment_method_id is None


async def test_a_card_that_was_detached_before_its_page_is_told_is_not_saved(driver: TopUpDriver) -> None:
    held = await driver.inject_fault("checkout.session.completed", "hold")
    await open_page(driver)
    [card] = (await driver.control("GET /cards"))["cards"]
    await driver.control(f"POST /cards/{card['id']}/detach")
    await until(lambda: is_done(driver, "payment_method.detached"))
    await driver.control(f"DELETE /faults/{held['id']}")
    await driver.control("POST /events/release")
    await until(lambda: is_done(driver, "checkout.session.completed"))
    assert (await driver.automatic.read(ACME)).row.payment_method_id is None


async def is_done(driver: TopUpDriver, event_type: str) -> bool:
    query = "SELECT status FROM stripe_events WHERE type = %s"
    return bool(await driver.query_value(query, event_type) == "DONE")


async def test_an_event_of_a_payment_method_that_is_no_card_is_done(driver: TopUpDriver) -> None:
    await ready(driver)
    account = driver.sandbox.account
    [card] = account.objects["payment_method"].values()
    other = account.add({**card, "id": "pm_of_a_bank", "type": "us_bank_account"})
    del other["card"]
    account.emit("payment_method.updated", other)
    await until(lambda: is_done(driver, "payment_method.updated"))
    assert await off_reason(driver) == "it is on"


async def test_a_consent_after_a_cancellation_outlives_it(driver: TopUpDriver) -> None:
    await ready(driver, credits=99, behaviour="declined")
    [waiting] = await bought(driver)
    held = await driver.inject_fault("POST */void", "hold_before")
    canceling = asyncio.create_task(driver.cancel(waiting))
    await driver.wait_until_held(held)
    [card] = (await driver.control("GET /cards"))["cards"]
    await driver.control(f"POST /cards/{card['id']}/works")
    await enable(driver)
    await driver.control(f"POST /faults/{held['id']}/release")
    await canceling
    await driver.run_jobs()
    await settle(driver)
    assert await off_reason(driver) == "it is on"
    assert [each.status for each in await bought(driver)] == [_S.PAID, _S.CANCELED]


async def test_a_customer_that_was_deleted_is_made_again_for_a_card(driver: TopUpDriver) -> None:
    await driver.cancel(await driver.buy())
    for customer in driver.sandbox.account.objects["customer"].values():
        customer["deleted"] = True
    await add_card(driver)
    await driver.adjust(99)
    await enable(driver)
    await settle(driver)
    assert await driver.credits() == 1099


async def test_a_page_and_a_first_purchase_at_once_have_one_customer(driver: TopUpDriver) -> None:
    held = await driver.inject_fault("POST /v1/customers", "hold_after")
    buying = asyncio.create_task(driver.buy())
    await driver.wait_until_held(held)
    await add_card(driver)
    await driver.control(f"POST /faults/{held['id']}/release")
    await driver.cancel(await buying)
    await driver.adjust(99)
    await enable(driver)
    await settle(driver)
    assert await driver.credits() == 1099


async def test_a_request_id_of_a_page_is_of_no_other_call(driver: TopUpDriver) -> None:
    request_id = new_id()
    await add_card(driver, request_id=request_id)
    with pytest.raises(RequestIdReused):
        await driver.buy(request_id=request_id)
