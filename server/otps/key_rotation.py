"""Key rotation: encrypts stored values again with the current key, so that older keys can leave the key ring.

A digest cannot be made again from what is stored. It is looked up by both keys of the ring until it no longer counts.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from cryptography.exceptions import InvalidTag

from server.ids import first_otp_id
from server.otps.crypto import Crypto
from server.postgres.pool import Pool, acquire, retry_transient, transaction
from server.postgres.queries import load_queries
from server.postgres.sessions import allow_all_plans

SQL = load_queries(__file__)


@dataclass(frozen=True, slots=True)
class Column:
    """An encrypted column, and the queries that read and write its values."""

    name: str
    find: str
    write: str


COLUMNS: Final = (
    Column("destinations", SQL.find_destinations, SQL.write_destination),
    Column("fallbacks", SQL.find_fallbacks, SQL.write_fallbacks),
)


@dataclass(frozen=True, slots=True)
class Progress:
    """How many values of a column were handled so far."""

    checked: int = 0
    resealed: int = 0
    unreadable: int = 0
    """Values that no key of the key ring decrypts; they are not changed."""


async def reseal(pool: Pool, crypto: Crypto, column: Column, *, batch_size: int = 500) -> AsyncIterator[Progress]:
    """Encrypt a column's values again whose key is not the current one; yields after each batch.

    Safe while servers run. May be stopped and started again at any time.
    """
    progress, organization_id, delivery_id = Progress(), "", UUID(int=0)
    while True:
        after = {"after_organization_id": organization_id, "after_delivery_id": delivery_id, "limit": batch_size}
        async with acquire(pool, seconds=pool.timeouts.job) as connection:
            rows = await (await connection.execute(column.find, after)).fetchall()
        if not rows:
            return
        old = [row for row in rows if not _is_current(row[2], crypto)]
        changes = [change for row in old if (change := _change(row, crypto))]
        await _write(pool, column, changes)
        progress = Progress(
            progress.checked + len(rows),
            progress.resealed + len(changes),
            progress.unreadable + len(old) - len(changes),
        )
        yield progress
        organization_id, delivery_id, _ = rows[-1]


async def find_needed_keys(pool: Pool, *, now: datetime) -> Mapping[str, Mapping[str, int]]:
    """By key id, how many `destinations`, `fallbacks` and `live OTPs` need the key. Reads whole tables."""
    counts = {
        "destinations": SQL.count_destinations,
        "fallbacks": SQL.count_fallbacks,
        "live OTPs": SQL.count_live_otps,
    }
    needed: dict[str, dict[str, int]] = defaultdict(dict)
    async with transaction(pool, seconds=pool.timeouts.job) as connection:
        await allow_all_plans(connection)
        for what, query in counts.items():
            for key_id, count in await (await connection.execute(query, {"now": now})).fetchall():
                needed[key_id.decode(errors="replace")][what] = count
    return needed


async def find_digest_uses(pool: Pool) -> Mapping[str, datetime]:
    """By digest key id, when a send had its newest digest. Reads a whole table."""
    async with transaction(pool, seconds=pool.timeouts.job) as connection:
        await allow_all_plans(connection)
        rows = await (await connection.execute(SQL.find_digest_uses)).fetchall()
    return {key_id.decode(errors="replace"): time for key_id, time in rows}


async def _write(pool: Pool, column: Column, changes: Sequence[Mapping[str, Any]]) -> None:
    async def once() -> None:
        async with acquire(pool, seconds=pool.timeouts.job) as connection:
            await connection.cursor().executemany(column.write, changes)

    if changes:
        await retry_transient(once)


def _is_current(sealed: bytes, crypto: Crypto) -> bool:
    key_id = crypto.current_key_id.encode()
    return sealed.startswith(bytes([len(key_id)]) + key_id)


def _change(row: tuple[Any, ...], crypto: Crypto) -> Mapping[str, Any] | None:
    """The parameters that write a row's value encrypted again; None when no key decrypts it."""
    organization_id, delivery_id, sealed = row
    try:
        plain = crypto.unseal(sealed, organization_id=organization_id)
    except (KeyError, InvalidTag, ValueError):
        return None
    return {
        "organization_id": organization_id,
        "delivery_id": delivery_id,
        "first_otp_id": first_otp_id(delivery_id),
        "sealed": sealed,
        "resealed": crypto.seal(plain, organization_id=organization_id),
    }
