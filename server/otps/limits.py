"""How often an organization and a destination may be sent to: counts within windows, exact to the second."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

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
    unverified_credits_per_country: int = 0
    """Of an organization, to a country's numbers, in a window: more than that pumping fraud cannot take."""
    unverified_credits_per_prefix: int = 0
    """To numbers that begin alike: what fraud with one range of numbers may take of its country's share."""
    unverified_window: timedelta = DAY


class RecentSend(NamedTuple):
    """A send to a destination within the last day."""

    create_time: datetime
    purpose: str


@dataclass(slots=True)
class UnverifiedCredits:
    """What an organization spent on an area's numbers in one window, without what came to be verified."""

    window_start_time: datetime
    credits: int = 0

    def wait(self, credits: int, *, most: int, now: datetime, limits: SendLimits) -> timedelta:
        """How long so many credits more would be beyond `most`; zero or less when they are not."""
        spent, end = self.credits, self.window_start_time + limits.unverified_window
        if now >= end:
            spent, end = 0, now + limits.unverified_window
        return end - now if most and spent + credits > most else timedelta()

    def count(self, credits: int, *, now: datetime, limits: SendLimits) -> None:
        """Count credits, in a new window when the current one is over."""
        if now >= self.window_start_time + limits.unverified_window:
            self.window_start_time = now
            self.credits = 0
        self.credits += credits


@dataclass(slots=True)
class Spending:
    """What one more send to a phone would spend, and what was spent before."""

    unverified: Sequence[UnverifiedCredits]
    """On its country's numbers, and on those of its prefix where prefixes count."""
    credits: int

    def count(self, *, now: datetime, limits: SendLimits) -> None:
        """Count the credits in each area."""
        for area in self.unverified:
            area.count(self.credits, now=now, limits=limits)


def check_limits(
    account: Account,
    recent: Sequence[RecentSend],
    purpose: str,
    *,
    spending: Spending | None = None,
    now: datetime,
    limits: SendLimits,
) -> None:
    """Raise ResendTooSoon or TooManySends when one more send is too much.

    `recent` has the sends to the destination, oldest first; mail spends nothing in an area. Of several limits the one
    that takes longest to pass is raised, so that whoever waits as long as it says is not refused by the next.
    """
    refusals = _of_organization(account, now, limits)
    if recent:
        refusals += _of_destination(recent, purpose, now, limits)
    if spending:
        refusals += _of_areas(spending, now, limits)
    if refusals:
        raise max(refusals, key=lambda refusal: refusal.retry_after_seconds)


def count_send(account: Account, *, now: datetime) -> None:
    """Count one send of the organization in its current minute, or in a new one when that is over."""
    if now >= account.window_start_time + MINUTE:
        account.window_start_time = now
        account.window_send_count = 0
    account.window_send_count += 1


def _of_destination(
    recent: Sequence[RecentSend], purpose: str, now: datetime, limits: SendLimits
) -> Iterator[RetryLater]:
    earlier = [send.create_time for send in recent if send.purpose == purpose]
    if earlier and (wait := earlier[-1] + limits.cooldown - now) > timedelta():
        yield ResendTooSoon(retry_after_seconds=wait.total_seconds())
    for window, most, name in (
        (HOUR, limits.sends_per_destination_per_hour, "sends_per_destination_per_hour"),
        (DAY, limits.sends_per_destination_per_day, "sends_per_destination_per_day"),
    ):
        within = [send.create_time for send in recent if send.create_time > now - window]
        if most and len(within) >= most:
            # One more fits once all but most - 1 of them have left the window.
            yield _too_many(within[len(within) - most] + window - now, name)


def _of_organization(account: Account, now: datetime, limits: SendLimits) -> list[RetryLater]:
    most = limits.sends_per_organization_per_minute
    if most and account.window_send_count >= most and now < (end := account.window_start_time + MINUTE):
        return [_too_many(end - now, "sends_per_organization_per_minute")]
    return []


def _of_areas(spending: Spending, now: datetime, limits: SendLimits) -> Iterator[RetryLater]:
    budgets = (
        (limits.unverified_credits_per_country, "unverified_credits_per_country"),
        (limits.unverified_credits_per_prefix, "unverified_credits_per_prefix"),
    )
    for area, (most, name) in zip(spending.unverified, budgets, strict=False):
        if (wait := area.wait(spending.credits, most=most, now=now, limits=limits)) > timedelta():
            yield _too_many(wait, name)


def _too_many(wait: timedelta, name: str) -> RetryLater:
    return TooManySends(retry_after_seconds=wait.total_seconds(), limit=name)
