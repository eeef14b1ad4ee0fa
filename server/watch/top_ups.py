"""Rounds of the night watch over top-ups."""

from datetime import datetime

import structlog

from server.credits.drift import find_drift
from server.credits.top_ups import TopUps
from server.database.pool import Pool
from server.payments.client import Payments
from server.payments.failures import PaymentsError

_log = structlog.get_logger(__name__)

_AT_ONCE = 16


async def watch_top_ups(top_ups: TopUps, *, now: datetime) -> int:
    """Go on with top-ups that a crash left, and ask Stripe about unpaid ones whose time has come; how many there were.

    So a webhook that never comes costs a payment seconds while the top-up is young, and minutes when it is old.
    """
    return await top_ups.advance_due(now=now, limit=_AT_ONCE)


async def watch_drift(pool: Pool, payments: Payments, *, environment: str, now: datetime) -> int:
    """Compare Stripe with the top-ups and raise an alert for each difference; how many there are."""
    try:
        report = await find_drift(pool, payments, environment=environment, now=now)
    except PaymentsError as error:
        _log.warning("the drift report was not made", why=type(error).__name__)
        return 0
    for drift in report.drifts:
        _log.error("drift", alert=True, drift=str(drift))
    return len(report.drifts)
