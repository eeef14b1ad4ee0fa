import asyncio
from collections import deque
from collections.abc import Callable
from datetime import timedelta

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from server.channels.breaker import BreakerSettings
from server.channels.channel import Message, Outcome, OutcomeKind
from server.channels.guard import Guard, GuardSettings
from server.channels.route import Route

MakeMessage = Callable[..., Message]

ACCEPTED = Outcome(OutcomeKind.ACCEPTED, "stub", "id-1")
NO_SUCH_NUMBER = Outcome(OutcomeKind.REJECTED_DESTINATION, "stub", failure_reason="twilio_21211")
MISCONFIGURED = Outcome(OutcomeKind.REJECTED_CONFIGURATION, "stub", failure_reason="twilio_20003")
DOWN = Outcome(OutcomeKind.NOT_SENT, "stub", failure_reason="unreachable")
LOST = Outcome(OutcomeKind.UNKNOWN, "stub", failure_reason="timeout")


class Stub:
    """A provider that answers what it is told to, when it is told to."""

    def __init__(self, *answers: Outcome | Exception, provider: str = "stub") -> None:
        self.provider = provider
        self.answers = deque(answers)
        self.messages: list[Message] = []
        self.asked = asyncio.Semaphore(0)
        self.running = 0
        self.most_running = 0
        self.closed = False
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def deliver(self, message: Message) -> Outcome:
        self.messages.append(message)
        self.asked.release()
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.may_answer.wait()
        finally:
            self.running -= 1
        answer = self.answers.popleft() if self.answers else ACCEPTED
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        self.closed = True

    @property
    def calls(self) -> int:
        return len(self.messages)

    async def until_asked(self, times: int = 1) -> None:
        for _ in range(times):
            await self.asked.acquire()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def guard(stub: Stub, clock: Clock | None = None, *, concurrency: int = 10, wait_seconds: float = 5.0) -> Guard:
    breaker = BreakerSettings(failures_to_open=3, cooldown_seconds=30)
    return Guard(stub, GuardSettings(concurrency, wait_seconds, breaker), clock=clock or Clock())


async def send(guarded: Guard, message: Message, times: int = 1) -> Outcome:
    for _ in range(times - 1):
        await guarded.deliver(message)
    return await guarded.deliver(message)


@pytest.mark.parametrize("failure", [DOWN, LOST])
async def test_a_provider_that_fails_in_a_row_is_left_alone_until_a_probe_works(
    failure: Outcome, make_message: MakeMessage
) -> None:
    stub, clock = Stub(failure, failure, failure), Clock()
    guarded = guard(stub, clock)
    with capture_logs() as logs:
        await send(guarded, make_message(), times=3)
        clock.now += 10
        refused = await send(guarded, make_message(), times=20)
        clock.now += 20
        probe = await guarded.deliver(make_message())

    assert (refused.kind, refused.failure_reason) == (OutcomeKind.NOT_SENT, "circuit_open")
    assert refused.retry_after_seconds == 20
    assert probe == ACCEPTED
    assert stub.calls == 4
    assert [entry["event"] for entry in logs] == ["provider stopped: it failed too often", "provider works again"]


async def test_a_refused_configuration_is_one_alert_and_refused_for_good_while_open(make_message: MakeMessage) -> None:
    stub = Stub(*[MISCONFIGURED] * 3)
    guarded = guard(stub)
    with capture_logs() as logs:
        refused = await send(guarded, make_message(), times=100)

    assert (refused.kind, refused.retry_after_seconds) == (OutcomeKind.REJECTED_CONFIGURATION, None)
    assert stub.calls == 3
    assert [(entry["log_level"], entry["reason"]) for entry in logs] == [("error", "twilio_20003")]


async def test_a_probe_that_fails_leaves_the_provider_alone_again_without_a_second_alert(
    make_message: MakeMessage,
) -> None:
    stub, clock = Stub(*[DOWN] * 4), Clock()
    guarded = guard(stub, clock)
    with capture_logs() as logs:
        await send(guarded, make_message(), times=3)
        clock.now += 30
        await send(guarded, make_message(), times=5)

    assert stub.calls == 4
    assert len(logs) == 1


async def test_only_one_probe_is_made_at_a_time_and_a_canceled_one_makes_room(make_message: MakeMessage) -> None:
    stub, clock = Stub(*[DOWN] * 3), Clock()
    guarded = guard(stub, clock)
    await send(guarded, make_message(), times=3)
    clock.now += 30
    stub.may_answer.clear()
    probe = asyncio.create_task(guarded.deliver(make_message()))
    await stub.until_asked(4)

    other = await guarded.deliver(make_message())
    probe.cancel()
    await asyncio.wait([probe])
    stub.may_answer.set()

    assert other.failure_reason == "circuit_open"
    assert await guarded.deliver(make_message()) == ACCEPTED


@pytest.mark.parametrize("between", [ACCEPTED, NO_SUCH_NUMBER])
async def test_failures_count_only_in_a_row(between: Outcome, make_message: MakeMessage) -> None:
    stub = Stub(DOWN, DOWN, between, DOWN, DOWN, between)

    await send(guard(stub), make_message(), times=7)

    assert stub.calls == 7


