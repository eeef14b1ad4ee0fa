"""Periodic jobs: what they do, how often they run, and the runner.

A job finishes work that a crash, an outage or a full queue left behind, or deletes data after its retention period.
Most work is leased by row, and every replica takes part. A job of maintenance runs on one replica at a time, which
holds the job's lease in the table `job_leases`.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Protocol
from uuid import UUID

import structlog

from server.background import repeat
from server.clock import DatabaseClock
from server.credits.audit import make_daily_macs
from server.credits.ledger import AuditKeys
from server.credits.notices import SendMail, remove_notices, send_due_notices
from server.credits.questions import count_questions
from server.credits.receipts import SigningKeys, sign_days
from server.credits.stripe.client import StripeClient
from server.credits.stripe.errors import StripeCallError
from server.credits.stripe.inbox import StripeInbox, remove_stripe_events
from server.credits.stripe.reconcile import find_drift
from server.credits.top_ups.automatic_service import AutomaticTopUps
from server.credits.top_ups.service import TopUps
from server.errors import DomainError, PaymentProviderUnavailable
from server.events.log import EventSwitches, remove_events
from server.ids import new_id
from server.otps.crypto import Crypto
from server.otps.delivery.dispatcher import Dispatcher
from server.otps.delivery.outbox import DeliveryKey, claim_due, find_due, find_due_fallbacks
from server.otps.delivery.outcomes import Outcomes
from server.otps.delivery.suppressions import Suppressions
from server.otps.expiry import tell_expired
from server.otps.retention import (
    create_partitions,
    erase_destinations,
    remove_guess_budgets,
    remove_otps,
    remove_requests,
    remove_suppressions,
    remove_unverified,
)
from server.otps.settings_cache import SettingsCache
from server.postgres.pool import Pool, acquire, measure_clock, refresh_shards
from server.postgres.queries import load_queries
from server.settings import Settings

SQL = load_queries(__file__)
_log = structlog.get_logger(__name__)

_MAXIMUM_DELIVERIES: Final = 500
_MAXIMUM_CLAIMED: Final = 100
"""Deliveries of one transaction."""
_MAXIMUM_FALLBACKS: Final = 3
"""Organizations at once, each with a connection while its account may be locked."""
_MAXIMUM_CALLS: Final = 16
"""Per run, to Stripe or to the mail relay."""
_RETENTION_ROWS: Final = 500
_HOUR: Final = 60 * 60
_DAY: Final = 24 * _HOUR
_LOOK_SECONDS: Final = 15
"""Between two looks at the lease of a job of maintenance: whether it is due, and nobody runs it."""
_LEASE: Final = timedelta(minutes=1)
"""A crashed holder is replaced after this time, and a failed run repeated."""


@dataclass(frozen=True, slots=True)
class PeriodicJob:
    """A function that runs at an interval."""

    name: str
    interval_seconds: float
    """Of maintenance: the shortest time since its last success on any replica."""
    run: Callable[[datetime], Awaitable[int]]
    """Runs once at `now`; returns the number of items processed. Unfinished work is picked up by the next run."""
    is_maintenance: bool = False
    """Whether one replica at a time runs it."""


class JobRunner:
    """Runs each job in a task of its own: a slow job delays no other. A failed run is repeated at the next interval."""

    def __init__(self, pool: Pool, jobs: Sequence[PeriodicJob]) -> None:
        self._tasks = [asyncio.create_task(_repeat(pool, job), name=f"job {job.name}") for job in jobs]

    async def stop(self) -> None:
        """Cancel all jobs. A later run, on any replica, finishes what a cancelled run has begun."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _repeat(pool: Pool, job: PeriodicJob) -> None:
    if job.is_maintenance:
        await repeat(job.name, min(_LOOK_SECONDS, job.interval_seconds), lambda: maintain(pool, job))
    else:
        await repeat(job.name, job.interval_seconds, lambda: _run(pool, job))


async def _run(pool: Pool, job: PeriodicJob) -> float:
    if count := await job.run(pool.now()):
        _log.info("job", job=job.name, count=count)
    return pool.now().timestamp()


