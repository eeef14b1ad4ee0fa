"""Amounts that differ from the order, invoices that end in another way, and money that was not paid as expected.

Each case says how many credits there are, and the top-up's last status and why; then the organization can buy again.
"""

from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from server.credits.accounts import MAXIMUM_CREDITS
from server.credits.top_ups.state_machine import UNFINISHED, Resolution, TopUp, TopUpStatus
from server.errors import BalanceAboveMaximum, TopUpPartlyPaid
from tests.integration.top_ups.driver import ACME, TopUpDriver

_S = TopUpStatus


async def _can_buy_again(driver: TopUpDriver) -> None:
    await driver.control("DELETE /faults")
    driver.sandbox.account.objects["customer_balance_transaction"].clear()
    for customer in driver.sandbox.account.objects["customer"].values():
        customer["balance"] = 0
    await driver.control("PATCH /settings", {"tax_percent": "0", "livemode": False})
    for found in await driver.top_ups.list(ACME, statuses=UNFINISHED, limit=10):
        try:
            await driver.cancel(found)
        except TopUpPartlyPaid:
            await driver.top_ups.resolve(ACME, found.top_up_id, Resolution(uuid4(), 0, "settled", "olga"))
    assert (await driver.buy()).status is _S.OPEN


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
async def test_an_invoice_that_differs_from_the_order_is_voided_and_reviewed(
    driver: TopUpDriver, path: str, fault: str, options: Any, reason: str
) -> None:
    await driver.inject_fault(path, fault, **options)
    await driver.inject_fault("invoice.finalized", "lose")
    bought = await driver.buy()
    assert (bought.status, bought.failure_reason) == (_S.REVIEW, reason)
    assert [invoice["status"] for invoice in await driver.invoices()] == ["void"]
    assert await driver.credits() == 0
    await _can_buy_again(driver)


async def test_a_wrong_currency_at_creation_is_refused_by_the_item_and_fails(driver: TopUpDriver) -> None:
    await driver.inject_fault("POST /v1/invoices", "change_parameters", set={"currency": "usd"})
    bought = await driver.buy()
    assert bought.status is _S.FAILED
    assert bought.failure_reason.startswith("stripe_")
    assert await driver.invoices() == []
    await _can_buy_again(driver)


async def test_tax_is_added_and_paid_with_the_credits(driver: TopUpDriver) -> None:
    await driver.control("PATCH /settings", {"tax_percent": "11"})
    opened = await driver.buy()
    assert opened.status is _S.OPEN
    assert opened.invoice_total
    assert opened.invoice_total * 100 == opened.total * 111
    await driver.pay_hosted_invoice(opened)
    await driver.wait_for_status(opened, _S.PAID)
    assert await driver.credits() == 1000


@pytest.mark.parametrize("balance", [-1_000_000, 1_000_000])
async def test_a_customer_balance_in_the_invoice_is_reviewed(driver: TopUpDriver, balance: int) -> None:
    await driver.inject_fault(
        "POST */finalize", "act_before", action="set_customer_balance", options={"amount": balance}
    )
    bought = await driver.buy()
    assert (bought.status, bought.failure_reason) == (_S.REVIEW, "customer_balance_applied")
    assert await driver.credits() == 0
    await _can_buy_again(driver)


async def test_an_invoice_fully_paid_by_a_customer_balance_is_not_credited(driver: TopUpDriver) -> None:
    options = {"amount": -10_000_000_000}
    await driver.inject_fault("POST */finalize", "act_before", action="set_customer_balance", options=options)
    bought = await driver.buy()
    await driver.wait_for_events()
    assert [invoice["status"] for invoice in await driver.invoices()] == ["paid"]
    assert (bought.status, bought.failure_reason) == (_S.REVIEW, "customer_balance_applied")
    assert await driver.credits() == 0
    await _can_buy_again(driver)


async def test_an_invoice_below_the_minimum_charge_that_is_paid_without_money_is_not_credited(
    driver: TopUpDriver,
) -> None:
    await driver.control("PATCH /settings", {"minimum_charges": {"idr": 10**10}})
    bought = await driver.buy()
    await driver.wait_for_events()
    assert [invoice["status"] for invoice in await driver.invoices()] == ["paid"]
    assert (bought.status, bought.failure_reason) == (_S.REVIEW, "amount_not_paid")
    assert await driver.credits() == 0
    await driver.control("PATCH /settings", {"minimum_charges": {"idr": 1}})
    await _can_buy_again(driver)


