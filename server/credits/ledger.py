"""The ledger: every change of a balance as one immutable entry, and an operator's adjustments.

A caller locks the account, appends the entry and stores the balance in one transaction.
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from operator import attrgetter
from typing import Any, NamedTuple
from uuid import UUID

from server.credits.accounts import (
    MAXIMUM_CREDITS,
    Account,
    insert_low_balance_notices,
    lock_or_create_account,
    write_balances,
)
from server.credits.balances import Balance, balance_from_account
from server.errors import BalanceAboveMaximum, InsufficientCredits, RequestIdReused
from server.postgres.columns import BIGINT, TEXT, UUIDS, RowSource, TableColumns
from server.postgres.pipeline import Executor
from server.postgres.pool import Connection, Pool, retry_transient, transaction
from server.postgres.queries import load_queries


class LedgerEntryKind(StrEnum):
    """Why a balance changed."""

    TOP_UP = "TOP_UP"
    SEND = "SEND"
    REFUND = "REFUND"
    ADJUSTMENT = "ADJUSTMENT"


class LedgerEntry(NamedTuple):
    """One immutable change of a balance."""

    organization_id: str
    sequence: int
    kind: LedgerEntryKind
    credits: int
    balance_after: int
    reference_id: UUID
    """The cause: a top_up_id, a delivery_id or an adjustment's request_id. Unique per kind."""
    reason: str
    created_by: str
    create_time: datetime


_NEW_ENTRIES: RowSource[LedgerEntry] = RowSource(
    organization_id=TEXT,
    sequence=BIGINT,
    kind=(TEXT, attrgetter("kind.value")),
    credits=BIGINT,
    balance_after=BIGINT,
    reference_id=UUIDS,
)
SQL = load_queries(__file__, entry=TableColumns(LedgerEntry), new_entry=_NEW_ENTRIES)


async def append_entry(
    connection: Connection,
    account: Account,
    *,
    kind: LedgerEntryKind,
    credits: int,
    reference_id: UUID,
    now: datetime,
    reason: str = "",
    created_by: str = "",
) -> LedgerEntry:
    """Change the balance of a locked account and append its entry, once per kind and reference_id.

    A repeat changes nothing and returns the entry of the first call; the caller compares its contents.
    Raises InsufficientCredits when the balance would become negative, and BalanceAboveMaximum when it would exceed what
    an account can hold; a refund always fits.
    """
    written = await find_entry(connection, account.organization_id, kind=kind, reference_id=reference_id)
    if written is not None:
        return written
    if account.available_credits + credits < 0:
        raise InsufficientCredits(required_credits=-credits, available_credits=account.available_credits)
    if credits > 0 and kind is not LedgerEntryKind.REFUND and not account.can_hold(credits):
        raise BalanceAboveMaximum(maximum_credits=MAXIMUM_CREDITS)
    if kind is LedgerEntryKind.REFUND:
        account.refund(credits)
        crossed = False
    else:
        crossed = account.apply(credits, now=now)
    entry = LedgerEntry(
        organization_id=account.organization_id,
        sequence=account.last_sequence,
        kind=kind,
        credits=credits,
        balance_after=account.available_credits,
        reference_id=reference_id,
        reason=reason,
        created_by=created_by,
        create_time=now,
    )
    await insert_entries(connection, [entry], now=now, reason=reason, created_by=created_by)
    await write_balances(connection, [account])
    if crossed:
        await insert_low_balance_notices(connection, [account], now=now)
    return entry


async def insert_entries(
    connection: Executor,
    entries: Sequence[LedgerEntry],
    *,
    now: datetime,
    reason: str = "",
    created_by: str = "",
) -> None:
    """Insert entries. The caller has locked their accounts and stores the balances with `write_balances`.

    `now`, `reason` and `created_by` apply to all entries and replace the values in them.
    """
    constants = {"now": now, "reason": reason, "created_by": created_by}
    await _NEW_ENTRIES.write(connection, SQL.insert_entries, entries, **constants)


async def find_entry(
    connection: Connection, organization_id: str, *, kind: LedgerEntryKind, reference_id: UUID
) -> LedgerEntry | None:
    """The entry with this kind and reference_id, or None."""
    cursor = await connection.execute(
        SQL.find_entry, {"organization_id": organization_id, "kind": kind.value, "reference_id": reference_id}
    )
    row = await cursor.fetchone()
    return _entry(row) if row else None


async def list_entries(
    connection: Connection, organization_id: str, *, before_sequence: int, limit: int
) -> list[LedgerEntry]:
    """At most `limit` entries whose sequence is below `before_sequence`, newest first."""
    cursor = await connection.execute(
        SQL.list_entries, {"organization_id": organization_id, "before_sequence": before_sequence, "limit": limit}
    )
    return [_entry(row) for row in await cursor.fetchall()]


async def adjust_credits(
    pool: Pool,
    organization_id: str,
    *,
    request_id: UUID,
    credits: int,
    reason: str,
    created_by: str,
    low_balance_threshold: int,
    now: datetime,
) -> tuple[LedgerEntry, Balance]:
    """Add credits (take them when negative) once per request_id; returns the entry and the current balance.

    A repeat returns the entry of the first call. Raises RequestIdReused when the first call had other credits or
    another reason, InsufficientCredits when the balance would become negative, and BalanceAboveMaximum.
    low_balance_threshold is the threshold of an account that this call creates.
    """

    async def once() -> tuple[LedgerEntry, Balance]:
        async with transaction(pool) as connection:
            account = await lock_or_create_account(
                connection, organization_id, low_balance_threshold=low_balance_threshold, now=now
            )
            entry = await append_entry(
                connection,
                account,
                kind=LedgerEntryKind.ADJUSTMENT,
                credits=credits,
                reference_id=request_id,
                now=now,
                reason=reason,
                created_by=created_by,
            )
            if (entry.credits, entry.reason) != (credits, reason):
                raise RequestIdReused
            return entry, balance_from_account(account)

    return await retry_transient(once)


def _entry(row: tuple[Any, ...]) -> LedgerEntry:
    organization_id, sequence, kind, *rest = row
    return LedgerEntry(organization_id, sequence, LedgerEntryKind(kind), *rest)
