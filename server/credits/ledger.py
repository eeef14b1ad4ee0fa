"""The ledger: every change of a balance, written once and never changed."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from operator import attrgetter
from typing import Any, NamedTuple
from uuid import UUID

from server.credits.accounts import Account, announce_low_balances, write_balances
from server.database.arrays import bigints, texts, uuids
from server.database.pipeline import Statements
from server.database.pool import Connection
from server.database.queries import load_queries
from server.database.rows import Columns, write_rows
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


_ENTRIES: Columns[LedgerEntry] = {
    "organization_ids": (texts, attrgetter("organization_id")),
    "sequences": (bigints, attrgetter("sequence")),
    "kinds": (texts, attrgetter("kind.value")),
    "credits": (bigints, attrgetter("credits")),
    "balances_after": (bigints, attrgetter("balance_after")),
    "reference_ids": (uuids, attrgetter("reference_id")),
}


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
    constants = {"now": now, "reason": reason, "created_by": created_by}
    await write_rows(connection, SQL.insert_entries, _ENTRIES, entries, **constants)


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
