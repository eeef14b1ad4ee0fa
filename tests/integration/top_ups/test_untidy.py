"""Customer balances, partial payments, tax, disputes and resolutions: what people do at Stripe besides paying."""

import json
import sys
import typing
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, get_args, get_type_hints
from uuid import uuid4

import pytest
import stripe

from server.credits.ledger import LedgerEntryKind, list_entries
from server.credits.stripe.invoices import AutomaticTax, BalanceTransaction, replay_balance
from server.credits.stripe.reconcile import find_drift
from server.credits.top_ups.state_machine import Resolution, TopUp, TopUpStatus
from server.errors import (
    BillingAddressMissing,
    CustomerBalanceUnsettled,
    RequestIdReused,
    TopUpNotResolvable,
    TopUpPartlyPaid,
)
from server.postgres.pool import acquire
from server.sandbox.stripe.operations import find_operation
from server.sandbox.stripe.webhooks import sign
from tests.integration.top_ups.driver import ACME, SECRET, TopUpDriver, tax_rate
from tests.waiting import until

_S = TopUpStatus
_HALF, _WHOLE = 7_500_000, 15_000_000
"""Of an invoice of 1,000 credits, in minor units."""
_75_000 = Decimal(75_000)
_ADDRESS = {"country": "ID", "postal_code": "10110"}


async def _paid(driver: TopUpDriver, **changes: Any) -> TopUp:
    opened = await driver.buy(**changes)
    await driver.invoice_action(opened, "pay")
    await driver.wait_for_status(opened, _S.PAID)
    await driver.wait_for_events()
    return opened


async def _use_terms(driver: TopUpDriver, **changes: Any) -> None:
    driver.terms = replace(driver.terms, **changes)
    driver.start()


async def _resolve(driver: TopUpDriver, top_up: TopUp, credits: int, **changes: Any) -> TopUp:
    resolution = replace(Resolution(uuid4(), credits, "as agreed", "olga"), **changes)
    return await driver.top_ups.resolve(ACME, top_up.top_up_id, resolution)


async def _attention(driver: TopUpDriver) -> list[str]:
    report = await find_drift(driver.pool, driver.replica.stripe_client, environment="test", now=driver.clock())
    assert report.holds, str(report)
    return [found.kind for found in report.attention]


async def _adjustments(driver: TopUpDriver) -> list[tuple[int, str, str]]:
    async with acquire(driver.pool) as connection:
        entries = await list_entries(connection, ACME, before_sequence=10**6, limit=100)
    kept = [entry for entry in entries if entry.kind is LedgerEntryKind.ADJUSTMENT]
    return [(entry.credits, entry.reason, entry.created_by) for entry in kept]


# Balances