async def test_a_payment_that_the_account_cannot_hold_is_reviewed_and_a_purchase_of_it_refused(
    driver: TopUpDriver,
) -> None:
    opened = await driver.buy()
    await driver.adjust(MAXIMUM_CREDITS - 999)
    await driver.pay_hosted_invoice(opened)
    reviewed = await driver.wait_for_status(opened, _S.REVIEW)
    await driver.wait_for_events()
    assert (reviewed.failure_reason, reviewed.paid_time) == ("balance_above_maximum", None)
    assert await driver.credits() == MAXIMUM_CREDITS - 999
    assert await driver.event_statuses() == {"DONE"}
    with pytest.raises(BalanceAboveMaximum):
        await driver.buy()
    await driver.adjust(-1)
    await _can_buy_again(driver)


async def test_amounts_of_twelve_digits_are_exact(driver: TopUpDriver) -> None:
    bought = await driver.buy(credits=10_000_000)
    [invoice] = await driver.invoices()
    assert invoice["amount_due"] == bought.total * 100
    await driver.pay_hosted_invoice(bought)
    await driver.wait_for_status(bought, _S.PAID)
    assert await driver.credits() == 10_000_000


async def _after_actions(driver: TopUpDriver, opened: TopUp, actions: list[tuple[str, dict[str, Any]]]) -> TopUp:
    for action, options in actions:
        await driver.invoice_action(opened, action, **options)
    await driver.wait_for_events()
    return await driver.stored(opened)


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
async def test_an_open_invoice_is_credited_once_or_not_at_all(
    driver: TopUpDriver, actions: list[tuple[str, dict[str, Any]]], status: TopUpStatus, reason: str, credits: int
) -> None:
    opened = await driver.buy()
    first, *rest = actions
    await _after_actions(driver, opened, [first])
    ended = await _after_actions(driver, opened, rest)
    assert (ended.status, ended.failure_reason) == (status, reason)
    assert await driver.credits() == credits
    await _can_buy_again(driver)


async def test_out_of_band_payments_are_credited_when_the_terms_trust_them(driver: TopUpDriver) -> None:
    driver.terms = replace(driver.terms, trust_out_of_band=True)
    driver.start()
    opened = await driver.buy()
    await driver.invoice_action(opened, "pay", out_of_band=True)
    await driver.wait_for_status(opened, _S.PAID)
    assert await driver.credits() == 1000


async def test_a_payment_refunded_before_it_was_credited_is_reviewed(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.inject_fault("invoice.paid", "lose")
    await driver.invoice_action(opened, "pay")
    await driver.invoice_action(opened, "refund")
    assert (await driver.wait_for_status(opened, _S.REVIEW)).failure_reason == "refunded"
    assert await driver.credits() == 0


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
async def test_a_change_after_the_credit_is_flagged_and_changes_no_balance(
    driver: TopUpDriver, actions: list[tuple[str, dict[str, Any]]], flag: str
) -> None:
    opened = await driver.buy()
    await _after_actions(driver, opened, [("pay", {})])
    ended = await _after_actions(driver, opened, actions)
    assert (ended.status, ended.flags) == (_S.PAID, (flag,))
    assert await driver.credits() == 1000


async def test_a_second_invoice_for_one_top_up_is_flagged_and_never_credited(driver: TopUpDriver) -> None:
    await driver.inject_fault("POST /v1/invoices", "twice")
    opened = await driver.buy()
    [other] = [each["id"] for each in await driver.invoices() if each["id"] != opened.stripe_invoice_id]
    await driver.control(f"POST /invoices/{other}/finalize", {})
    await driver.wait_for_events()
    flagged = await driver.stored(opened)
    assert (flagged.status, flagged.flags) == (_S.OPEN, ("SECOND_INVOICE",))
    assert flagged.stripe_invoice_id == opened.stripe_invoice_id
    await driver.pay_hosted_invoice(opened)
    await driver.wait_for_status(opened, _S.PAID)
    assert await driver.credits() == 1000
