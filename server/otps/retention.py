"""Retention: erases old destinations and removes old OTPs, guess budgets and unverified credits; never the ledger.

Each function works in steps of at most `limit` rows, which it finds without locks, and yields how many it handled. It
goes on behind rows that cannot be removed now, such as locked ones, and ends when none are left.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeVar
from uuid import UUID

from server.errors import AccountBusy
from server.ids import first_id
from server.postgres.columns import Array, texts, uuids
from server.postgres.pool import Pool, acquire, transaction
from server.postgres.queries import Queries, load_queries

SQL = load_queries(__file__)

Id = TypeVar("Id")


async def erase_destinations(pool: Pool, *, before: datetime, limit: int) -> AsyncIterator[int]:
    """Erase the destinations of the deliveries that were created before `before`.

    Continues where the last run of any replica ended, and counts deliveries without a destination too. The OTPs of
    such deliveries expired long ago, so no resend needs the destination.
    """
    while count := await _erase_next(pool, before=before, limit=limit):
        yield count


async def remove_otps(pool: Pool, *, before: datetime, limit: int) -> AsyncIterator[int]:
    """Remove OTPs that were first sent before `before`, with all their deliveries. Their ledger entries stay."""
    values = {"last_delivery_id": UUID(int=0), "end_id": first_id(before), "limit": limit}
    while old := await _find(pool, SQL.find_old_otps, values):
        values["last_delivery_id"] = old[-1][2]
        otps = list(dict.fromkeys(row[:2] for row in old))
        count = 0
        with suppress(AccountBusy):  # a delivery is locked
            if Queries.name_shards:  # on Citus a transaction is limited to one organization
                for _, own in groupby(sorted(otps), itemgetter(0)):
                    count += await _remove_otps(pool, list(own))
            else:
                count = await _remove_otps(pool, otps)
        yield count


def remove_guess_budgets(pool: Pool, *, before: datetime, limit: int) -> AsyncIterator[int]:
    """Remove the guess budgets of destinations whose last wrong guess was before `before`."""
    return _remove(pool, SQL.find_old_guess_budgets, SQL.remove_guess_budgets, before=before, limit=limit)


def remove_unverified(pool: Pool, *, before: datetime, limit: int) -> AsyncIterator[int]:
    """Remove the unverified credits of areas whose window began before `before`."""
    return _remove(pool, SQL.find_old_unverified, SQL.remove_unverified, before=before, limit=limit)


def remove_suppressions(pool: Pool, *, before: datetime, limit: int) -> AsyncIterator[int]:
    """Remove the suppressions that ended before `before`."""
    return _remove(pool, SQL.find_old_suppressions, SQL.remove_suppressions, before=before, limit=limit)


async def _erase_next(pool: Pool, *, before: datetime, limit: int) -> int:
    async with acquire(pool, seconds=pool.timeouts.job) as connection:
        (progress,) = await (await connection.execute(SQL.read_progress)).fetchall()
        cursor = await connection.execute(
            SQL.find_next_deliveries, {"last_delivery_id": progress[0], "end_id": first_id(before), "limit": limit}
        )
        found: list[tuple[str, UUID]] = await cursor.fetchall()
        if found:
            batches = [
                {"organization_id": organization_id, "ids": ids}
                for organization_id, ids in _by_organization(found).items()
            ]
            await connection.cursor().executemany(SQL.erase_destinations, batches)
            await connection.execute(SQL.advance_progress, {"last_delivery_id": found[-1][1]})
    return len(found)


async def _remove(pool: Pool, find: str, remove: str, *, before: datetime, limit: int) -> AsyncIterator[int]:
    """Remove rows by their time, oldest first."""
    after = datetime.min.replace(tzinfo=UTC)
    while found := await _find(pool, find, {"after": after, "before": before, "limit": limit}):
        batches = [
            {"organization_id": organization_id, "ids": ids, "before": before}
            for organization_id, ids in _by_organization([(row[0], row[1]) for row in found]).items()
        ]
        async with acquire(pool, seconds=pool.timeouts.job) as connection:
            cursor = connection.cursor()
            await cursor.executemany(remove, batches)
        yield cursor.rowcount
        last: datetime = found[-1][2]
        if last == after and not cursor.rowcount:  # all rows of this time are locked
            last += timedelta.resolution
        after = last


async def _find(pool: Pool, query: str, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
    async with acquire(pool, seconds=pool.timeouts.job) as connection:
        return await (await connection.execute(query, values)).fetchall()


async def _remove_otps(pool: Pool, old: Sequence[tuple[str, UUID]]) -> int:
    async with transaction(pool, seconds=pool.timeouts.job) as connection:
        await connection.execute(SQL.commit_asynchronously)
        locked = await (await connection.execute(SQL.lock_otps, _columns(old))).fetchall()
        if locked:
            await connection.execute(SQL.remove_deliveries, _columns(locked))
            await connection.execute(SQL.remove_otps, _columns(locked))
    return len(locked)


def _columns(otps: Sequence[tuple[str, UUID]]) -> dict[str, Array]:
    return {"organization_ids": texts(key[0] for key in otps), "otp_ids": uuids(key[1] for key in otps)}


def _by_organization(found: Iterable[tuple[str, Id]]) -> Mapping[str, list[Id]]:
    """The ids of each organization, without duplicates, in order."""
    ids: dict[str, dict[Id, None]] = defaultdict(dict)
    for organization_id, found_id in found:
        ids[organization_id][found_id] = None
    return {organization_id: list(of_organization) for organization_id, of_organization in ids.items()}
