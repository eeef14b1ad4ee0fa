"""Writes down what became of each delivery, gives back what definitely failed, and sends what is left to try."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from server.clock import Clock, utc_now
from server.credits.accounts import lock_accounts, write_balances
from server.credits.ledger import insert_entries
from server.database.arrays import Array, texts, times, uuids
from server.database.batcher import Batcher, Batching, as_it_is
from server.database.pipeline import Pipeline, Rows, Statements
from server.database.pool import Pool, pipelined_transaction, repeat_transient
from server.database.queries import load_queries
from server.otps import outbox
from server.otps.admission import State
from server.otps.errands import DeliveryKey, Errand, errand_of
from server.otps.limits import DAY, SendLimits
from server.otps.otp import DeliveryStatus
from server.otps.pumping import lower_failed
from server.otps.sending import read_state, record
from server.otps.settlement import Failure, Report, decisive, settle
from server.otps.targets import Targets

SQL = load_queries(__file__)


@dataclass(frozen=True, slots=True)
class Fallbacks:
    """What sending something else instead needs."""

    targets: Targets
    limits: SendLimits


class Outcomes:
    """Records outcomes in batches. Only the first final outcome of a delivery counts; a repeat changes nothing."""

    def __init__(
        self,
        pool: Pool,
        *,
        batching: Batching,
        lease: timedelta,
        fallbacks: Fallbacks | None = None,
        clock: Clock = utc_now,
    ) -> None:
        """Without `fallbacks` a failure stands although its send has some left."""
        self._pool = pool
        self._lease = lease
        self._targets = fallbacks.targets if fallbacks else None
        self._limits = fallbacks.limits if fallbacks else SendLimits()
        self.linger_seconds = batching.linger_seconds
        self._clock = clock
        self._batching = batching
        self._renewer: Batcher[Errand, Errand | None] = Batcher(lambda errands, _: self._renew(errands), batching)

    def batches(self, reports: Sequence[Report]) -> list[Sequence[Report]]:
        """The reports in parts that may each be one transaction."""
        parts: dict[str, list[Report]] = {}
        for report in reports:
            parts.setdefault(report.errand.key[0] if self._batching.by_organization else "", []).append(report)
        size = self._batching.size
        return [part[start : start + size] for part in parts.values() for start in range(0, len(part), size)]

    async def record(self, reports: Sequence[Report]) -> list[Errand]:
        """Return once the outcomes are committed: SENT, FAILED and refunded, UNKNOWN, or to be tried again.

        Gives the fallbacks that are now to be sent instead, charged and recorded. A failure of a delivery that somebody
        else has taken over meanwhile means nothing.
        """
        return await repeat_transient(lambda: self._transact(decisive(reports)))

    async def renew(self, errand: Errand) -> Errand | None:
        """The errand with a new lease and its OTP's status of now; None when somebody else has it."""
        return await self._renewer.submit(errand.delivery.organization_id, lambda: errand, as_it_is)

    async def _renew(self, errands: Sequence[Errand]) -> Sequence[Errand | None]:
        async def once() -> dict[DeliveryKey, Errand]:
            async with pipelined_transaction(self._pool) as pipeline:
                return await outbox.renew(pipeline, errands, lease=self._lease, now=self._clock())

        renewed = await repeat_transient(once)
        return [renewed.get(errand.key) for errand in errands]

    async def _transact(self, reports: Sequence[Report]) -> list[Errand]:
        now = self._clock()
        postponed: list[tuple[Report, datetime]] = []
        failures: list[Failure] = []
        final: list[Report] = []
        for report in reports:
            if time := report.next_attempt_time(now):
                postponed.append((report, time))
            elif report.status is DeliveryStatus.FAILED:
                failures.append(self._failure(report))
            else:
                final.append(report)
        fallbacks: list[Errand] = []
        async with pipelined_transaction(self._pool) as pipeline:
            # First, as they need accounts: every transaction locks accounts, then the outbox, then deliveries.
            if failures:
                fallbacks = await self._fail(pipeline, failures)
            if final:
                keys = _keys([report.errand for report in final])
                await pipeline.execute(SQL.remove_from_outbox, keys)
                await _settle(pipeline, final, keys, now=now)
            if postponed:
                await _postpone(pipeline, postponed)
        return fallbacks

    def _failure(self, report: Report) -> Failure:
        return Failure(report, list(self._targets.alternatives(report.errand)) if self._targets else [])

    async def _fail(self, pipeline: Pipeline, failures: Sequence[Failure]) -> list[Errand]:
        """Settle and refund those failures that are still ours, and record what is sent instead of them."""
        accounts = await lock_accounts(pipeline, {failure.report.errand.key[0] for failure in failures})
        failures = await _settle_held(pipeline, failures, now=self._clock())
        await lower_failed(pipeline, [failure.report.errand.delivery for failure in failures])
        alternatives = [send for failure in failures for send in failure.alternatives]
        state = await read_state(pipeline, alternatives, since=self._clock() - DAY) if alternatives else State({})
        state.accounts = accounts
        # Only now, as waiting for the locks may have taken a while: the OTP may have expired.
        now = self._clock()
        settlement = settle(failures, state, now=now, limits=self._limits)
        if settlement.refunds:
            await insert_entries(pipeline, settlement.refunds, now=now)
            await write_balances(pipeline, list(accounts.values()))
        if settlement.fallbacks:
            await record(
                pipeline,
                settlement.fallbacks,
                state,
                now=now,
                lease_expire_time=now + self._lease,
            )
        return [errand_of(admitted, lease=self._lease) for admitted in settlement.fallbacks]