async def maintain(pool: Pool, job: PeriodicJob, *, lease: timedelta = _LEASE) -> float:
    """Run a job of maintenance if it is due and no replica holds its lease; returns its last success in Unix time.

    The lease is renewed while the job runs. When it cannot be, the run ends with TimeoutError before the lease does.
    """
    key = {"job": job.name, "holder": new_id()}
    began = asyncio.get_running_loop().time()
    values = {**key, "lease": lease, "interval": timedelta(seconds=job.interval_seconds)}
    if await _fetch(pool, SQL.take_lease, values):
        async with asyncio.timeout_at(began + lease.total_seconds()) as bound:
            renewing = asyncio.create_task(_renew(pool, key, lease, bound))
            try:
                await _run(pool, job)
            finally:
                renewing.cancel()
        await _fetch(pool, SQL.finish_job, key)
    ((last_success,),) = await _fetch(pool, SQL.read_last_success, key)
    return float(last_success)


async def _renew(pool: Pool, key: dict[str, Any], lease: timedelta, bound: asyncio.Timeout) -> None:
    """Renew the lease, and move the bound of the run with it, until cancelled."""
    while True:
        await asyncio.sleep(lease.total_seconds() / 4)
        began = asyncio.get_running_loop().time()
        with suppress(DomainError):  # the next turn tries again, as long as the lease lasts
            if await _fetch(pool, SQL.renew_lease, {**key, "lease": lease}) and not bound.expired():
                bound.reschedule(began + lease.total_seconds())


