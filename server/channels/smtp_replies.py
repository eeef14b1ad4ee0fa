"""What an SMTP server's refusal means, by the step that it refused and its two codes (RFC 5321, RFC 3463)."""

import re
from enum import Enum, auto

from server.channels.channel import OutcomeKind

_ENHANCED = re.compile(r"5\.(\d{1,3})\.(\d{1,3})\b")
_CONFIGURATION_CODES = frozenset({530, 535})
_DESTINATION_CODES = frozenset({550, 551, 552, 553})
# 5.1.7 and 5.1.8 are about the sender's address; 5.7.x is policy and authentication.
_SENDER_STATUSES = frozenset({("1", "7"), ("1", "8")})
_POLICY = "7"
# 5.1.x is the address, 5.2.x the mailbox.
_DESTINATION_SUBJECTS = frozenset({"1", "2"})


class Step(Enum):
    """How far a message came."""

    CONNECT = auto()
    """Greeting, EHLO, STARTTLS and AUTH."""
    SENDER = auto()
    RECIPIENT = auto()
    DATA = auto()
    CONTENT = auto()
    """The final dot has left: without an answer nobody knows whether the server took the message."""


def kind_of_refusal(step: Step, code: int, text: str) -> OutcomeKind:
    """What a reply other than success means; `text` is read for its enhanced status code only."""
    if 400 <= code < 500:  # noqa: PLR2004 - RFC 5321, section 4.2.1: transient
        return OutcomeKind.NOT_SENT
    if not 500 <= code < 600:  # noqa: PLR2004 - permanent; anything else is no SMTP
        return OutcomeKind.UNKNOWN if step is Step.CONTENT else OutcomeKind.NOT_SENT
    return _kind_of_permanent(step, code, text)


def _kind_of_permanent(step: Step, code: int, text: str) -> OutcomeKind:
    """A definite refusal: of this address, or of us."""
    if step in {Step.CONNECT, Step.SENDER} or code in _CONFIGURATION_CODES:
        return OutcomeKind.REJECTED_CONFIGURATION
    if enhanced := _ENHANCED.match(text):
        subject, detail = enhanced.groups()
        if subject == _POLICY or (subject, detail) in _SENDER_STATUSES:
            return OutcomeKind.REJECTED_CONFIGURATION
        if subject in _DESTINATION_SUBJECTS:
            return OutcomeKind.REJECTED_DESTINATION
    # Without a known enhanced code: what refuses a recipient is about the recipient.
    if code in _DESTINATION_CODES or step is Step.RECIPIENT:
        return OutcomeKind.REJECTED_DESTINATION
    return OutcomeKind.REJECTED_CONFIGURATION
