"""Finding and claiming due deliveries: as cheap with a large outbox as with a small one, and fair."""

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
import pytest

from server.ids import new_id
from server.otps.crypto import Crypto
from server.otps.delivery.outbox import SQL, DeliveryKey, claim_due, find_due
from server.postgres.pool import Pool, acquire
from tests.integration.delivery.harness import LEASE

ROWS = 20_000
NOW = datetime.now(UTC)
CRYPTO = Crypto({"first": b"1" * 32}, digest_secrets={"d1": b"2" * 32})
COMPLETE_DELIVERIES = """
INSERT INTO otps (organization_id, otp_id, purpose, channel, locale, destination_digest, code_key_id, code_length,
    context_digest, web_otp_domain, metadata, max_attempts, create_time, expire_time)
SELECT organization_id, otp_id, 'login', 'EMAIL', '', '', 'first', 6, '', '', '{}', 5, now(), now() FROM outbox;
INSERT INTO deliveries (organization_id, delivery_id, otp_id, purpose, channel,
    destination_digest, masked_destination, credits, ledger_sequence, balance_after, create_time, update_time)
SELECT organization_id, delivery_id, otp_id, 'login', 'EMAIL', '', '', 1, 1, 1, now(), now()
FROM outbox;
"""


async def fill(pool: Pool, organization_id: str, number: int, *, due_in: timedelta) -> None:
    """Add rows to the outbox, due one after another; they have no deliveries."""
    async with acquire(pool) as connection:
        await connection.execute(
            "INSERT INTO outbox (organization_id, delivery_id, otp_id, next_attempt_time)"
            " SELECT %s, gen_random_uuid(), gen_random_uuid(), %s + number * interval '1 microsecond'"
            " FROM generate_series(1, %s) AS number",
            [organization_id, NOW + due_in, number],
        )


@pytest.fixture
async def large_outbox(pool: Pool) -> AsyncIterator[Pool]:
    await fill(pool, "busy", ROWS, due_in=timedelta(hours=1))
    yield pool
    async with acquire(pool) as connection:
        await connection.execute("DELETE FROM outbox; DELETE FROM deliveries; DELETE FROM otps")


async def pages_read(pool: Pool, query: str, **values: object) -> int:
    """How many pages of 8 KiB the query reads, found in memory or not."""
    async with acquire(pool) as connection:
        cursor = await connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}".encode(), values)
        row: Any = await cursor.fetchone()
    plan = row[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


@pytest.mark.plain_postgres  # Citus tells the pages of its coordinator only
async def test_a_large_outbox_without_due_deliveries_is_not_read(large_outbox: Pool) -> None:
    assert await pages_read(large_outbox, SQL.find_longest_due, now=NOW, limit=1000) <= 4
    assert await find_due(large_outbox, now=NOW) == {}


@pytest.mark.plain_postgres  # Citus tells the pages of its coordinator only
async def test_only_as_many_due_deliveries_are_read_as_can_be_claimed(large_outbox: Pool) -> None:
    later = NOW + timedelta(hours=2)
    for query in (SQL.find_longest_due, SQL.find_latest_due):
        # A page for each row at worst.
        assert await pages_read(large_outbox, query, now=later, limit=100) <= 100 + 4


@pytest.mark.plain_postgres  # Citus tells the pages of its coordinator only
async def test_a_claim_reads_only_what_it_claims(large_outbox: Pool, database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as owner:
        await owner.execute(COMPLETE_DELIVERIES)
        # A claim is by the database's time.
        await owner.execute("UPDATE outbox SET next_attempt_time = next_attempt_time - interval '2 hours'")
        await owner.execute("VACUUM FULL ANALYZE outbox")
        await owner.execute("ANALYZE deliveries, otps")
    later = NOW
    wanted = (await find_due(large_outbox, now=later))["busy"][:5]
    keys = [("busy", delivery_id) for delivery_id in wanted]
    values = {"organization_ids": ["busy"], "delivery_ids": wanted, "now": later}
    pages = await pages_read(large_outbox, SQL.lock_due_deliveries, **values)
    jobs = await claim_due(large_outbox, CRYPTO, keys, lease=LEASE, clock=large_outbox.clock)
    again = await claim_due(large_outbox, CRYPTO, keys, lease=LEASE, clock=large_outbox.clock)

    assert pages <= 5 * 15  # an index's depth and the row, of three tables
    assert ([job.send.delivery_id for job in jobs], again) == (wanted, [])
    assert wanted[0] not in (await find_due(large_outbox, now=later))["busy"]


async def test_what_many_organizations_have_due_is_claimed_by_one_transaction(pool: Pool, database_url: str) -> None:
    for number in range(30):
        await fill(pool, f"org-{number}", 2, due_in=-timedelta(minutes=number + 1))
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as owner:
        await owner.execute(COMPLETE_DELIVERIES)
    due = await find_due(pool, now=NOW)
    keys = [(organization_id, delivery_id) for organization_id, found in due.items() for delivery_id in found]
    of_a_shard: dict[int, list[DeliveryKey]] = defaultdict(list)
    for key in keys:
        of_a_shard[await pool.shards.ask(key[0])].append(key)

    claim = partial(claim_due, pool, CRYPTO, lease=LEASE, clock=pool.clock)
    jobs = [await claim(wanted) for wanted in of_a_shard.values()]
    again = [await claim(wanted) for wanted in of_a_shard.values()]

    assert len(keys) == 60
    assert [[job.key for job in claimed] for claimed in jobs] == list(of_a_shard.values())
    assert not any(again)
    async with acquire(pool) as connection:
        await connection.execute("DELETE FROM outbox; DELETE FROM deliveries; DELETE FROM otps")


def organizations(due: dict[str, list[UUID]]) -> dict[str, int]:
    return {organization_id: len(delivery_ids) for organization_id, delivery_ids in due.items()}


async def test_an_organization_is_found_behind_the_backlog_of_another(large_outbox: Pool) -> None:
    await fill(large_outbox, "quiet", 1, due_in=timedelta(hours=1, minutes=1))

    due = await find_due(large_outbox, now=NOW + timedelta(hours=2), limit=10)

    assert organizations(due) == {"busy": 19, "quiet": 1}


async def test_each_due_delivery_is_found_once_the_longest_overdue_first(pool: Pool) -> None:
    def minutes(ago: Sequence[int]) -> list[tuple[str, UUID, UUID, datetime]]:
        return [(f"org-{minute % 2}", UUID(int=minute), new_id(), NOW - timedelta(minutes=minute)) for minute in ago]

    async with acquire(pool) as connection:
        insert = "INSERT INTO outbox (organization_id, delivery_id, otp_id, next_attempt_time) VALUES (%s, %s, %s, %s)"
        await connection.cursor().executemany(insert, minutes([3, 1, 6, 2, 4, 5]))
    found = [await find_due(pool, now=NOW, limit=limit) for limit in (4, 100)]

    assert found == [{"org-0": [UUID(int=n) for n in (6, 4, 2)], "org-1": [UUID(int=n) for n in (5, 3, 1)]}] * 2
    async with acquire(pool) as connection:
        await connection.execute("DELETE FROM outbox")