async def _fetch(pool: Pool, query: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
    async with acquire(pool) as connection:
        return await (await connection.execute(query, values)).fetchall()


@dataclass(frozen=True, slots=True)
class RetentionPeriods:
    """How long data is kept."""

    destinations: timedelta
    """Encrypted destinations of deliveries."""
    records: timedelta
    """OTPs, deliveries, notices to billing contacts, and Stripe's events."""
    requests: timedelta
    """Accepted requests; they are kept one day longer, for callers whose clocks are ahead when they make ids."""
    guess_window: timedelta
    """How long a wrong guess counts; it is kept one day longer because clocks differ."""
    unverified_window: timedelta
    """How long unverified credits count; they are kept one day longer too."""
    events: timedelta = timedelta(days=7)
    """Events, for WatchEvents."""


def retention_periods(settings: Settings) -> RetentionPeriods:
    """What the settings say about how long data is kept."""
    return RetentionPeriods(
        destinations=timedelta(days=settings.delivery.destination_days),
        records=timedelta(days=settings.delivery.retention_days),
        requests=settings.delivery.request_life,
        guess_window=timedelta(hours=settings.limit.guess_window_hours),
        events=timedelta(days=settings.event.days),
        unverified_window=timedelta(hours=settings.limit.unverified_window_hours),
    )


def periodic_jobs(
    *,
    pool: Pool,
    crypto: Crypto,
    dispatcher: Dispatcher,
    outcomes: Outcomes,
    suppressions: Suppressions,
    switches: EventSwitches,
    organization_settings: SettingsCache,
    settings_seconds: float,
    lease: timedelta,
    periods: RetentionPeriods,
    stripe_client: StripeClient,
    top_ups: TopUps,
    automatic_top_ups: AutomaticTopUps,
    inbox: StripeInbox,
    environment: str,
    send_mail: SendMail | None,
    audit_keys: AuditKeys | None,
    signing_keys: SigningKeys | None = None,
) -> list[PeriodicJob]:
    """Return every periodic job.

    `send_mail` sends mail to billing contacts; when it is None, their notices stay in the database. `audit_keys` make
    the ledger's daily MACs; when it is None, there are none, and without `signing_keys` no receipts.
    """
    limit = _MAXIMUM_CALLS
    report = partial(report_drift, pool, stripe_client, environment=environment)
    jobs = [
        PeriodicJob("clock", 5, lambda _: measure_clock(pool)),
        PeriodicJob("shards", 5, lambda _: refresh_shards(pool)),
        PeriodicJob(
            "deliveries",
            1,
            lambda _: take_over_deliveries(
                pool, crypto, dispatcher, lease=lease, clock=pool.clock, settings=organization_settings
            ),
        ),
        PeriodicJob("fallbacks", 1, lambda now: send_due_fallbacks(pool, outcomes, dispatcher, now=now)),
        PeriodicJob("suppressions", 2, suppressions.refresh),
        PeriodicJob("event switches", 1, switches.refresh),
        PeriodicJob("expired otps", 15, lambda now: tell_expired(pool, switches, now=now)),
        # The rest of the time is for the read.
        PeriodicJob("settings", 0.8 * settings_seconds, lambda _: organization_settings.refresh(pool)),
        PeriodicJob("top-ups", 1, lambda now: top_ups.advance_due(now=now, limit=limit)),
        *automatic_top_up_jobs(automatic_top_ups),
        PeriodicJob("questions", 10, lambda _: count_questions(pool)),
        PeriodicJob("stripe events", 1, lambda now: inbox.process_due(now=now, limit=limit)),
        PeriodicJob(
            "undelivered stripe events",
            300,
            lambda now: collect_undelivered_events(inbox, now=now),
            is_maintenance=True,
        ),
        PeriodicJob("drift", _DAY, lambda now: report(now=now), is_maintenance=True),
        PeriodicJob("partitions", _HOUR, lambda _: create_partitions(pool), is_maintenance=True),
        *retention_jobs(pool, periods),
    ]
    if audit_keys is not None:
        jobs.append(
            PeriodicJob("daily MACs", 60, lambda now: make_daily_macs(pool, audit_keys, now=now), is_maintenance=True)
        )
    if audit_keys is not None and signing_keys is not None:
        jobs.append(
            PeriodicJob("receipts", 60, lambda _: sign_days(pool, audit_keys, signing_keys), is_maintenance=True)
        )
    if send_mail is not None:
        jobs.append(PeriodicJob("notices", 1, lambda now: send_due_notices(pool, send_mail, now=now, limit=limit)))
    return jobs


def automatic_top_up_jobs(automatic_top_ups: AutomaticTopUps) -> list[PeriodicJob]:
    """Return the jobs that order top-ups a process missed, learn the thresholds, and detach cards that are not used."""
    limit = _MAXIMUM_CALLS
    return [
        PeriodicJob("automatic top-ups", 2, lambda now: automatic_top_ups.order_due(now=now, limit=limit)),
        PeriodicJob("thresholds of automatic top-ups", 1, automatic_top_ups.refresh),
        PeriodicJob("cards to detach", 10, lambda _: automatic_top_ups.detach_cards(limit=limit)),
    ]


async def take_over_deliveries(
    pool: Pool,
    crypto: Crypto,
    dispatcher: Dispatcher,
    *,
    lease: timedelta,
    clock: DatabaseClock,
    limit: int = _MAXIMUM_DELIVERIES,
    settings: SettingsCache | None = None,
) -> int:
    """Enqueue deliveries whose lease has expired or whose next attempt is due; returns how many.

    At most as many as fit into the dispatcher's queue, so that a backlog stays in the database and not in memory. Each
    organization with due deliveries gets an equal share, plus what those with few leave over.
    """
    free = min(limit, dispatcher.free_places)
    if free <= 0:
        return 0
    by_shard: dict[int, list[DeliveryKey]] = defaultdict(list)
    for key in _fair_shares(await find_due(pool, now=clock()), free):
        by_shard[await pool.shards.ask(key[0])].append(key)
    enqueued = 0
    for keys in by_shard.values():
        for start in range(0, len(keys), _MAXIMUM_CLAIMED):
            # New sends may have filled the queue meanwhile.
            wanted = keys[start : start + min(_MAXIMUM_CLAIMED, dispatcher.free_places)]
            if wanted:
                jobs = await claim_due(pool, crypto, wanted, lease=lease, clock=clock, settings=settings)
                enqueued += dispatcher.enqueue(jobs)
    return enqueued


def _fair_shares(due: Mapping[str, Sequence[UUID]], free: int) -> Iterator[DeliveryKey]:
    for position, (organization_id, delivery_ids) in enumerate(sorted(due.items(), key=lambda item: len(item[1]))):
        share = delivery_ids[: -(-free // (len(due) - position))]
        free -= len(share)
        for delivery_id in share:
            yield organization_id, delivery_id


async def send_due_fallbacks(pool: Pool, outcomes: Outcomes, dispatcher: Dispatcher, *, now: datetime) -> int:
    """Send the fallbacks of deliveries that failed later, or whose delay is over; returns how many.

    Without free places in the dispatcher's queue, the job "deliveries" sends them. An organization whose account is
    locked delays no other: the first error is raised when all have had their turn.
    """
    turns = asyncio.Semaphore(_MAXIMUM_FALLBACKS)

    async def fall_back(organization_id: str, delivery_ids: Sequence[UUID]) -> int:
        async with turns:
            jobs = await outcomes.fall_back(organization_id, delivery_ids)
        dispatcher.enqueue(jobs)
        return len(jobs)

    due = await find_due_fallbacks(pool, now=now)
    results = await asyncio.gather(*(fall_back(*each) for each in due.items()), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return sum(result for result in results if isinstance(result, int))


async def collect_undelivered_events(inbox: StripeInbox, *, now: datetime) -> int:
    """Store Stripe events whose webhooks were not delivered; returns how many were new.

    Raises PaymentProviderUnavailable when Stripe does not list them.
    """
    try:
        return await inbox.collect_undelivered(now=now)
    except StripeCallError as error:
        raise PaymentProviderUnavailable(retry_after_seconds=_LEASE.total_seconds()) from error


async def report_drift(pool: Pool, stripe_client: StripeClient, *, environment: str, now: datetime) -> int:
    """Compare Stripe's invoices with the top-ups and log an alert per difference; returns the number of differences.

    Raises PaymentProviderUnavailable when Stripe does not list its invoices.
    """
    try:
        report = await find_drift(pool, stripe_client, environment=environment, now=now)
    except StripeCallError as error:
        raise PaymentProviderUnavailable(retry_after_seconds=_LEASE.total_seconds()) from error
    for drift in report.drifts:
        _log.error("drift", alert=True, drift=str(drift))
    return len(report.drifts)


class _Removal(Protocol):
    def __call__(self, pool: Pool, /, *, before: datetime, limit: int) -> AsyncIterator[int]: ...


def retention_jobs(pool: Pool, periods: RetentionPeriods) -> list[PeriodicJob]:
    """Return the jobs that erase or delete all data older than its period, 500 rows at a time; none waits for another.

    They return the number of rows; that of OTPs, which drops whole weeks, returns the number of partitions.
    """
    margin = timedelta(days=1)
    removals: list[tuple[str, _Removal, timedelta]] = [
        ("destinations", erase_destinations, periods.destinations),
        ("otps", remove_otps, periods.records),
        ("requests", remove_requests, periods.requests + margin),
        ("guess budgets", remove_guess_budgets, periods.guess_window + margin),
        ("unverified credits", remove_unverified, periods.unverified_window + margin),
        ("suppressions", remove_suppressions, margin),
        ("notices", remove_notices, periods.records),
        ("stripe events", remove_stripe_events, periods.records),
        ("events", remove_events, periods.events),
    ]
    return [
        PeriodicJob(f"retention of {data}", 60, partial(_remove_all, pool, removal, period), is_maintenance=True)
        for data, removal, period in removals
    ]


async def _remove_all(pool: Pool, removal: _Removal, period: timedelta, now: datetime) -> int:
    """Remove until nothing is left. Pauses as long as each step took, to limit the load on the database."""
    total, began = 0, time.monotonic()
    async for count in removal(pool, before=now - period, limit=_RETENTION_ROWS):
        total += count
        await asyncio.sleep(time.monotonic() - began)
        began = time.monotonic()
    return total
