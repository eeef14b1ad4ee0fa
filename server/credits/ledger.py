"""The ledger: every change of a balance as one immutable entry, and an operator's adjustments.

A caller locks the account, appends the entry and stores the balance in one transaction.
"""

import hmac
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from operator import attrgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

from server.credits.accounts import (
    MAXIMUM_CREDITS,
    Account,
    Request,
    RequestMemory,
    balance_event,
    find_answer,
    insert_low_balance_notices,
    insert_request,
    lock_or_create_account,
    write_balances,
)
from server.credits.balances import Balance, balance_from_account
from server.errors import BalanceAboveMaximum, InsufficientCredits, RequestIdReused
from server.events.log import append_events
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
DIGEST: Final = """sha256(
        string_agg(
            int8send(sequence) || int8send(credits) || int8send(balance_after) || uuid_send(reference_id)
                || timestamptz_send(create_time),
            ''::bytea ORDER BY sequence
        ) || convert_to(coalesce(
            jsonb_agg(jsonb_build_array(sequence, kind, reason, created_by) ORDER BY sequence)
                FILTER (WHERE kind <> 'SEND' OR reason <> '' OR created_by <> '')::text, ''
        ), 'UTF8')
    )"""
"""The digest of one organization's entries, as a SQL aggregate: all their columns, unambiguously; NULL without entries.

Numbers, ids and times have a fixed length. An entry whose texts are not listed is a SEND, with the other texts empty:
listing those would take most of the time. A changed digest needs new names of the MACs, such as `entry 2`.
"""
SQL = load_queries(__file__, entry=TableColumns(LedgerEntry), new_entry=_NEW_ENTRIES, digest=DIGEST)
_KINDS_WITH_OWN_MAC: Final = {LedgerEntryKind.TOP_UP, LedgerEntryKind.ADJUSTMENT}


class AuditKeys:
    """Makes and checks MACs (HMAC-SHA-256): the last key of the ring makes them, every key checks them."""

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        self._secrets = secrets
        self._current_key_id = tuple(secrets)[-1]

    def make(self, *parts: bytes) -> tuple[str, bytes]:
        """The current key's id, and the MAC of the parts: the first says of what it is, such as `entry 1`."""
        return self._current_key_id, self._mac(self._current_key_id, parts)

    def objection(self, key_id: str, mac: bytes, *parts: bytes) -> str | None:
        """Why this is not the MAC of the parts; None when it is."""
        if key_id not in self._secrets:
            return f"its key {key_id} is not in PULSA_AUDIT_KEYS"
        return None if hmac.compare_digest(mac, self._mac(key_id, parts)) else "its MAC is wrong"

    def _mac(self, key_id: str, parts: Sequence[bytes]) -> bytes:
        message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.digest(self._secrets[key_id], message, "sha256")


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
    audit_keys: AuditKeys | None = None,
) -> LedgerEntry:
    """Change the balance of a locked account and append its entry, once per kind and reference_id.

    A repeat changes nothing and returns the entry of the first call; the caller compares its contents. With audit_keys
    a TOP_UP and an ADJUSTMENT get a MAC of their own.
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
    was_low = account.low_balance_since is not None
    if kind is LedgerEntryKind.REFUND:
        account.refund(credits)
    else:
        account.apply(credits, now=now)
    is_low = account.low_balance_since is not None
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
    if audit_keys and kind in _KINDS_WITH_OWN_MAC:
        key = {"organization_id": entry.organization_id, "sequence": entry.sequence}
        for (digest,) in await (await connection.execute(SQL.digest_entry, key)).fetchall():
            await insert_entry_mac(connection, audit_keys, entry.organization_id, entry.sequence, digest)
    await write_balances(connection, [account])
    if is_low and not was_low:
        await insert_low_balance_notices(connection, [account], now=now)
    if is_low is not was_low:
        await append_events(connection, [balance_event(account, is_low=is_low)], now=now)
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
    await _NEW_ENTRIES.write(connection, SQL.insert_entries, rows=entries, **constants)


async def insert_entry_mac(
    connection: Connection, audit_keys: AuditKeys, organization_id: str, sequence: int, digest: bytes
) -> None:
    """Store the MAC of one entry, whose DIGEST this is."""
    key_id, mac = audit_keys.make(*entry_parts(organization_id, digest))
    values = {"organization_id": organization_id, "sequence": sequence, "key_id": key_id, "mac": mac}
    await connection.execute(SQL.insert_entry_mac, values)


def entry_parts(organization_id: str, digest: bytes) -> tuple[bytes, ...]:
    """What the MAC of one entry is of."""
    return b"entry 1", organization_id.encode(), digest


async def find_entry(
    connection: Connection, organization_id: str, *, kind: LedgerEntryKind, reference_id: UUID
) -> LedgerEntry | None:
    """The entry with this kind and reference_id, or None."""
    cursor = await connection.execute(
        SQL.find_entry, {"organization_id": organization_id, "kind": kind.value, "reference_id": reference_id}
    )
    row = await cursor.fetchone()
    return entry_from_row(row) if row else None


async def list_entries(
    connection: Connection, organization_id: str, *, before_sequence: int, limit: int
) -> list[LedgerEntry]:
    """At most `limit` entries whose sequence is below `before_sequence`, newest first."""
    cursor = await connection.execute(
        SQL.list_entries, {"organization_id": organization_id, "before_sequence": before_sequence, "limit": limit}
    )
    return [entry_from_row(row) for row in await cursor.fetchall()]


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
    memory: RequestMemory | None = None,
    audit_keys: AuditKeys | None = None,
) -> tuple[LedgerEntry, Balance]:
    """Add credits (take them when negative) once per request_id; returns the entry and the current balance.

    A repeat returns the entry of the first call. Raises RequestIdReused when the first call had other credits or
    another reason, RequestIdExpired for a request_id that `memory` lacks, InsufficientCredits when the
    balance would become negative, and BalanceAboveMaximum.
    low_balance_threshold is the threshold of an account that this call creates.
    """
    contents = json.dumps([credits, reason]).encode()
    key, request = (organization_id, request_id), Request("AdjustCredits", sha256(contents).digest(), request_id)

    async def once() -> tuple[LedgerEntry, Balance]:
        async with transaction(pool) as connection:
            account = await lock_or_create_account(
                connection, organization_id, low_balance_threshold=low_balance_threshold, now=now
            )
            if await find_answer(connection, key, request, memory=memory or RequestMemory(), now=now) is None:
                await insert_request(connection, key, request, now=now)
            entry = await append_entry(
                connection,
                account,
                kind=LedgerEntryKind.ADJUSTMENT,
                credits=credits,
                reference_id=request_id,
                now=now,
                reason=reason,
                created_by=created_by,
                audit_keys=audit_keys,
            )
            if (entry.credits, entry.reason) != (credits, reason):
                raise RequestIdReused
            return entry, balance_from_account(account)

    return await retry_transient(once)


def entry_from_row(row: tuple[Any, ...]) -> LedgerEntry:
    """Build an entry from a row of its columns."""
    organization_id, sequence, kind, *rest = row
    return LedgerEntry(organization_id, sequence, LedgerEntryKind(kind), *rest)
