"""Rounds of the night watch over Stripe's events."""

from datetime import datetime

import structlog

from server.credits.stripe_events import StripeInbox
from server.payments.failures import PaymentsError

log = structlog.get_logger(__name__)

_AT_ONCE = 16


async def watch_stripe_events(inbox: StripeInbox, *, now: datetime) -> int:
    """Process events that a crash or an outage of Stripe left; how many are done now."""
    return await inbox.process_due(now=now, limit=_AT_ONCE)


async def watch_undelivered_events(inbox: StripeInbox, *, now: datetime) -> int:
    """Fetch the events that no webhook brought; how many were new. Needed every few minutes only."""
    try:
        return await inbox.collect_undelivered(now=now)
    except PaymentsError as error:
        log.warning("undelivered events were not listed", why=type(error).__name__)
        return 0
