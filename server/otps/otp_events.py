"""The events of OTPs, deliveries and refused sends; pulsa.event.v1.Event says what each tells."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from server.errors import SpendingCapReached, TooManySends
from server.events.log import Event, EventKind, EventSwitches
from server.otps.admission import Decision, Refused, Send
from server.otps.otp import DeliveryStatus, OtpStatus
from server.providers.provider import Channel

_LIMITS_OF_DESTINATIONS: Final = frozenset({"destination_hour", "destination_day"})
"""Of TooManySends; the others are those of the organization."""


def delivery_changed(
    organization_id: str,
    otp_id: UUID,
    delivery_id: UUID,
    *,
    channel: Channel,
    status: DeliveryStatus,
    failure_reason: str,
    refunded: bool,
) -> Event:
    """The event of a delivery that has this status now."""
    details = {
        "otp_id": str(otp_id),
        "delivery_id": str(delivery_id),
        "channel": channel.value,
        "status": status.value,
        "failure_reason": failure_reason,
        "refunded": refunded,
    }
    return Event(organization_id, EventKind.DELIVERY_CHANGED, details)


def otp_ended(organization_id: str, otp_id: UUID, status: OtpStatus, purpose: str) -> Event:
    """The event of an OTP that is no longer pending."""
    details = {"otp_id": str(otp_id), "status": status.value, "purpose": purpose}
    return Event(organization_id, EventKind.OTP_ENDED, details)


class LimitsReached:
    """Which limits of organizations this process has told of: each once a minute, however many sends are refused."""

    def __init__(self, switches: EventSwitches | None = None) -> None:
        """Without `switches` no organization has events."""
        self._switches = switches
        self._minute = 0
        self._told: set[tuple[str, str]] = set()

    def events(self, sends: Sequence[Send], decisions: Sequence[Decision], *, now: datetime) -> list[Event]:
        """The events of the refused ones of these sends: only of what was not told in this minute."""
        if self._switches is None:
            return []
        if (minute := int(now.timestamp() // 60)) != self._minute:
            self._minute, self._told = minute, set()
        reached = {
            (send.organization_id, limit)
            for send, decision in zip(sends, decisions, strict=True)
            if (limit := _limit_of_organization(decision)) and self._switches.may_be_on(send.organization_id)
        }
        return [
            Event(organization_id, EventKind.LIMIT_REACHED, {"limit": limit})
            for organization_id, limit in sorted(reached - self._told)
        ]

    def note(self, events: Iterable[Event]) -> None:
        """Tell no more of these in this minute. Call it once they are committed."""
        self._told.update(
            (event.organization_id, event.details["limit"]) for event in events if event.kind is EventKind.LIMIT_REACHED
        )


def _limit_of_organization(decision: Decision) -> str:
    """The limit of its organization that a send has reached; empty for any other decision."""
    error = decision.error if isinstance(decision, Refused) else None
    if isinstance(error, SpendingCapReached):
        return "daily_credit_cap"
    return error.limit if isinstance(error, TooManySends) and error.limit not in _LIMITS_OF_DESTINATIONS else ""
