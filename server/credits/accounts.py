"""Accounts: one row for each organization, its balance, its requests, its suspension, and low-balance notices.

After a restore to an earlier time the database lacks requests that were accepted: LostTime.
"""

import asyncio
import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from server.errors import RequestIdExpired, RequestIdReused
from server.events.log import Event, EventKind
from server.ids import is_older
from server.postgres.columns import BIGINT, TEXT, TIMESTAMPTZ, RowSource, TableColumns, texts, uuids
from server.postgres.pipeline import Executor, Rows
from server.postgres.pool import Connection, Pool, acquire, retry_transient, transaction
from server.postgres.queries import load_queries

MAXIMUM_CREDITS: Final = 9_000_000_000_000_000_000
"""No adjustment or top-up lifts a balance above it. The rest of PostgreSQL's bigint, which ends at 2^63 - 1, is for
refunds of earlier sends, which must always fit."""
RequestKey = tuple[str, UUID]
"""An organization_id and a request_id."""
RESTORED_SESSIONS: Final = "pulsa restored"
"""The application_name of the sessions of the command `restored`."""
_REPEATED_FOR: Final = timedelta(minutes=5)
"""A request_id may be this much older than the call that was accepted, or its machine's clock behind."""


@dataclass(slots=True)
class Account:
    """An organization's credits, as read from its row. Only a caller that holds the row's lock may change it."""

    organization_id: str
    available_credits: int
    last_sequence: int
    low_balance_threshold: int
    low_balance_since: datetime | None
    """When the balance fell below the threshold; None once added credits have lifted it to the threshold again."""
    window_start_time: datetime
    """The start of the minute in which window_send_count sends were accepted, for the limit of sends per minute."""
    window_send_count: int
    alert_email: str | None = None
    stripe_customer_id: str | None = None
    suspend_time: datetime | None = None
    """Since when the organization is suspended: it may neither send nor buy. None: it is not."""
    settings_version: int = 0
    """The version of its settings in force; 0: it has chosen none."""

    @property
    def has_contacts(self) -> bool:
        """Whether it may have billing contacts."""
        return bool(self.alert_email or self.settings_version)

    @property
    def low_balance(self) -> bool:
        """True while the balance is below the threshold."""
        return self.available_credits < self.low_balance_threshold

    def can_hold(self, credits: int) -> bool:
        """True when adding these credits keeps the balance within MAXIMUM_CREDITS."""
        return self.available_credits + credits <= MAXIMUM_CREDITS

    def apply(self, credits: int, *, now: datetime) -> bool:
        """Add credits (take them when negative) and increment last_sequence for the ledger entry.

        Returns True when this change made the balance low; that happens once until credits are added again. The caller
        ensures that the balance stays at 0 or above.
        """
        self.available_credits += credits
        self.last_sequence += 1
        if not self.low_balance:
            if credits > 0:
                self.low_balance_since = None
            return False
        crossed = self.low_balance_since is None
        if crossed:
            self.low_balance_since = now
        return crossed

    def refund(self, credits: int) -> None:
        """Return the credits of a failed send and increment last_sequence for the ledger entry.

        Leaves low_balance_since unchanged, because a refund is no new purchase: spending the refunded credits sends no
        second low-balance notice.
        """
        self.available_credits += credits
        self.last_sequence += 1


class Suspension(NamedTuple):
    """An operator's suspension of an organization."""

    suspend_time: datetime
    reason: str
    created_by: str


class Request(NamedTuple):
    """A request that was accepted: it changed a balance, or ordered credits."""

    rpc: str
    """SendOtp, ResendOtp, CreateTopUp or AdjustCredits."""
    fingerprint: bytes
    """Of what the request said; empty for a CreateTopUp that reconciliation found at Stripe after a restore."""
    answer_id: UUID
    """What it made: the delivery_id, the top_up_id or the reference_id of the ledger entry."""


class LostTime(NamedTuple):
    """What one restore of the database to an earlier time has lost.

    Whether a request of that time was accepted is not known any more. To accept its repeat would send and charge it
    twice.
    """

    restore_time: datetime
    """The time to which the database was restored."""
    start_time: datetime
    """Request_ids from then on may be lost: a few minutes before restore_time."""
    end_time: datetime
    """When the lost time was recorded, before the replicas started again."""

    def includes(self, time_ordered: UUID) -> bool:
        """Whether a UUID tells that it is from the lost time."""
        return is_older(time_ordered, self.end_time) and not is_older(time_ordered, self.start_time)


@dataclass(slots=True)
class RequestMemory:
    """How long accepted requests are kept, and which were lost."""

    life: timedelta = timedelta(days=90)
    lost: tuple[LostTime, ...] = ()

    def lacks(self, request_id: UUID, *, now: datetime) -> bool:
        """Whether a request_id that is not stored may have been accepted. Only a time-ordered one tells."""
        if is_older(request_id, now - self.life):
            return True
        return bool(self.lost) and any(each.includes(request_id) for each in self.lost)

    async def read(self, connection: Connection) -> None:
        """Read the lost times: on each new connection, as the connections of before a restore are gone."""
        self.lost = tuple(LostTime(*row) for row in await (await connection.execute(SQL.read_lost_times)).fetchall())


