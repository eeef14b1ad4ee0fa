"""What a buyer meets: create, pay, look, cancel, once or many times at once."""

import asyncio
from datetime import timedelta
from decimal import Decimal
from uuid import uuid4

import pytest

from server.credits.top_up_states import TopUpStatus
from server.errors import RequestIdReused, TopUpAlreadyOpen, TopUpBelowMinimum, TopUpNotCancelable, TopUpNotFound
from tests.integration.top_ups.shop import ACME, PATIENCE_SECONDS, Shop, purchase


async def test_a_top_up_is_opened_paid_and_credited(shop: Shop) -> None:
    opened = await shop.buy()
    assert opened.status is TopUpStatus.OPEN
    assert opened.hosted_invoice_url
    assert opened.invoice_pdf_url
    assert opened.invoice_number
    assert opened.due_time
    assert opened.due_time > shop.clock()

    await shop.press_pay(opened)

    paid = await shop.becomes(opened, TopUpStatus.PAID)
    assert paid.paid_time
    assert await shop.credits() == 1000
    await shop.all_events_done()
    [invoice] = await shop.invoices()
    assert invoice["metadata"] == {
        "top_up_id": str(opened.top_up_id), "organization_id": ACME, "environment": "test",
    }  # fmt: skip


@pytest.mark.parametrize(("currency_code", "credits"), [("IDR", 1000), ("IDR", 1001), ("USD", 1000), ("USD", 12345)])
async def test_the_invoice_asks_for_exactly_what_was_quoted(shop: Shop, currency_code: str, credits: int) -> None:
    opened = await shop.buy(currency_code=currency_code, credits=credits)
    [invoice] = await shop.invoices()
    assert Decimal(invoice["amount_due"]) / 100 == opened.total == opened.invoice_total
    assert invoice["currency"] == currency_code.lower()


async def test_a_payment_is_confirmed_by_one_notice_to_the_billing_contact(shop: Shop) -> None:
    opened = await shop.buy()
    await shop.press_pay(opened)
    await shop.becomes(opened, TopUpStatus.PAID)
    query = "SELECT array_agg(email) FROM notices WHERE kind = 'PAYMENT_CONFIRMED' AND reference_id = %s"
    assert await shop.value(query, str(opened.top_up_id)) == ["billing@example.com"]


async def test_a_second_contact_does_not_take_over_the_alerts(shop: Shop) -> None:
    first = await shop.buy()
    await shop.cancel(first)
    await shop.buy(billing_email="other@example.com")
    assert await shop.value("SELECT alert_email FROM accounts") == "billing@example.com"


async def test_the_same_request_is_the_same_purchase(shop: Shop) -> None:
    order = purchase()
    answers = await asyncio.gather(
        *(shop.top_ups.create(order, created_by="ann", wait_seconds=PATIENCE_SECONDS) for _ in range(10))
    )
    assert {answer.top_up_id for answer in answers} == {answers[0].top_up_id}
    assert {answer.status for answer in answers} == {TopUpStatus.OPEN}
    assert len(await shop.invoices()) == 1


async def test_a_request_id_with_other_contents_is_refused(shop: Shop) -> None:
    opened = await shop.buy()
    with pytest.raises(RequestIdReused):
        await shop.buy(request_id=opened.request_id, credits=2000)


async def test_of_two_purchases_at_once_one_becomes_an_invoice(shop: Shop) -> None:
    answers = await asyncio.gather(shop.buy(), shop.buy(), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, TopUpAlreadyOpen)]
    assert len(refused) == 1
    assert len(await shop.invoices()) == 1


async def test_a_second_purchase_is_refused_with_the_link_of_the_first(shop: Shop) -> None:
    opened = await shop.buy()
    with pytest.raises(TopUpAlreadyOpen) as refused:
        await shop.buy()
    assert refused.value.top_up_id == str(opened.top_up_id)
    assert refused.value.hosted_invoice_url == opened.hosted_invoice_url


async def test_another_organization_may_buy_at_the_same_time(shop: Shop) -> None:
    await shop.buy()
    assert (await shop.buy("globex")).status is TopUpStatus.OPEN


async def test_a_refused_purchase_leaves_nothing(shop: Shop) -> None:
    with pytest.raises(TopUpBelowMinimum):
        await shop.buy(credits=999)
    assert await shop.value("SELECT count(*) FROM top_ups") == 0
    assert await shop.invoices() == []


async def test_the_second_purchase_uses_the_customer_of_the_first_with_its_new_contact(shop: Shop) -> None:
    await shop.cancel(await shop.buy())
    await shop.buy(billing_email="new@example.com")
    assert len(shop.sandbox.books.objects["customer"]) == 1
    customer = next(iter(shop.sandbox.books.objects["customer"].values()))
    assert customer["email"] == "new@example.com"


async def test_a_canceled_top_up_is_void_and_leaves_room_for_another(shop: Shop) -> None:
    opened = await shop.buy()
    canceled = await shop.cancel(opened)
    assert canceled.status is TopUpStatus.CANCELED
    assert canceled.cancel_time
    assert [invoice["status"] for invoice in await shop.invoices()] == ["void"]
    assert (await shop.cancel(opened)).status is TopUpStatus.CANCELED
    assert (await shop.buy()).status is TopUpStatus.OPEN


async def test_a_paid_top_up_is_not_cancelable(shop: Shop) -> None:
    opened = await shop.buy()
    await shop.press_pay(opened)
    await shop.becomes(opened, TopUpStatus.PAID)
    with pytest.raises(TopUpNotCancelable) as refused:
        await shop.cancel(opened)
    assert refused.value.status == "PAID"


async def test_another_organization_finds_no_top_up(shop: Shop) -> None:
    opened = await shop.buy()
    with pytest.raises(TopUpNotFound):
        await shop.top_ups.get("globex", opened.top_up_id)
    with pytest.raises(TopUpNotFound):
        await shop.top_ups.cancel("globex", opened.top_up_id, wait_seconds=PATIENCE_SECONDS)
    with pytest.raises(TopUpNotFound):
        await shop.top_ups.get(ACME, uuid4())


async def test_expired_links_are_fetched_again(shop: Shop) -> None:
    opened = await shop.buy()
    await shop.act(opened, "expire_links")
    shop.clock.ahead = timedelta(minutes=2)
    fresh = await shop.top_ups.get(ACME, opened.top_up_id)
    assert fresh.hosted_invoice_url != opened.hosted_invoice_url
    await shop.press_pay(fresh)


async def test_while_stripe_is_down_the_stored_links_are_shown(shop: Shop) -> None:
    opened = await shop.buy()
    shop.clock.ahead = timedelta(minutes=2)
    await shop.fault("GET /v1/invoices/*", "bad_gateway", times=0)
    shown = await shop.top_ups.get(ACME, opened.top_up_id)
    assert shown.hosted_invoice_url == opened.hosted_invoice_url


async def test_the_history_is_newest_first_and_filtered_by_state(shop: Shop) -> None:
    canceled = [await shop.cancel(await shop.buy()) for _ in range(3)]
    opened = await shop.buy()
    history = await shop.top_ups.list(ACME, limit=10)
    assert [each.top_up_id for each in history] == [each.top_up_id for each in (opened, *canceled[::-1])]
    page = await shop.top_ups.list(ACME, statuses=[TopUpStatus.CANCELED], before=canceled[2].top_up_id, limit=1)
    assert [each.top_up_id for each in page] == [canceled[1].top_up_id]
