"""Cards that are saved on a hosted page, and invoices that are charged to them."""

from typing import Any

import pytest
import stripe

from tests.integration.sandbox.stripe_harness import StripeHarness


async def new_customer(harness: StripeHarness) -> str:
    return (await harness.client().v1.customers.create_async({"name": "<b>Toko Maju</b>"})).id


async def charge(harness: StripeHarness, invoice: stripe.Invoice, method: str, **options: Any) -> stripe.Invoice:
    parameters: Any = {"payment_method": method, "off_session": True, "expand": ["payments"], **options}
    return await harness.client().v1.invoices.pay_async(invoice.id, parameters)


async def test_a_card_that_is_saved_on_the_page_pays_an_invoice_of_its_customer(harness: StripeHarness) -> None:
    customer = await new_customer(harness)
    session = await harness.card_page(customer)
    async with harness.session.get(str(session.url)) as response:
        page = await response.text()
    assert "&lt;b&gt;Toko Maju&lt;/b&gt;" in page
    assert "<script" not in page

    method = await harness.save_card(session)
    paid = await charge(harness, await harness.open(customer=customer), method)

    assert paid.status == "paid"
    assert paid.payments
    assert paid.payments.data[0].payment.type == "payment_intent"
    done = await harness.client().v1.checkout.sessions.retrieve_async(session.id)
    assert (done.status, done.url) == ("complete", None)
    assert "checkout.session.completed" in await event_types(harness)


@pytest.mark.parametrize(
    ("behaviour", "code", "event"),
    [
        ("declined", "card_declined", "invoice.payment_failed"),
        ("authentication", "invoice_payment_intent_requires_action", "invoice.payment_action_required"),
    ],
)
async def test_a_charge_that_fails_leaves_the_invoice_open_and_is_answered_the_same_for_its_key(
    harness: StripeHarness, behaviour: str, code: str, event: str
) -> None:
    customer = await new_customer(harness)
    method = await harness.save_card(await harness.card_page(customer), behaviour)
    invoice = await harness.open(customer=customer)
    for _ in range(2):
        with pytest.raises(stripe.CardError) as refused:
            await harness.client().v1.invoices.pay_async(
                invoice.id, {"payment_method": method, "off_session": True}, {"idempotency_key": "once"}
            )
        assert (refused.value.code, refused.value.http_status) == (code, 402)
    assert (await harness.fetch(invoice)).status == "open"
    assert (await event_types(harness)).count(event) == 1

    await harness.control(f"POST /cards/{method}/works")
    assert (await charge(harness, invoice, method)).status == "paid"


async def test_a_card_is_charged_for_its_own_customer_only_and_not_once_it_is_detached(harness: StripeHarness) -> None:
    customer = await new_customer(harness)
    method = await harness.save_card(await harness.card_page(customer))
    with pytest.raises(stripe.InvalidRequestError):
        await charge(harness, await harness.open(), method)

    await harness.client().v1.payment_methods.detach_async(method)

    assert (await harness.client().v1.payment_methods.retrieve_async(method)).customer is None
    with pytest.raises(stripe.InvalidRequestError):
        await charge(harness, await harness.open(customer=customer), method)
    with pytest.raises(stripe.InvalidRequestError):
        await harness.client().v1.payment_methods.detach_async(method)
    assert "payment_method.detached" in await event_types(harness)


async def test_a_page_saves_one_card_and_none_once_it_has_expired(harness: StripeHarness) -> None:
    sessions = [await harness.card_page(await new_customer(harness)) for _ in range(2)]
    await harness.save_card(sessions[0])
    await harness.client().v1.checkout.sessions.expire_async(sessions[1].id)
    for session in sessions:
        async with harness.session.post(f"{session.url}/works", allow_redirects=False) as response:
            assert "no longer active" in await response.text()
    assert (await harness.control("GET /cards"))["count"] == 1


async def test_an_invoice_that_is_charged_has_no_due_date(harness: StripeHarness) -> None:
    invoices, customer = harness.client().v1.invoices, await new_customer(harness)
    automatic: Any = {"customer": customer, "currency": "idr", "collection_method": "charge_automatically"}
    created = await invoices.create_async(automatic)
    await harness.client().v1.invoice_items.create_async(
        {"customer": customer, "invoice": created.id, "amount": 15_000_000}
    )
    opened = await invoices.finalize_invoice_async(created.id, {"auto_advance": False})

    assert (opened.status, opened.due_date, opened.amount_paid) == ("open", None, 0)
    with pytest.raises(stripe.InvalidRequestError):
        await invoices.create_async(automatic | {"days_until_due": 7})


async def event_types(harness: StripeHarness) -> list[str]:
    return [event["type"] for event in (await harness.control("GET /events"))["events"]]
