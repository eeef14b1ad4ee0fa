"""What a send would do, said without doing it, and by the rules that decide the send itself."""

from datetime import timedelta
from uuid import uuid4

import pytest

from server.channels.channel import ChannelName
from server.errors import DomainError
from server.otps.limits import SendLimits
from server.otps.orders import Preview
from server.otps.targets import Address
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


def reason(preview: Preview) -> str:
    return preview.refusal.reason if preview.refusal else ""


async def refusal_of_send(post: Post, address: Address) -> str:
    with pytest.raises(DomainError) as refused:
        await post.send(address)
    return refused.value.reason
