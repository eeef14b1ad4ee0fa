"""How often an organization and a destination may be sent to: counts within windows, exact to the second."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from server.credits.accounts import Account
from server.errors import ResendTooSoon, RetryLater, TooManySends

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class SendLimits:
    """Every limit on sends; 0 switches one off."""

    cooldown: timedelta = timedelta(seconds=30)
    """Between two sends to one destination for one purpose. WhatsApp asks for more than 6 s."""
    sends_per_destination_per_hour: int = 10
    sends_per_destination_per_day: int = 30
    sends_per_organization_per_minute: int = 60_000


@dataclass(frozen=True, slots=True)
class RecentSend:
    """A send to a destination within the last day."""

    create_time: datetime
    purpose: str


def check_destination(recent: Sequence[RecentSend], purpose: str, *, now: datetime, limits: SendLimits) -> None:
    """Raise ResendTooSoon or TooManySends when one more send is too much; `recent` is oldest first."""
    earlier = [send.create_time for send in recent if send.purpose == purpose]
    if earlier and (wait := earlier[-1] + limits.cooldown - now) > timedelta():
        raise ResendTooSoon(retry_after_seconds=wait.total_seconds())
    for window, most, name in (
        (HOUR, limits.sends_per_destination_per_hour, "sends_per_destination_per_hour"),
        (DAY, limits.sends_per_destination_per_day, "sends_per_destination_per_day"),
    ):
        within = [send.create_time for send in recent if send.create_time > now - window]
        if most and len(within) >= most:
            # One more fits once all but most - 1 of them have left the window.
            raise _too_many(within[len(within) - most] + window - now, name)


def count_send(account: Account, *, now: datetime, limits: SendLimits) -> None:
    """Count one send of the organization in its current minute, or raise TooManySends."""
    if now >= account.window_start_time + MINUTE:
        account.window_start_time = now
        account.window_send_count = 0
    most = limits.sends_per_organization_per_minute
    if most and account.window_send_count >= most:
        raise _too_many(account.window_start_time + MINUTE - now, "sends_per_organization_per_minute")
    account.window_send_count += 1


def _too_many(wait: timedelta, name: str) -> RetryLater:
    return TooManySends(retry_after_seconds=wait.total_seconds(), limit=name)
