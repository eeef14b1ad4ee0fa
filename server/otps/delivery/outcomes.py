"""Stores the outcomes of deliveries, refunds those that definitely failed, and admits their fallbacks."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from server.clock import Clock
from server.credits.accounts import Account, balance_event, lock_accounts, write_balances
from server.credits.ledger import insert_entries
from server.errors import ChannelNotConfigured, DestinationBlocked, InvalidDestination
from server.events.log import Event, EventSwitches, append_events
from server.ids import new_id
from server.otps.admission import DAY, Send, SendLimits, State, send_again
from server.otps.delivery import outbox
from server.otps.delivery.outbox import DeliveryJob, DeliveryKey, job_for
from server.otps.delivery.outcome_policy import (
    DeliveryResult,
    FailedDelivery,
    admit_fallback,
    fall_back_time,
    one_result_per_delivery,
    resolve_failed,
)
from server.otps.effective_settings import OperatorSettings
from server.otps.otp import DeliveryStatus, OtpKey, OtpStatus, fetch_statuses, queue_lock_statuses
from server.otps.otp_events import delivery_changed
from server.otps.recipients import RawDestination, RecipientResolver
from server.otps.send import read_state, record
from server.otps.settings_cache import SettingsCache
from server.otps.sms_pumping import ALL_AREAS, subtract_refunded
from server.otps.spending_caps import SpendingCaps, tell_contacts
from server.postgres.batcher import Batcher, Batching
from server.postgres.columns import Array, texts, times, uuids
from server.postgres.pipeline import Executor, Pipeline, Rows
from server.postgres.pool import Pool, pipelined_transaction, retry_transient
from server.postgres.queries import load_queries
from server.providers.provider import Outcome

SQL = load_queries(__file__)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Fallbacks:
    """The dependencies of sending fallbacks."""

    recipients: RecipientResolver
    limits: SendLimits
    settings: SettingsCache | None = None
    """Of the organizations; None: they have chosen nothing."""


class Outcomes:
    """Stores outcomes in batches. The first final outcome of a delivery is stored; a later one changes nothing."""

    def __init__(
        self,
        pool: Pool,
        *,
        batching: Batching,
        lease: timedelta,
        clock: Clock,
        fallbacks: Fallbacks | None = None,
        switches: EventSwitches | None = None,
    ) -> None:
        """`batching` is that of outcomes, `lease` that of renewed jobs and of fallbacks.

        Without `fallbacks`, none is sent after a failure; without `switches`, no organization has events.
        """
        self._pool = pool
        self._switches = switches
        self.lease = lease
        self._recipients = fallbacks.recipients if fallbacks else None
        self._limits = fallbacks.limits if fallbacks else SendLimits()
        areas = fallbacks.recipients.areas if fallbacks else ALL_AREAS
        own = fallbacks.settings if fallbacks else None
        self._settings = own or SettingsCache(OperatorSettings(areas=areas, limits=self._limits))
        self._caps = SpendingCaps(self._settings)
        self.linger_seconds = batching.linger_seconds
        self.batch_size = batching.size
        self._clock = clock
        self._batching = batching
        self._renewer: Batcher[DeliveryJob, DeliveryJob | None] = Batcher(self._renew, batching, name="batch of leases")

    def batches(
        self, results: Sequence[DeliveryResult], *, by_organization: bool = False
    ) -> list[Sequence[DeliveryResult]]:
        """Split results into batches, each for one transaction: by shard.

        By organization, failures are apart: only they wait for the account, and a message that was sent must be
        recorded before its lease ends.
        """
        groups: dict[Hashable, list[DeliveryResult]] = {}
        for result in results:
            organization_id = result.job.key[0]
            key: Hashable = (organization_id, result.status is DeliveryStatus.FAILED)
            if not by_organization:
                shard_id = self._batching.shards.find(organization_id)
                key = organization_id if shard_id is None else shard_id
            groups.setdefault(key, []).append(result)
        size = self._batching.size
        return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]

    async def record(self, results: Sequence[DeliveryResult]) -> list[DeliveryJob]:
        """Commit the outcomes: SENT, FAILED and refunded, UNKNOWN, or postponed to the next attempt.

        Returns the jobs of the fallbacks to send, which are charged and recorded. A failure or postponement of a
        delivery that another replica took over is ignored. Raises DatabaseUnavailable.
        """
        return await retry_transient(lambda: self._transact(one_result_per_delivery(results)))

    async def renew(self, job: DeliveryJob) -> DeliveryJob | None:
        """Renew a job's lease and read its OTP's status; None when another replica took the delivery over."""
        return await self._renewer.submit(job.send.organization_id, job)

    async def _renew(self, jobs: Sequence[DeliveryJob], *, wait: bool) -> Sequence[DeliveryJob | None]:  # noqa: ARG002
        async def once() -> dict[DeliveryKey, DeliveryJob]:
            async with pipelined_transaction(self._pool, near=jobs[0].send.organization_id) as pipeline:
                return await outbox.renew(pipeline, jobs, lease=self.lease, now=self._clock())

        renewed = await retry_transient(once)
        return [renewed.get(job.key) for job in jobs]

    async def _transact(self, results: Sequence[DeliveryResult]) -> list[DeliveryJob]:
        now = self._clock()
        postponed: list[tuple[DeliveryResult, datetime]] = []
        failed: list[FailedDelivery] = []
        final: list[DeliveryResult] = []
        for result in results:
            if time := result.next_attempt_time(now):
                postponed.append((result, time))
            elif result.status is DeliveryStatus.FAILED:
                failed.append(FailedDelivery(result, list(self._fallback_sends(result.job))))
            else:
                final.append(result)
        fallbacks: list[DeliveryJob] = []
        events: list[Event] = []
        async with pipelined_transaction(self._pool, near=results[0].job.key[0]) as pipeline:
            # Failures first, as they lock accounts: every transaction locks accounts, then outbox, OTPs, deliveries,
            # unverified credits, streams of events.
            if failed:
                fallbacks = await self._fail(pipeline, failed, events)
            recorded = None
            if final:
                open_ended = [result for result in final if result.status is not DeliveryStatus.DELIVERED]
                await self._keep_fallbacks(pipeline, open_ended)
                keys = _keys([result.job for result in final])
                await pipeline.execute(SQL.remove_from_outbox, keys)
                recorded = await _record_final(pipeline, final, keys, now=now)
            if postponed:
                await _postpone(pipeline, postponed)
            if recorded and (told := self._told(final)):
                stored = await _fetch_keys(recorded)
                events += [_event(result) for result in told if result.job.key in stored]
            if events:
                await append_events(pipeline, events, now=now)
        return fallbacks

    def _told(self, results: Sequence[DeliveryResult]) -> list[DeliveryResult]:
        """Those of organizations that may have events."""
        if self._switches is None:
            return []
        return [result for result in results if self._switches.may_be_on(result.job.send.organization_id)]

    async def _keep_fallbacks(self, pipeline: Pipeline, results: Sequence[DeliveryResult]) -> None:
        """Keep the outbox rows of deliveries that may still need a fallback, until that is due."""
        with_fallbacks = [result.job for result in results if result.job.send.fallbacks_sealed is not None]
        waiting = [(job, time) for job in with_fallbacks if (time := self._fall_back_time(job))]
        if waiting:
            values = {**_keys([job for job, _ in waiting]), "fall_back_times": times(time for _, time in waiting)}
            await pipeline.execute(SQL.keep_fallbacks, values)

    def _fall_back_time(self, job: DeliveryJob) -> datetime | None:
        """When the next fallback is due if the delivery does not fail; None without a readable one."""
        if self._recipients is None:
            return None
        fallbacks = self._recipients.open_fallbacks(job.send.organization_id, job.send.fallbacks_sealed)
        return fall_back_time(job, fallbacks[0]) if fallbacks else None

    async def fall_back(self, organization_id: str, delivery_ids: Sequence[UUID]) -> list[DeliveryJob]:
        """Charge and record the fallbacks of an organization's deliveries that are due.

        For those that a report says have failed, or whose fallback is due after its delay. None is sent when the OTP is
        not pending any more or the credits do not suffice. Returns their jobs, for the dispatcher. Raises
        DatabaseUnavailable.
        """

        async def once() -> list[DeliveryJob]:
            async with pipelined_transaction(self._pool, near=organization_id) as pipeline:
                return await self._fall_back(pipeline, organization_id, delivery_ids)

        return await retry_transient(once)

    async def _fall_back(
        self, pipeline: Pipeline, organization_id: str, delivery_ids: Sequence[UUID]
    ) -> list[DeliveryJob]:
        accounts = await lock_accounts(pipeline, {organization_id})
        now = self._clock()
        due: list[DeliveryJob] = []
        waiting: list[tuple[DeliveryJob, datetime]] = []
        for job, status in await outbox.lock_due_fallbacks(
            pipeline, organization_id, delivery_ids, now=now, settings=self._settings
        ):
            time = self._fall_back_time(job)
            # A report that it was sent came before the provider's answer, and could not read the delay.
            if status is not DeliveryStatus.FAILED and time and time > now:
                waiting.append((job, time))
            else:
                due.append(job)
        await _postpone_fallbacks(pipeline, waiting)
        if due:
            await pipeline.execute(SQL.remove_fallbacks, _keys(due))
        fallbacks = [list(self._fallback_sends(job)) for job in due]
        sends = [send for each in fallbacks for send in each]
        if not sends:
            return []
        state = await self._read(pipeline, sends, accounts)
        now = self._clock()
        admitted = [admit_fallback(each, state, now=now, limits=self._limits) for each in fallbacks]
        if state.capped:
            await tell_contacts(pipeline, state, now=now)
        accepted = [one for one in admitted if one]
        if accepted:
            await record(pipeline, accepted, state, now=now, lease_expire_time=now + self.lease)
            events = [balance_event(account, is_low=True) for account in state.newly_low]
            await append_events(pipeline, events, now=now)
        return [job_for(one, lease=self.lease) for one in accepted]

    async def _read(self, pipeline: Pipeline, sends: Sequence[Send], accounts: dict[str, Account]) -> State:
        """What decisions on the fallbacks of these accounts, which are locked, depend on."""
        state = await read_state(pipeline, sends, since=self._clock() - DAY)
        state.accounts = accounts
        await self._caps.read(pipeline, state, now=self._clock())
        return state

    def _fallback_sends(self, job: DeliveryJob) -> Iterator[Send]:
        """The fallbacks of a delivery as sends, in order, each with the fallbacks that come after it.

        Skips a fallback whose channel is no longer configured or whose destination is no longer valid or allowed.
        """
        if self._recipients is None:
            return
        organization_id, identity = job.send.organization_id, job.send.identity
        settings = self._settings.known(organization_id, identity.settings_version)
        settings = settings or self._settings.of(organization_id)
        fallbacks = self._recipients.open_fallbacks(organization_id, job.send.fallbacks_sealed)
        for position, (channel, destination, _) in enumerate(fallbacks, start=1):
            try:
                raw = RawDestination(channel, destination, "fallbacks")
                recipient = self._recipients.resolve(organization_id, raw, settings)
            except (ChannelNotConfigured, DestinationBlocked, InvalidDestination) as error:
                _log.warning("a fallback was skipped", channel=channel.value, reason=error.reason)
                continue
            delivery_id = new_id(self._clock())
            yield send_again(
                job.send.resent or job.admitted.record,
                recipient,
                # No call requested this send: nothing is stored of a request without a fingerprint.
                request_id=delivery_id,
                request_fingerprint=b"",
                delivery_id=delivery_id,
                fallbacks_sealed=self._recipients.seal_fallbacks(organization_id, fallbacks[position:]),
                identity=identity,
                span=job.send.span,
            )

    async def _fail(
        self, pipeline: Pipeline, failed: Sequence[FailedDelivery], events: list[Event]
    ) -> list[DeliveryJob]:
        """Store and refund the failures whose lease this replica still holds, and admit their fallbacks.

        Adds their events to `events`.
        """
        accounts = await lock_accounts(pipeline, {failure.result.job.key[0] for failure in failed})
        failed, statuses = await _record_leased(pipeline, failed, now=self._clock())
        await subtract_refunded(pipeline, [failure.result.job.admitted.delivery for failure in failed], statuses)
        sends = [send for failure in failed for send in failure.fallbacks]
        state = await self._read(pipeline, sends, accounts) if sends else State(accounts)
        # After the locks, as waiting for them takes time: the OTP may have expired.
        now = self._clock()
        resolution = resolve_failed(failed, state, now=now, limits=self._limits)
        if state.capped:
            await tell_contacts(pipeline, state, now=now)
        if resolution.refunds:
            await insert_entries(pipeline, resolution.refunds, now=now)
            await write_balances(pipeline, list(accounts.values()))
        if resolution.fallbacks:
            await record(
                pipeline,
                resolution.fallbacks,
                state,
                now=now,
                lease_expire_time=now + self.lease,
            )
        events += [_event(result) for result in self._told([failure.result for failure in failed])]
        events += [balance_event(account, is_low=True) for account in state.newly_low]
        return [job_for(admitted, lease=self.lease) for admitted in resolution.fallbacks]


def _event(result: DeliveryResult) -> Event:
    send = result.job.send
    return delivery_changed(
        send.organization_id,
        send.otp_id,
        send.delivery_id,
        channel=send.recipient.channel,
        status=result.status,
        failure_reason=result.outcome.failure_reason,
        refunded=result.status is DeliveryStatus.FAILED,
    )


async def _record_leased(
    connection: Executor, failed: Sequence[FailedDelivery], *, now: datetime
) -> tuple[list[FailedDelivery], dict[OtpKey, OtpStatus]]:
    """Store the failures of deliveries whose lease this replica still holds.

    Returns those that were stored, and the statuses of the OTPs that were locked: those of deliveries to phones and
    of deliveries with fallbacks.
    """
    jobs = [failure.result.job for failure in failed]
    lease_keys = {**_keys(jobs), "lease_expire_times": _lease_expire_times(jobs)}
    leased = await _fetch_keys(await connection.execute(SQL.remove_leased, lease_keys))
    failed = [failure for failure in failed if failure.result.job.key in leased]
    if not failed:
        return [], {}
    results = [failure.result for failure in failed]
    otps = [each.result.job.otp_key for each in failed if each.fallbacks or each.result.job.send.recipient.areas]
    locked = await queue_lock_statuses(connection, otps) if otps else None
    keys = _keys([result.job for result in results])
    recorded = await _fetch_keys(await _record_final(connection, results, keys, now=now))
    statuses = await fetch_statuses(locked) if locked else {}
    return [failure for failure in failed if failure.result.job.key in recorded], statuses


async def _record_final(
    connection: Executor, results: Sequence[DeliveryResult], keys: Mapping[str, Array], *, now: datetime
) -> Rows:
    """Store final outcomes of deliveries that are QUEUED; the rows are the keys of those."""
    outcomes = dict(zip(Outcome._fields, zip(*(result.outcome for result in results), strict=True), strict=True))
    otp_ids = [result.job.send.otp_id for result in results]
    return await connection.execute(
        SQL.record_outcomes,
        {
            **keys,
            "otp_ids": uuids(otp_ids),
            "first_otp_id": min(otp_ids),
            "statuses": texts([result.status for result in results]),
            "providers": texts(outcomes["provider"]),
            "provider_message_ids": texts(outcomes["provider_message_id"]),
            "failure_reasons": texts(outcomes["failure_reason"]),
            "now": now,
        },
    )


async def _postpone_fallbacks(connection: Executor, waiting: Sequence[tuple[DeliveryJob, datetime]]) -> None:
    if waiting:
        values = {**_keys([job for job, _ in waiting]), "fall_back_times": times(time for _, time in waiting)}
        await connection.execute(SQL.postpone_fallbacks, values)


async def _postpone(connection: Executor, postponed: Sequence[tuple[DeliveryResult, datetime]]) -> None:
    jobs = [result.job for result, _ in postponed]
    await connection.execute(
        SQL.postpone_attempts,
        {
            **_keys(jobs),
            "lease_expire_times": _lease_expire_times(jobs),
            "next_attempt_times": times(time for _, time in postponed),
        },
    )


def _keys(jobs: Sequence[DeliveryJob]) -> dict[str, Array]:
    return {
        "organization_ids": texts(job.send.organization_id for job in jobs),
        "delivery_ids": uuids(job.send.delivery_id for job in jobs),
    }


def _lease_expire_times(jobs: Sequence[DeliveryJob]) -> Array:
    return times(job.lease_expire_time for job in jobs)


async def _fetch_keys(rows: Rows) -> set[DeliveryKey]:
    return {(row[0], row[1]) for row in await rows.fetchall()}
