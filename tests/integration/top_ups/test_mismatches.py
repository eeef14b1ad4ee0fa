"""Fault groups 6 to 9: money that is not what was ordered, invoices that end elsewhere, money that comes otherwise.

Each row says what is credited, where the top-up ends and why; afterwards the organization can always buy again.
"""

from dataclasses import replace
from typing import Any

import pytest

from server.credits.top_up_rows import TopUp
from server.credits.top_up_states import UNFINISHED, TopUpStatus
from tests.integration.top_ups.shop import ACME, Shop

_S = TopUpStatus


async def _can_buy_again(shop: Shop) -> None:
    await shop.control("DELETE /faults")
    for customer in shop.sandbox.books.objects["customer"].values():
        customer["balance"] = 0
    await shop.control("PATCH /settings", {"tax_percent": "0", "livemode": False})
    for found in await shop.top_ups.list(ACME, statuses=UNFINISHED, limit=10):
        await shop.cancel(found)
    assert (await shop.buy()).status is _S.OPEN


@pytest.mark.parametrize(
    ("path", "fault", "options", "reason"),
    [
        ("POST /v1/invoiceitems", "change_parameters", {"multiply": {"unit_amount_decimal": 100}}, "amount_mismatch"),
        ("POST /v1/invoiceitems", "change_parameters", {"set": {"quantity": "999"}}, "amount_mismatch"),
        ("POST /v1/invoiceitems", "twice", {}, "amount_mismatch"),
        ("POST */finalize", "change_answer", {"set": {"livemode": True}}, "livemode_mismatch"),
        ("POST */finalize", "change_answer", {"set": {"customer": "cus_other"}}, "customer_mismatch"),
        ("POST */finalize", "change_answer", {"set": {"currency": "usd"}}, "currency_mismatch"),
        ("POST */finalize", "change_answer", {"set": {"total": 1}}, "total_mismatch"),
        ("POST */finalize", "change_answer", {"set": {"total_discount_amounts": [{"amount": 1}]}}, "total_mismatch"),
        ("POST */finalize", "change_answer", {"set": {"amount_due": 1}}, "amount_due_mismatch"),
    ],
)
async def test_an_invoice_that_was_not_ordered_is_voided_and_reviewed(
    shop: Shop, path: str, fault: str, options: Any, reason: str
) -> None:
    await shop.fault(path, fault, **options)
    await shop.fault("invoice.finalized", "lose")
    bought = await shop.buy()
    assert (bought.status, bought.failure_reason) == (_S.REVIEW, reason)
    assert [invoice["status"] for invoice in await shop.invoices()] == ["void"]
    assert await shop.credits() == 0
    await _can_buy_again(shop)


async def test_a_wrong_currency_at_creation_is_refused_by_the_item_and_fails(shop: Shop) -> None:
    await shop.fault("POST /v1/invoices", "change_parameters", set={"currency": "usd"})
    bought = await shop.buy()
    assert bought.status is _S.FAILED
    assert bought.failure_reason.startswith("stripe_")
    assert await shop.invoices() == []
    await _can_buy_again(shop)


async def test_tax_is_added_and_paid_with_the_credits(shop: Shop) -> None:
    await shop.control("PATCH /settings", {"tax_percent": "11"})
    opened = await shop.buy()
    assert opened.status is _S.OPEN
    assert opened.invoice_total
    assert opened.invoice_total * 100 == opened.total * 111
    await shop.press_pay(opened)
    await shop.becomes(opened, _S.PAID)
    assert await shop.credits() == 1000


@pytest.mark.parametrize("balance", [-1_000_000, 1_000_000])
async def test_a_customer_balance_in_the_invoice_is_reviewed(shop: Shop, balance: int) -> None:
    await shop.fault("POST */finalize", "act_before", action="set_customer_balance", options={"amount": balance})
    bought = await shop.buy()
    assert (bought.status, bought.failure_reason) == (_S.REVIEW, "customer_balance_applied")
    assert await shop.credits() == 0
    await _can_buy_again(shop)


async def test_an_invoice_that_a_balance_pays_whole_is_no_money(shop: Shop) -> None:
    options = {"amount": -10_000_000_000}
    await shop.fault("POST */finalize", "act_before", action="set_customer_balance", options=options)
    bought = await shop.buy()
    await shop.all_events_done()
    assert [invoice["status"] for invoice in await shop.invoices()] == ["paid"]
    assert (bought.status, bought.failure_reason) == (_S.REVIEW, "customer_balance_applied")
    assert await shop.credits() == 0
    await _can_buy_again(shop)


async def test_an_invoice_below_the_minimum_that_pays_itself_is_no_money(shop: Shop) -> None:
    await shop.control("PATCH /settings", {"minimum_charges": {"idr": 10**10}})
    bought = await shop.buy()
    await shop.all_events_done()
    assert [invoice["status"] for invoice in await shop.invoices()] == ["paid"]
    assert (bought.status, bought.failure_reason) == (_S.REVIEW, "amount_not_paid")
    assert await shop.credits() == 0
    await shop.control("PATCH /settings", {"minimum_charges": {"idr": 1}})
    await _can_buy_again(shop)


