"""Erases destinations and removes OTPs that are old: a bounded number a step, found without locks; never the ledger."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from server.database.pool import Pool, connection, pipelined_transaction
from server.database.queries import load_queries
from server.ids import first_id

SQL = load_queries(__file__)

Id = TypeVar("Id", UUID, bytes)


async def erase_destinations(pool: Pool, *, before: datetime, limit: int) -> int:
    """Forget where the next `limit` deliveries of before then went; how many were looked at, 0 at the end.

    Goes on where it, or another replica, was last. A resend of such a delivery's OTP is long impossible.
    """
    async with connection(pool) as lent:
        (mark,) = await (await lent.execute(SQL.read_mark)).fetchall()
        cursor = await lent.execute(
            SQL.find_next_deliveries, {"last_delivery_id": mark[0], "end_id": first_id(before), "limit": limit}
        )
        found: list[tuple[str, UUID]] = await cursor.fetchall()
        if found:
            shares = [{"organization_id": one, "ids": ids} for one, ids in _by_organization(found).items()]
            await lent.cursor().executemany(SQL.erase_destinations, shares)
            await lent.execute(SQL.move_mark, {"last_delivery_id": found[-1][1]})
    return len(found)


async def remove_otps(pool: Pool, *, before: datetime, limit: int) -> int:
    """Remove OTPs that were first sent before then, with all their deliveries; how many, 0 at the end.

    Their credits stay in the ledger, which does not change.
    """
    async with connection(pool) as lent:
        cursor = await lent.execute(SQL.find_old_otps, {"end_id": first_id(before), "limit": limit})
        found: list[tuple[str, UUID]] = await cursor.fetchall()
    return sum([await _remove_otps(pool, *one) for one in _by_organization(found).items()])


async def remove_guess_budgets(pool: Pool, *, before: datetime, limit: int) -> int:
    """Forget the wrong guesses at destinations that had the last of them before then; how many, 0 at the end."""
    async with connection(pool) as lent:
        cursor = await lent.execute(SQL.find_old_guess_budgets, {"before": before, "limit": limit})
        found: list[tuple[str, bytes]] = await cursor.fetchall()
        if not found:
            return 0
        shares = [
            {"organization_id": organization_id, "ids": digests, "before": before}
            for organization_id, digests in _by_organization(found).items()
        ]
        cursor = lent.cursor()
        await cursor.executemany(SQL.remove_guess_budgets, shares)
        return cursor.rowcount


async def _remove_otps(pool: Pool, organization_id: str, otp_ids: list[UUID]) -> int:
    async with pipelined_transaction(pool) as (lent, _):
        await lent.execute(SQL.need_not_wait_for_the_disk)
        old = {"organization_id": organization_id, "ids": otp_ids}
        locked = [row[0] for row in await (await lent.execute(SQL.lock_otps, old)).fetchall()]
        if locked:
            old["ids"] = locked
            await lent.execute(SQL.remove_deliveries, old)
            await lent.execute(SQL.remove_otps, old)
    return len(locked)


def _by_organization(found: Iterable[tuple[str, Id]]) -> Mapping[str, list[Id]]:
    """The ids of each organization, each once, in the order of their coming."""
    ids: dict[str, dict[Id, None]] = defaultdict(dict)
    for organization_id, one in found:
        ids[organization_id][one] = None
    return {organization_id: list(ones) for organization_id, ones in ids.items()}
