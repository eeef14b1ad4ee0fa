"""Writes down what became of each delivery, and gives back the credits of those that definitely failed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from server.channels.channel import Outcome, OutcomeKind
from server.clock import Clock, utc_now
from server.credits.accounts import Account, lock_accounts, write_balances
from server.credits.ledger import LedgerEntry, LedgerEntryKind, insert_entries
from server.database.batcher import Batcher
from server.database.pool import Connection, Cursor, Pool, pipelined_transaction, repeat_transient
from server.database.queries import load_queries
from server.otps.errands import Errand
from server.otps.otp import DeliveryStatus

SQL = load_queries(__file__)

_STATUSES = {
    OutcomeKind.ACCEPTED: DeliveryStatus.SENT,
    OutcomeKind.REJECTED_DESTINATION: DeliveryStatus.FAILED,
    OutcomeKind.REJECTED_CONFIGURATION: DeliveryStatus.FAILED,
    OutcomeKind.NOT_SENT: DeliveryStatus.FAILED,
    OutcomeKind.UNKNOWN: DeliveryStatus.UNKNOWN,
}
_FIRST_RETRY = timedelta(seconds=1)
_LONGEST_RETRY = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one errand."""

    errand: Errand
    outcome: Outcome

    @property
    def organization_id(self) -> str:
        """Whose delivery it is."""
        return self.errand.delivery.organization_id

    @property
    def delivery_id(self) -> UUID:
        """Which delivery it is."""
        return self.errand.delivery.delivery_id

    @property
    def status(self) -> DeliveryStatus:
        """Where it leaves the delivery, when it is not tried again."""
        return _STATUSES[self.outcome.kind]

    def next_attempt_time(self, now: datetime) -> datetime | None:
        """When to try again; None when that would be pointless or dangerous."""
        if self.outcome.kind is not OutcomeKind.NOT_SENT:
            return None
        wait = min(_FIRST_RETRY * 2**self.errand.attempts, _LONGEST_RETRY)
        if self.outcome.retry_after_seconds is not None:
            wait = max(wait, timedelta(seconds=self.outcome.retry_after_seconds))
        return now + wait if now + wait < self.errand.otp.expire_time else None


class Outcomes:
    """Records outcomes in batches. Only the first final outcome of a delivery counts; a repeat changes nothing."""

    def __init__(self, pool: Pool, *, batch_size: int, linger_seconds: float, clock: Clock = utc_now) -> None:
        self._pool = pool
        self._clock = clock
        self._batcher: Batcher[Report, None] = Batcher(
            self._flush, batch_size=batch_size, linger_seconds=linger_seconds
        )

    async def record(self, errand: Errand, outcome: Outcome) -> None:
        """Return once the outcome is committed: SENT, FAILED and refunded, UNKNOWN, or to be tried again."""
        await self._batcher.submit(Report(errand, outcome))

    async def _flush(self, reports: Sequence[Report]) -> Sequence[None]:
        await repeat_transient(lambda: self._transact(reports))
        return [None] * len(reports)

    async def _transact(self, reports: Sequence[Report]) -> None:
        now = self._clock()
        postponed = [(report, time) for report in reports if (time := report.next_attempt_time(now))]
        # One of each delivery: of two in one UPDATE the database would take either.
        final = list(
            {report.delivery_id: report for report in reports[::-1] if not report.next_attempt_time(now)}.values()
        )
        failed = [report for report in final if report.status is DeliveryStatus.FAILED]
        async with pipelined_transaction(self._pool) as (connection, _):
            # Accounts before deliveries: every transaction locks in this order.
            accounts = await lock_accounts(connection, {report.organization_id for report in failed}) if failed else {}
            if final:
                settled = await _settle(connection, final, now=now)
                if failed:
                    changed = {row[0] for row in await settled.fetchall()}
                    await _refund(
                        connection, [report for report in failed if report.delivery_id in changed], accounts, now=now
                    )
            if postponed:
                await _postpone(connection, postponed)


async def _settle(connection: Connection, final: Sequence[Report], *, now: datetime) -> Cursor:
    """Store final outcomes and empty the outbox of them; the cursor holds the deliveries that were still open."""
    keys = {
        "organization_ids": [report.organization_id for report in final],
        "delivery_ids": [report.delivery_id for report in final],
    }
    await connection.execute(SQL.remove_from_outbox, keys)
    return await connection.execute(
        SQL.settle,
        {
            **keys,
            "statuses": [report.status.value for report in final],
            "providers": [report.outcome.provider for report in final],
            "provider_message_ids": [report.outcome.provider_message_id for report in final],
            "failure_reasons": [report.outcome.failure_reason for report in final],
            "now": now,
        },
    )


async def _refund(
    connection: Connection, failed: Sequence[Report], accounts: dict[str, Account], *, now: datetime
) -> None:
    """Give the credits back, one ledger entry for each delivery, linked to it."""
    entries = []
    for report in failed:
        account = accounts[report.organization_id]
        account.apply(report.errand.delivery.credits, now=now)
        entries.append(
            LedgerEntry(
                organization_id=report.organization_id,
                sequence=account.last_sequence,
                kind=LedgerEntryKind.REFUND,
                credits=report.errand.delivery.credits,
                balance_after=account.available_credits,
                reference_id=report.delivery_id,
                reason="",
                created_by="",
                create_time=now,
            )
        )
    if entries:
        await insert_entries(connection, entries, now=now)
        await write_balances(connection, list(accounts.values()))


async def _postpone(connection: Connection, postponed: Sequence[tuple[Report, datetime]]) -> None:
    await connection.execute(
        SQL.postpone,
        {
            "organization_ids": [report.organization_id for report, _ in postponed],
            "delivery_ids": [report.delivery_id for report, _ in postponed],
            "next_attempt_times": [time for _, time in postponed],
        },
    )
