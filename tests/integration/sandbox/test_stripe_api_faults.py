"""Each fault of an API call, as seen through the real SDK."""

import asyncio
from typing import Any

import aiohttp
import pytest
import stripe

from tests.integration.sandbox.stripe_harness import StripeHarness

CREATE = {"method": "POST", "path": "/v1/invoices"}
CUSTOMER = {"method": "POST", "path": "/v1/customers"}
FINALIZE = {"method": "POST", "path": "/v1/invoices/*/finalize"}
KEY: stripe.RequestOptions = {"idempotency_key": "top-up:1:customer"}


async def test_a_429_is_retried_only_when_stripe_says_so(harness: StripeHarness) -> None:
    await harness.fault(CUSTOMER, "rate_limit")
    with pytest.raises(stripe.RateLimitError):
        await harness.client(retries=2).v1.customers.create_async({})
    assert await harness.calls("POST", "/v1/customers") == 1

    await harness.fault(CUSTOMER, "rate_limit", should_retry="true")
    await harness.client(retries=2).v1.customers.create_async({})
    assert await harness.calls("POST", "/v1/customers") == 3


async def test_a_lock_timeout_is_retried(harness: StripeHarness) -> None:
    await harness.fault(CUSTOMER, "lock_timeout", times=2)

    with pytest.raises(stripe.APIError) as refused:
        await harness.client().v1.customers.create_async({}, KEY)
    assert refused.value.http_status == 409
    assert (await harness.client(retries=2).v1.customers.create_async({}, KEY)).id
    assert await harness.calls("POST", "/v1/customers") == 3


async def test_a_server_error_that_is_not_stored_does_not_repeat(harness: StripeHarness) -> None:
    await harness.fault(CUSTOMER, "server_error")

    assert (await harness.client(retries=1).v1.customers.create_async({}, KEY)).id


async def test_a_stored_server_error_is_replayed_until_the_key_is_pruned(harness: StripeHarness) -> None:
    await harness.fault(CUSTOMER, "server_error", stored=True)
    for _ in range(2):
        with pytest.raises(stripe.APIError) as failed:
            await harness.client(retries=2).v1.customers.create_async({}, KEY)
        assert failed.value.http_status == 500
    assert failed.value.headers is not None
    assert failed.value.headers["Idempotent-Replayed"] == "true"

    await harness.control("POST /keys/prune")
    assert (await harness.client().v1.customers.create_async({}, KEY)).id


async def test_a_stored_server_error_may_have_executed_the_call(harness: StripeHarness) -> None:
    await harness.fault(CUSTOMER, "server_error", stored=True, executes=True)

    with pytest.raises(stripe.APIError):
        await harness.client(retries=2).v1.customers.create_async({}, KEY)

    assert len(harness.sandbox.account.objects["customer"]) == 1


async def test_a_bad_gateway_is_html(harness: StripeHarness) -> None:
    await harness.fault(CUSTOMER, "bad_gateway")

    with pytest.raises(stripe.APIError, match="502 Bad Gateway"):
        await harness.client().v1.customers.create_async({})


async def test_a_bad_gateway_may_have_executed_the_call_and_the_key_returns_its_answer(harness: StripeHarness) -> None:
    await harness.fault(CUSTOMER, "bad_gateway", executes=True)

    customer = await harness.client(retries=1).v1.customers.create_async({}, KEY)

    assert list(harness.sandbox.account.objects["customer"]) == [customer.id]


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("truncated", stripe.APIError),
        ("cut_off", aiohttp.ClientPayloadError),
        ("drop_after", stripe.APIConnectionError),
    ],
)
async def test_a_call_whose_answer_is_lost_was_executed_and_the_key_returns_its_answer(
    harness: StripeHarness, kind: str, error: type[Exception]
) -> None:
    """The SDK does not wrap the error of aiohttp when the connection ends in the middle of the body."""
    await harness.fault(CUSTOMER, kind)

    with pytest.raises(error):
        await harness.client().v1.customers.create_async({}, KEY)

    customer = await harness.client().v1.customers.create_async({}, KEY)
    assert list(harness.sandbox.account.objects["customer"]) == [customer.id]


async def test_a_connection_that_ends_before_executing_changes_nothing(harness: StripeHarness) -> None:
    await harness.fault(CUSTOMER, "drop_before")

    with pytest.raises(stripe.APIConnectionError):
        await harness.client().v1.customers.create_async({})

    assert not harness.sandbox.account.objects["customer"]


@pytest.mark.parametrize(("kind", "executed"), [("hold_before", 0), ("hold_after", 1)])
async def test_a_call_that_timed_out_may_have_been_executed(harness: StripeHarness, kind: str, executed: int) -> None:
    fault = await harness.fault(CUSTOMER, kind)

    with pytest.raises(stripe.APIConnectionError):
        await harness.client(timeout_seconds=0.5).v1.customers.create_async({}, KEY)

    await harness.control(f"GET /faults/{fault}/met")
    assert len(harness.sandbox.account.objects["customer"]) == executed


