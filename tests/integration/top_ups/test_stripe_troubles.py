"""Fault groups 11 to 13 and 15: Stripe answers badly, late or never, and calls meet each other halfway."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from server.credits.adjustments import adjust_credits
from server.credits.top_up_rows import TopUp
from server.credits.top_up_states import TopUpStatus
from server.database.pool import open_pool
from server.errors import DatabaseUnavailable
from tests.integration.top_ups.shop import ACME, PATIENCE_SECONDS, Shop, purchase, until

_S = TopUpStatus
_CALLS = ["POST /v1/customers", "POST /v1/invoices", "POST /v1/invoiceitems", "POST */finalize"]
_LEASE_IS_OVER = timedelta(seconds=61)


async def _watch_until(shop: Shop, top_up: TopUp, status: TopUpStatus) -> TopUp:
    async def arrived() -> bool:
        await shop.watch()
        shop.clock.ahead += timedelta(seconds=20)
        return (await shop.read(top_up)).status is status

    await until(arrived)
    return await shop.read(top_up)


async def _living(shop: Shop) -> list[str]:
    return [invoice["status"] for invoice in await shop.invoices() if invoice["status"] != "void"]


@pytest.mark.parametrize("call", _CALLS)
@pytest.mark.parametrize(
    ("fault", "options"),
    [
        ("rate_limit", {"times": 2}),
        ("rate_limit", {"times": 2, "should_retry": "true"}),
        ("lock_timeout", {"times": 1}),
        ("server_error", {"times": 1}),
        ("server_error", {"times": 0, "stored": True}),
        ("server_error", {"times": 1, "stored": True}),
        ("server_error", {"times": 1, "stored": True, "executes": True}),
        ("bad_gateway", {"times": 5}),
        ("bad_gateway", {"times": 5, "executes": True}),
        ("truncated", {"times": 2}),
        ("cut_off", {"times": 2}),
        ("drop_before", {"times": 5}),
        ("drop_after", {"times": 5}),
        ("refuse", {"times": 1, "type": "idempotency_error"}),
    ],
)
async def test_bad_answers_end_with_one_invoice_and_one_credit(
    shop: Shop, call: str, fault: str, options: dict[str, Any]
) -> None:
    asked = await shop.fault(call, fault, **options)
    bought = await shop.buy()
    assert bought.status in {_S.CREATING, _S.OPEN}
    await shop.control(f"DELETE /faults/{asked['id']}")
    opened = await _watch_until(shop, bought, _S.OPEN)
    assert await _living(shop) == ["open"]
    await shop.act(opened, "pay")
    await _watch_until(shop, opened, _S.PAID)
    assert await shop.credits() == 1000


@pytest.mark.parametrize("call", _CALLS)
async def test_what_stripe_refuses_fails_and_leaves_nothing_to_pay(shop: Shop, call: str) -> None:
    await shop.fault(call, "refuse", code="no_such_luck")
    bought = await shop.buy()
    assert (bought.status, bought.failure_reason) == (_S.FAILED, "stripe_no_such_luck")
    assert await _living(shop) == []
    assert (await shop.buy()).status is _S.OPEN


@pytest.mark.parametrize("call", _CALLS)
async def test_an_answer_after_the_timeout_was_still_the_work(shop: Shop, call: str) -> None:
    shop.start(timeout_seconds=0.3)
    await shop.fault(call, "hold_after")
    bought = await shop.buy()
    await _watch_until(shop, bought, _S.OPEN)
    assert await _living(shop) == ["open"]


@pytest.mark.parametrize("call", _CALLS)
async def test_a_caller_that_goes_away_does_not_stop_the_work(shop: Shop, call: str) -> None:
    held = await shop.fault(call, "hold_before")
    calling = asyncio.create_task(shop.buy())
    await until(lambda: _is_met(shop, held["id"]))
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    await shop.control(f"POST /faults/{held['id']}/release")
    await shop.top_ups.close()
    assert [each.status for each in await shop.top_ups.list(ACME, limit=10)] == [_S.OPEN]
    assert await _living(shop) == ["open"]


async def test_a_caller_that_does_not_wait_gets_creating_and_later_the_same_top_up(shop: Shop) -> None:
    held = await shop.fault("POST /v1/invoices", "hold_before")
    order = purchase()
    first = await shop.top_ups.create(order, created_by="ann", wait_seconds=0.05)
    assert first.status is _S.CREATING
    await shop.control(f"POST /faults/{held['id']}/release")
    again = await shop.top_ups.create(order, created_by="ann", wait_seconds=PATIENCE_SECONDS)
    assert (again.top_up_id, again.status) == (first.top_up_id, _S.OPEN)


async def _stop_after_the_invoice_was_made(shop: Shop) -> TopUp:
    """A top-up whose invoice exists at Stripe while its id was never committed."""
    made = asyncio.Event()

    async def reached(point: str) -> None:
        if point == "stripe create_invoice":
            made.set()
            await asyncio.Event().wait()

    desk = shop.start(reached=reached)
    buying = asyncio.create_task(shop.buy())
    await made.wait()
    for task in (buying, *desk.top_ups._tasks):
        task.cancel()
    await asyncio.gather(buying, return_exceptions=True)
    shop.start()
    [stopped] = await shop.top_ups.list(ACME, limit=10)
    assert stopped.stripe_invoice_id is None
    return stopped


@pytest.mark.parametrize("pass_time", [_LEASE_IS_OVER, timedelta(hours=25)])
async def test_an_unknown_invoice_is_adopted_and_not_made_again(shop: Shop, pass_time: timedelta) -> None:
    stopped = await _stop_after_the_invoice_was_made(shop)
    shop.clock.ahead = pass_time
    if pass_time > _LEASE_IS_OVER:
        assert (await shop.control("POST /keys/prune"))["pruned"]
    opened = await _watch_until(shop, stopped, _S.OPEN)
    assert [invoice["id"] for invoice in await shop.invoices()] == [opened.stripe_invoice_id]


async def test_an_unknown_invoice_is_found_for_a_cancellation_after_a_day(shop: Shop) -> None:
    stopped = await _stop_after_the_invoice_was_made(shop)
    shop.clock.ahead = timedelta(hours=25)
    await shop.control("POST /keys/prune")
    assert (await shop.cancel(stopped)).status is _S.CANCELED
    assert await _living(shop) == []


async def test_several_unknown_invoices_are_reviewed_and_one_is_kept(shop: Shop) -> None:
    await shop.fault("POST /v1/invoices", "twice")
    stopped = await _stop_after_the_invoice_was_made(shop)
    assert len(await shop.invoices()) == 2
    shop.clock.ahead = timedelta(hours=25)
    await shop.control("POST /keys/prune")
    reviewed = await _watch_until(shop, stopped, _S.REVIEW)
    assert reviewed.failure_reason == "several_invoices"
    assert [invoice["id"] for invoice in await shop.invoices()] == [reviewed.stripe_invoice_id]
    assert (await shop.buy()).status is _S.OPEN


async def test_an_upgrade_between_two_tries_changes_no_parameter(shop: Shop) -> None:
    stopped = await _stop_after_the_invoice_was_made(shop)
    shop.terms = replace(shop.terms, days_until_due=30, payment_method_types={"IDR": ("card",)})
    shop.start()
    shop.clock.ahead = _LEASE_IS_OVER
    opened = await _watch_until(shop, stopped, _S.OPEN)
    assert opened.attempt == 1
    assert len(await shop.invoices()) == 1


async def test_a_customer_that_was_deleted_at_stripe_is_made_again(shop: Shop) -> None:
    await shop.cancel(await shop.buy())
    shop.sandbox.books.objects["customer"].clear()
    assert (await _watch_until(shop, await shop.buy(), _S.OPEN)).stripe_customer_id
    assert len(shop.sandbox.books.objects["customer"]) == 1


async def test_a_payment_that_arrives_before_the_void_wins(shop: Shop) -> None:
    opened = await shop.buy()
    await shop.fault("POST */void", "act_before", action="pay")
    ended = await shop.cancel(opened)
    assert ended.status is _S.PAID
    assert await shop.credits() == 1000


async def test_a_payment_and_a_cancellation_at_once_end_alike_on_both_sides(shop: Shop) -> None:
    for number in range(10):
        organization_id = f"organization-{number}"
        opened = await shop.buy(organization_id)
        await asyncio.gather(shop.press_pay(opened), shop.cancel(opened), return_exceptions=True)
        await shop.all_events_done()
        ended = await shop.read(opened)
        status = next(each["status"] for each in await shop.invoices() if each["id"] == opened.stripe_invoice_id)
        assert (ended.status, status) in {(_S.PAID, "paid"), (_S.CANCELED, "void")}
        assert await shop.credits(organization_id) == (1000 if status == "paid" else 0)


@pytest.mark.parametrize(("action", "status", "credits"), [("pay", _S.PAID, 1000), ("fail_payment", _S.CANCELED, 0)])
async def test_a_pending_payment_keeps_it_canceling_until_it_ends(
    shop: Shop, action: str, status: TopUpStatus, credits: int
) -> None:
    opened = await shop.buy()
    await shop.act(opened, "start_payment")
    assert (await shop.cancel(opened)).status is _S.CANCELING
    await shop.act(opened, action)
    await _watch_until(shop, opened, status)
    assert await shop.credits() == credits
    assert (await shop.buy()).status is _S.OPEN


@pytest.mark.parametrize("call", _CALLS)
async def test_a_purchase_can_be_canceled_while_it_is_made(shop: Shop, call: str) -> None:
    held = await shop.fault(call, "hold_before")
    creating = await shop.buy(wait_seconds=0.05)
    canceling = asyncio.create_task(shop.cancel(creating))
    await shop.becomes(creating, _S.CANCELING)
    await shop.control(f"POST /faults/{held['id']}/release")
    assert (await canceling).status is _S.CANCELED
    assert await _living(shop) == []
    assert (await shop.buy()).status is _S.OPEN


async def test_a_cancellation_just_before_the_worker_lets_go_is_not_forgotten(shop: Shop) -> None:
    async def reached(point: str) -> None:
        if point == "commit settle" and (found := await shop.top_ups.list(ACME, statuses=[_S.OPEN], limit=1)):
            await shop.cancel(found[0], wait_seconds=0)

    shop.sandbox.set_webhook_url("http://127.0.0.1:9/closed")
    shop.start(reached=reached)
    await shop.buy()
    await shop.top_ups.close()
    assert [each.status for each in await shop.top_ups.list(ACME, limit=10)] == [_S.CANCELED]


async def test_what_stays_unpaid_too_long_is_voided_and_expired(shop: Shop) -> None:
    opened = await shop.buy()
    shop.clock.ahead = timedelta(days=7, hours=23)
    await shop.watch()
    assert (await shop.read(opened)).status is _S.OPEN
    shop.clock.ahead = timedelta(days=8, minutes=1)
    await shop.watch()
    expired = await shop.read(opened)
    assert expired.status is _S.EXPIRED
    assert expired.cancel_time
    assert await _living(shop) == []


async def test_an_invoice_that_is_not_in_this_account_is_not_given_up(shop: Shop) -> None:
    opened = await shop.buy()
    shop.sandbox.books.objects["invoice"].clear()
    assert (await shop.cancel(opened)).status is _S.CANCELING


async def test_a_refund_after_the_credits_were_spent_is_flagged_and_nothing_goes_negative(shop: Shop) -> None:
    opened = await shop.buy()
    await shop.press_pay(opened)
    await shop.becomes(opened, _S.PAID)
    await shop.all_events_done()
    spending: dict[str, Any] = {"request_id": uuid4(), "credits": -1000, "reason": "spent", "created_by": "ann"}
    await adjust_credits(shop.pool, ACME, **spending, low_balance_threshold=100, now=shop.clock())
    await shop.act(opened, "refund")
    await shop.all_events_done()
    assert (await shop.read(opened)).flags == ("REFUNDED",)
    assert await shop.credits() == 0


async def test_while_the_database_is_down_no_webhook_is_accepted(shop: Shop) -> None:
    opened = await shop.buy()
    await shop.all_events_done()
    down = await open_pool("postgresql://127.0.0.1:9/closed", size=1, timeout_seconds=0.2)
    working, shop.pool = shop.pool, down
    broken = shop.start()
    with pytest.raises(DatabaseUnavailable):
        await broken.top_ups.list(ACME, limit=1)
    await shop.press_pay(opened)
    await until(lambda: _was_refused(shop))
    shop.pool = working
    shop.start()
    await shop.becomes(opened, _S.PAID)
    await down.close()
    assert await shop.credits() == 1000


async def _is_met(shop: Shop, fault_id: str) -> bool:
    faults = (await shop.control("GET /faults"))["faults"]
    return any(fault["used"] for fault in faults if fault["id"] == fault_id)


async def _was_refused(shop: Shop) -> bool:
    deliveries = (await shop.control("GET /deliveries?type=invoice.paid"))["deliveries"]
    return any(each["status"] == 500 for each in deliveries)
