"""A mail relay that takes long for its reply to the final dot: the lease is renewed, and a drain stores UNKNOWN."""

from datetime import timedelta

from server.otps.otp import DeliveryStatus
from server.providers.provider import Channel
from server.sandbox.relay import HANG
from tests.integration.delivery.harness import EMAIL, OpenHarness, ProviderStandIns
from tests.waiting import until


async def test_the_lease_is_renewed_while_a_call_lives_and_a_drain_stores_that_it_may_have_been_sent(
    open_harness: OpenHarness, stand_ins: ProviderStandIns
) -> None:
    harness = open_harness(stand_ins.providers(timeout_seconds=60), long_calls={Channel.EMAIL})
    await harness.fund(10)
    harness.outcomes.lease = timedelta(seconds=0.3)
    stand_ins.relay.play("CONTENT", HANG)
    accepted = await harness.send(EMAIL)
    await stand_ins.relay.reached("CONTENT")

    async def is_renewed() -> bool:
        ((time,),) = await harness.rows("SELECT next_attempt_time FROM outbox")
        return bool(time == harness.clock() + timedelta(seconds=0.3))

    await until(is_renewed)
    await harness.dispatcher.drain(0.1)

    (delivery,) = await harness.deliveries(accepted)
    assert (delivery.status, delivery.failure_reason) == (DeliveryStatus.UNKNOWN, "shutdown")
    assert await harness.outbox_count() == 0
