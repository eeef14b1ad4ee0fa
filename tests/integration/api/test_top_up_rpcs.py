"""Top-ups over gRPC: create one, pay it on the hosted page, and the webhook arrives through the sidecar."""

import asyncio
from contextlib import aclosing
from uuid import uuid4

from pulsa.credit.v1 import top_up_pb2
from pulsa.credit.v1.ledger_entry_pb2 import LEDGER_ENTRY_KIND_TOP_UP
from pulsa.credit.v1.money_pb2 import Money

from tests.integration.api.credit_service_harness import CreditServiceHarness, reason_and_metadata


async def test_a_paid_invoice_reaches_the_balance_stream(credit_service: CreditServiceHarness) -> None:
    top_up = await credit_service.create_top_up(credits=5000)
    assert (top_up.status, top_up.credits, top_up.created_by) == (top_up_pb2.TOP_UP_STATUS_OPEN, 5000, "ann")
    price, nothing = Money(currency_code="IDR", units=750_000), Money(currency_code="IDR")
    assert (top_up.unit_price.units, top_up.subtotal, top_up.tax, top_up.total) == (150, price, nothing, price)
    assert (top_up.HasField("amount_paid"), top_up.amount_remaining) == (False, price)
    assert top_up.invoice_number
    assert not top_up.HasField("paid_time")
    async with aclosing(aiter(credit_service.watch())) as stream:
        assert (await asyncio.wait_for(anext(stream), 10)).balance.available_credits == 0
        await credit_service.pay(top_up)
        assert (await asyncio.wait_for(anext(stream), 10)).balance.available_credits == 5000
    paid = (await credit_service.call("GetTopUp", top_up_id=top_up.top_up_id)).top_up
    assert paid.status == top_up_pb2.TOP_UP_STATUS_PAID
    assert (paid.amount_paid, paid.amount_remaining) == (price, nothing)
    assert paid.HasField("paid_time")
    [entry] = (await credit_service.call("ListLedgerEntries")).ledger_entries
    assert (entry.kind, entry.reference_id, entry.credits) == (LEDGER_ENTRY_KIND_TOP_UP, top_up.top_up_id, 5000)
    assert (await credit_service.call("VerifyLedger")).holds


async def test_the_pdf_link_works(credit_service: CreditServiceHarness) -> None:
    top_up = await credit_service.create_top_up()
    async with credit_service.browser.get(top_up.invoice_pdf_url) as response:
        assert (await response.read()).startswith(b"%PDF")


async def test_one_top_up_is_open_at_a_time_and_a_repeated_request_gets_the_same_one(
    credit_service: CreditServiceHarness,
) -> None:
    request_id = str(uuid4())
    first, again = await asyncio.gather(
        credit_service.create_top_up(request_id=request_id), credit_service.create_top_up(request_id=request_id)
    )
    assert first.top_up_id == again.top_up_id
    reason, metadata = await reason_and_metadata(credit_service.create_top_up())
    assert (reason, metadata["top_up_id"]) == ("TOP_UP_ALREADY_OPEN", first.top_up_id)
    assert metadata["hosted_invoice_url"].startswith("http")
    assert await reason_and_metadata(credit_service.create_top_up(request_id=request_id, credits=2000)) == (
        "REQUEST_ID_REUSED",
        {},
    )


async def test_a_canceled_top_up_stays_in_the_history_and_allows_another(credit_service: CreditServiceHarness) -> None:
    first = await credit_service.create_top_up()
    canceled = (await credit_service.call("CancelTopUp", top_up_id=first.top_up_id)).top_up
    assert canceled.status == top_up_pb2.TOP_UP_STATUS_CANCELED
    assert canceled.HasField("cancel_time")
    second = await credit_service.create_top_up(currency_code="USD")
    history = (await credit_service.call("ListTopUps")).top_ups
    assert [each.top_up_id for each in history] == [second.top_up_id, first.top_up_id]
    only = (await credit_service.call("ListTopUps", statuses=[top_up_pb2.TOP_UP_STATUS_CANCELED])).top_ups
    assert [each.top_up_id for each in only] == [first.top_up_id]


async def test_the_history_is_paged_and_a_page_token_is_bound_to_its_filter(
    credit_service: CreditServiceHarness,
) -> None:
    ordered = []
    for _ in range(3):
        top_up = await credit_service.create_top_up()
        await credit_service.call("CancelTopUp", top_up_id=top_up.top_up_id)
        ordered.append(top_up.top_up_id)
    first = await credit_service.call("ListTopUps", page_size=2)
    second = await credit_service.call("ListTopUps", page_size=2, page_token=first.next_page_token)
    assert [each.top_up_id for each in (*first.top_ups, *second.top_ups)] == ordered[::-1]
    assert second.next_page_token == ""
    filtered = credit_service.call(
        "ListTopUps", page_token=first.next_page_token, statuses=[top_up_pb2.TOP_UP_STATUS_CANCELED]
    )
    assert (await reason_and_metadata(filtered))[0] == "INVALID_FIELDS"


async def test_a_top_up_of_another_organization_is_not_found(credit_service: CreditServiceHarness) -> None:
    top_up = await credit_service.create_top_up("acme")
    for rpc in ("GetTopUp", "CancelTopUp"):
        assert await reason_and_metadata(credit_service.call(rpc, "other", top_up_id=top_up.top_up_id)) == (
            "TOP_UP_NOT_FOUND",
            {},
        )


async def test_a_paid_top_up_cannot_be_canceled(credit_service: CreditServiceHarness) -> None:
    top_up = await credit_service.create_top_up()
    async with aclosing(aiter(credit_service.watch())) as stream:
        await asyncio.wait_for(anext(stream), 10)
        await credit_service.pay(top_up)
        await asyncio.wait_for(anext(stream), 10)
    refusal = await reason_and_metadata(credit_service.call("CancelTopUp", top_up_id=top_up.top_up_id))
    assert refusal == ("TOP_UP_NOT_CANCELABLE", {"status": "PAID"})
