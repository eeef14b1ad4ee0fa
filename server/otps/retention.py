"""Retention: erases old destinations and removes old OTPs, requests and counters; never the ledger.

Also erases one destination on request. OTPs and their deliveries are removed by dropping the partitions of a week. Each
other function of retention works in steps of at most `limit` rows, which it finds without locks, and yields how many it
handled. It goes on behind rows that cannot be removed now, such as locked ones, and ends when none are left.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar
from uuid import UUID

from server.ids import first_id
from server.otps.crypto import Crypto
from server.postgres.pool import Pool, acquire, retry_transient, transaction
from server.postgres.queries import load_queries

SQL = load_queries(__file__)

Id = TypeVar("Id")

_ERASED_ROWS: Final = 500
"""The most deliveries from which one transaction erases a destination."""


async def erase_destinations(pool: Pool, *, before: datetime, limit: int) -> AsyncIterator[int]:
    """Erase the destinations of all deliveries of the OTPs that were created before `before`.

    Continues where the last run of any replica ended, and counts deliveries without a destination too. The OTPs expired
    long ago, so no resend needs the destination.
    """
    while count := await _erase_next(pool, before=before, limit=limit):
        yield count


async def erase_destination(pool: Pool, crypto: Crypto, organization_id: str, destination: str) -> int:
    """Erase what an organization's rows keep of a destination and cancel its pending OTPs; returns how many deliveries.

    `destination` is normalized. pulsa.otp.v1.OtpService.EraseDestination says what is erased and what remains. A repeat
    finds what is new since then.
    """
    digests = list(filter(None, (crypto.digest(destination), crypto.other_digest(destination))))
    values = {"organization_id": organization_id, "digests": digests}
    count = 0
    while step := await retry_transient(lambda: _erase_step(pool, values)):
        count += step
    async with transaction(pool) as connection:
        await connection.execute(SQL.remove_guess_budgets_of, values)
        await connection.execute(SQL.remove_suppressions_of, values)
    return count


async def _erase_step(pool: Pool, values: Mapping[str, object]) -> int:
    async with transaction(pool) as connection:
        found = await (await connection.execute(SQL.find_deliveries_to, {**values, "limit": _ERASED_ROWS})).fetchall()
        if found:
            ids = {"delivery_ids": [row[0] for row in found], "otp_ids": sorted({row[1] for row in found})}
            # OTPs before deliveries, as every transaction locks them.
            await connection.execute(SQL.erase_otps, {**values, "otp_ids": ids["otp_ids"]})
            key = {"organization_id": values["organization_id"], "delivery_ids": ids["delivery_ids"]}
            await connection.execute(SQL.erase_deliveries, key)
    return len(found)


async def remove_otps(pool: Pool, *, before: datetime, limit: int) -> AsyncIterator[int]:  # noqa: ARG001 - whole weeks
    """Remove the weeks of OTPs that ended before `before`, with all their deliveries; yields 1 for each table's week.

    Their ledger entries stay, and their usage is stored. Raises psycopg.errors.RaiseException at a week with a QUEUED
    delivery, and AccountBusy while a long transaction, such as a dump, uses the tables.
    """
    for table in ("deliveries", "otps"):
        while await _call(pool, SQL.remove_week, {"table": table, "before": before}):
            yield 1


async def create_partitions(pool: Pool) -> int:
    """Create the partitions of this week and the next two; returns how many were missing. Raises AccountBusy."""
    return sum([await _call(pool, SQL.create_partitions, {"table": table}) for table in ("deliveries", "otps")])


def remove_requests(pool: Pool, *, before: datetime, limit: int) -> AsyncIterator[int]:
    """Remove requests that were accepted before `before`. A repeat of one is then a new request."""
    return _remove(pool, SQL.find_old_requests, SQL.remove_requests, before=before, limit=limit)


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
            SQL.find_next_otps, {"last_otp_id": progress[0], "end_id": first_id(before), "limit": limit}
        )
        found: list[tuple[str, UUID]] = await cursor.fetchall()
        if found:
            batches = [
                {"organization_id": organization_id, "ids": ids, "first_otp_id": min(ids)}
                for organization_id, ids in _by_organization(found).items()
            ]
            await connection.cursor().executemany(SQL.erase_destinations, batches)
            await connection.execute(SQL.advance_progress, {"last_otp_id": found[-1][1]})
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


async def _call(pool: Pool, query: str, values: Mapping[str, object]) -> int:
    ((result,),) = await _find(pool, query, values)
    return int(result)


async def _find(pool: Pool, query: str, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
    async with acquire(pool, seconds=pool.timeouts.job) as connection:
        return await (await connection.execute(query, values)).fetchall()


def _by_organization(found: Iterable[tuple[str, Id]]) -> Mapping[str, list[Id]]:
    """The ids of each organization, without duplicates, in order."""
    ids: dict[str, dict[Id, None]] = defaultdict(dict)
    for organization_id, found_id in found:
        ids[organization_id][found_id] = None
    return {organization_id: list(of_organization) for organization_id, of_organization in ids.items()}
