"""Random histories of organizations: after each action, two replicas answer as a simple model does."""

from itertools import count
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.credits.audit import audit_organization
from server.otps.otp import DeliveryStatus
from server.postgres.pool import Pool
from server.providers.provider import Channel, OutcomeKind
from tests.integration.otps.organization_driver import OrganizationDriver

_numbers = count()
REPORTED = [DeliveryStatus.SENT, DeliveryStatus.DELIVERED, DeliveryStatus.FAILED]

which = st.one_of(st.just(-1), st.integers(0, 100))  # the latest, or any
actions = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([1, 2, 29, 30, 60, 61, 300, 3600])),
    st.tuples(st.just("adjust"), st.integers(-9, 20).filter(bool)),
    st.tuples(st.just("send"), st.integers(0, 5), st.sampled_from(Channel)),
    st.tuples(st.just("send"), st.integers(0, 5), st.just(Channel.EMAIL)),
    st.tuples(st.just("send_again"), which, st.sampled_from(["", "", "changed.example"])),
    st.tuples(st.just("send_concurrently"), st.integers(2, 6)),
    st.tuples(st.just("resend"), which),
    st.tuples(st.just("guess"), which, st.booleans(), st.integers(1, 3)),
    st.tuples(st.just("guess_wrongly"), which, st.integers(2, 4)),
    st.tuples(st.just("cancel"), which),
    st.tuples(st.just("record_outcome"), which, st.sampled_from(OutcomeKind)),
    st.tuples(st.just("report"), which, st.sampled_from(REPORTED), st.booleans()),
    st.tuples(st.just("take_over")),
)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(credits=st.integers(5, 25), history=st.lists(actions, min_size=40, max_size=80))
async def test_two_replicas_answer_as_the_model_does(
    pool: Pool, other_pool: Pool, credits: int, history: list[tuple[Any, ...]]
) -> None:
    driver = OrganizationDriver(f"acme-{next(_numbers)}", (pool, other_pool))
    await driver.adjust(credits)
    for action in history:
        await perform(driver, action)
    await driver.compare()
    assert (await audit_organization(pool, driver.organization_id)).holds


async def perform(driver: OrganizationDriver, action: tuple[Any, ...]) -> None:
    """Perform one action on one of the requests, OTPs or deliveries that there are, if any."""
    match action:
        case ("send_again", number, contents) if driver.requests:
            await driver.send_again(number % len(driver.requests), contents)
        case ("resend", number) if driver.otps:
            await driver.resend(number % len(driver.otps))
        case ("guess", number, right, request_id) if driver.otps:
            await driver.guess(number % len(driver.otps), right=right, request_id=request_id)
        case ("guess_wrongly", number, times) if driver.otps:
            for _ in range(times):
                await driver.guess(number % len(driver.otps), right=False, request_id=1)
        case ("cancel", number) if driver.otps:
            await driver.cancel(number % len(driver.otps))
        case ("record_outcome", number, kind) if driver.model.deliveries:
            await driver.record_outcome(number % len(driver.model.deliveries), kind)
        case ("report", number, status, refund_accepted) if driver.model.deliveries:
            await driver.report(number % len(driver.model.deliveries), status, refund_accepted=refund_accepted)
        case ("wait" | "adjust" | "send" | "send_concurrently" | "take_over" as name, *arguments):
            await getattr(driver, name)(*arguments)
