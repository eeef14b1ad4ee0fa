"""Each fault of an API call, as the caller of the real SDK sees it."""

import asyncio
from typing import Any

import aiohttp
import pytest
import stripe

from tests.integration.sandbox.stripe_world import World

CREATE = {"method": "POST", "path": "/v1/invoices"}
CUSTOMER = {"method": "POST", "path": "/v1/customers"}
FINALIZE = {"method": "POST", "path": "/v1/invoices/*/finalize"}
KEY: stripe.RequestOptions = {"idempotency_key": "top-up:1:customer"}


async def test_a_429_is_retried_only_when_stripe_says_so(world: World) -> None:
    await world.fault(CUSTOMER, "rate_limit")
    with pytest.raises(stripe.RateLimitError):
        await world.client(retries=2).v1.customers.create_async({})
    assert await world.calls("POST", "/v1/customers") == 1

    await world.fault(CUSTOMER, "rate_limit", should_retry="true")
    await world.client(retries=2).v1.customers.create_async({})
    assert await world.calls("POST", "/v1/customers") == 3


async def test_a_lock_timeout_is_retried(world: World) -> None:
    await world.fault(CUSTOMER, "lock_timeout", times=2)

    with pytest.raises(stripe.APIError) as refused:
        await world.client().v1.customers.create_async({}, KEY)
    assert refused.value.http_status == 409
    assert (await world.client(retries=2).v1.customers.create_async({}, KEY)).id
    assert await world.calls("POST", "/v1/customers") == 3


async def test_a_server_error_that_was_not_kept_is_gone_at_the_next_try(world: World) -> None:
    await world.fault(CUSTOMER, "server_error")

    assert (await world.client(retries=1).v1.customers.create_async({}, KEY)).id


async def test_a_stored_server_error_is_replayed_until_the_key_is_pruned(world: World) -> None:
    await world.fault(CUSTOMER, "server_error", stored=True)
    for _ in range(2):
        with pytest.raises(stripe.APIError) as failed:
            await world.client(retries=2).v1.customers.create_async({}, KEY)
        assert failed.value.http_status == 500
    assert failed.value.headers is not None
    assert failed.value.headers["Idempotent-Replayed"] == "true"

    await world.control("POST /keys/prune")
    assert (await world.client().v1.customers.create_async({}, KEY)).id


async def test_a_stored_server_error_may_have_done_its_work(world: World) -> None:
    await world.fault(CUSTOMER, "server_error", stored=True, executes=True)

    with pytest.raises(stripe.APIError):
        await world.client(retries=2).v1.customers.create_async({}, KEY)

    assert len(world.sandbox.books.objects["customer"]) == 1


async def test_a_bad_gateway_is_html(world: World) -> None:
    await world.fault(CUSTOMER, "bad_gateway")

    with pytest.raises(stripe.APIError, match="502 Bad Gateway"):
        await world.client().v1.customers.create_async({})


async def test_a_bad_gateway_may_hide_an_answer_that_the_key_gives_later(world: World) -> None:
    await world.fault(CUSTOMER, "bad_gateway", executes=True)

    customer = await world.client(retries=1).v1.customers.create_async({}, KEY)

    assert list(world.sandbox.books.objects["customer"]) == [customer.id]


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("truncated", stripe.APIError),
        ("cut_off", aiohttp.ClientPayloadError),
        ("drop_after", stripe.APIConnectionError),
    ],
)
async def test_an_answer_that_is_lost_was_executed_and_the_key_gives_it(
    world: World, kind: str, error: type[Exception]
) -> None:
    """Note that the SDK lets aiohttp's own error through when the connection ends in the middle of the body."""
    await world.fault(CUSTOMER, kind)

    with pytest.raises(error):
        await world.client().v1.customers.create_async({}, KEY)

    customer = await world.client().v1.customers.create_async({}, KEY)
    assert list(world.sandbox.books.objects["customer"]) == [customer.id]


async def test_a_connection_that_ends_before_executing_leaves_nothing(world: World) -> None:
    await world.fault(CUSTOMER, "drop_before")

    with pytest.raises(stripe.APIConnectionError):
        await world.client().v1.customers.create_async({})

    assert not world.sandbox.books.objects["customer"]


@pytest.mark.parametrize(("kind", "executed"), [("hold_before", 0), ("hold_after", 1)])
async def test_a_timeout_leaves_open_whether_it_was_executed(world: World, kind: str, executed: int) -> None:
    fault = await world.fault(CUSTOMER, kind)

    with pytest.raises(stripe.APIConnectionError):
        await world.client(timeout_seconds=0.5).v1.customers.create_async({}, KEY)

    await world.control(f"GET /faults/{fault}/met")
    assert len(world.sandbox.books.objects["customer"]) == executed


