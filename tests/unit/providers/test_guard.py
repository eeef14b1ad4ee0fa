"""The guard of a provider: its circuit breaker, its concurrency limit, and no exception passes it."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from server.clock import utc_now
from server.providers.guard import BreakerSettings, Guard, GuardSettings
from server.providers.provider import Message, Outcome, OutcomeKind, Subject
from tests.unit.providers.provider_double import (
    ACCEPTED,
    DOWN,
    LOST,
    MISCONFIGURED,
    NO_SUCH_NUMBER,
    ProviderDouble,
)

MakeMessage = Callable[..., Message]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def guard(
    provider: ProviderDouble, clock: Clock | None = None, *, concurrency: int = 10, wait_seconds: float = 5.0
) -> Guard:
    breaker = BreakerSettings(failures_to_open=3, cooldown_seconds=30)
    return Guard(provider, GuardSettings(concurrency, wait_seconds, breaker), clock=utc_now, monotonic=clock or Clock())


async def send(guarded: Guard, message: Message, times: int = 1) -> Outcome:
    for _ in range(times - 1):
        await guarded.deliver(message)
    return await guarded.deliver(message)


@pytest.mark.parametrize(("failure", "pause"), [(DOWN, 1), (LOST, 30)])
async def test_after_failures_in_a_row_a_provider_is_not_asked_until_a_probe_succeeds(
    failure: Outcome, pause: float, make_message: MakeMessage
) -> None:
    provider, clock = ProviderDouble(failure, failure, failure), Clock()
    guarded = guard(provider, clock)
    with capture_logs() as logs:
        await send(guarded, make_message(), times=3)
        clock.now += pause / 3
        refused = await send(guarded, make_message(), times=20)
        clock.now += pause
        probe = await guarded.deliver(make_message())

    assert (refused.kind, refused.failure_reason) == (OutcomeKind.NOT_SENT, "circuit_open")
    assert refused.retry_after_seconds == pytest.approx(max(pause * 2 / 3, 1))
    assert probe == ACCEPTED
    assert provider.calls == 4
    assert [entry["event"] for entry in logs] == ["provider stopped: it failed too often", "provider works again"]


async def test_a_refused_configuration_is_logged_once_and_refused_without_a_retry_while_open(
    make_message: MakeMessage,
) -> None:
    provider = ProviderDouble(*[MISCONFIGURED] * 3)
    guarded = guard(provider)
    with capture_logs() as logs:
        refused = await send(guarded, make_message(), times=100)

    assert (refused.kind, refused.retry_after_seconds) == (OutcomeKind.REJECTED_CONFIGURATION, None)
    assert provider.calls == 3
    assert [(entry["log_level"], entry["reason"]) for entry in logs] == [("error", "twilio_20003")]


async def test_a_failed_probe_opens_the_breaker_again_without_a_second_alert(
    make_message: MakeMessage,
) -> None:
    provider, clock = ProviderDouble(*[DOWN] * 4), Clock()
    guarded = guard(provider, clock)
    with capture_logs() as logs:
        await send(guarded, make_message(), times=3)
        clock.now += 30
        await send(guarded, make_message(), times=5)

    assert provider.calls == 4
    assert len(logs) == 1


async def test_the_pause_between_probes_doubles_while_the_provider_cannot_be_reached(make_message: MakeMessage) -> None:
    """Also when many calls fail at once, as a burst of connections does."""
    provider, clock = ProviderDouble(*[DOWN] * 100), Clock()
    guarded = guard(provider, clock)
    provider.may_answer.clear()
    burst = [asyncio.create_task(guarded.deliver(make_message())) for _ in range(10)]
    await provider.until_asked(10)
    provider.may_answer.set()
    await asyncio.wait(burst)
    began, probes = clock.now, []
    while clock.now < began + 125:
        calls = provider.calls
        await guarded.deliver(make_message())
        if provider.calls > calls:
            probes.append(clock.now - began)
        clock.now += 0.5

    assert probes == [1, 3, 7, 15, 31, 61, 91, 121]


async def test_only_one_probe_is_made_at_a_time_and_a_canceled_one_allows_the_next(make_message: MakeMessage) -> None:
    provider, clock = ProviderDouble(*[DOWN] * 3), Clock()
    guarded = guard(provider, clock)
    await send(guarded, make_message(), times=3)
    clock.now += 30
    provider.may_answer.clear()
    probe = asyncio.create_task(guarded.deliver(make_message()))
    await provider.until_asked(4)

    other = await guarded.deliver(make_message())
    probe.cancel()
    await asyncio.wait([probe])
    provider.may_answer.set()

    assert other.failure_reason == "circuit_open"
    assert await guarded.deliver(make_message()) == ACCEPTED


@pytest.mark.parametrize("between", [ACCEPTED, NO_SUCH_NUMBER])
async def test_only_failures_in_a_row_count(between: Outcome, make_message: MakeMessage) -> None:
    provider = ProviderDouble(DOWN, DOWN, between, DOWN, DOWN, between)

    await send(guard(provider), make_message(), times=7)

    assert provider.calls == 7


@pytest.mark.parametrize("about", Subject)
async def test_only_outcomes_about_the_account_or_the_provider_open_the_breaker(
    about: Subject, make_message: MakeMessage
) -> None:
    provider = ProviderDouble(*[Outcome(OutcomeKind.NOT_SENT, "double", failure_reason="x", about=about)] * 9)

    await send(guard(provider), make_message(), times=10)

    assert provider.calls == (3 if about in {Subject.ACCOUNT, Subject.PROVIDER} else 10)


async def test_an_outcome_about_a_session_neither_counts_nor_shows_that_the_provider_works(
    make_message: MakeMessage,
) -> None:
    lost = Outcome(OutcomeKind.NOT_SENT, "double", failure_reason="smtp_421", about=Subject.SESSION)
    provider = ProviderDouble(DOWN, lost, DOWN, lost, DOWN)

    refused = await send(guard(provider), make_message(), times=6)

    assert (refused.failure_reason, provider.calls) == ("circuit_open", 5)


async def test_a_spam_limit_opens_the_breaker_at_once_for_its_retry_after(make_message: MakeMessage) -> None:
    spam = Outcome(OutcomeKind.NOT_SENT, "double", failure_reason="whatsapp_131048", retry_after_seconds=600)
    provider = ProviderDouble(spam)

    refused = await send(guard(provider), make_message(), times=2)

    assert provider.calls == 1
    assert refused.retry_after_seconds == 600


async def test_no_more_calls_than_the_concurrency_are_made_at_once(make_message: MakeMessage) -> None:
    provider = ProviderDouble()
    provider.may_answer.clear()
    guarded = guard(provider, concurrency=3)
    tasks = [asyncio.create_task(guarded.deliver(make_message())) for _ in range(10)]
    await provider.until_asked(3)
    provider.may_answer.set()

    outcomes = await asyncio.gather(*tasks)

    assert outcomes == [ACCEPTED] * 10
    assert provider.most_running == 3


async def test_a_message_that_gets_no_slot_in_time_is_not_sent(make_message: MakeMessage) -> None:
    provider = ProviderDouble()
    provider.may_answer.clear()
    guarded = guard(provider, concurrency=1, wait_seconds=0.01)
    first = asyncio.create_task(guarded.deliver(make_message()))
    await provider.until_asked()

    second = await guarded.deliver(make_message())
    provider.may_answer.set()

    assert (second.kind, second.failure_reason) == (OutcomeKind.NOT_SENT, "busy")
    assert await first == ACCEPTED
    assert await guarded.deliver(make_message()) == ACCEPTED


async def test_a_code_that_expired_while_it_waited_is_not_sent(make_message: MakeMessage) -> None:
    provider = ProviderDouble()

    outcome = await guard(provider).deliver(make_message(ttl=timedelta(days=-365 * 20)))

    assert (outcome.kind, outcome.failure_reason, provider.calls) == (OutcomeKind.NOT_SENT, "otp_expired", 0)


async def test_an_exception_of_a_provider_is_an_unknown_outcome_and_its_text_is_not_logged(
    make_message: MakeMessage, capsys: pytest.CaptureFixture[str]
) -> None:
    message = make_message(code="918273")

    outcome = await guard(ProviderDouble(RuntimeError(f"{message}"))).deliver(message)

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.UNKNOWN, "crashed")
    printed = "".join(capsys.readouterr())
    assert "RuntimeError" in printed
    assert "918273" not in printed
    assert message.destination not in printed


async def test_outcomes_and_times_are_counted_by_provider(make_message: MakeMessage) -> None:
    provider = ProviderDouble(DOWN, DOWN, DOWN, provider="counted")

    await send(guard(provider), make_message(), times=5)

    counted = {"provider": "counted", "outcome": "NOT_SENT"}
    assert REGISTRY.get_sample_value("pulsa_channel_outcomes_total", counted) == 5
    assert REGISTRY.get_sample_value("pulsa_channel_seconds_count", {"provider": "counted"}) == 3


async def test_only_refusals_of_our_account_are_counted_as_such(make_message: MakeMessage) -> None:
    refused = Outcome(OutcomeKind.REJECTED_CONFIGURATION, "refusing", failure_reason="no")
    of_account, of_route = refused._replace(about=Subject.ACCOUNT), refused._replace(about=Subject.ROUTE)
    provider = ProviderDouble(of_account, of_route, of_account, provider="refusing")
    guarded = guard(provider)

    await send(guarded, make_message(), times=2)
    await send(guarded, make_message()._replace(sender_id="chosen by the organization"), times=1)

    labels = {"provider": "refusing"}
    assert REGISTRY.get_sample_value("pulsa_channel_account_refusals_total", labels) == 1


@pytest.mark.parametrize(("seconds_left", "reason"), [(6.9, "lease_ended"), (8, "")])
async def test_a_call_that_could_outlast_its_lease_does_not_begin(
    seconds_left: float, reason: str, make_message: MakeMessage
) -> None:
    provider, now = ProviderDouble(), utc_now()
    guarded = Guard(provider, GuardSettings(timeout_seconds=5), clock=lambda: now)
    message = make_message()._replace(
        expire_time=now + timedelta(minutes=5), lease_expire_time=now + timedelta(seconds=seconds_left)
    )

    outcome = await guarded.deliver(message)

    assert (outcome.failure_reason, len(provider.messages)) == (reason, 0 if reason else 1)
