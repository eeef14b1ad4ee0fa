"""Stripe answers with errors, late or never, and calls overlap."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from server.credits.ledger import adjust_credits
from server.credits.top_ups.state_machine import TopUp, TopUpStatus
from server.errors import DatabaseUnavailable
from server.postgres.conninfo import Timeouts
from server.postgres.pool import open_pool
from tests.integration.top_ups.driver import ACME, BAD_ANSWERS, TopUpDriver, purchase
from tests.waiting import SECONDS, until

_S = TopUpStatus
_CALLS = ["POST /v1/customers", "POST /v1/invoices", "POST /v1/invoiceitems", "POST */finalize"]
_AFTER_LEASE = timedelta(seconds=61)


async def _run_jobs_until(driver: TopUpDriver, top_up: TopUp, status: TopUpStatus) -> TopUp:
    async def has_status() -> bool:
        await driver.run_jobs()
        driver.clock.ahead += timedelta(seconds=20)
        return (await driver.stored(top_up)).status is status

    await until(has_status)
    return await driver.stored(top_up)


async def _statuses_of_invoices_not_void(driver: TopUpDriver) -> list[str]:
    return [invoice["status"] for invoice in await driver.invoices() if invoice["status"] != "void"]


@pytest.mark.parametrize("call", _CALLS)
@pytest.mark.parametrize(("fault", "options"), BAD_ANSWERS)
async def test_bad_answers_end_with_one_invoice_that_is_credited_once(
    driver: TopUpDriver, call: str, fault: str, options: dict[str, Any]
) -> None:
    injected = await driver.inject_fault(call, fault, **options)
    bought = await driver.buy()
    assert bought.status in {_S.CREATING, _S.OPEN}
    await driver.control(f"DELETE /faults/{injected['id']}")
    opened = await _run_jobs_until(driver, bought, _S.OPEN)
    assert await _statuses_of_invoices_not_void(driver) == ["open"]
    await driver.invoice_action(opened, "pay")
    await _run_jobs_until(driver, opened, _S.PAID)
    assert await driver.credits() == 1000


@pytest.mark.parametrize("call", _CALLS)
async def test_a_purchase_that_stripe_refuses_fails_and_leaves_no_invoice(driver: TopUpDriver, call: str) -> None:
    await driver.inject_fault(call, "refuse", code="no_such_luck")
    bought = await driver.buy()
    assert (bought.status, bought.failure_reason) == (_S.FAILED, "stripe_no_such_luck")
    assert await _statuses_of_invoices_not_void(driver) == []
    assert (await driver.buy()).status is _S.OPEN


@pytest.mark.parametrize("call", _CALLS)
async def test_a_call_that_succeeds_after_its_timeout_is_not_repeated_at_stripe(driver: TopUpDriver, call: str) -> None:
    driver.start(timeout_seconds=0.3)
    await driver.inject_fault(call, "hold_after")
    bought = await driver.buy()
    await _run_jobs_until(driver, bought, _S.OPEN)
    assert await _statuses_of_invoices_not_void(driver) == ["open"]


@pytest.mark.parametrize("call", _CALLS)
async def test_work_goes_on_after_its_caller_has_canceled(driver: TopUpDriver, call: str) -> None:
    held = await driver.inject_fault(call, "hold_before")
    calling = asyncio.create_task(driver.buy())
    await driver.wait_until_held(held)
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    await driver.control(f"POST /faults/{held['id']}/release")
    await driver.top_ups.close()
    assert [each.status for each in await driver.top_ups.list(ACME, limit=10)] == [_S.OPEN]
    assert await _statuses_of_invoices_not_void(driver) == ["open"]


async def test_a_caller_that_does_not_wait_gets_creating_and_later_the_same_top_up(driver: TopUpDriver) -> None:
    held = await driver.inject_fault("POST /v1/invoices", "hold_before")
    contents = purchase()
    first = await driver.top_ups.create(contents, created_by="ann", wait_seconds=0)
    assert first.status is _S.CREATING
    await driver.control(f"POST /faults/{held['id']}/release")
    again = await driver.top_ups.create(contents, created_by="ann", wait_seconds=SECONDS)
    assert (again.top_up_id, again.status) == (first.top_up_id, _S.OPEN)


async def _crash_after_the_invoice_was_created(driver: TopUpDriver) -> TopUp:
    """A top-up whose invoice exists at Stripe while its id was never committed."""
    created = asyncio.Event()

    async def failpoint(point: str) -> None:
        if point == "stripe create_invoice":
            created.set()
            await asyncio.Event().wait()

    replica = driver.start(failpoint=failpoint)
    buying = asyncio.create_task(driver.buy())
    await created.wait()
    for task in (buying, *replica.top_ups._tasks.values()):
        task.cancel()
    await asyncio.gather(buying, return_exceptions=True)
    driver.start()
    [unfinished] = await driver.top_ups.list(ACME, limit=10)
    assert unfinished.stripe_invoice_id is None
    return unfinished


@pytest.mark.parametrize("pass_time", [_AFTER_LEASE, timedelta(hours=25)])
async def test_an_invoice_whose_id_was_not_stored_is_adopted_and_not_created_again(
    driver: TopUpDriver, pass_time: timedelta
) -> None:
    unfinished = await _crash_after_the_invoice_was_created(driver)
    driver.clock.ahead = pass_time
    if pass_time > _AFTER_LEASE:
        assert (await driver.control("POST /keys/prune"))["pruned"]
    opened = await _run_jobs_until(driver, unfinished, _S.OPEN)
    assert [invoice["id"] for invoice in await driver.invoices()] == [opened.stripe_invoice_id]


async def test_an_invoice_whose_id_was_not_stored_is_found_for_a_cancellation_after_a_day(driver: TopUpDriver) -> None:
    unfinished = await _crash_after_the_invoice_was_created(driver)
    driver.clock.ahead = timedelta(hours=25)
    await driver.control("POST /keys/prune")
    assert (await driver.cancel(unfinished)).status is _S.CANCELED
    assert await _statuses_of_invoices_not_void(driver) == []


async def test_several_invoices_whose_ids_were_not_stored_are_reviewed_and_one_is_kept(driver: TopUpDriver) -> None:
    await driver.inject_fault("POST /v1/invoices", "twice")
    unfinished = await _crash_after_the_invoice_was_created(driver)
    assert len(await driver.invoices()) == 2
    driver.clock.ahead = timedelta(hours=25)
    await driver.control("POST /keys/prune")
    reviewed = await _run_jobs_until(driver, unfinished, _S.REVIEW)
    assert reviewed.failure_reason == "several_invoices"
    assert [invoice["id"] for invoice in await driver.invoices()] == [reviewed.stripe_invoice_id]
    assert (await driver.buy()).status is _S.OPEN


async def test_an_upgrade_between_two_attempts_changes_no_parameter(driver: TopUpDriver) -> None:
    unfinished = await _crash_after_the_invoice_was_created(driver)
    driver.terms = replace(driver.terms, days_until_due=30, payment_method_types={"IDR": ("card",)})
    driver.start()
    driver.clock.ahead = _AFTER_LEASE
    opened = await _run_jobs_until(driver, unfinished, _S.OPEN)
    assert opened.attempt == 1
    assert len(await driver.invoices()) == 1


async def test_a_customer_that_was_deleted_at_stripe_is_created_again(driver: TopUpDriver) -> None:
    await driver.cancel(await driver.buy())
    driver.sandbox.account.objects["customer"].clear()
    assert (await _run_jobs_until(driver, await driver.buy(), _S.OPEN)).stripe_customer_id
    assert len(driver.sandbox.account.objects["customer"]) == 1


async def test_a_payment_that_arrives_before_the_void_wins(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.inject_fault("POST */void", "act_before", action="pay")
    ended = await driver.cancel(opened)
    assert ended.status is _S.PAID
    assert await driver.credits() == 1000


async def test_a_simultaneous_payment_and_cancellation_end_equally_in_both_systems(driver: TopUpDriver) -> None:
    for number in range(10):
        organization_id = f"organization-{number}"
        opened = await driver.buy(organization_id)
        await asyncio.gather(driver.pay_hosted_invoice(opened), driver.cancel(opened), return_exceptions=True)
        await driver.wait_for_events()
        ended = await driver.stored(opened)
        status = next(each["status"] for each in await driver.invoices() if each["id"] == opened.stripe_invoice_id)
        assert (ended.status, status) in {(_S.PAID, "paid"), (_S.CANCELED, "void")}
        assert await driver.credits(organization_id) == (1000 if status == "paid" else 0)


@pytest.mark.parametrize(("action", "status", "credits"), [("pay", _S.PAID, 1000), ("fail_payment", _S.CANCELED, 0)])
async def test_a_top_up_stays_canceling_until_its_pending_payment_ends(
    driver: TopUpDriver, action: str, status: TopUpStatus, credits: int
) -> None:
    opened = await driver.buy()
    await driver.invoice_action(opened, "start_payment")
    assert (await driver.cancel(opened)).status is _S.CANCELING
    await driver.invoice_action(opened, action)
    await _run_jobs_until(driver, opened, status)
    assert await driver.credits() == credits
    assert (await driver.buy()).status is _S.OPEN


@pytest.mark.parametrize("call", _CALLS)
async def test_a_purchase_can_be_canceled_while_its_invoice_is_created(driver: TopUpDriver, call: str) -> None:
    driver.start(timeout_seconds=SECONDS)
    held = await driver.inject_fault(call, "hold_before")
    creating = await driver.buy(wait_seconds=0)
    await driver.wait_until_held(held)
    canceling = asyncio.create_task(driver.cancel(creating))
    await driver.wait_for_status(creating, _S.CANCELING)
    await driver.control(f"POST /faults/{held['id']}/release")
    assert (await canceling).status is _S.CANCELED
    assert await _statuses_of_invoices_not_void(driver) == []
    assert (await driver.buy()).status is _S.OPEN


async def test_a_cancellation_just_before_the_worker_releases_its_lease_is_carried_out(driver: TopUpDriver) -> None:
    async def failpoint(point: str) -> None:
        if point == "commit apply invoice" and (found := await driver.top_ups.list(ACME, statuses=[_S.OPEN], limit=1)):
            await driver.cancel(found[0], wait_seconds=0)

    driver.sandbox.set_webhook_url("http://127.0.0.1:9/closed")
    driver.start(failpoint=failpoint)
    await driver.buy()
    await driver.top_ups.close()
    assert [each.status for each in await driver.top_ups.list(ACME, limit=10)] == [_S.CANCELED]


async def test_a_top_up_that_stays_unpaid_is_voided_and_expires(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    driver.clock.ahead = timedelta(days=7, hours=23)
    await driver.run_jobs()
    assert (await driver.stored(opened)).status is _S.OPEN
    driver.clock.ahead = timedelta(days=8, minutes=1)
    await driver.run_jobs()
    expired = await driver.stored(opened)
    assert expired.status is _S.EXPIRED
    assert expired.cancel_time
    assert await _statuses_of_invoices_not_void(driver) == []


async def test_a_top_up_whose_invoice_is_in_another_account_stays_canceling(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    driver.sandbox.account.objects["invoice"].clear()
    assert (await driver.cancel(opened)).status is _S.CANCELING


async def test_a_refund_after_the_credits_were_spent_is_flagged_and_nothing_goes_negative(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.pay_hosted_invoice(opened)
    await driver.wait_for_status(opened, _S.PAID)
    await driver.wait_for_events()
    spending: dict[str, Any] = {"request_id": uuid4(), "credits": -1000, "reason": "spent", "created_by": "ann"}
    await adjust_credits(driver.pool, ACME, **spending, low_balance_threshold=100, now=driver.clock())
    await driver.invoice_action(opened, "refund")
    await driver.wait_for_events()
    assert (await driver.stored(opened)).flags == ("REFUNDED",)
    assert await driver.credits() == 0


async def test_while_the_database_is_down_no_webhook_is_accepted(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.wait_for_events()
    down = await open_pool("postgresql://127.0.0.1:9/closed", size=1, timeouts=Timeouts(connection=0.2))
    working, driver.pool = driver.pool, down
    broken = driver.start()
    with pytest.raises(DatabaseUnavailable):
        await broken.top_ups.list(ACME, limit=1)
    await driver.pay_hosted_invoice(opened)
    await until(lambda: _was_refused(driver))
    driver.pool = working
    driver.start()
    await driver.wait_for_status(opened, _S.PAID)
    await down.close()
    assert await driver.credits() == 1000


async def _was_refused(driver: TopUpDriver) -> bool:
    deliveries = (await driver.control("GET /deliveries?type=invoice.paid"))["deliveries"]
    return any(each["status"] == 500 for each in deliveries)


@pytest.mark.parametrize(("fault", "options"), [("drop_after", {}), ("bad_gateway", {"executes": True})])
async def test_a_lost_answer_to_the_removal_of_a_tax_id_keeps_the_customer(
    driver: TopUpDriver, fault: str, options: dict[str, Any]
) -> None:
    """The SDK repeats it, and hears that there is no such tax id."""
    first = await driver.buy(tax_id={"type": "id_npwp", "value": "12"})
    await driver.cancel(first)
    await driver.inject_fault("DELETE *tax_ids*", fault, times=1, **options)
    second = await driver.buy(tax_id={"type": "id_npwp", "value": "13"})

    assert (second.status, second.stripe_customer_id) == (_S.OPEN, first.stripe_customer_id)


async def test_repeats_of_an_order_share_one_task_while_stripe_does_not_answer(driver: TopUpDriver) -> None:
    fault = await driver.inject_fault("POST /v1/invoices", "hold_before")
    ordered = purchase()
    await driver.top_ups.create(ordered, created_by="ann", wait_seconds=0)
    await driver.wait_until_held(fault)
    tasks = len(asyncio.all_tasks())
    for _ in range(20):
        await driver.top_ups.create(ordered, created_by="ann", wait_seconds=0)
    assert len(asyncio.all_tasks()) == tasks
    await driver.control(f"POST /faults/{fault['id']}/release")
    assert (await driver.top_ups.create(ordered, created_by="ann", wait_seconds=SECONDS)).status is _S.OPEN
