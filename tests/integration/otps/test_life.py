"""Whole lives of organizations at random: whatever happens, the rooms say what a simple model says."""

from itertools import count
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.channels.channel import ChannelName, OutcomeKind
from server.credits.audit import audit_organization
from server.database.pool import Pool
from server.otps.otp import DeliveryStatus
from tests.integration.otps.life import Life

_numbers = count()
REPORTED = [DeliveryStatus.SENT, DeliveryStatus.DELIVERED, DeliveryStatus.FAILED]

which = st.one_of(st.just(-1), st.integers(0, 100))  # the latest, or any
steps = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([1, 2, 29, 30, 60, 61, 300, 3600])),
    st.tuples(st.just("adjust"), st.integers(-9, 20).filter(bool)),
    st.tuples(st.just("send"), st.integers(0, 5), st.sampled_from(ChannelName)),
    st.tuples(st.just("send"), st.integers(0, 5), st.just(ChannelName.EMAIL)),
    st.tuples(st.just("send_again"), which, st.sampled_from([b"", b"", b"changed"])),
    st.tuples(st.just("send_at_once"), st.integers(2, 6)),
    st.tuples(st.just("resend"), which),
    st.tuples(st.just("guess"), which, st.booleans(), st.integers(1, 3)),
    st.tuples(st.just("guess_wrongly"), which, st.integers(2, 4)),
    st.tuples(st.just("cancel"), which),
    st.tuples(st.just("outcome"), which, st.sampled_from(OutcomeKind)),
    st.tuples(st.just("report"), which, st.sampled_from(REPORTED), st.booleans()),
    st.tuples(st.just("take_over")),
)


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(credits=st.integers(5, 25), life=st.lists(steps, min_size=40, max_size=80))
async def test_a_life_in_the_rooms_is_the_life_of_the_model(
    pool: Pool, other_pool: Pool, credits: int, life: list[tuple[Any, ...]]
) -> None:
    acme = Life(f"acme-{next(_numbers)}", (pool, other_pool))
    await acme.adjust(credits)
    for step in life:
        await live(acme, step)
    await acme.compare()
    assert (await audit_organization(pool, acme.organization_id)).holds


async def live(life: Life, step: tuple[Any, ...]) -> None:
    """One step; what it is about is one of those that there are, if any."""
    match step:
        case ("send_again", number, request) if life.orders:
            await life.send_again(number % len(life.orders), request)
        case ("resend", number) if life.otps:
            await life.resend(number % len(life.otps))
        case ("guess", number, right, request_id) if life.otps:
            await life.guess(number % len(life.otps), right=right, request_id=request_id)
        case ("guess_wrongly", number, times) if life.otps:
            for _ in range(times):
                await life.guess(number % len(life.otps), right=False, request_id=1)
        case ("cancel", number) if life.otps:
            await life.cancel(number % len(life.otps))
        case ("outcome", number, kind) if life.model.deliveries:
            await life.outcome(number % len(life.model.deliveries), kind)
        case ("report", number, status, refund_accepted) if life.model.deliveries:
            await life.report(number % len(life.model.deliveries), status, refund_accepted=refund_accepted)
        case ("wait" | "adjust" | "send" | "send_at_once" | "take_over" as name, *arguments):
            await getattr(life, name)(*arguments)
