"""The log of events: numbers without gaps in the order of the commits, and who has events."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from server.events.log import (
    Event,
    EventKind,
    EventSwitches,
    append_events,
    disable_events,
    enable_events,
    remove_events,
)
from server.postgres.pool import Pool, acquire, pipelined_transaction

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
OTHER = "other-1"
"""On Citus on the shard of acme, as a transaction has organizations of one shard."""


def events(*organization_ids: str) -> list[Event]:
    return [Event(own, EventKind.LIMIT_REACHED, {"limit": "country"}) for own in organization_ids]


async def append(pool: Pool, *organization_ids: str, now: datetime = NOW) -> None:
    async with pipelined_transaction(pool) as pipeline:
        await append_events(pipeline, events(*organization_ids), now=now)


async def numbers(pool: Pool, organization_id: str = "acme") -> list[int]:
    query = "SELECT number FROM events WHERE organization_id = %s ORDER BY number"
    async with acquire(pool) as connection:
        return [row[0] for row in await (await connection.execute(query, [organization_id])).fetchall()]


async def test_events_are_stored_for_those_who_have_them(pool: Pool) -> None:
    await enable_events(pool, "acme", now=NOW)
    await append(pool, "acme", OTHER, "acme")
    await append(pool, "acme")

    assert await numbers(pool) == [1, 2, 3]
    assert await numbers(pool, OTHER) == []


async def test_events_of_a_transaction_that_fails_are_not_stored_and_use_no_number(pool: Pool) -> None:
    await enable_events(pool, "acme", now=NOW)
    async with acquire(pool) as connection, connection.transaction(force_rollback=True):
        await append_events(connection, events("acme"), now=NOW)
    await append(pool, "acme")

    assert await numbers(pool) == [1]


async def test_no_reader_ever_finds_a_gap_while_many_transactions_write(pool: Pool) -> None:
    for own in ("acme", OTHER):
        await enable_events(pool, own, now=NOW)

    async def append_and_read(*organization_ids: str) -> list[list[int]]:
        found = []
        for _ in range(25):
            await append(pool, *organization_ids)
            found.append(await numbers(pool))
        return found

    writers = [append_and_read(*(("acme", OTHER) if each % 2 else (OTHER, "acme"))) for each in range(8)]
    found = [each for reads in await asyncio.gather(*writers) for each in reads]

    assert [each for each in found if each != list(range(1, len(each) + 1))] == []
    assert len({len(each) for each in found}) >= 25, "each writer adds one before it reads again"
    assert await numbers(pool) == await numbers(pool, OTHER) == list(range(1, 201))


async def test_enabling_again_leaves_out_a_number_and_a_repeat_does_not(pool: Pool) -> None:
    await enable_events(pool, "acme", now=NOW)
    await append(pool, "acme")
    assert await disable_events(pool, "acme", now=NOW)
    assert not await disable_events(pool, "acme", now=NOW)
    await append(pool, "acme")
    await enable_events(pool, "acme", now=NOW)
    await enable_events(pool, "acme", now=NOW)
    await append(pool, "acme")

    assert await numbers(pool) == [1, 3]


async def test_a_process_learns_of_switches_and_trusts_what_it_knows_for_seconds(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    switches = EventSwitches(pool)
    assert switches.may_be_on("acme")
    await switches.refresh(NOW)
    assert not switches.may_be_on("acme")
    assert switches.are_all_off
    await enable_events(pool, "acme", now=NOW)
    assert not switches.may_be_on("acme")
    await switches.refresh(NOW)
    assert (switches.may_be_on("acme"), switches.may_be_on("other"), switches.are_all_off) == (True, False, False)
    await disable_events(pool, "acme", now=NOW + timedelta(seconds=1))
    await switches.refresh(NOW + timedelta(seconds=1))
    assert not switches.may_be_on("acme")
    monkeypatch.setattr("server.events.log._KNOWN_SECONDS", -1.0)
    await switches.refresh(NOW)
    assert switches.may_be_on("acme")


async def test_old_events_are_removed_and_the_next_number_stays(pool: Pool) -> None:
    for own in ("acme", "other"):
        await enable_events(pool, own, now=NOW)
        for day in range(5):
            await append(pool, own, now=NOW + timedelta(days=day))

    steps = [count async for count in remove_events(pool, before=NOW + timedelta(days=3), limit=2)]
    await append(pool, "acme")

    assert steps == [2, 1, 2, 1]
    assert await numbers(pool) == [4, 5, 6]
    assert await numbers(pool, "other") == [4, 5]