async def test_what_was_overpaid_pays_the_next_invoice(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.invoice_action(opened, "pay", amount=2 * _WHOLE)
    await driver.wait_for_status(opened, _S.PAID)
    second = await driver.buy()
    assert second.status is _S.PAID
    assert second.amount_paid == second.total
    assert await driver.credits() == 2000


async def test_a_part_that_was_overpaid_is_taken_off_the_next_invoice(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.invoice_action(opened, "pay", amount=_WHOLE + _HALF)
    await driver.wait_for_status(opened, _S.PAID)
    second = await driver.buy()
    assert (second.status, second.amount_paid, second.amount_remaining) == (_S.OPEN, _75_000, _75_000)
    await driver.pay_hosted_invoice(second)
    await driver.wait_for_status(second, _S.PAID)
    assert await driver.credits() == 2000


async def test_the_paid_balance_of_a_canceled_invoice_pays_a_later_one(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.invoice_action(opened, "pay", amount=_WHOLE + _HALF)
    await driver.wait_for_status(opened, _S.PAID)
    assert (await driver.cancel(await driver.buy())).status is _S.CANCELED
    last = await driver.buy()
    await driver.pay_hosted_invoice(last)
    await driver.wait_for_status(last, _S.PAID)
    assert await driver.credits() == 2000


@pytest.mark.parametrize(
    ("action", "options", "why"),
    [
        ("set_customer_balance", {"amount": -_WHOLE}, "customer_balance_not_paid"),
        ("credit_note", {"amount": 100, "to_balance": True}, "customer_balance_not_paid"),
        ("set_customer_balance", {"amount": 500}, "customer_owes"),
        ("overpay", {"amount": _WHOLE - 100}, "rest_below_minimum_charge"),
    ],
)
async def test_a_balance_that_was_not_paid_is_refused_before_an_invoice_is_made(
    driver: TopUpDriver, action: str, options: Any, why: str
) -> None:
    paid = await _paid(driver)
    await driver.invoice_action(paid, action, **options)
    request_id = uuid4()
    for _ in range(2):  # the same request gets the same answer
        with pytest.raises(CustomerBalanceUnsettled) as refused:
            await driver.buy(request_id=request_id)
        assert refused.value.why == why
    customer = await driver.query_value("SELECT stripe_customer_id FROM accounts")
    assert refused.value.customer_url == f"https://dashboard.stripe.com/test/customers/{customer}"
    assert len(await driver.invoices()) == 1
    await driver.invoice_action(paid, "set_customer_balance", amount=0)
    assert (await driver.buy()).status is _S.OPEN


async def test_a_balance_in_another_currency_does_not_matter(driver: TopUpDriver) -> None:
    paid = await _paid(driver)
    await driver.invoice_action(paid, "set_customer_balance", amount=-500, currency="usd")
    assert (await driver.buy()).status is _S.OPEN


async def test_credit_that_is_given_while_the_invoice_is_made_is_reviewed_and_resolved(driver: TopUpDriver) -> None:
    options = {"amount": -_WHOLE}
    await driver.inject_fault("POST */finalize", "act_before", action="set_customer_balance", options=options)
    bought = await driver.buy()
    assert (bought.status, bought.failure_reason) == (_S.REVIEW, "customer_balance_applied")
    assert (await _resolve(driver, bought, 1000)).status is _S.RESOLVED
    assert await driver.credits() == 1000
    assert await _attention(driver) == []


def test_paid_and_given_credit_that_are_mixed_buy_nothing() -> None:
    def change(kind: str, amount: int, invoice: str | None = None, currency: str = "IDR") -> BalanceTransaction:
        return BalanceTransaction(kind, Decimal(amount), currency, invoice)

    paid, given = change("invoice_overpaid", -5), change("adjustment", -3)
    taken, returned = change("applied_to_invoice", 5, "in_1"), change("unapplied_from_invoice", -5, "in_1")
    alone = replay_balance([paid, taken], "IDR")
    assert (alone.credit, alone.is_money, alone.money_applied) == (Decimal(0), True, {"in_1": Decimal(5)})
    mixed = replay_balance([paid, given, taken], "IDR")
    assert (mixed.credit, mixed.is_money, mixed.money_applied) == (Decimal(3), False, {"in_1": Decimal(0)})
    assert replay_balance([paid, taken, returned], "IDR").is_money
    assert not replay_balance([given, change("applied_to_invoice", 3, "in_1"), returned], "IDR").is_money
    assert replay_balance([change("adjustment", 4), paid], "IDR").credit == 1
    assert replay_balance([change("adjustment", -9, currency="USD"), paid], "IDR").is_money


# Partial payments


async def test_a_partly_paid_top_up_is_shown_flagged_and_not_voided_and_the_rest_finishes_it(
    driver: TopUpDriver,
) -> None:
    opened = await driver.buy()
    await driver.invoice_action(opened, "pay", amount=_HALF)
    with pytest.raises(TopUpPartlyPaid):
        await driver.cancel(opened)
    driver.clock.ahead = timedelta(days=9)
    await driver.run_jobs()
    kept = await driver.stored(opened)
    assert (kept.status, kept.flags) == (_S.OPEN, ("PARTLY_PAID",))
    assert (kept.amount_paid, kept.amount_remaining) == (_75_000, _75_000)
    assert await _attention(driver) == ["partly_paid"]
    with pytest.raises(TopUpPartlyPaid):
        await driver.cancel(kept)
    driver.clock.ahead = timedelta(0)
    await driver.pay_hosted_invoice(kept)
    paid = await driver.wait_for_status(opened, _S.PAID)
    assert (len(paid.flags), paid.amount_remaining) == (0, Decimal(0))
    assert await driver.credits() == 1000


async def test_a_partly_paid_top_up_is_resolved_and_money_that_comes_later_is_heard(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.invoice_action(opened, "pay", amount=_HALF)
    with pytest.raises(TopUpPartlyPaid):
        await driver.cancel(opened)
    resolved = await _resolve(driver, opened, 500)
    assert (resolved.status, resolved.resolved_credits) == (_S.RESOLVED, 500)
    assert await _attention(driver) == []
    await driver.cancel(await driver.buy())
    await driver.pay_hosted_invoice(opened)
    await driver.wait_for_events()
    late = await driver.stored(opened)
    assert (late.status, late.flags) == (_S.RESOLVED, ("LATE_PAYMENT",))
    assert await _attention(driver) == ["late_payment"]
    with pytest.raises(TopUpNotResolvable) as refused:
        await _resolve(driver, opened, 501)
    assert refused.value.maximum_credits == 500
    await _resolve(driver, opened, 500)
    assert await driver.credits() == 1000
    assert await _attention(driver) == []


async def test_a_void_that_stripe_refuses_is_heard(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.invoice_action(opened, "start_payment")
    assert (await driver.cancel(opened)).flags == ("VOID_REFUSED",)
    assert await _attention(driver) == ["void_refused"]
    await driver.invoice_action(opened, "fail_payment")
    driver.clock.ahead = timedelta(minutes=10)
    await driver.run_jobs()
    canceled = await driver.stored(opened)
    assert (canceled.status, canceled.flags) == (_S.CANCELED, ())


async def test_an_invoice_with_more_than_a_page_of_payments_is_credited(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    for _ in range(12):
        await driver.invoice_action(opened, "pay", amount=1_000_000)
    await driver.invoice_action(opened, "pay")
    await driver.wait_for_status(opened, _S.PAID)
    assert await driver.credits() == 1000


# Tax


@pytest.mark.parametrize(("inclusive", "tax", "total"), [(False, "16500", "166500"), (True, "14864.86", "150000")])
async def test_a_fixed_tax_is_quoted_invoiced_and_paid(
    driver: TopUpDriver, *, inclusive: bool, tax: str, total: str
) -> None:
    rates = {"IDR": await tax_rate(driver, inclusive=inclusive)}
    await _use_terms(driver, tax_rates=rates, automatic_tax=AutomaticTax(inclusive=False))  # of the other currencies
    quoted = driver.top_ups.quote(credits=1000, currency_code="IDR")
    assert (quoted.tax.amount, quoted.total_with_tax.amount) == (Decimal(tax), Decimal(total))
    assert not quoted.is_estimated
    paid = await _paid(driver)
    assert (paid.tax, paid.invoice_total, paid.total) == (Decimal(tax), Decimal(total), 2 * _75_000)
    assert await driver.credits() == 1000
    details = await driver.query_value("SELECT details::text FROM notices")
    assert Decimal(json.loads(details)["tax"]) == Decimal(tax)


async def test_an_automatic_tax_is_computed_from_the_address_and_printed_with_the_tax_id(driver: TopUpDriver) -> None:
    await _use_terms(driver, automatic_tax=AutomaticTax(inclusive=False))
    assert driver.top_ups.quote(credits=1000, currency_code="IDR").is_estimated
    with pytest.raises(BillingAddressMissing):
        await driver.buy()
    for number in ("0012", "0013"):
        tax_id = {"type": "id_npwp", "value": number}
        opened = await driver.buy(billing_address=_ADDRESS, tax_id=tax_id, billing_name="PT Maju")
        assert opened.tax == 16_500
        invoice = (await driver.invoices())[-1]
        assert (invoice["customer_tax_ids"], invoice["customer_name"]) == ([tax_id], "PT Maju")
        await driver.cancel(opened)


async def test_an_invoice_that_must_be_taxed_and_is_not_never_goes_out(driver: TopUpDriver) -> None:
    await _use_terms(driver, tax_rates={"IDR": await tax_rate(driver)})
    await driver.inject_fault("POST /v1/invoiceitems", "change_parameters", set={"tax_rates": []})
    bought = await driver.buy()
    assert (bought.status, bought.failure_reason) == (_S.FAILED, "tax_mismatch")
    assert (await driver.control("GET /requests?path=*/finalize"))["count"] == 0
    assert await driver.invoices() == []


async def test_an_automatic_tax_without_a_location_never_goes_out(driver: TopUpDriver) -> None:
    await _use_terms(driver, automatic_tax=AutomaticTax(inclusive=False))
    bought = await driver.buy(billing_address={"city": "Jakarta"})
    assert (bought.status, bought.failure_reason) == (_S.FAILED, "tax_not_computed")
    assert await driver.invoices() == []


async def test_a_coupon_of_the_customer_is_not_inherited(driver: TopUpDriver) -> None:
    paid = await _paid(driver)
    await driver.invoice_action(paid, "set_coupon", percent="50")
    second = await driver.buy()
    assert (second.status, second.invoice_total) == (_S.OPEN, 2 * _75_000)


async def test_every_parameter_of_a_taxed_purchase_is_declared_by_the_sdk(driver: TopUpDriver) -> None:
    await _use_terms(
        driver, automatic_tax=AutomaticTax(inclusive=True), payment_method_types={"IDR": ("id_bank_transfer",)}
    )
    for _ in range(2):
        await driver.cancel(await driver.buy(billing_address=_ADDRESS, tax_id={"type": "id_npwp", "value": "12"}))
    names = set()
    for request in (await driver.control("GET /requests?method=POST"))["requests"]:
        found = find_operation("POST", request["path"])
        assert found
        name = found[0].sdk_parameters
        assert undeclared(request["parameters"], getattr(stripe.params, name)) == []
        names.add(name)
    assert {"CustomerCreateParams", "CustomerUpdateParams", "InvoiceCreateParams", "InvoiceItemCreateParams"} <= names


def undeclared(parameters: dict[str, Any], declared: Any) -> list[str]:
    """The names in parameters, and in those within them, that the SDK's types do not declare."""
    # The names that the SDK imports for type checkers only, and those of its own types.
    names = {**vars(typing), "StripeContext": Any, **vars(stripe.params), **vars(sys.modules[declared.__module__])}
    hints = get_type_hints(declared, localns=names)
    unknown = [name for name in parameters if name not in hints]
    for name, value in parameters.items():
        inner = [each for each in _parts(hints.get(name)) if hasattr(each, "__required_keys__")]
        if isinstance(value, dict) and inner:
            unknown += undeclared(value, inner[0])
    return unknown


def _parts(hint: Any) -> list[Any]:
    return [hint, *(part for option in get_args(hint) for part in _parts(option))]


# Disputes


async def test_an_inquiry_is_no_dispute_and_a_won_dispute_clears_its_flag(driver: TopUpDriver) -> None:
    paid = await _paid(driver)
    steps: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
        ("dispute", {"inquiry": True}, ()),
        ("escalate_dispute", {}, ("DISPUTED",)),
        ("close_dispute", {"outcome": "won"}, ()),
        ("dispute", {}, ("DISPUTED",)),
        ("close_dispute", {"outcome": "lost"}, ("DISPUTED",)),
    ]
    for action, options, flags in steps:
        await driver.invoice_action(paid, action, **options)
        await driver.wait_for_events()
        assert (await driver.stored(paid)).flags == flags, action
    assert await driver.credits() == 1000


async def test_the_credits_of_a_disputed_top_up_are_frozen_until_it_is_won(driver: TopUpDriver) -> None:
    await _use_terms(driver, freeze_disputed=True)
    paid = await _paid(driver)
    await driver.adjust(-400)
    steps: list[tuple[str, dict[str, Any], int, int]] = [
        ("dispute", {}, 0, 600),
        ("close_dispute", {"outcome": "won"}, 600, 0),
        ("dispute", {}, 0, 600),
        ("close_dispute", {"outcome": "lost"}, 0, 600),
    ]
    for action, options, credits, frozen in steps:
        await driver.invoice_action(paid, action, **options)
        await driver.wait_for_events()
        assert (await driver.credits(), (await driver.stored(paid)).frozen_credits) == (credits, frozen)
    assert (await _resolve(driver, paid, 100)).frozen_credits == 500
    assert await driver.credits() == 100


# Resolutions


async def test_a_resolution_is_made_once_with_its_reason_and_author(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.invoice_action(opened, "pay", out_of_band=True)
    await driver.wait_for_status(opened, _S.REVIEW)
    request_id = uuid4()
    for _ in range(2):
        resolved = await _resolve(driver, opened, 600, request_id=request_id)
        assert (resolved.status, resolved.resolved_by, resolved.resolve_reason) == (_S.RESOLVED, "olga", "as agreed")
    for credits, reason in ((601, "as agreed"), (600, "another")):
        with pytest.raises(RequestIdReused):
            await _resolve(driver, opened, credits, request_id=request_id, reason=reason)
    with pytest.raises(TopUpNotResolvable):
        await _resolve(driver, opened, 0)
    assert await driver.credits() == 600
    assert await _adjustments(driver) == [(600, "as agreed", "olga")]


async def test_a_flag_is_closed_without_credits_and_a_new_one_is_heard_again(driver: TopUpDriver) -> None:
    paid = await _paid(driver)
    await driver.invoice_action(paid, "refund", amount=100)
    await driver.wait_for_events()
    with pytest.raises(TopUpNotResolvable):
        await _resolve(driver, paid, 1)
    assert (await _resolve(driver, paid, 0)).status is _S.PAID
    assert await _attention(driver) == []
    await driver.invoice_action(paid, "dispute")
    await driver.wait_for_events()
    assert await _attention(driver) == ["disputed"]


# Events


async def test_a_signed_event_about_an_object_without_an_id_is_accepted(driver: TopUpDriver) -> None:
    event = {"id": "evt_1", "object": "event", "type": "invoice.upcoming", "created": 1, "livemode": False}
    body = json.dumps(event | {"data": {"object": {"object": "invoice"}}})
    signature = sign(body, secrets=[SECRET], timestamp=int(driver.clock().timestamp()))
    assert not (await driver.inbox.record(body.encode(), signature)).duplicate
    await driver.wait_for_events()
    assert await driver.event_statuses() == {"DONE"}


async def test_a_refund_is_heard_without_the_event_of_its_charge(driver: TopUpDriver) -> None:
    paid = await _paid(driver)
    await driver.inject_fault("charge.refunded", "lose")
    await driver.invoice_action(paid, "refund")

    async def is_flagged() -> bool:
        return (await driver.stored(paid)).flags == ("REFUNDED",)

    await until(is_flagged)