_BALANCES: RowSource[Account] = RowSource(
    organization_id=TEXT,
    available_credits=BIGINT,
    last_sequence=BIGINT,
    low_balance_since=TIMESTAMPTZ,
    window_start_time=TIMESTAMPTZ,
    window_send_count=BIGINT,
)
SQL = load_queries(__file__, account=TableColumns(Account), balance=_BALANCES)


def empty_account(organization_id: str, *, low_balance_threshold: int, now: datetime) -> Account:
    """The account of an organization without a row: 0 credits."""
    return Account(
        organization_id=organization_id,
        available_credits=0,
        last_sequence=0,
        low_balance_threshold=low_balance_threshold,
        low_balance_since=now,
        window_start_time=now,
        window_send_count=0,
    )


async def read_accounts(connection: Executor, organization_ids: Iterable[str]) -> dict[str, Account]:
    """Read the accounts that exist, by organization."""
    return await fetch_accounts(await queue_read_accounts(connection, organization_ids))


async def lock_accounts(connection: Executor, organization_ids: Iterable[str]) -> dict[str, Account]:
    """Read and lock the accounts that exist, by organization. The locks last until this transaction ends."""
    return await fetch_accounts(await queue_lock_accounts(connection, organization_ids))


async def queue_lock_free_accounts(connection: Executor, organization_ids: Iterable[str]) -> Rows:
    """As `queue_lock_accounts`, without waiting: accounts that another transaction has locked are left out."""
    return await connection.execute(SQL.lock_free_accounts, {"organization_ids": texts(sorted(set(organization_ids)))})


async def find_accounts(connection: Executor, organization_ids: Iterable[str]) -> set[str]:
    """Which of these organizations have an account; waits for no lock."""
    rows = await connection.execute(SQL.find_accounts, {"organization_ids": texts(organization_ids)})
    return {row[0] for row in await rows.fetchall()}


async def queue_lock_accounts(connection: Executor, organization_ids: Iterable[str]) -> Rows:
    """Queue `lock_accounts` in a pipeline. Pass the result to `fetch_accounts` to get the accounts."""
    return await connection.execute(SQL.lock_accounts, {"organization_ids": texts(sorted(set(organization_ids)))})


async def queue_read_accounts(connection: Executor, organization_ids: Iterable[str]) -> Rows:
    """Queue `read_accounts` in a pipeline. Pass the result to `fetch_accounts` to get the accounts."""
    return await connection.execute(SQL.read_accounts, {"organization_ids": texts(organization_ids)})


async def fetch_accounts(rows: Rows) -> dict[str, Account]:
    """The accounts in a statement's rows, by organization."""
    return {row[0]: Account(*row) for row in await rows.fetchall()}


async def lock_or_create_account(
    connection: Executor, organization_id: str, *, low_balance_threshold: int, now: datetime
) -> Account:
    """Lock the organization's account until this transaction ends, and create it first if there is none."""
    await connection.execute(
        SQL.create_account,
        {"organization_id": organization_id, "low_balance_threshold": low_balance_threshold, "now": now},
    )
    return (await lock_accounts(connection, [organization_id]))[organization_id]


async def suspend(
    pool: Pool, organization_id: str, *, reason: str, created_by: str, low_balance_threshold: int, now: datetime
) -> Suspension:
    """Suspend an organization; returns the suspension, which is the first one when it is suspended already.

    Sends that were accepted before go out. low_balance_threshold is that of an account that this call creates.
    """

    async def once() -> Suspension | None:
        async with transaction(pool) as connection:
            await lock_or_create_account(
                connection, organization_id, low_balance_threshold=low_balance_threshold, now=now
            )
            values = {"organization_id": organization_id, "now": now, "reason": reason, "created_by": created_by}
            await connection.execute(SQL.suspend, values)
            return await _read_suspension(connection, organization_id)

    suspension = await retry_transient(once)
    if suspension is None:
        raise LookupError("a suspension that was just written is there")
    return suspension


async def resume(pool: Pool, organization_id: str) -> Suspension | None:
    """End an organization's suspension; returns it, or None when there was none."""

    async def once() -> Suspension | None:
        async with transaction(pool) as connection:
            await lock_accounts(connection, [organization_id])
            suspension = await _read_suspension(connection, organization_id)
            if suspension:
                await connection.execute(SQL.resume, {"organization_id": organization_id})
            return suspension

    return await retry_transient(once)


async def _read_suspension(connection: Connection, organization_id: str) -> Suspension | None:
    cursor = await connection.execute(SQL.read_suspension, {"organization_id": organization_id})
    row = await cursor.fetchone()
    return Suspension(*row) if row else None