async def test_a_held_call_continues_when_released(harness: StripeHarness) -> None:
    fault = await harness.fault(CUSTOMER, "hold_after")
    waiting = asyncio.create_task(harness.client().v1.customers.create_async({}))

    await harness.control(f"GET /faults/{fault}/met")
    assert not waiting.done()
    await harness.control(f"POST /faults/{fault}/release")
    assert (await waiting).id


async def test_any_refusal_can_be_requested(harness: StripeHarness) -> None:
    invoice = await harness.open()
    await harness.fault(
        {"path": "/v1/invoices/*/void"}, "refuse", code="payment_intent_unexpected_state", message="Pending."
    )

    with pytest.raises(stripe.InvalidRequestError, match=r"Pending\.") as refused:
        await harness.client().v1.invoices.void_invoice_async(invoice.id)

    assert (refused.value.http_status, refused.value.code) == (400, "payment_intent_unexpected_state")
    assert (await harness.fetch(invoice)).status == "open"


async def test_one_create_call_can_create_two_invoices_with_the_same_metadata(harness: StripeHarness) -> None:
    await harness.fault(CREATE, "twice")

    draft = await harness.draft()

    listed = await harness.client().v1.invoices.list_async({"customer": str(draft.customer)})
    assert [invoice.metadata["top_up_id"] for invoice in listed.data if invoice.metadata] == ["top-up-1", "top-up-1"]
    assert draft.id == listed.data[0].id


async def test_an_amount_can_be_multiplied_on_arrival(harness: StripeHarness) -> None:
    await harness.fault({"path": "/v1/invoiceitems"}, "change_parameters", multiply={"amount": 100})

    assert (await harness.open(amount=150_000)).total == 15_000_000


async def test_an_invoice_can_have_another_currency_than_requested(harness: StripeHarness) -> None:
    await harness.fault(CREATE, "change_parameters", set={"currency": "usd"})

    invoice = await harness.client().v1.invoices.create_async(
        {"customer": (await harness.client().v1.customers.create_async({})).id, "currency": "idr"}
    )

    assert invoice.currency == "usd"


async def test_an_answer_can_have_a_wrong_field(harness: StripeHarness) -> None:
    await harness.fault({"path": "/v1/account"}, "change_answer", set={"id": "acct_other", "settings": {}})

    assert (await harness.client().v1.accounts.retrieve_current_async()).id == "acct_other"
    assert (await harness.client().v1.accounts.retrieve_current_async()).id == "acct_sandbox"


BEFORE_FINALIZE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("set_tax", {"percent": "11"}, {"subtotal": 15_000_000, "total": 16_650_000, "status": "open"}),
    ("set_customer_balance", {"amount": -1_000_000}, {"starting_balance": -1_000_000, "amount_due": 14_000_000}),
    ("set_customer_balance", {"amount": -15_000_000}, {"status": "paid", "amount_paid": 0}),
    ("change", {"fields": {"livemode": True}}, {"livemode": True}),
]


@pytest.mark.parametrize(("action", "options", "expected"), BEFORE_FINALIZE)
async def test_an_action_can_run_just_before_a_call(
    harness: StripeHarness, action: str, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    await harness.fault(FINALIZE, "act_before", action=action, options=options)

    invoice = await harness.open(amount=15_000_000)

    assert {name: invoice[name] for name in expected} == expected


async def test_an_invoice_can_be_paid_just_before_it_is_voided(harness: StripeHarness) -> None:
    invoice = await harness.open()
    await harness.fault({"path": "/v1/invoices/*/void"}, "act_before", action="pay")

    with pytest.raises(stripe.InvalidRequestError, match="this one is paid"):
        await harness.client().v1.invoices.void_invoice_async(invoice.id)


async def test_an_invoice_can_be_paid_before_the_caller_receives_that_it_is_open(harness: StripeHarness) -> None:
    await harness.fault(FINALIZE, "act_after", action="pay")

    invoice = await harness.open()

    assert invoice.status == "open"
    assert (await harness.fetch(invoice)).status == "paid"


async def test_a_fault_can_skip_calls_and_apply_to_several(harness: StripeHarness) -> None:
    fault = await harness.fault({**CUSTOMER, "contains": "Toko"}, "rate_limit", skip=1, times=2)

    outcomes = []
    for name in ("Toko", "Warung", "Toko", "Toko", "Toko"):
        try:
            await harness.client().v1.customers.create_async({"name": name})
            outcomes.append("made")
        except stripe.RateLimitError:
            outcomes.append("refused")

    assert outcomes == ["made", "made", "refused", "refused", "made"]
    listed = (await harness.control("GET /faults"))["faults"]
    assert [(each["id"], each["used"]) for each in listed] == [(fault, 2)]
