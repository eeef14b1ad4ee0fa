"""Pipelines: statements that share a round trip, each prepared once, committed all together or not at all."""

import psycopg
import pytest

from server.postgres.columns import texts
from server.postgres.pool import Pool, acquire, pipelined_transaction, transaction

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
    async with acquire(pool) as connection:
        cursor = await connection.execute("SELECT organization_id FROM accounts ORDER BY organization_id")
        return [row[0] for row in await cursor.fetchall()]


async def test_each_statement_gets_its_own_rows_in_whichever_order_they_are_fetched(pool: Pool) -> None:
    async with pipelined_transaction(pool) as pipeline:
        first = await pipeline.execute(QUOTIENT, {"number": 6, "divisor": 3})
        second = await pipeline.execute(QUOTIENT, {"number": 70_000, "divisor": 7})
        assert await second.fetchall() == [(10_000,)]
        assert await first.fetchall() == [(2,)]
        third = await pipeline.execute(QUOTIENT, {"number": 9, "divisor": 3})
    assert await third.fetchall() == [(3,)]


async def test_numbers_of_any_size_share_one_prepared_statement(one_connection: Pool) -> None:
    for number in (1, 70_000, 5_000_000_000):
        async with pipelined_transaction(one_connection) as pipeline:
            rows = await pipeline.execute("SELECT %(number)s::bigint", {"number": number})
        assert await rows.fetchall() == [(number,)]
    async with acquire(one_connection) as connection:
        cursor = await connection.execute("SELECT count(*) FROM pg_prepared_statements WHERE statement ~ 'bigint'")
        assert await cursor.fetchone() == (1,)


async def test_queued_statements_are_committed_at_the_end(pool: Pool) -> None:
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


async def test_a_failed_statement_rolls_back_the_others(pool: Pool) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        await create_and_divide(pool, divisor=0)
    assert await accounts(pool) == []


async def test_after_a_failed_statement_the_connection_is_still_usable(one_connection: Pool) -> None:
    async def backend() -> tuple[object, ...] | None:
        async with acquire(one_connection) as connection:
            return await (await connection.execute("SELECT pg_backend_pid()")).fetchone()

    before = await backend()
    for _ in range(2):  # statements after the failed one were not prepared
        with pytest.raises(psycopg.errors.DivisionByZero):
            await create_and_divide(one_connection, divisor=0)
    await create_and_divide(one_connection, divisor=1)
    assert await accounts(one_connection) == ["acme", "bolt"]
    assert await backend() == before


async def test_flushed_statements_run_in_order_and_once(pool: Pool) -> None:
    async with pipelined_transaction(pool) as pipeline:
        await pipeline.execute(CREATE, {"organization_id": "acme"})
        pipeline.flush()
        await pipeline.execute(CREATE, {"organization_id": "bolt"})
    assert await accounts(pool) == ["acme", "bolt"]


async def test_a_flushed_statement_that_fails_rolls_back_all(pool: Pool) -> None:
    async def create_twice() -> None:
        async with pipelined_transaction(pool) as pipeline:
            await pipeline.execute(CREATE, {"organization_id": "acme"})
            pipeline.flush()
            await pipeline.execute(CREATE, {"organization_id": "acme"})

    with pytest.raises(psycopg.errors.UniqueViolation):
        await create_twice()
    assert await accounts(pool) == []


async def create_and_raise(pool: Pool) -> None:
    async with pipelined_transaction(pool) as pipeline:
        await pipeline.execute(CREATE, {"organization_id": "acme"})
        await pipeline.round_trip()
        raise LookupError


async def test_a_block_that_raises_is_rolled_back(pool: Pool) -> None:
    with pytest.raises(LookupError):
        await create_and_raise(pool)
    assert await accounts(pool) == []


async def select_and_raise(pool: Pool) -> None:
    async with transaction(pool) as connection:
        await connection.execute("SELECT 1")
        raise LookupError


async def test_statements_stay_prepared_when_another_transaction_rolls_back(one_connection: Pool) -> None:
    for _ in range(3):
        async with pipelined_transaction(one_connection) as pipeline:
            rows = await pipeline.execute(QUOTIENT, {"number": 6, "divisor": 3})
        assert await rows.fetchall() == [(2,)]
        with pytest.raises(LookupError):
            await select_and_raise(one_connection)
    async with acquire(one_connection) as connection:
        cursor = await connection.execute(
            "SELECT statement FROM pg_prepared_statements WHERE statement NOT LIKE 'SET LOCAL %' ORDER BY statement"
        )
        assert await cursor.fetchall() == [("BEGIN",), ("COMMIT",), ("SELECT $1::int / $2::int",)]


@pytest.mark.plain_postgres  # reads the plan, which Citus makes for each execution
async def test_a_plan_made_for_an_empty_table_is_replaced(one_connection: Pool, database_url: str) -> None:
    async def plan() -> str:
        async with pipelined_transaction(one_connection) as pipeline:
            await pipeline.execute(FIND, {"organization_ids": texts(["acme"])})
        async with acquire(one_connection) as connection:
            cursor = await connection.execute("EXPLAIN EXECUTE pulsa_1(NULL)")
            return str(await cursor.fetchall())

    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("VACUUM ANALYZE accounts")
        assert "Index Cond" not in await plan()  # reads the whole table
        owner.execute(MANY)
        plans = [await plan() for _ in range(4)]
    assert "Index Cond" in plans[-1]
