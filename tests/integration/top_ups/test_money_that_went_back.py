"""Refunds and disputes beside overpayments, several payments and frozen credits: what went back buys nothing."""

from dataclasses import replace
from decimal import Decimal

import pytest

from server.credits.top_ups.state_machine import TopUpStatus
from server.errors import CustomerBalanceUnsettled
from server.sandbox.stripe import objects
from tests.integration.top_ups.driver import TopUpDriver, tax_rate

_S = TopUpStatus
_TOTAL = 15_000_000
"""Of 1,000 credits, in minor units."""


@pytest.mark.parametrize("action", ["refund", "dispute"])
async def test_an_overpayment_that_went_back_buys_nothing(driver: TopUpDriver, action: str) -> None:
    """Stripe leaves it in the customer's balance."""
    first = await driver.buy()
    await driver.invoice_action(first, "pay", amount=2 * _TOTAL)
    await driver.wait_for_status(first, _S.PAID)
    await driver.wait_for_events()
    await driver.invoice_action(first, action, **({"amount": _TOTAL} if action == "refund" else {}))
    await driver.wait_for_events()
    with pytest.raises(CustomerBalanceUnsettled) as refused:
        await driver.buy()

    assert refused.value.why == "customer_balance_not_paid"
    assert await driver.credits() == 1000


async def test_a_won_dispute_of_one_payment_leaves_another_payments_dispute(driver: TopUpDriver) -> None:
    driver.terms = replace(driver.terms, freeze_disputed=True)
    driver.start()
    opened = await driver.buy()
    await driver.invoice_action(opened, "pay", amount=_TOTAL // 2)
    await driver.invoice_action(opened, "pay")
    await driver.wait_for_status(opened, _S.PAID)
    await driver.wait_for_events()
    await driver.invoice_action(opened, "dispute")  # of the second payment
    account = driver.sandbox.account
    first = account.add(objects.new_dispute(account, next(iter(account.objects["charge"].values())), status="lost"))
    account.emit("charge.dispute.closed", first)
    await driver.wait_for_events()
    await driver.invoice_action(opened, "close_dispute", outcome="won")
    await driver.wait_for_events()

    assert (await driver.stored(opened)).flags == ("DISPUTED",)
    assert await driver.credits() == 0


async def test_frozen_credits_come_back_also_when_the_setting_was_switched_off(driver: TopUpDriver) -> None:
    terms = driver.terms
    driver.terms = replace(terms, freeze_disputed=True)
    driver.start()
    opened = await driver.buy()
    await driver.invoice_action(opened, "pay")
    await driver.wait_for_status(opened, _S.PAID)
    await driver.invoice_action(opened, "dispute")
    await driver.wait_for_events()
    frozen = await driver.credits()
    driver.terms = terms
    driver.start()
    await driver.invoice_action(opened, "close_dispute", outcome="won")
    await driver.wait_for_events()

    assert frozen == 0
    assert await driver.credits() == 1000


async def test_a_top_up_that_a_balance_pays_at_once_has_its_tax(driver: TopUpDriver) -> None:
    driver.terms = replace(driver.terms, tax_rates={"IDR": await tax_rate(driver)})
    driver.start()
    first = await driver.buy()
    await driver.invoice_action(first, "pay", amount=2 * 16_650_000)
    await driver.wait_for_status(first, _S.PAID)
    await driver.wait_for_events()
    second = await driver.buy()

    assert second.status is _S.PAID
    assert (second.tax, second.invoice_total) == (Decimal(16_500), Decimal(166_500))
