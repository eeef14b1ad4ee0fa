"""Many concurrent callers: balances stay exact."""

import asyncio
from collections import Counter
from uuid import uuid4

from pulsa.credit.v1.ledger_entry_pb2 import LEDGER_ENTRY_KIND_TOP_UP

from tests.acceptance.deployment import Deployment
from tests.callers import reason_of


async def test_fifty_concurrent_repeats_of_a_send_are_charged_once_and_answered_alike(pulsa: Deployment) -> None:
    await pulsa.grant(100)
    request_id = str(uuid4())

    answers = await asyncio.gather(*(pulsa.send(email="jane@mail.example", request_id=request_id) for _ in range(50)))

    distinct = Counter(
        (each.otp.otp_id, each.credits_charged, each.available_credits, each.ledger_sequence, each.low_balance)
        for each in answers
    )
    assert list(distinct.values()) == [50]
    assert sum(each.replayed for each in answers) == 49
    assert await pulsa.balance() == 99
    await pulsa.code_sent_to("jane@mail.example")
    assert len(await pulsa.messages_to("jane@mail.example")) == 1


async def test_a_request_id_reused_for_another_destination_changes_nothing(pulsa: Deployment) -> None:
    await pulsa.grant(100)
    request_id = str(uuid4())
    destinations = [f"jane{number}@mail.example" for number in range(20)]

    reasons = await asyncio.gather(
        *(reason_of(pulsa.send(email=destination, request_id=request_id)) for destination in destinations)
    )

    assert Counter(reasons) == {"": 1, "REQUEST_ID_REUSED": 19}
    assert await pulsa.balance() == 99


async def test_of_two_hundred_concurrent_sends_ten_credits_pay_for_ten(pulsa: Deployment) -> None:
    await pulsa.grant(10)

    reasons = await asyncio.gather(*(reason_of(pulsa.send(email=f"j{n}@mail.example")) for n in range(200)))

    assert Counter(reasons) == {"": 10, "INSUFFICIENT_CREDITS": 190}
    assert await pulsa.balance() == 0
    audit = await pulsa.call("VerifyLedger")
    assert (audit.holds, audit.entry_count) == (True, 11)


async def test_fifty_concurrent_repeats_of_a_top_up_create_one_invoice(pulsa: Deployment) -> None:
    request_id = str(uuid4())

    top_ups = await asyncio.gather(*(pulsa.order(request_id=request_id) for _ in range(50)))

    assert len({top_up.top_up_id for top_up in top_ups}) == 1
    assert (await pulsa.control("GET", "invoices"))["count"] == 1


async def test_fifty_concurrent_copies_of_a_webhook_are_credited_once(pulsa: Deployment) -> None:
    top_up = await pulsa.order()
    await pulsa.control("POST", "faults", match={"event": "invoice.paid"}, fault="duplicate", copies=49)

    await pulsa.pay(top_up)
    await pulsa.wait_for_balance(1000)
    await pulsa.control("GET", "deliveries/done")

    delivered = await pulsa.control("GET", "deliveries?type=invoice.paid")
    assert Counter(each["status"] for each in delivered["deliveries"]) == {200: 50}
    [entry] = (await pulsa.call("ListLedgerEntries")).ledger_entries
    assert (entry.kind, entry.credits, entry.reference_id) == (LEDGER_ENTRY_KIND_TOP_UP, 1000, top_up.top_up_id)


async def test_a_second_event_for_the_same_payment_credits_nothing(pulsa: Deployment) -> None:
    top_up = await pulsa.order()
    await pulsa.control("POST", "faults", match={"event": "invoice.paid"}, fault="second_id")

    await pulsa.pay(top_up)
    await pulsa.wait_for_balance(1000)
    await pulsa.control("GET", "deliveries/done")

    assert len((await pulsa.call("ListLedgerEntries")).ledger_entries) == 1
    assert await pulsa.balance() == 1000
