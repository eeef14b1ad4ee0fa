"""BatchSendOtps and PreviewOtps: each request of a batch is a send of its own."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

from pulsa import aio
from pulsa.client import connect
from pulsa.error.v1.error_reason_pb2 import ErrorReason
from pulsa.otp.v1.otp_service_pb2 import BatchSendOtpsResponse, SendOtpRequest

from tests.acceptance.deployment import Deployment, deployed
from tests.callers import reason_of


def send(number: int, **fields: Any) -> SendOtpRequest:
    return SendOtpRequest(
        **(
            {"request_id": str(uuid4()), "purpose": "login", "destination": {"email": f"jane{number}@mail.example"}}
            | fields
        )
    )


def reasons(response: BatchSendOtpsResponse) -> list[str]:
    """Of each result; empty for an accepted send."""
    return [
        ErrorReason.Name(result.error.reason).removeprefix("ERROR_REASON_") if result.HasField("error") else ""
        for result in response.results
    ]


async def test_each_request_is_accepted_or_refused_for_itself_in_order(pulsa: Deployment) -> None:
    await pulsa.grant(100)
    first = send(1)
    requests = [
        first,
        send(2, destination={"email": "nobody"}),
        send(3, purpose="Not A Purpose"),
        send(4, organization_id="another"),
        send(5, validate_only=True),
        first,
        send(6, request_id=first.request_id),
        send(1),
        send(7, organization_id="acme", destination={"sms": "+6281234567890"}),
    ]

    response = await pulsa.call("BatchSendOtps", requests=requests)

    assert reasons(response) == [
        *("", "INVALID_DESTINATION", "INVALID_FIELDS", "ORGANIZATION_MISMATCH", "INVALID_FIELDS"),
        *("", "REQUEST_ID_REUSED", "RESEND_TOO_SOON", ""),
    ]
    accepted, repeat, sms = (response.results[number].response for number in (0, 5, 8))
    assert (repeat.otp.otp_id, repeat.replayed, accepted.replayed) == (accepted.otp.otp_id, True, False)
    assert response.results[7].error.retry_delay.ToTimedelta().total_seconds() > 0
    assert (accepted.credits_charged, sms.credits_charged, await pulsa.balance()) == (1, 3, 96)
    assert await pulsa.code_sent_to("jane1@mail.example")
    assert (await pulsa.call("GetOtp", otp_id=sms.otp.otp_id)).otp.deliveries[0].masked_destination == "+62*********90"


async def test_a_request_of_a_batch_and_a_lone_one_are_the_same_send(pulsa: Deployment) -> None:
    await pulsa.grant(100)
    alone, batched = send(1, metadata={"page": "checkout"}), send(2, context="payment-1")

    first = await pulsa.call("SendOtp", **fields_of(alone))
    batch = await pulsa.call("BatchSendOtps", requests=[alone, batched], compact=True)
    again = await pulsa.call("SendOtp", **fields_of(batched))

    repeat, accepted = (result.compact for result in batch.results)
    assert (repeat.replayed, repeat.otp_id, repeat.ledger_sequence) == (True, first.otp.otp_id, first.ledger_sequence)
    assert (again.replayed, again.otp.otp_id, again.ledger_sequence) == (
        True,
        accepted.otp_id,
        accepted.ledger_sequence,
    )
    assert await pulsa.balance() == 98


async def test_credits_pay_for_the_first_requests_of_concurrent_batches(pulsa: Deployment) -> None:
    await pulsa.grant(150)
    batches = [[send(200 * batch + number) for number in range(200)] for batch in range(3)]

    answers = await asyncio.gather(*(pulsa.call("BatchSendOtps", requests=batch, compact=True) for batch in batches))

    assert Counter(reason for answer in answers for reason in reasons(answer)) == {"": 150, "INSUFFICIENT_CREDITS": 450}
    assert await pulsa.balance() == 0
    repeats = await asyncio.gather(*(pulsa.call("BatchSendOtps", requests=batch, compact=True) for batch in batches))
    assert [[result.compact.otp_id for result in one.results] for one in repeats] == [
        [result.compact.otp_id for result in one.results] for one in answers
    ]
    assert (await pulsa.call("VerifyLedger")).entry_count == 151


async def test_a_batch_of_several_transactions_is_decided_in_order(database_url: str, tmp_path: Path) -> None:
    async with deployed(database_url, tmp_path, delivery={"batch_items": 100}) as pulsa:
        await pulsa.grant(300)
        requests = [send(number % 230) for number in range(250)]
        requests[120] = send(120, destination={"email": "nobody"})

        answer = await pulsa.call("BatchSendOtps", requests=requests, compact=True)
        again = await pulsa.call("BatchSendOtps", requests=requests, compact=True)

        refused = [(number, reason) for number, reason in enumerate(reasons(answer)) if reason]
        assert refused == [(120, "INVALID_DESTINATION"), *((number, "RESEND_TOO_SOON") for number in range(230, 250))]
        sequences = [result.compact.ledger_sequence for result in answer.results if result.HasField("compact")]
        assert sequences == [*range(2, 231)]
        assert [(one.compact.otp_id, one.compact.replayed) for one in again.results[:230]] == [
            (one.compact.otp_id, one.HasField("compact")) for one in answer.results[:230]
        ]
        assert await pulsa.balance() == 300 - 229


async def test_a_batch_has_1_to_1000_requests(pulsa: Deployment) -> None:
    assert await reason_of(pulsa.call("BatchSendOtps", requests=[])) == "INVALID_FIELDS"
    assert await reason_of(pulsa.call("BatchSendOtps", requests=[send(n) for n in range(1001)])) == "INVALID_FIELDS"
    assert await reason_of(pulsa.call("PreviewOtps", requests=[])) == "INVALID_FIELDS"


async def test_a_preview_is_what_the_batch_would_do(pulsa: Deployment) -> None:
    await pulsa.grant(5)
    requests = [
        send(1),
        send(2, destination={"sms": "+6281234567890"}),
        send(3, destination={"email": "nobody"}),
        send(4, code_length=5),
        send(5, destination={"whatsapp": "+6281234567891"}),
    ]

    preview = await pulsa.call("PreviewOtps", requests=requests)
    refused = [ErrorReason.Name(one.refusal).removeprefix("ERROR_REASON_") for one in preview.previews]
    batch = await pulsa.call("BatchSendOtps", requests=requests)

    assert refused == ["UNSPECIFIED", "UNSPECIFIED", "INVALID_DESTINATION", "INVALID_FIELDS", "INSUFFICIENT_CREDITS"]
    assert reasons(batch) == ["", "", *refused[2:]]
    assert (preview.total_credits, await pulsa.balance()) == (4, 1)
    assert [one.segments for one in preview.previews] == [0, 1, 0, 0, 0]


def fields_of(request: SendOtpRequest) -> dict[str, Any]:
    return {field.name: value for field, value in request.ListFields()}


async def test_the_python_clients_send_more_than_one_call_takes_and_wait_for_room(
    database_url: str, tmp_path: Path
) -> None:
    async with deployed(database_url, tmp_path, limit={"batch_items_at_once": 1000}) as pulsa:
        await pulsa.grant(2000)
        batches = [[send(1100 * batch + number) for number in range(1100)] for batch in range(2)]
        progress: list[int] = []

        def send_all(requests: list[SendOtpRequest]) -> list[str]:
            with connect(pulsa.address, token=pulsa.token()) as client:
                results = client.send_batch("acme", requests, progress=progress.append, largest=600)
            return [result.compact.otp_id for result in results]

        async def send_all_asynchronously(requests: list[SendOtpRequest]) -> list[str]:
            async with aio.connect(pulsa.address, token=pulsa.token()) as client:
                results = await client.send_batch("acme", requests, progress=progress.append, largest=600)
            return [result.compact.otp_id for result in results]

        first = await asyncio.gather(asyncio.to_thread(send_all, batches[0]), send_all_asynchronously(batches[1]))
        again = await send_all_asynchronously(batches[0])

        assert len({otp_id for sent in first for otp_id in sent} - {""}) == 2000
        assert [sent for sent in first[0] if sent] == [sent for sent in again if sent]
        assert max(progress) == 1100
        assert await pulsa.balance() == 0
