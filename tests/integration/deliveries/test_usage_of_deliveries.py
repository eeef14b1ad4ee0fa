"""What an organization sent, day by day, as far as it was paid for."""

from datetime import date, timedelta

from server.channels.channel import ChannelName
from server.database.batcher import Batching, as_it_is
from server.database.pool import connection
from server.otps.guessing import Guess, GuessLimits
from server.otps.orders import Accepted
from server.otps.usage import DailyUsage, read_usage
from server.otps.verifying import Verifier
from server.sandbox.providers import whatsapp_error
from tests.integration.deliveries.post import ACME, EMAIL, SMS, WHATSAPP, Post, Windows


async def usage(post: Post, *, start: date, end: date, organization_id: str = ACME) -> list[DailyUsage]:
    async with connection(post.pool) as lent:
        return await read_usage(lent, organization_id, start=start, end=end)


async def verify(post: Post, accepted: Accepted) -> None:
    otp = accepted.record.otp
    verifier = Verifier(post.pool, post.vault, limits=GuessLimits(), batching=Batching(size=1), clock=post.clock)
    guess = Guess(ACME, otp.otp_id, accepted.delivery.request_id, post.vault.code_of(otp), b"")
    await verifier.verify(ACME, lambda: guess, as_it_is)


async def test_a_refunded_send_is_counted_without_credits_and_its_otp_on_the_first_channel(
    post: Post, windows: Windows
) -> None:
    windows.sandbox.play("whatsapp", whatsapp_error(131026))
    today = post.clock().date()

    await post.deliver(WHATSAPP, SMS)
    await verify(post, await post.send(SMS))
    await post.send(EMAIL)
    await post.idle()

    assert await usage(post, start=today, end=today) == [
        DailyUsage(today, ChannelName.EMAIL, sends=1, credits=1, otps=1, verified_otps=0),
        DailyUsage(today, ChannelName.SMS, sends=2, credits=6, otps=1, verified_otps=1),
        DailyUsage(today, ChannelName.WHATSAPP, sends=1, credits=0, otps=1, verified_otps=0),
    ]


async def test_another_organization_and_other_days_are_not_counted(post: Post) -> None:
    today = post.clock().date()
    await post.send(EMAIL)

    days = timedelta(days=1)
    assert await usage(post, start=today, end=today, organization_id="another") == []
    assert await usage(post, start=today - 9 * days, end=today - days) == []
    assert await usage(post, start=today + days, end=today + 9 * days) == []
    assert len(await usage(post, start=today - 9 * days, end=today + 9 * days)) == 1