async def test_twelve_digit_amounts_are_exact(shop: Shop) -> None:
    bought = await shop.buy(credits=10_000_000)
    [invoice] = await shop.invoices()
    assert invoice["amount_due"] == bought.total * 100
    await shop.press_pay(bought)
    await shop.becomes(bought, _S.PAID)
    assert await shop.credits() == 10_000_000


async def _changed(shop: Shop, opened: TopUp, actions: list[tuple[str, dict[str, Any]]]) -> TopUp:
    for action, options in actions:
        await shop.act(opened, action, **options)
    await shop.all_events_done()
    return await shop.read(opened)


@pytest.mark.parametrize(
    ("actions", "status", "reason", "credits"),
    [
        ([("pay", {"out_of_band": True})], _S.REVIEW, "paid_out_of_band", 0),
        ([("credit_note", {})], _S.REVIEW, "credit_note", 0),
        ([("credit_note", {"amount": 100}), ("pay", {})], _S.REVIEW, "credit_note", 0),
        ([("pay", {"amount": 100})], _S.OPEN, "", 0),
        ([("pay", {"amount": 100}), ("pay", {})], _S.PAID, "", 1000),
        ([("pay", {"amount": 10**9})], _S.PAID, "", 1000),
        ([("pay", {"amount": 100}), ("pay", {"out_of_band": True})], _S.REVIEW, "paid_out_of_band", 0),
        ([("change", {"fields": {"total": 1, "amount_due": 1, "amount_remaining": 1}}), ("pay", {})],
         _S.REVIEW, "total_mismatch", 0),
        ([("change", {"fields": {"total": 16 * 10**6, "amount_due": 16 * 10**6, "amount_remaining": 16 * 10**6}}),
          ("pay", {})], _S.REVIEW, "total_changed", 0),
        ([("change", {"fields": {"currency": "usd"}}), ("pay", {})], _S.REVIEW, "currency_mismatch", 0),
        ([("void", {})], _S.CANCELED, "", 0),
        ([("mark_uncollectible", {})], _S.UNCOLLECTIBLE, "", 0),
        ([("mark_uncollectible", {}), ("pay", {})], _S.PAID, "", 1000),
        ([("mark_uncollectible", {}), ("void", {})], _S.CANCELED, "", 0),
        ([("fail_payment", {})], _S.OPEN, "", 0),
        ([("fail_payment", {}), ("pay", {})], _S.PAID, "", 1000),
        ([("pay", {}), ("refund", {})], _S.PAID, "", 1000),
        ([("pay", {}), ("dispute", {}), ("close_dispute", {"outcome": "lost"})], _S.PAID, "", 1000),
    ],
)  # fmt: skip
async def test_what_happens_to_an_open_invoice_is_credited_once_or_not_at_all(
    shop: Shop, actions: list[tuple[str, dict[str, Any]]], status: TopUpStatus, reason: str, credits: int
) -> None:
    opened = await shop.buy()
    first, *rest = actions
    await _changed(shop, opened, [first])
    ended = await _changed(shop, opened, rest)
    assert (ended.status, ended.failure_reason) == (status, reason)
    assert await shop.credits() == credits
    await _can_buy_again(shop)


async def test_out_of_band_payments_are_credited_where_they_are_trusted(shop: Shop) -> None:
    shop.terms = replace(shop.terms, trust_out_of_band=True)
    shop.start()
    opened = await shop.buy()
    await shop.act(opened, "pay", out_of_band=True)
    await shop.becomes(opened, _S.PAID)
    assert await shop.credits() == 1000


async def test_money_that_was_given_back_before_it_was_credited_is_reviewed(shop: Shop) -> None:
    opened = await shop.buy()
    await shop.fault("invoice.paid", "lose")
    await shop.act(opened, "pay")
    await shop.act(opened, "refund")
    assert (await shop.becomes(opened, _S.REVIEW)).failure_reason == "refunded"
    assert await shop.credits() == 0


@pytest.mark.parametrize(
    ("actions", "flag"),
    [
        ([("refund", {})], "REFUNDED"),
        ([("refund", {"amount": 100})], "REFUNDED"),
        ([("dispute", {})], "DISPUTED"),
        ([("credit_note", {})], "CREDIT_NOTE"),
        ([("overpay", {"amount": 500})], "OVERPAID"),
    ],
)
async def test_what_comes_after_the_credit_is_flagged_and_changes_no_balance(
    shop: Shop, actions: list[tuple[str, dict[str, Any]]], flag: str
) -> None:
    opened = await shop.buy()
    await _changed(shop, opened, [("pay", {})])
    ended = await _changed(shop, opened, actions)
    assert (ended.status, ended.flags) == (_S.PAID, (flag,))
    assert await shop.credits() == 1000


async def test_a_second_invoice_for_one_top_up_is_flagged_and_never_credited(shop: Shop) -> None:
    await shop.fault("POST /v1/invoices", "twice")
    opened = await shop.buy()
    [other] = [each["id"] for each in await shop.invoices() if each["id"] != opened.stripe_invoice_id]
    await shop.control(f"POST /invoices/{other}/finalize", {})
    await shop.all_events_done()
    flagged = await shop.read(opened)
    assert (flagged.status, flagged.flags) == (_S.OPEN, ("SECOND_INVOICE",))
    assert flagged.stripe_invoice_id == opened.stripe_invoice_id
    await shop.press_pay(opened)
    await shop.becomes(opened, _S.PAID)
    assert await shop.credits() == 1000
