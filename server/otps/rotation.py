"""Seals what is kept under the current key again, so that an older one may leave the ring."""

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from cryptography.exceptions import InvalidTag

from server.database.pool import Pool, allow_all_plans, connection, repeat_transient, transaction
from server.database.queries import load_queries
from server.otps.vault import Vault

SQL = load_queries(__file__)


@dataclass(frozen=True, slots=True)
class Column:
    """One that holds what is sealed."""

    name: str
    find: str
    write: str


COLUMNS: Final = (
    Column("destinations", SQL.find_destinations, SQL.write_destination),
    Column("fallbacks", SQL.find_fallbacks, SQL.write_fallbacks),
)


@dataclass(frozen=True, slots=True)
class Progress:
    """What has been done of a column so far."""

    looked_at: int = 0
    sealed_anew: int = 0
    unreadable: int = 0
    """No key of the ring opens these; they stay as they are."""


async def reseal(pool: Pool, vault: Vault, column: Column, *, at_once: int = 500) -> AsyncIterator[Progress]:
    """Seal a column's values anew where their key is not the current one; yields after each step of `at_once`.

    Safe beside everything that a server does, and to stop and to begin again at any time.
    """
    progress, organization_id, delivery_id = Progress(), "", UUID(int=0)
    while True:
        place = {"after_organization_id": organization_id, "after_delivery_id": delivery_id, "limit": at_once}
        async with connection(pool) as lent:
            rows = await (await lent.execute(column.find, place)).fetchall()
        if not rows:
            return
        old = [row for row in rows if not _is_current(row[2], vault)]
        changes = [change for row in old if (change := _change(row, vault))]
        await _write(pool, column, changes)
        progress = Progress(
            progress.looked_at + len(rows),
            progress.sealed_anew + len(changes),
            progress.unreadable + len(old) - len(changes),
        )
        yield progress
        organization_id, delivery_id, _ = rows[-1]


async def find_needed_keys(pool: Pool, *, now: datetime) -> Mapping[str, Mapping[str, int]]:
    """By key id what needs the key, and how many: `destinations`, `fallbacks` or `live OTPs`. Reads whole tables."""
    counts = {
        "destinations": SQL.count_destinations,
        "fallbacks": SQL.count_fallbacks,
        "live OTPs": SQL.count_live_otps,
    }
    needed: dict[str, dict[str, int]] = defaultdict(dict)
    async with transaction(pool) as lent:
        await allow_all_plans(lent)
        for what, query in counts.items():
            for key_id, count in await (await lent.execute(query, {"now": now})).fetchall():
                needed[key_id.decode(errors="replace")][what] = count
    return needed


async def _write(pool: Pool, column: Column, changes: Sequence[Mapping[str, Any]]) -> None:
    async def once() -> None:
        async with connection(pool) as lent:
            await lent.cursor().executemany(column.write, changes)

    if changes:
        await repeat_transient(once)


def _is_current(sealed: bytes, vault: Vault) -> bool:
    key_id = vault.current_key_id.encode()
    return sealed.startswith(bytes([len(key_id)]) + key_id)


def _change(row: tuple[Any, ...], vault: Vault) -> Mapping[str, Any] | None:
    """What writes a row's value sealed anew; None when no key opens it."""
    organization_id, delivery_id, sealed = row
    try:
        plain = vault.unseal(sealed, organization_id=organization_id)
    except (KeyError, InvalidTag, ValueError):
        return None
    return {
        "organization_id": organization_id,
        "delivery_id": delivery_id,
        "sealed": sealed,
        "sealed_anew": vault.seal(plain, organization_id=organization_id),
    }