async def queue_find_requests(connection: Executor, keys: Collection[RequestKey]) -> Rows:
    """Queue the query of the requests that were accepted with these request_ids, for `fetch_requests`.

    Only a caller that holds the accounts' locks can rely on one that is missing.
    """
    return await connection.execute(
        SQL.find_requests,
        {"organization_ids": texts(key[0] for key in keys), "request_ids": uuids(key[1] for key in keys)},
    )


async def fetch_requests(rows: Rows) -> dict[RequestKey, Request]:
    """The requests in a statement's rows."""
    return {(row[0], row[1]): Request(*row[2:]) for row in await rows.fetchall()}


async def find_answer(
    connection: Executor, key: RequestKey, new: Request, *, memory: RequestMemory, now: datetime
) -> UUID | None:
    """The answer_id of an accepted request, for a repeat of it; None for a new request.

    Raises RequestIdReused when the accepted request said something else or was of another rpc, and RequestIdExpired for
    a new one that `memory` lacks: nobody knows any more whether it was accepted.
    """
    found = await fetch_requests(await queue_find_requests(connection, [key]))
    if (earlier := found.get(key)) is not None:
        if earlier.rpc != new.rpc or earlier.fingerprint not in {b"", new.fingerprint}:
            raise RequestIdReused
        return earlier.answer_id
    if memory.lacks(key[1], now=now):
        raise RequestIdExpired
    return None


async def insert_request(connection: Executor, key: RequestKey, request: Request, *, now: datetime) -> None:
    """Store an accepted request, in the transaction that accepts it."""
    organization_id, request_id = key
    values = {"organization_id": organization_id, "request_id": request_id, **request._asdict(), "now": now}
    await connection.execute(SQL.insert_request, values)


async def begin_lost_time(pool: Pool, restore_time: datetime, *, wait_seconds: float = 5.0) -> LostTime:
    """Record that the database was restored to this time, until now; a repeat returns what was recorded.

    The pool's sessions have RESTORED_SESSIONS. Raises ValueError, and records nothing, when a server has worked on the
    database since, or when the login's other sessions, such as a replica's, have not ended within wait_seconds.
    """
    async with acquire(pool, seconds=pool.timeouts.job) as connection:
        for row in await (await connection.execute(SQL.read_lost_times)).fetchall():
            if row[0] == restore_time:
                return LostTime(*row)
        deadline = time.monotonic() + wait_seconds
        while (count := await _fetch_value(connection, SQL.count_other_sessions, {"own": RESTORED_SESSIONS})) > 0:
            if time.monotonic() > deadline:
                raise ValueError(f"stop every replica first: their login has {count} sessions")
            await asyncio.sleep(0.1)
        known = await _fetch_value(connection, SQL.read_last_success, {})
        if known is not None and known > restore_time:
            raise ValueError(f"a server has worked on this database at {known}: it was not restored to that time")
        lost = LostTime(restore_time, restore_time - _REPEATED_FOR, pool.now())
        await connection.execute(SQL.insert_lost_time, lost._asdict())
        return lost


async def write_balances(connection: Executor, accounts: Sequence[Account]) -> None:
    """Store the balances of accounts that were changed under their locks."""
    await _BALANCES.write(connection, SQL.write_balances, rows=accounts)


async def insert_low_balance_notices(connection: Executor, accounts: Sequence[Account], *, now: datetime) -> None:
    """Store BALANCE_LOW notices for accounts that have just become low.

    Each crossing of the threshold causes at most one notice to each contact: its reference is the sequence of the
    ledger entry that crossed it.
    """
    causes = {
        account.organization_id: (
            str(account.last_sequence),
            {
                "available_credits": account.available_credits,
                "low_balance_threshold": account.low_balance_threshold,
            },
        )
        for account in accounts
        if account.has_contacts
    }
    await insert_notices(connection, "BALANCE_LOW", causes, now=now)


async def insert_notices(
    connection: Executor, kind: str, causes: Mapping[str, tuple[str, Mapping[str, Any]]], *, now: datetime
) -> None:
    """Store a notice for the alert_email of each of these organizations, and for each contact in its settings.

    `causes` has a reference and the details by organization: each contact gets one notice of a kind and reference.
    """
    if not causes:
        return
    await connection.execute(
        SQL.insert_notices,
        {
            "organization_ids": texts(causes),
            "kind": kind,
            "reference_ids": texts(reference for reference, _ in causes.values()),
            "details": [json.dumps(details) for _, details in causes.values()],
            "now": now,
        },
    )


def balance_event(account: Account, *, is_low: bool) -> Event:
    """The event of a balance that fell below its threshold, or is no longer below it."""
    details = {
        "available_credits": account.available_credits,
        "low_balance_threshold": account.low_balance_threshold,
    }
    kind = EventKind.BALANCE_LOW if is_low else EventKind.BALANCE_RECOVERED
    return Event(account.organization_id, kind, details)


async def _fetch_value(connection: Connection, query: str, values: dict[str, str]) -> Any:
    ((value,),) = await (await connection.execute(query, values)).fetchall()
    return value
