"""Periodic jobs: what they do, how often they run, and the runner.

A job finishes work that a crash, an outage or a full queue left behind, or deletes data after its retention period.
Every replica runs every job; the work is leased or safe to repeat.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

import structlog

from server.credits.notices import SendMail, remove_notices, send_due_notices
from server.credits.stripe.client import StripeClient
from server.credits.stripe.errors import StripeCallError
from server.credits.stripe.inbox import StripeInbox, remove_stripe_events
from server.credits.stripe.reconcile import find_drift
from server.credits.top_ups.service import TopUps
from server.errors import DomainError
from server.logs import safe_traceback
from server.otps.crypto import Crypto
from server.otps.delivery.dispatcher import Dispatcher
from server.otps.delivery.outbox import claim_due, find_due
from server.otps.retention import erase_destinations, remove_guess_budgets, remove_otps, remove_unverified
from server.postgres.pool import Pool

_log = structlog.get_logger(__name__)

_MAXIMUM_DELIVERIES: Final = 500
_MAXIMUM_CALLS: Final = 16
"""Per run, to Stripe or to the mail relay."""
_RETENTION_ROWS: Final = 500
_DAY: Final = 24 * 60 * 60


@dataclass(frozen=True, slots=True)
class PeriodicJob:
    """A function that runs at an interval."""

    name: str
    interval_seconds: float
    run: Callable[[datetime], Awaitable[int]]
    """Runs once at `now`; returns the number of items processed. Unfinished work is picked up by the next run."""


class JobRunner:
    """Runs each job in a task of its own: a slow job delays no other. A failed run is repeated at the next interval."""

    def __init__(self, jobs: Sequence[PeriodicJob]) -> None:
        self._tasks = [asyncio.create_task(_run_periodically(job), name=f"job {job.name}") for job in jobs]

    async def stop(self) -> None:
        """Cancel all jobs. A later run, on any replica, finishes what a cancelled run has begun."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class RetentionPeriods:
    """How long data is kept."""

    destinations: timedelta
    """Encrypted destinations of deliveries."""
    records: timedelta
    """OTPs, deliveries, notices to billing contacts, and Stripe's events."""
    guess_window: timedelta
    """How long a wrong guess counts; it is kept one day longer because clocks differ."""
    unverified_window: timedelta
    """How long unverified credits count; they are kept one day longer too."""


def periodic_jobs(
    *,
    pool: Pool,
    crypto: Crypto,
    dispatcher: Dispatcher,
    lease: timedelta,
    periods: RetentionPeriods,
    stripe_client: StripeClient,
    top_ups: TopUps,
    inbox: StripeInbox,
    environment: str,
    send_mail: SendMail | None,
) -> list[PeriodicJob]:
    """Return every periodic job.

    `send_mail` sends mail to billing contacts; when it is None, their notices stay in the database.
    """
    limit = _MAXIMUM_CALLS
    jobs = [
        PeriodicJob("deliveries", 1, lambda now: take_over_deliveries(pool, crypto, dispatcher, lease=lease, now=now)),
        PeriodicJob("top-ups", 1, lambda now: top_ups.advance_due(now=now, limit=limit)),
        PeriodicJob("stripe events", 1, lambda now: inbox.process_due(now=now, limit=limit)),
        PeriodicJob("undelivered stripe events", 300, lambda now: collect_undelivered_events(inbox, now=now)),
        PeriodicJob("drift", _DAY, lambda now: report_drift(pool, stripe_client, environment=environment, now=now)),
        PeriodicJob("retention", 60, lambda now: apply_retention(pool, periods, now=now)),
    ]
    if send_mail is not None:
        jobs.append(PeriodicJob("notices", 1, lambda now: send_due_notices(pool, send_mail, now=now, limit=limit)))
    return jobs


async def take_over_deliveries(
    pool: Pool,
    crypto: Crypto,
    dispatcher: Dispatcher,
    *,
    lease: timedelta,
    now: datetime,
    limit: int = _MAXIMUM_DELIVERIES,
) -> int:
    """Enqueue deliveries whose lease has expired or whose next attempt is due; returns how many.

    At most as many as fit into the dispatcher's queue, so that a backlog stays in the database and not in memory. Each
    organization with due deliveries gets an equal share, plus what those with few leave over.
    """
    free = min(limit, dispatcher.free_places)
    if free <= 0:
        return 0
    enqueued = 0
    due = await find_due(pool, now=now)
    for position, (organization_id, delivery_ids) in enumerate(sorted(due.items(), key=lambda item: len(item[1]))):
        # New sends may have filled the queue meanwhile.
        share = -(-min(free - enqueued, dispatcher.free_places) // (len(due) - position))
        if share > 0:
            jobs = await claim_due(pool, crypto, organization_id, delivery_ids[:share], lease=lease, now=now)
            enqueued += dispatcher.enqueue(jobs)
    return enqueued


async def collect_undelivered_events(inbox: StripeInbox, *, now: datetime) -> int:
    """Store Stripe events whose webhooks were not delivered; returns how many were new."""
    try:
        return await inbox.collect_undelivered(now=now)
    except StripeCallError as error:
        _log.warning("undelivered events were not listed", why=type(error).__name__)
        return 0


async def report_drift(pool: Pool, stripe_client: StripeClient, *, environment: str, now: datetime) -> int:
    """Compare Stripe's invoices with the top-ups and log an alert per difference; returns the number of differences."""
    try:
        report = await find_drift(pool, stripe_client, environment=environment, now=now)
    except StripeCallError as error:
        _log.warning("the drift report was not made", why=type(error).__name__)
        return 0
    for drift in report.drifts:
        _log.error("drift", alert=True, drift=str(drift))
    return len(report.drifts)


class _RetentionStep(Protocol):
    def __call__(self, pool: Pool, /, *, before: datetime, limit: int) -> Awaitable[int]: ...


async def apply_retention(pool: Pool, periods: RetentionPeriods, *, now: datetime) -> int:
    """Erase or delete all data older than its period, 500 rows at a time; returns the number of rows."""
    margin = timedelta(days=1)
    steps: list[tuple[_RetentionStep, datetime]] = [
        (erase_destinations, now - periods.destinations),
        (remove_otps, now - periods.records),
        (remove_guess_budgets, now - periods.guess_window - margin),
        (remove_unverified, now - periods.unverified_window - margin),
        (remove_notices, now - periods.records),
        (remove_stripe_events, now - periods.records),
    ]
    return sum([await _repeat(step, pool, before) for step, before in steps])


async def _repeat(step: _RetentionStep, pool: Pool, before: datetime) -> int:
    """Repeat the step until no rows are left. Pauses as long as each step took, to limit the load on the database."""
    total = 0
    while True:
        began = time.monotonic()
        count = await step(pool, before=before, limit=_RETENTION_ROWS)
        if not count:
            return total
        total += count
        await asyncio.sleep(time.monotonic() - began)


async def _run_periodically(job: PeriodicJob) -> None:
    while True:
        await asyncio.sleep(job.interval_seconds)
        try:
            if count := await job.run(datetime.now(UTC)):
                _log.info("job", job=job.name, count=count)
        except DomainError as error:
            _log.warning("job failed", job=job.name, reason=error.reason)
        except Exception as error:  # noqa: BLE001 - no failed job may end the runner; the line logs the error
            _log.error("job failed", job=job.name, trace=safe_traceback(error))
