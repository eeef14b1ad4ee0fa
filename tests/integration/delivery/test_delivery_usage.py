"""Usage: what an organization sent, by day and channel, without the credits of refunded sends."""

from datetime import date, timedelta

from server.otps.usage import DailyUsage, read_usage
from server.postgres.pool import acquire
from server.providers.provider import Channel
from server.sandbox.providers import whatsapp_error
from tests.integration.delivery.harness import ACME, EMAIL, SMS, WHATSAPP, DeliveryHarness, ProviderStandIns


async def usage(harness: DeliveryHarness, *, start: date, end: date, organization_id: str = ACME) -> list[DailyUsage]:
    async with acquire(harness.pool) as connection:
        return await read_usage(connection, organization_id, start=start, end=end)


async def test_a_refunded_send_is_counted_without_credits_and_its_otp_on_the_first_channel(
    harness: DeliveryHarness, stand_ins: ProviderStandIns
) -> None:
    stand_ins.sandbox.play("whatsapp", whatsapp_error(131026))
    today = harness.clock().date()

    await harness.deliver(WHATSAPP, SMS)
    await harness.verify(await harness.send(SMS))
    await harness.send(EMAIL)
    await harness.idle()

    assert await usage(harness, start=today, end=today) == [
        DailyUsage(today, Channel.EMAIL, sends=1, credits=1, otps=1, verified_otps=0),
        DailyUsage(today, Channel.SMS, sends=2, credits=6, otps=1, verified_otps=1),
        DailyUsage(today, Channel.WHATSAPP, sends=1, credits=0, otps=1, verified_otps=0),
    ]


async def test_another_organization_and_other_days_are_not_counted(harness: DeliveryHarness) -> None:
    today = harness.clock().date()
    await harness.send(EMAIL)

    days = timedelta(days=1)
    assert await usage(harness, start=today, end=today, organization_id="another") == []
    assert await usage(harness, start=today - 9 * days, end=today - days) == []
    assert await usage(harness, start=today + days, end=today + 9 * days) == []
    assert len(await usage(harness, start=today - 9 * days, end=today + 9 * days)) == 1
