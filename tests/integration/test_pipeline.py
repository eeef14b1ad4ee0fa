"""Pipelines: statements that share a round trip, each prepared once, all of one transaction or none."""

import psycopg
import pytest

from server.database.arrays import texts
from server.database.pool import Pool, connection, pipelined_transaction, transaction

CREATE = """
INSERT INTO accounts (organization_id, low_balance_threshold, low_balance_since, window_start_time, create_time)
VALUES (%(organization_id)s, 100, now(), now(), now())
"""
FIND = """
SELECT organization_id, available_credits
FROM unnest(%(organization_ids)s::text[]) AS wanted (organization_id) JOIN accounts USING (organization_id)
"""
MANY = """
INSERT INTO accounts (organization_id, low_balance_threshold, low_balance_since, window_start_time, create_time)
SELECT 'organization-' || number, 100, now(), now(), now() FROM generate_series(1, 1000) AS number
"""
QUOTIENT = "SELECT %(number)s::int / %(divisor)s::int"


async def accounts(pool: Pool) -> list[str]:
    async with connection(pool) as lent:
        cursor = await lent.execute("SELECT organization_id FROM accounts ORDER BY organization_id")
        return [row[0] for row in await cursor.fetchall()]


async def test_each_statement_gets_its_own_rows_whichever_is_asked_for_first(pool: Pool) -> None:
    async with pipelined_transaction(pool) as pipeline:
        first = await pipeline.execute(QUOTIENT, {"number": 6, "divisor": 3})
        second = await pipeline.execute(QUOTIENT, {"number": 70_000, "divisor": 7})
        assert await second.fetchall() == [(10_000,)]
        assert await first.fetchall() == [(2,)]
        third = await pipeline.execute(QUOTIENT, {"number": 9, "divisor": 3})
    assert await third.fetchall() == [(3,)]


async def test_what_is_queued_is_committed_at_the_end(pool: Pool) -> None:
    async with pipelined_transaction(pool) as pipeline:
        for organization_id in ("acme", "bolt"):
            await pipeline.execute(CREATE, {"organization_id": organization_id})
    assert await accounts(pool) == ["acme", "bolt"]


async def create_and_divide(pool: Pool, *, divisor: int) -> None:
    async with pipelined_transaction(pool) as pipeline:
        await pipeline.execute(CREATE, {"organization_id": "acme"})
        await pipeline.execute(QUOTIENT, {"number": 1, "divisor": divisor})
        await pipeline.execute(CREATE, {"organization_id": "bolt"})
        await pipeline.execute(FIND, {"organization_ids": texts(["acme"])})


async def test_a_statement_that_fails_undoes_the_others(pool: Pool) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        await create_and_divide(pool, divisor=0)
    assert await accounts(pool) == []


async def test_a_refused_statement_leaves_the_connection_as_it_was(one_connection: Pool) -> None:
    async def backend() -> tuple[object, ...] | None:
        async with connection(one_connection) as lent:
            return await (await lent.execute("SELECT pg_backend_pid()")).fetchone()

    before = await backend()
    for _ in range(2):  # what comes after the failure is not prepared by them
        with pytest.raises(psycopg.errors.DivisionByZero):
            await create_and_divide(one_connection, divisor=0)
    await create_and_divide(one_connection, divisor=1)
    assert await accounts(one_connection) == ["acme", "bolt"]
    assert await backend() == before


async def test_what_was_sent_ahead_is_done_in_order_and_only_once(pool: Pool) -> None:
    async with pipelined_transaction(pool) as pipeline:
        await pipeline.execute(CREATE, {"organization_id": "acme"})
        pipeline.hasten()
        await pipeline.execute(CREATE, {"organization_id": "bolt"})
        pipeline.send_commit()
    assert await accounts(pool) == ["acme", "bolt"]


async def test_a_commit_that_was_sent_ahead_and_refused_undoes_all(pool: Pool) -> None:
    async def create_twice() -> None:
        async with pipelined_transaction(pool) as pipeline:
            await pipeline.execute(CREATE, {"organization_id": "acme"})
            await pipeline.execute(CREATE, {"organization_id": "acme"})
            pipeline.send_commit()

    with pytest.raises(psycopg.errors.UniqueViolation):
        await create_twice()
    assert await accounts(pool) == []


async def create_and_raise(pool: Pool) -> None:
    async with pipelined_transaction(pool) as pipeline:
        await pipeline.execute(CREATE, {"organization_id": "acme"})
        await pipeline.round_trip()
        raise LookupError


async def test_a_block_that_raises_undoes_what_it_did(pool: Pool) -> None:
    with pytest.raises(LookupError):
        await create_and_raise(pool)
    assert await accounts(pool) == []


async def select_and_raise(pool: Pool) -> None:
    async with transaction(pool) as lent:
        await lent.execute("SELECT 1")
        raise LookupError


async def test_statements_stay_prepared_when_another_transaction_rolls_back(one_connection: Pool) -> None:
    for _ in range(3):
        async with pipelined_transaction(one_connection) as pipeline:
            rows = await pipeline.execute(QUOTIENT, {"number": 6, "divisor": 3})
        assert await rows.fetchall() == [(2,)]
        with pytest.raises(LookupError):
            await select_and_raise(one_connection)
    async with connection(one_connection) as lent:
        cursor = await lent.execute("SELECT statement FROM pg_prepared_statements ORDER BY name")
        assert await cursor.fetchall() == [("BEGIN",), ("COMMIT",), ("SELECT $1::int / $2::int",)]


async def test_a_plan_that_was_made_for_an_empty_table_is_not_kept(one_connection: Pool, database_url: str) -> None:
    async def plan() -> str:
        async with pipelined_transaction(one_connection) as pipeline:
            await pipeline.execute(FIND, {"organization_ids": texts(["acme"])})
        async with connection(one_connection) as lent:
            cursor = await lent.execute("EXPLAIN EXECUTE pulsa_1(NULL)")
            return str(await cursor.fetchall())

    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("VACUUM ANALYZE accounts")
        assert "Index Cond" not in await plan()  # reads all of it
        owner.execute(MANY)
        plans = [await plan() for _ in range(4)]
    assert "Index Cond" in plans[-1]
