"""Erases destinations and removes OTPs that are old: a bounded number a step, found without locks; never the ledger."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import TypeVar
from uuid import UUID

from server.database.arrays import Array, texts, uuids
from server.database.pool import Pool, connection, transaction
from server.database.queries import Queries, load_queries
from server.ids import first_id

SQL = load_queries(__file__)

Id = TypeVar("Id")


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
    if Queries.name_shards:  # a transaction is of one organization
        return sum([await _remove_otps(pool, list(own)) for _, own in groupby(sorted(found), itemgetter(0))])
    return await _remove_otps(pool, found) if found else 0


async def remove_guess_budgets(pool: Pool, *, before: datetime, limit: int) -> int:
    """Forget the wrong guesses at destinations that had the last of them before then; how many, 0 at the end."""
    return await _remove(pool, SQL.find_old_guess_budgets, SQL.remove_guess_budgets, before=before, limit=limit)


async def remove_unverified(pool: Pool, *, before: datetime, limit: int) -> int:
    """Forget what was spent in windows that began before then; how many areas, 0 at the end."""
    return await _remove(pool, SQL.find_old_unverified, SQL.remove_unverified, before=before, limit=limit)


async def _remove(pool: Pool, find: str, remove: str, *, before: datetime, limit: int) -> int:
    async with connection(pool) as lent:
        cursor = await lent.execute(find, {"before": before, "limit": limit})
        found: list[tuple[str, str | bytes]] = await cursor.fetchall()
        if not found:
            return 0
        shares = [
            {"organization_id": organization_id, "ids": ids, "before": before}
            for organization_id, ids in _by_organization(found).items()
        ]
        cursor = lent.cursor()
        await cursor.executemany(remove, shares)
        return cursor.rowcount


async def _remove_otps(pool: Pool, old: Sequence[tuple[str, UUID]]) -> int:
    async with transaction(pool) as lent:
        await lent.execute(SQL.need_not_wait_for_the_disk)
        locked = await (await lent.execute(SQL.lock_otps, _columns(old))).fetchall()
        if locked:
            await lent.execute(SQL.remove_deliveries, _columns(locked))
            await lent.execute(SQL.remove_otps, _columns(locked))
    return len(locked)


def _columns(otps: Sequence[tuple[str, UUID]]) -> dict[str, Array]:
    return {"organization_ids": texts(key[0] for key in otps), "otp_ids": uuids(key[1] for key in otps)}


def _by_organization(found: Iterable[tuple[str, Id]]) -> Mapping[str, list[Id]]:
    """The ids of each organization, each once, in the order of their coming."""
    ids: dict[str, dict[Id, None]] = defaultdict(dict)
    for organization_id, one in found:
        ids[organization_id][one] = None
    return {organization_id: list(ones) for organization_id, ones in ids.items()}
