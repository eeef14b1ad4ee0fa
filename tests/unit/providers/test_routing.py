"""Routing: the next provider is asked only when the one before definitely did not send."""

from collections.abc import Callable

import pytest

from server.clock import utc_now
from server.providers.guard import Guard, GuardSettings
from server.providers.provider import Message, Outcome, OutcomeKind
from server.providers.routing import Route
from tests.unit.providers.provider_double import (
    ACCEPTED,
    DOWN,
    LOST,
    MISCONFIGURED,
    NO_SUCH_NUMBER,
    ProviderDouble,
)

MakeMessage = Callable[..., Message]


@pytest.mark.parametrize("refusal", [DOWN, MISCONFIGURED])
async def test_the_next_provider_is_asked_when_nothing_was_sent(refusal: Outcome, make_message: MakeMessage) -> None:
    first, second = ProviderDouble(refusal, provider="one"), ProviderDouble(provider="two")
    route = Route([first, second])

    assert route.name == "one+two"
    assert await route.deliver(make_message()) == ACCEPTED


@pytest.mark.parametrize("outcome", [ACCEPTED, LOST, NO_SUCH_NUMBER])
async def test_no_other_provider_is_asked_after_an_acceptance_an_unknown_outcome_or_a_refused_destination(
    outcome: Outcome, make_message: MakeMessage
) -> None:
    second = ProviderDouble()

    assert await Route([ProviderDouble(outcome), second]).deliver(make_message()) == outcome
    assert second.calls == 0


async def test_when_all_refuse_the_outcome_with_the_earliest_retry_is_returned_if_there_is_one(
    make_message: MakeMessage,
) -> None:
    later = Outcome(OutcomeKind.NOT_SENT, "double", failure_reason="busy", retry_after_seconds=9)
    sooner = Outcome(OutcomeKind.NOT_SENT, "double", failure_reason="busy", retry_after_seconds=4)

    mixed = await Route([ProviderDouble(MISCONFIGURED), ProviderDouble(later), ProviderDouble(sooner)]).deliver(
        make_message()
    )
    final = await Route([ProviderDouble(MISCONFIGURED), ProviderDouble(MISCONFIGURED)]).deliver(make_message())

    assert (mixed, final) == (sooner, MISCONFIGURED)


async def test_closing_a_route_closes_every_provider() -> None:
    first, second = ProviderDouble(), ProviderDouble()

    await Route([Guard(first, GuardSettings(), clock=utc_now), Guard(second, GuardSettings(), clock=utc_now)]).close()

    assert first.closed
    assert second.closed
    with pytest.raises(ValueError, match="needs a provider"):
        Route([])
