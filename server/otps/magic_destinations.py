"""Destinations of test organizations, whose messages go to no provider: what becomes of each is written here."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from server.providers.provider import Message, Outcome, OutcomeKind, Subject

TEST_PROVIDER: Final = "test"
"""The provider's name in the deliveries of test organizations."""
TEST_CODES: Final = "12345678"
"""Every code of a test organization is the beginning of it."""


class Ending(StrEnum):
    """What becomes of a message of a test organization."""

    DELIVERED = "DELIVERED"
    """It is DELIVERED at once; as to every destination that is not listed."""
    BOUNCED = "BOUNCED"
    """The provider refuses it: FAILED with test_bounced."""
    TIMED_OUT = "TIMED_OUT"
    """The provider does not answer: UNKNOWN with test_timeout."""
    FRAUD = "FRAUD"
    """SendOtp is refused with DESTINATION_BLOCKED."""


ENDINGS: Final[Mapping[str, Ending]] = {
    "deliver@example.com": Ending.DELIVERED,
    "bounce@example.com": Ending.BOUNCED,
    "timeout@example.com": Ending.TIMED_OUT,
    "fraud@example.com": Ending.FRAUD,
    "+12025550100": Ending.DELIVERED,
    "+12025550101": Ending.BOUNCED,
    "+12025550102": Ending.TIMED_OUT,
    "+12025550103": Ending.FRAUD,
}
"""By the normalized destination; the numbers are for WhatsApp and SMS."""
_OUTCOMES: Final[Mapping[Ending, Outcome]] = {
    Ending.DELIVERED: Outcome(OutcomeKind.DELIVERED, TEST_PROVIDER),
    Ending.BOUNCED: Outcome(
        OutcomeKind.REJECTED_DESTINATION, TEST_PROVIDER, failure_reason="test_bounced", about=Subject.DESTINATION
    ),
    Ending.TIMED_OUT: Outcome(OutcomeKind.UNKNOWN, TEST_PROVIDER, failure_reason="test_timeout"),
}


def outcome_of(message: Message) -> Outcome:
    """What becomes of a message, without a provider."""
    return _OUTCOMES[ENDINGS.get(message.destination, Ending.DELIVERED)]