async def _settle_held(connection: Statements, failures: Sequence[Failure], *, now: datetime) -> list[Failure]:
    """Store the failures of deliveries that nobody else has taken over, and say which they were."""
    errands = [failure.report.errand for failure in failures]
    held = await _keys_in(await connection.execute(SQL.remove_held, {**_keys(errands), "held_until": _leases(errands)}))
    ours = [failure for failure in failures if failure.report.errand.key in held]
    if not ours:
        return []
    reports = [failure.report for failure in ours]
    keys = _keys([report.errand for report in reports])
    settled = await _keys_in(await _settle(connection, reports, keys, now=now))
    return [failure for failure in ours if failure.report.errand.key in settled]


async def _settle(
    connection: Statements, reports: Sequence[Report], keys: Mapping[str, Array], *, now: datetime
) -> Rows:
    """Store final outcomes; the rows are the deliveries that were still open."""
    return await connection.execute(
        SQL.settle,
        {
            **keys,
            "statuses": texts(report.status.value for report in reports),
            "providers": texts(report.outcome.provider for report in reports),
            "provider_message_ids": texts(report.outcome.provider_message_id for report in reports),
            "failure_reasons": texts(report.outcome.failure_reason for report in reports),
            "now": now,
        },
    )


async def _postpone(connection: Statements, postponed: Sequence[tuple[Report, datetime]]) -> None:
    errands = [report.errand for report, _ in postponed]
    await connection.execute(
        SQL.postpone,
        {
            **_keys(errands),
            "held_until": _leases(errands),
            "next_attempt_times": times(time for _, time in postponed),
        },
    )


def _keys(errands: Sequence[Errand]) -> dict[str, Array]:
    return {
        "organization_ids": texts(errand.delivery.organization_id for errand in errands),
        "delivery_ids": uuids(errand.delivery.delivery_id for errand in errands),
    }


def _leases(errands: Sequence[Errand]) -> Array:
    return times(errand.lease_expire_time for errand in errands)


async def _keys_in(rows: Rows) -> set[DeliveryKey]:
    return {(row[0], row[1]) for row in await rows.fetchall()}