async def test_a_held_call_goes_on_when_released(world: World) -> None:
    fault = await world.fault(CUSTOMER, "hold_after")
    waiting = asyncio.create_task(world.client().v1.customers.create_async({}))

    await world.control(f"GET /faults/{fault}/met")
    assert not waiting.done()
    await world.control(f"POST /faults/{fault}/release")
    assert (await waiting).id


async def test_any_refusal_can_be_asked_for(world: World) -> None:
    invoice = await world.open()
    await world.fault(
        {"path": "/v1/invoices/*/void"}, "refuse", code="payment_intent_unexpected_state", message="Pending."
    )

    with pytest.raises(stripe.InvalidRequestError, match=r"Pending\.") as refused:
        await world.client().v1.invoices.void_invoice_async(invoice.id)

    assert (refused.value.http_status, refused.value.code) == (400, "payment_intent_unexpected_state")
    assert (await world.fetch(invoice)).status == "open"


async def test_one_create_can_leave_two_invoices_with_the_same_metadata(world: World) -> None:
    await world.fault(CREATE, "twice")

    draft = await world.draft()

    listed = await world.client().v1.invoices.list_async({"customer": str(draft.customer)})
    assert [invoice.metadata["top_up_id"] for invoice in listed.data if invoice.metadata] == ["top-up-1", "top-up-1"]
    assert draft.id == listed.data[0].id


async def test_an_amount_can_arrive_a_hundredfold(world: World) -> None:
    await world.fault({"path": "/v1/invoiceitems"}, "change_parameters", multiply={"amount": 100})

    assert (await world.open(amount=150_000)).total == 15_000_000


async def test_an_invoice_can_be_in_another_currency_than_asked(world: World) -> None:
    await world.fault(CREATE, "change_parameters", set={"currency": "usd"})

    invoice = await world.client().v1.invoices.create_async(
        {"customer": (await world.client().v1.customers.create_async({})).id, "currency": "idr"}
    )

    assert invoice.currency == "usd"


async def test_an_answer_can_lie_about_one_field(world: World) -> None:
    await world.fault({"path": "/v1/account"}, "change_answer", set={"id": "acct_other", "settings": {}})

    assert (await world.client().v1.accounts.retrieve_current_async()).id == "acct_other"
    assert (await world.client().v1.accounts.retrieve_current_async()).id == "acct_sandbox"


BEFORE_FINALIZE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("set_tax", {"percent": "11"}, {"subtotal": 15_000_000, "total": 16_650_000, "status": "open"}),
    ("set_customer_balance", {"amount": -1_000_000}, {"starting_balance": -1_000_000, "amount_due": 14_000_000}),
    ("set_customer_balance", {"amount": -15_000_000}, {"status": "paid", "amount_paid": 0}),
    ("change", {"fields": {"livemode": True}}, {"livemode": True}),
]


@pytest.mark.parametrize(("action", "options", "expected"), BEFORE_FINALIZE)
async def test_something_can_happen_just_before_a_call(
    world: World, action: str, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    await world.fault(FINALIZE, "act_before", action=action, options=options)

    invoice = await world.open(amount=15_000_000)

    assert {name: invoice[name] for name in expected} == expected


async def test_an_invoice_can_be_paid_just_before_it_is_voided(world: World) -> None:
    invoice = await world.open()
    await world.fault({"path": "/v1/invoices/*/void"}, "act_before", action="pay")

    with pytest.raises(stripe.InvalidRequestError, match="this one is paid"):
        await world.client().v1.invoices.void_invoice_async(invoice.id)


async def test_an_invoice_can_be_paid_before_the_caller_knows_that_it_is_open(world: World) -> None:
    await world.fault(FINALIZE, "act_after", action="pay")

    invoice = await world.open()

    assert invoice.status == "open"
    assert (await world.fetch(invoice)).status == "paid"


async def test_a_fault_can_pass_over_calls_and_last_for_several(world: World) -> None:
    fault = await world.fault({**CUSTOMER, "contains": "Toko"}, "rate_limit", skip=1, times=2)

    outcomes = []
    for name in ("Toko", "Warung", "Toko", "Toko", "Toko"):
        try:
            await world.client().v1.customers.create_async({"name": name})
            outcomes.append("made")
        except stripe.RateLimitError:
            outcomes.append("refused")

    assert outcomes == ["made", "made", "refused", "refused", "made"]
    listed = (await world.control("GET /faults"))["faults"]
    assert [(each["id"], each["used"]) for each in listed] == [(fault, 2)]
