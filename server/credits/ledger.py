"""The ledger: every change of a balance, written once and never changed."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

from server.credits.accounts import Account, announce_low_balances, write_balances
from server.database.arrays import bigints, texts, uuids
from server.database.pipeline import Statements
from server.database.pool import Connection
from server.database.queries import load_queries
from server.errors import InsufficientCredits

SQL = load_queries(__file__)


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
    """What caused it: a top-up, a delivery or an adjustment's request_id. Once per kind."""
    reason: str
    created_by: str
    create_time: datetime


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
    """Change the balance of a locked account once per kind and reference_id.

    A repeat changes nothing and gives the entry that the first call wrote; it is the caller's to compare them.
    Raises InsufficientCredits when the balance would become negative.
    """
    written = await find_entry(connection, account.organization_id, kind=kind, reference_id=reference_id)
    if written is not None:
        return written
    if account.available_credits + credits < 0:
        raise InsufficientCredits(required_credits=-credits, available_credits=account.available_credits)
    if kind is LedgerEntryKind.REFUND:
        account.give_back(credits)
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
        await announce_low_balances(connection, [account], now=now)
    return entry


async def insert_entries(
    connection: Statements,
    entries: Sequence[LedgerEntry],
    *,
    now: datetime,
    reason: str = "",
    created_by: str = "",
) -> None:
    """Write entries whose accounts the caller has locked and will write with `write_balances`."""
    await connection.execute(
        SQL.insert_entries,
        {
            "organization_ids": texts(entry.organization_id for entry in entries),
            "sequences": bigints(entry.sequence for entry in entries),
            "kinds": texts(entry.kind for entry in entries),
            "credits": bigints(entry.credits for entry in entries),
            "balances_after": bigints(entry.balance_after for entry in entries),
            "reference_ids": uuids(entry.reference_id for entry in entries),
            "reason": reason,
            "created_by": created_by,
            "now": now,
        },
    )


async def find_entry(
    connection: Connection, organization_id: str, *, kind: LedgerEntryKind, reference_id: UUID
) -> LedgerEntry | None:
    """The entry of this kind that this thing caused, or None."""
    cursor = await connection.execute(
        SQL.find_entry, {"organization_id": organization_id, "kind": kind.value, "reference_id": reference_id}
    )
    row = await cursor.fetchone()
    return _entry(row) if row else None


async def list_entries(
    connection: Connection, organization_id: str, *, before_sequence: int, limit: int
) -> list[LedgerEntry]:
    """At most `limit` entries, newest first, from the one before `before_sequence`."""
    cursor = await connection.execute(
        SQL.list_entries, {"organization_id": organization_id, "before_sequence": before_sequence, "limit": limit}
    )
    return [_entry(row) for row in await cursor.fetchall()]


def _entry(row: tuple[Any, ...]) -> LedgerEntry:
    organization_id, sequence, kind, *rest = row
    return LedgerEntry(organization_id, sequence, LedgerEntryKind(kind), *rest)
