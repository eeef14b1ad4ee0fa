"""Idempotency keys behave as at Stripe: for a day, every repeat gets the first answer."""

import asyncio

import pytest
import stripe

from tests.integration.sandbox.stripe_harness import StripeHarness

KEY: stripe.RequestOptions = {"idempotency_key": "top-up:1:customer"}
CREATE = {"method": "POST", "path": "/v1/customers"}


async def test_the_same_key_and_parameters_return_the_same_answer(harness: StripeHarness) -> None:
    customers = harness.client().v1.customers

    first = await customers.create_async({"name": "Toko"}, KEY)
    again = await customers.create_async({"name": "Toko"}, KEY)

    assert first.id == again.id
    assert first.last_response is not None
    assert again.last_response is not None
    assert "Idempotent-Replayed" not in first.last_response.headers
    assert again.last_response.headers["Idempotent-Replayed"] == "true"
    assert len(harness.sandbox.account.objects["customer"]) == 1


async def test_the_same_key_with_other_parameters_or_another_endpoint_is_refused(harness: StripeHarness) -> None:
    client = harness.client()
    await client.v1.customers.create_async({"name": "Toko"}, KEY)

    with pytest.raises(stripe.IdempotencyError) as refused:
        await client.v1.customers.create_async({"name": "Warung"}, KEY)
    assert refused.value.http_status == 400
    with pytest.raises(stripe.IdempotencyError):
        await client.raw_request_async("post", "/v1/invoices", name="Toko", **KEY)


async def test_a_validation_error_is_not_stored_under_the_key(harness: StripeHarness) -> None:
    customers = harness.client().v1.customers
    with pytest.raises(stripe.InvalidRequestError):
        await customers.create_async({"email": ""}, KEY)

    assert (await customers.create_async({"email": "a@b.test"}, KEY)).email == "a@b.test"


async def test_a_refusal_because_of_the_objects_state_is_stored_under_the_key(harness: StripeHarness) -> None:
    """A void that was refused while a payment was pending is refused under the same key after the payment failed."""
    invoice = await harness.open()
    invoices = harness.client().v1.invoices
    await harness.act(invoice, "start_payment")
    with pytest.raises(stripe.InvalidRequestError):
        await invoices.void_invoice_async(invoice.id, {}, KEY)
    await harness.act(invoice, "fail_payment")

    with pytest.raises(stripe.InvalidRequestError):
        await invoices.void_invoice_async(invoice.id, {}, KEY)
    assert (await invoices.void_invoice_async(invoice.id)).status == "void"


async def test_a_key_in_use_is_a_conflict(harness: StripeHarness) -> None:
    customers = harness.client().v1.customers
    fault = await harness.fault(CREATE, "hold_before")
    first = asyncio.create_task(customers.create_async({"name": "Toko"}, KEY))
    await harness.control(f"GET /faults/{fault}/met")

    with pytest.raises(stripe.APIError) as refused:
        await customers.create_async({"name": "Toko"}, KEY)
    assert refused.value.http_status == 409
    assert refused.value.error is not None
    assert refused.value.error.code == "idempotency_key_in_use"

    await harness.control(f"POST /faults/{fault}/release")
    assert (await customers.create_async({"name": "Toko"}, KEY)).id == (await first).id


async def test_a_key_expires_when_pruned_or_a_day_old(harness: StripeHarness) -> None:
    customers = harness.client().v1.customers
    first = await customers.create_async({}, KEY)

    await harness.control("POST /clock", {"advance_seconds": 86_399 - 60})
    assert (await customers.create_async({}, KEY)).id == first.id
    await harness.control("POST /clock", {"advance_seconds": 61})
    second = await customers.create_async({}, KEY)
    assert second.id != first.id
    assert await harness.control("POST /keys/prune", {"older_than_seconds": 3_600}) == {"pruned": 0}
    assert await harness.control("POST /keys/prune") == {"pruned": 1}
    assert (await customers.create_async({}, KEY)).id not in {first.id, second.id}


async def test_a_key_has_at_most_255_characters(harness: StripeHarness) -> None:
    customers = harness.client().v1.customers
    await customers.create_async({}, {"idempotency_key": "k" * 255})

    with pytest.raises(stripe.InvalidRequestError, match="255"):
        await customers.create_async({}, {"idempotency_key": "k" * 256})
