"""Buying credits as callers see it: order, pay on the hosted page, and the webhook comes through the sidecar."""

import asyncio
from contextlib import aclosing
from uuid import uuid4

from pulsa.credit.v1 import top_up_pb2
from pulsa.credit.v1.ledger_entry_pb2 import LEDGER_ENTRY_KIND_TOP_UP
from pulsa.credit.v1.money_pb2 import Money

from tests.integration.credit_service.office import Office, reason_of, within


async def test_a_paid_invoice_reaches_whoever_watches_the_balance(office: Office) -> None:
    top_up = await office.order(credits=5000)
    assert (top_up.status, top_up.credits, top_up.created_by) == (top_up_pb2.TOP_UP_STATUS_OPEN, 5000, "ann")
    assert (top_up.unit_price.units, top_up.total) == (150, Money(currency_code="IDR", units=750_000))
    assert top_up.invoice_number
    assert not top_up.HasField("paid_time")
    async with aclosing(aiter(office.watch())) as stream:
        assert (await within(10, anext(stream))).balance.available_credits == 0
        await office.pay(top_up)
        assert (await within(10, anext(stream))).balance.available_credits == 5000
    paid = (await office.call("GetTopUp", top_up_id=top_up.top_up_id)).top_up
    assert paid.status == top_up_pb2.TOP_UP_STATUS_PAID
    assert paid.HasField("paid_time")
    [entry] = (await office.call("ListLedgerEntries")).ledger_entries
    assert (entry.kind, entry.reference_id, entry.credits) == (LEDGER_ENTRY_KIND_TOP_UP, top_up.top_up_id, 5000)
    assert (await office.call("VerifyLedger")).holds


async def test_the_pdf_link_works(office: Office) -> None:
    top_up = await office.order()
    async with office.browser.get(top_up.invoice_pdf_url) as response:
        assert (await response.read()).startswith(b"%PDF")


async def test_one_purchase_at_a_time_and_a_repeat_is_the_same(office: Office) -> None:
    request_id = str(uuid4())
    first, again = await asyncio.gather(office.order(request_id=request_id), office.order(request_id=request_id))
    assert first.top_up_id == again.top_up_id
    reason, metadata = await reason_of(office.order())
    assert (reason, metadata["top_up_id"]) == ("TOP_UP_ALREADY_OPEN", first.top_up_id)
    assert metadata["hosted_invoice_url"].startswith("http")
    assert await reason_of(office.order(request_id=request_id, credits=2000)) == ("REQUEST_ID_REUSED", {})


async def test_a_canceled_top_up_frees_the_place_and_stays_in_the_history(office: Office) -> None:
    first = await office.order()
    canceled = (await office.call("CancelTopUp", top_up_id=first.top_up_id)).top_up
    assert canceled.status == top_up_pb2.TOP_UP_STATUS_CANCELED
    assert canceled.HasField("cancel_time")
    second = await office.order(currency_code="USD")
    history = (await office.call("ListTopUps")).top_ups
    assert [each.top_up_id for each in history] == [second.top_up_id, first.top_up_id]
    only = (await office.call("ListTopUps", statuses=[top_up_pb2.TOP_UP_STATUS_CANCELED])).top_ups
    assert [each.top_up_id for each in only] == [first.top_up_id]


async def test_the_history_is_paged_and_a_page_belongs_to_its_filter(office: Office) -> None:
    ordered = []
    for _ in range(3):
        top_up = await office.order()
        await office.call("CancelTopUp", top_up_id=top_up.top_up_id)
        ordered.append(top_up.top_up_id)
    first = await office.call("ListTopUps", page_size=2)
    second = await office.call("ListTopUps", page_size=2, page_token=first.next_page_token)
    assert [each.top_up_id for each in (*first.top_ups, *second.top_ups)] == ordered[::-1]
    assert second.next_page_token == ""
    filtered = office.call("ListTopUps", page_token=first.next_page_token, statuses=[top_up_pb2.TOP_UP_STATUS_CANCELED])
    assert (await reason_of(filtered))[0] == "INVALID_FIELDS"


async def test_a_top_up_of_another_organization_is_not_found(office: Office) -> None:
    top_up = await office.order("acme")
    for rpc in ("GetTopUp", "CancelTopUp"):
        assert await reason_of(office.call(rpc, "other", top_up_id=top_up.top_up_id)) == ("TOP_UP_NOT_FOUND", {})


async def test_a_paid_top_up_cannot_be_canceled(office: Office) -> None:
    top_up = await office.order()
    async with aclosing(aiter(office.watch())) as stream:
        await within(10, anext(stream))
        await office.pay(top_up)
        await within(10, anext(stream))
    refusal = await reason_of(office.call("CancelTopUp", top_up_id=top_up.top_up_id))
    assert refusal == ("TOP_UP_NOT_CANCELABLE", {"status": "PAID"})
