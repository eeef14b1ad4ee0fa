"""What a send would do, said without doing it, and by the rules that decide the send itself."""

import math
from datetime import timedelta
from uuid import uuid4

import pytest
from pulsa.credit.v1 import channel_pb2
from pulsa.error.v1 import error_reason_pb2
from pulsa.otp.v1 import otp_service_pb2 as pb
from pulsa.otp.v1.destination_pb2 import Destination

from server.channels.channel import ChannelName
from server.database.batcher import Batching
from server.errors import DomainError, InvalidDestination
from server.otps.guessing import GuessLimits
from server.otps.limits import SendLimits
from server.otps.orders import Preview
from server.otps.targets import Address
from server.otps.verifying import Verifier
from server.rpc.door import Call
from server.rpc.otp_service import OtpRoom, OtpService
from server.rpc.tokens import Caller
from server.rpc.validation import compile_validation
from tests.integration.deliveries.post import EMAIL, SMS, WHATSAPP, OpenPost, Post

NOBODY = Address(ChannelName.SMS, "+620", "destination.sms")


@pytest.mark.parametrize(
    ("address", "preview"),
    [
        (SMS, Preview(ChannelName.SMS, 3, "+62*********90", 1)),
        (WHATSAPP, Preview(ChannelName.WHATSAPP, 2, "+62*********90", 0)),
        (EMAIL, Preview(ChannelName.EMAIL, 1, "b***@example.com", 0)),
    ],
)
async def test_a_preview_has_channel_price_destination_and_segments(
    post: Post, address: Address, preview: Preview
) -> None:
    assert await post.preview(address) == preview


async def test_a_preview_writes_nothing_and_charges_nothing(post: Post) -> None:
    request_id = uuid4()
    written = (
        "SELECT 1 FROM otps UNION ALL SELECT 1 FROM deliveries"
        " UNION ALL SELECT 1 FROM ledger_entries WHERE kind <> 'ADJUSTMENT'"
    )

    await post.preview(SMS, request_id=request_id)
    rows = await post.rows(written)
    accepted = await post.send(SMS, request_id=request_id)

    assert (rows, accepted.replayed) == ([], False)
    assert await post.ledger() == [("SEND", -3, accepted.delivery.delivery_id)]


async def test_what_was_accepted_before_would_cost_nothing_more(post: Post) -> None:
    accepted = await post.send(SMS)
    same = {"request_id": accepted.delivery.request_id}

    repeat, other = await post.preview(SMS, **same), await post.preview(SMS, **same, request=b"something else")

    assert (repeat.credits, repeat.refusal) == (0, None)
    assert reason(other) == "REQUEST_ID_REUSED"


async def test_a_preview_refuses_as_the_send_itself_would(open_post: OpenPost) -> None:
    post = open_post(limits=SendLimits(cooldown=timedelta(minutes=1)))
    await post.fund(4)
    await post.send(EMAIL)

    assert reason(await post.preview(EMAIL)) == await refusal_of_send(post, EMAIL) == "RESEND_TOO_SOON"
    await post.send(WHATSAPP)
    assert reason(await post.preview(SMS)) == await refusal_of_send(post, SMS) == "INSUFFICIENT_CREDITS"


async def test_an_organization_that_never_bought_credits_is_told_so(post: Post) -> None:
    preview = await post.preview(SMS, organization_id="newcomer")

    assert (preview.credits, reason(preview)) == (3, "INSUFFICIENT_CREDITS")


async def test_what_no_send_could_use_is_refused_in_the_preview(open_post: OpenPost, post: Post) -> None:
    without_channels = open_post({})

    nobody, fallback = await post.preview(NOBODY), await post.preview(EMAIL, NOBODY)
    unserved = await without_channels.preview(SMS)

    assert [reason(one) for one in (nobody, fallback)] == ["INVALID_DESTINATION"] * 2
    assert nobody.masked_destination == ""
    assert (unserved.credits, reason(unserved)) == (0, "CHANNEL_NOT_CONFIGURED")


async def test_the_rpc_says_what_the_preview_says_and_nothing_else(post: Post) -> None:
    request = pb.SendOtpRequest(
        organization_id="acme", request_id=str(uuid4()), destination=Destination(sms=SMS.text), purpose="login"
    )
    service, call = (
        OtpService(room_of(post)),
        Call(Caller("ann", "acme", frozenset(), math.inf), math.inf, compile_validation(pb.SendOtpRequest.DESCRIPTOR)),
    )

    async def answer(payload: bytes) -> pb.SendOtpResponse:
        return pb.SendOtpResponse.FromString(await service.SendOtp(pb.SendOtpRequest.FromString(payload), call))

    free = await answer(_with_preview(request))
    sent = await answer(request.SerializeToString())
    repeat = await answer(_with_preview(request))
    request.destination.sms = "+620"
    wrong = await answer(_with_preview(request))

    assert free == pb.SendOtpResponse(
        preview=pb.SendPreview(
            channel=channel_pb2.CHANNEL_SMS, credits=3, masked_destination="+62*********90", segments=1
        )
    )
    assert (sent.credits_charged, sent.HasField("preview")) == (3, False)
    assert repeat.preview.credits == 0
    assert wrong.preview.refusal == error_reason_pb2.ERROR_REASON_INVALID_DESTINATION
    assert wrong.preview.refusal_message == InvalidDestination(field="").message


def _with_preview(request: pb.SendOtpRequest) -> bytes:
    preview = pb.SendOtpRequest()
    preview.CopyFrom(request)
    preview.validate_only = True
    return preview.SerializeToString()


def room_of(post: Post) -> OtpRoom:
    return OtpRoom(
        pool=post.pool,
        vault=post.vault,
        orders=post.orders,
        verifier=Verifier(post.pool, post.vault, limits=GuessLimits(), batching=Batching(size=1, linger_seconds=0)),
        cooldown=timedelta(),
        refund_accepted=False,
    )


def reason(preview: Preview) -> str:
    return preview.refusal.reason if preview.refusal else ""


async def refusal_of_send(post: Post, address: Address) -> str:
    with pytest.raises(DomainError) as refused:
        await post.send(address)
    return refused.value.reason
