"""One round of the night watch over what has been kept for long enough."""

from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from server.credits.retention import remove_notices, remove_stripe_events
from server.database.pool import Pool
from server.otps.retention import erase_destinations, remove_guess_budgets, remove_otps

_AT_ONCE = 500
_STEPS = 20


@dataclass(frozen=True, slots=True)
class Kept:
    """How long."""

    destinations: timedelta
    """Where deliveries went."""
    records: timedelta
    """OTPs, deliveries, mails to billing contacts, and what Stripe told."""
    guess_window: timedelta
    """A wrong guess counts for so long, and is kept a day longer: clocks differ."""


class _Step(Protocol):
    def __call__(self, pool: Pool, /, *, before: datetime, limit: int) -> Awaitable[int]: ...


async def watch_retention(pool: Pool, kept: Kept, *, now: datetime) -> int:
    """Erase and remove what is older, 10,000 rows of a kind at most and 500 at once; how many there were."""
    ends: list[tuple[_Step, datetime]] = [
        (erase_destinations, now - kept.destinations),
        (remove_otps, now - kept.records),
        (remove_guess_budgets, now - kept.guess_window - timedelta(days=1)),
        (remove_notices, now - kept.records),
        (remove_stripe_events, now - kept.records),
    ]
    return sum([await _repeat(step, pool, end) for step, end in ends])


async def _repeat(step: _Step, pool: Pool, before: datetime) -> int:
    total = 0
    for _ in range(_STEPS):
        count = await step(pool, before=before, limit=_AT_ONCE)
        total += count
        if not count:
            break
    return total