@pytest.mark.parametrize("reason", ["twilio_21408", "whatsapp_132001", "whatsapp_131056"])
async def test_refusals_of_one_country_or_template_do_not_stop_everyone(reason: str, make_message: MakeMessage) -> None:
    stub = Stub(*[Outcome(OutcomeKind.REJECTED_CONFIGURATION, "stub", failure_reason=reason)] * 9)

    await send(guard(stub), make_message(), times=10)

    assert stub.calls == 10


async def test_a_spam_limit_stops_the_provider_at_once_for_as_long_as_it_asks(make_message: MakeMessage) -> None:
    spam = Outcome(OutcomeKind.NOT_SENT, "stub", failure_reason="whatsapp_131048", retry_after_seconds=600)
    stub = Stub(spam)

    refused = await send(guard(stub), make_message(), times=2)

    assert stub.calls == 1
    assert refused.retry_after_seconds == 600


async def test_no_more_than_the_set_number_are_asked_at_once(make_message: MakeMessage) -> None:
    stub = Stub()
    stub.may_answer.clear()
    guarded = guard(stub, concurrency=3)
    tasks = [asyncio.create_task(guarded.deliver(make_message())) for _ in range(10)]
    await stub.until_asked(3)
    stub.may_answer.set()

    outcomes = await asyncio.gather(*tasks)

    assert outcomes == [ACCEPTED] * 10
    assert stub.most_running == 3


async def test_who_finds_no_free_place_in_time_comes_back_later(make_message: MakeMessage) -> None:
    stub = Stub()
    stub.may_answer.clear()
    guarded = guard(stub, concurrency=1, wait_seconds=0.01)
    first = asyncio.create_task(guarded.deliver(make_message()))
    await stub.until_asked()

    second = await guarded.deliver(make_message())
    stub.may_answer.set()

    assert (second.kind, second.failure_reason) == (OutcomeKind.NOT_SENT, "busy")
    assert await first == ACCEPTED
    assert await guarded.deliver(make_message()) == ACCEPTED


async def test_a_code_that_expired_while_it_waited_is_not_sent(make_message: MakeMessage) -> None:
    stub = Stub()

    outcome = await guard(stub).deliver(make_message(ttl=timedelta(days=-365 * 20)))

    assert (outcome.kind, outcome.failure_reason, stub.calls) == (OutcomeKind.NOT_SENT, "otp_expired", 0)


async def test_a_crash_of_a_provider_is_unknown_and_its_text_goes_nowhere(
    make_message: MakeMessage, capsys: pytest.CaptureFixture[str]
) -> None:
    message = make_message(code="918273")

    outcome = await guard(Stub(RuntimeError(f"{message}"))).deliver(message)

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.UNKNOWN, "crashed")
    printed = "".join(capsys.readouterr())
    assert "RuntimeError" in printed
    assert "918273" not in printed
    assert message.destination not in printed


async def test_outcomes_and_times_are_counted_by_provider(make_message: MakeMessage) -> None:
    stub = Stub(DOWN, DOWN, DOWN, provider="counted")

    await send(guard(stub), make_message(), times=5)

    counted = {"provider": "counted", "outcome": "NOT_SENT"}
    assert REGISTRY.get_sample_value("pulsa_channel_outcomes_total", counted) == 5
    assert REGISTRY.get_sample_value("pulsa_channel_seconds_count", {"provider": "counted"}) == 3


@pytest.mark.parametrize("refusal", [DOWN, MISCONFIGURED])
async def test_the_next_provider_is_asked_when_nothing_was_sent(refusal: Outcome, make_message: MakeMessage) -> None:
    first, second = Stub(refusal, provider="one"), Stub(provider="two")
    route = Route([first, second])

    assert route.provider == "one+two"
    assert await route.deliver(make_message()) == ACCEPTED


@pytest.mark.parametrize("settled", [ACCEPTED, LOST, NO_SUCH_NUMBER])
async def test_no_other_provider_is_asked_when_the_first_may_have_sent_or_never_can(
    settled: Outcome, make_message: MakeMessage
) -> None:
    second = Stub()

    assert await Route([Stub(settled), second]).deliver(make_message()) == settled
    assert second.calls == 0


async def test_when_all_refuse_a_retry_is_asked_for_if_it_may_help_any(make_message: MakeMessage) -> None:
    later = Outcome(OutcomeKind.NOT_SENT, "stub", failure_reason="busy", retry_after_seconds=9)
    sooner = Outcome(OutcomeKind.NOT_SENT, "stub", failure_reason="busy", retry_after_seconds=4)

    mixed = await Route([Stub(MISCONFIGURED), Stub(later), Stub(sooner)]).deliver(make_message())
    final = await Route([Stub(MISCONFIGURED), Stub(MISCONFIGURED)]).deliver(make_message())

    assert (mixed, final) == (sooner, MISCONFIGURED)


async def test_closing_a_route_closes_every_provider() -> None:
    first, second = Stub(), Stub()

    await Route([guard(first), guard(second)]).close()

    assert first.closed
    assert second.closed
    with pytest.raises(ValueError, match="needs a provider"):
        Route([])
