"""Purchases: create, pay, read and cancel a top-up, once or many times at once."""

import asyncio
from datetime import timedelta
from decimal import Decimal
from uuid import uuid4

import pytest

from server.credits.top_ups.state_machine import TopUpStatus
from server.errors import RequestIdReused, TopUpAlreadyOpen, TopUpBelowMinimum, TopUpNotCancelable, TopUpNotFound
from tests.integration.top_ups.driver import ACME, TopUpDriver, purchase
from tests.waiting import SECONDS


async def test_a_top_up_is_opened_paid_and_credited(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    assert opened.status is TopUpStatus.OPEN
    assert opened.hosted_invoice_url
    assert opened.invoice_pdf_url
    assert opened.invoice_number
    assert opened.due_time
    assert opened.due_time > driver.clock()

    await driver.pay_hosted_invoice(opened)

    paid = await driver.wait_for_status(opened, TopUpStatus.PAID)
    assert paid.paid_time
    assert await driver.credits() == 1000
    await driver.wait_for_events()
    [invoice] = await driver.invoices()
    request_id = await driver.query_value("SELECT request_id FROM requests WHERE answer_id = %s", opened.top_up_id)
    assert invoice["metadata"] == {
        "top_up_id": str(opened.top_up_id), "organization_id": ACME, "environment": "test",
        "request_id": str(request_id), "credits": "1000",
    }  # fmt: skip


@pytest.mark.parametrize(("currency_code", "credits"), [("IDR", 1000), ("IDR", 1001), ("USD", 1000), ("USD", 12345)])
async def test_the_invoice_asks_for_exactly_what_was_quoted(
    driver: TopUpDriver, currency_code: str, credits: int
) -> None:
    opened = await driver.buy(currency_code=currency_code, credits=credits)
    [invoice] = await driver.invoices()
    assert Decimal(invoice["amount_due"]) / 100 == opened.total == opened.invoice_total
    assert invoice["currency"] == currency_code.lower()


async def test_a_payment_is_confirmed_by_one_notice_to_the_billing_contact(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.pay_hosted_invoice(opened)
    await driver.wait_for_status(opened, TopUpStatus.PAID)
    query = "SELECT array_agg(email) FROM notices WHERE kind = 'PAYMENT_CONFIRMED' AND reference_id = %s"
    assert await driver.query_value(query, str(opened.top_up_id)) == ["billing@example.com"]


async def test_a_second_billing_contact_does_not_replace_the_alert_email(driver: TopUpDriver) -> None:
    first = await driver.buy()
    await driver.cancel(first)
    await driver.buy(billing_email="other@example.com")
    assert await driver.query_value("SELECT alert_email FROM accounts") == "billing@example.com"


async def test_a_repeated_request_returns_the_same_purchase(driver: TopUpDriver) -> None:
    contents = purchase()
    answers = await asyncio.gather(
        *(driver.top_ups.create(contents, created_by="ann", wait_seconds=SECONDS) for _ in range(10))
    )
    assert {answer.top_up_id for answer in answers} == {answers[0].top_up_id}
    assert {answer.status for answer in answers} == {TopUpStatus.OPEN}
    assert len(await driver.invoices()) == 1


async def test_a_request_id_with_other_contents_is_refused(driver: TopUpDriver) -> None:
    request_id = uuid4()
    await driver.buy(request_id=request_id)
    with pytest.raises(RequestIdReused):
        await driver.buy(request_id=request_id, credits=2000)


async def test_of_two_simultaneous_purchases_one_becomes_an_invoice(driver: TopUpDriver) -> None:
    answers = await asyncio.gather(driver.buy(), driver.buy(), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, TopUpAlreadyOpen)]
    assert len(refused) == 1
    assert len(await driver.invoices()) == 1


async def test_a_second_purchase_is_refused_with_the_link_of_the_first(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    with pytest.raises(TopUpAlreadyOpen) as refused:
        await driver.buy()
    assert refused.value.top_up_id == str(opened.top_up_id)
    assert refused.value.hosted_invoice_url == opened.hosted_invoice_url


async def test_another_organization_may_buy_at_the_same_time(driver: TopUpDriver) -> None:
    await driver.buy()
    assert (await driver.buy("globex")).status is TopUpStatus.OPEN


async def test_a_refused_purchase_writes_nothing(driver: TopUpDriver) -> None:
    with pytest.raises(TopUpBelowMinimum):
        await driver.buy(credits=999)
    assert await driver.query_value("SELECT count(*) FROM top_ups") == 0
    assert await driver.invoices() == []


async def test_the_second_purchase_uses_the_customer_of_the_first_with_its_new_contact(driver: TopUpDriver) -> None:
    await driver.cancel(await driver.buy())
    await driver.buy(billing_email="new@example.com")
    assert len(driver.sandbox.account.objects["customer"]) == 1
    customer = next(iter(driver.sandbox.account.objects["customer"].values()))
    assert customer["email"] == "new@example.com"


async def test_a_canceled_top_up_is_void_and_another_can_be_created(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    canceled = await driver.cancel(opened)
    assert canceled.status is TopUpStatus.CANCELED
    assert canceled.cancel_time
    assert [invoice["status"] for invoice in await driver.invoices()] == ["void"]
    assert (await driver.cancel(opened)).status is TopUpStatus.CANCELED
    assert (await driver.buy()).status is TopUpStatus.OPEN


async def test_a_paid_top_up_is_not_cancelable(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.pay_hosted_invoice(opened)
    await driver.wait_for_status(opened, TopUpStatus.PAID)
    with pytest.raises(TopUpNotCancelable) as refused:
        await driver.cancel(opened)
    assert refused.value.status == "PAID"


async def test_another_organization_finds_no_top_up(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    with pytest.raises(TopUpNotFound):
        await driver.top_ups.get("globex", opened.top_up_id)
    with pytest.raises(TopUpNotFound):
        await driver.top_ups.cancel("globex", opened.top_up_id, wait_seconds=SECONDS)
    with pytest.raises(TopUpNotFound):
        await driver.top_ups.get(ACME, uuid4())


async def test_expired_links_are_fetched_again(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.invoice_action(opened, "expire_links")
    driver.clock.ahead = timedelta(minutes=2)
    fresh = await driver.top_ups.get(ACME, opened.top_up_id)
    assert fresh.hosted_invoice_url != opened.hosted_invoice_url
    await driver.pay_hosted_invoice(fresh)


async def test_while_stripe_is_down_the_stored_links_are_shown(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    driver.clock.ahead = timedelta(minutes=2)
    await driver.inject_fault("GET /v1/invoices/*", "bad_gateway", times=0)
    shown = await driver.top_ups.get(ACME, opened.top_up_id)
    assert shown.hosted_invoice_url == opened.hosted_invoice_url


async def test_the_history_is_newest_first_and_filtered_by_status(driver: TopUpDriver) -> None:
    canceled = [await driver.cancel(await driver.buy()) for _ in range(3)]
    opened = await driver.buy()
    history = await driver.top_ups.list(ACME, limit=10)
    assert [each.top_up_id for each in history] == [each.top_up_id for each in (opened, *canceled[::-1])]
    page = await driver.top_ups.list(ACME, statuses=[TopUpStatus.CANCELED], before=canceled[2].top_up_id, limit=1)
    assert [each.top_up_id for each in page] == [canceled[1].top_up_id]
