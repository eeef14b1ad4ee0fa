"""One round of the night watch over top-ups."""

from datetime import datetime

from server.credits.top_ups import TopUps

_AT_ONCE = 16


async def watch_top_ups(top_ups: TopUps, *, now: datetime) -> int:
    """Go on with top-ups that a crash left, and ask Stripe about unpaid ones whose time has come; how many there were.

    So a webhook that never comes costs a payment seconds while the top-up is young, and minutes when it is old.
    """
    return await top_ups.advance_due(now=now, limit=_AT_ONCE)
