"""The dispatcher: runs delivery jobs, outside of any transaction, and stores their outcomes."""

import asyncio
import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog

from server.background import until_done
from server.clock import Clock
from server.errors import AccountBusy, DatabaseUnavailable
from server.logs import safe_traceback
from server.otps.crypto import Crypto
from server.otps.delivery.outbox import DeliveryJob, DeliveryKey
from server.otps.delivery.outcome_policy import DeliveryResult
from server.otps.delivery.outcomes import Outcomes
from server.otps.magic_destinations import TEST_CODES, outcome_of
from server.otps.otp import OtpStatus
from server.providers.provider import Channel, Outcome, OutcomeKind, Provider
from server.traces import Span, shared_span

_LAST_OUTCOMES_SECONDS: Final = 5.0
"""How long a drain waits for the outcomes of the calls that it cancelled."""
_SHARE_OF_A_CHANNEL: Final = 0.8
_JOBS_OF_A_WORKER: Final = 32
"""Then another worker goes on, as calls wait while the provider answers without waiting."""
FRESH_FOR: Final = timedelta(seconds=1)
"""A job that waited longer has its lease renewed before it is sent."""

_log = structlog.get_logger(__name__)


class Dispatcher:
    """Runs delivery jobs with bounded concurrency. Jobs that do not fit into its queue stay in the outbox.

    A delivery's outbox row is removed in the transaction that stores its outcome. A job that is dropped, or lost in a
    crash, is therefore taken over by a periodic job once its lease has expired.

    A worker waits for its provider, but not until the outcome is stored: the recorder stores outcomes in batches. A
    crash repeats at most a full batch of messages, as no more are sent before their outcomes are stored, or at most
    `concurrency` if that is more. Workers and the recorder end when there is no work.
    """

    def __init__(
        self,
        providers: Mapping[Channel, Provider],
        crypto: Crypto,
        outcomes: Outcomes,
        *,
        concurrency: int,
        queue: int,
        clock: Clock,
        fresh_for: timedelta = FRESH_FOR,
        long_calls: Collection[Channel] = (),
    ) -> None:
        """`queue` is the longest length of the queue.

        A job that waited longer than `fresh_for` has its lease renewed before it is sent, and is not sent when another
        replica has taken it over. `fresh_for` must be shorter than any lease. The calls of the channels in `long_calls`
        may outlast a lease, which is renewed meanwhile.
        """
        self._providers = providers
        self._crypto = crypto
        self._outcomes = outcomes
        self._queue_limit = queue
        self._fresh_for = fresh_for
        self._long_calls = long_calls
        self._clock = clock
        self._free_slots = concurrency
        self._full_batch = concurrency / 2  # results that are stored without lingering
        self._unsettled = 0
        """Jobs begun whose outcomes are not stored."""
        self._most_unsettled = max(concurrency, outcomes.batch_size)
        self._queues: dict[Channel, deque[DeliveryJob]] = {channel: deque() for channel in Channel}
        """Served in turn."""
        self._running: Counter[Channel] = Counter()
        share = _SHARE_OF_A_CHANNEL if len(providers) > 1 else 1.0
        self._most_running, self._most_queued = math.ceil(share * concurrency), math.ceil(share * queue)
        """Of one channel, so that a slow provider leaves room to the others."""
        self._results: list[DeliveryResult] = []
        self._unstored: dict[DeliveryKey, DeliveryResult] = {}
        """Also those that are being stored, which a drain interrupts."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._worker_is_starting = False
        self._recorder_is_running = False

    def enqueue(self, jobs: Sequence[DeliveryJob]) -> int:
        """Queue as many jobs as fit, in order; returns how many."""
        before = self._queued
        for job in jobs:
            queue = self._queues[job.send.recipient.channel]
            if self._queued < self._queue_limit and len(queue) < self._most_queued:
                queue.append(job)
        self._start_worker()
        return self._queued - before

    @property
    def free_places(self) -> int:
        """How many more jobs fit into the queue, whichever their channel is."""
        longest = max(map(len, self._queues.values()))
        return max(0, min(self._queue_limit - self._queued, self._most_queued - longest))

    @property
    def _queued(self) -> int:
        return sum(map(len, self._queues.values()))

    async def idle(self) -> None:
        """Wait until no job is queued or running."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def drain(self, timeout_seconds: float) -> None:
        """Finish the queued jobs within `timeout_seconds`, then stop; the rest stays in the outbox."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.idle()
        except TimeoutError:
            _log.warning("deliveries left in the outbox", count=self._queued)
        self._queue_limit = 0
        for queue in self._queues.values():
            queue.clear()
        await self._cancel()
        self._results = list(self._unstored.values())
        if self._results:
            # A cancelled call whose message may have been sent ends with an outcome: no other replica may repeat it.
            self._start(self._record)
            await asyncio.wait(self._tasks, timeout=min(timeout_seconds, _LAST_OUTCOMES_SECONDS))
            await self._cancel()

    async def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.create_task(until_done("delivering", work), context=Context())  # of no span
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _start_worker(self) -> None:
        """Start a worker, unless one is starting already: each worker starts the next.

        If providers answer without waiting, no two run jobs at once.
        """
        if self._may_begin() and not self._worker_is_starting:
            self._worker_is_starting = True
            self._start(self._work)

    def _may_begin(self) -> bool:
        return self._next_channel() is not None

    def _next_channel(self) -> Channel | None:
        """The channel of the next job, if one may begin."""
        if not self._free_slots or self._unsettled >= self._most_unsettled:
            return None
        return next(
            (own for own, queue in self._queues.items() if queue and self._running[own] < self._most_running), None
        )

    async def _work(self) -> None:
        self._worker_is_starting = False
        for _ in range(_JOBS_OF_A_WORKER):
            channel = self._next_channel()
            if channel is None:
                return
            queue = self._queues[channel] = self._queues.pop(channel)  # its next turn is after the others'
            job = queue.popleft()
            self._running[channel] += 1
            self._free_slots -= 1
            self._unsettled += 1
            self._start_worker()
            result = None
            try:
                span = job.send.span
                result = await (self._run(job) if span is None else self._run_traced(job, span))
            finally:
                self._running[channel] -= 1
                self._free_slots += 1
                self._unsettled -= result is None
            if result is None:
                continue
            self._results.append(result)
            self._unstored[result.job.key] = result
            if not self._recorder_is_running:
                self._recorder_is_running = True
                self._start(self._record)
        self._start_worker()

    async def _run(self, job: DeliveryJob) -> DeliveryResult | None:
        """The result of the job; None when another replica took it over, or it stays in the outbox."""
        try:
            now = self._clock()
            if now - job.read_time >= self._fresh_for:
                renewed = await self._outcomes.renew(job)
                if renewed is None:
                    return None
                job, now = renewed, self._clock()
            if job.send.recipient.channel in self._long_calls:
                return await self._deliver_long(job, now)
            return DeliveryResult(job, await self._deliver(job, now))
        except (DatabaseUnavailable, AccountBusy) as error:
            _log.warning("a delivery was left in the outbox", reason=error.reason)
        except Exception as error:  # noqa: BLE001 - a worker must survive any job; the delivery stays in the outbox
            _log.error("a delivery job failed", trace=safe_traceback(error))
        return None

    async def _run_traced(self, job: DeliveryJob, span: Span) -> DeliveryResult | None:
        """As `_run`, with a span within that of the call."""
        with span.child("delivery", {"pulsa.channel": job.send.recipient.channel.value}) as delivery:
            result = await self._run(job)
            if result is not None:
                delivery.set(result.outcome.identifiers)
            return result

    async def _deliver_long(self, job: DeliveryJob, now: datetime) -> DeliveryResult:
        """As `_deliver`; the lease is renewed while the call lives."""
        call = asyncio.create_task(self._deliver(job, now))
        try:
            while not (await asyncio.wait([call], timeout=self._outcomes.lease.total_seconds() / 3))[0]:
                with suppress(DatabaseUnavailable, AccountBusy):  # the next turn tries again
                    job = await self._outcomes.renew(job) or job
        except asyncio.CancelledError:
            call.cancel()  # it returns an outcome nevertheless when the message may have been sent
        return DeliveryResult(job, await call)

    async def _deliver(self, job: DeliveryJob, now: datetime) -> Outcome:
        if (status := job.otp_status(now)) is not OtpStatus.PENDING:
            if job.has_arrived:
                return Outcome(OutcomeKind.UNKNOWN, provider="", failure_reason="otp_verified")
            return _refusal(OutcomeKind.REJECTED_DESTINATION, f"otp_{status.lower()}")
        if job.send.identity.is_test:
            return outcome_of(job.message(TEST_CODES))
        provider = self._providers.get(job.send.recipient.channel)
        if provider is None:
            return _refusal(OutcomeKind.REJECTED_CONFIGURATION, "channel_not_configured")
        try:
            code = self._crypto.code_of(job.send)
        except KeyError:
            code = ""
        if not code or not job.send.recipient.destination:
            return _refusal(OutcomeKind.REJECTED_CONFIGURATION, "key_missing")
        return await provider.deliver(job.message(code))

    async def _record(self) -> None:
        """Store results in batches until there are none."""
        while self._results:
            if len(self._results) < self._full_batch:
                await asyncio.sleep(self._outcomes.linger_seconds)
            results, self._results = self._results, []
            for batch in self._outcomes.batches(results):
                await self._store(batch)
        self._recorder_is_running = False

    async def _store(self, results: Sequence[DeliveryResult], *, alone: bool = False) -> None:
        """Store results and queue their fallbacks; retried until the database is available.

        A result that is not stored would send its message again. Results that have to wait do so by themselves, in a
        task that is `alone`, so that the recorder goes on with others: those of an organization while its account is
        locked, and those of a shard while its worker is lost. One that can never be stored is parted from the others by
        halves.
        """
        fallbacks: Sequence[DeliveryJob] = ()
        spans = [span for result in results if (span := result.job.send.span) is not None]
        while True:
            try:
                with shared_span("batch of outcomes", spans, {"pulsa.batch.size": len(results)}):
                    fallbacks = await self._outcomes.record(results)
                break
            except (AccountBusy, DatabaseUnavailable) as error:
                locked = isinstance(error, AccountBusy)
                if not locked:
                    _log.warning("outcomes wait for the database", count=len(results))
                parts = self._outcomes.batches(results, by_organization=True) if locked else [results]
                if len(parts) > 1 or not alone:
                    for part in parts:
                        self._start(partial(self._store, part, alone=True))
                    return
                await asyncio.sleep(error.retry_after_seconds)
            except Exception as error:  # noqa: BLE001 - the recorder must survive any result; the delivery stays in the outbox
                if half := len(results) // 2:
                    await self._store(results[:half], alone=alone)
                    await self._store(results[half:], alone=alone)
                    return
                _log.error("an outcome was not stored", trace=safe_traceback(error))
                break
        self._unsettled -= len(results)
        for result in results:
            self._unstored.pop(result.job.key, None)
        self.enqueue(fallbacks)


def _refusal(kind: OutcomeKind, failure_reason: str) -> Outcome:
    """The outcome of a delivery for which no provider was called."""
    return Outcome(kind, provider="", failure_reason=failure_reason)
