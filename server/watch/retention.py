"""One round of the night watch over what has been kept for long enough."""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from server.credits.retention import remove_notices, remove_stripe_events
from server.database.pool import Pool
from server.otps.retention import erase_destinations, remove_guess_budgets, remove_otps, remove_unverified

_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Kept:
    """How long."""

    destinations: timedelta
    """Where deliveries went."""
    records: timedelta
    """OTPs, deliveries, mails to billing contacts, and what Stripe told."""
    guess_window: timedelta
    """A wrong guess counts for so long, and is kept a day longer: clocks differ."""
    unverified_window: timedelta
    """So long credits count that nobody has verified; they too are kept a day longer."""


class _Step(Protocol):
    def __call__(self, pool: Pool, /, *, before: datetime, limit: int) -> Awaitable[int]: ...


async def watch_retention(pool: Pool, kept: Kept, *, now: datetime) -> int:
    """Erase and remove all that is older, 500 rows at once; how many there were."""
    ends: list[tuple[_Step, datetime]] = [
        (erase_destinations, now - kept.destinations),
        (remove_otps, now - kept.records),
        (remove_guess_budgets, now - kept.guess_window - timedelta(days=1)),
        (remove_unverified, now - kept.unverified_window - timedelta(days=1)),
        (remove_notices, now - kept.records),
        (remove_stripe_events, now - kept.records),
    ]
    return sum([await _repeat(step, pool, end) for step, end in ends])


async def _repeat(step: _Step, pool: Pool, before: datetime) -> int:
    """Step until nothing is left, and rest after each step for as long as it took: others need the database too."""
    total = 0
    while True:
        begin = time.monotonic()
        count = await step(pool, before=before, limit=_AT_ONCE)
        if not count:
            return total
        total += count
        await asyncio.sleep(time.monotonic() - begin)
