"""Statements on OTPs and deliveries: plans made for all values, on empty partitions, open few of them, and by keys."""

import re
from datetime import UTC, datetime, timedelta

import pytest

from server.ids import first_id
from server.postgres.pool import Pool, acquire
from tests.integration.postgres.test_named_queries import QUERIES, numbered

# But a search by time, which has both bounds: it reads a range of ids, in their order, and needs no rows by their keys.
BOUNDED = [
    query for query in QUERIES if "first_otp_id" in str(query.values[0]) and "before_otp_id" not in str(query.values[0])
]
MONDAY = datetime.now(UTC).date() - timedelta(days=datetime.now(UTC).weekday())
NEXT_MONDAY = datetime.combine(MONDAY + timedelta(days=7), datetime.min.time(), UTC)


@pytest.mark.plain_postgres  # reads the plan; tests/cluster/statements.py reads Citus's
@pytest.mark.parametrize("query", BOUNDED)
async def test_a_bound_leaves_earlier_weeks_closed_and_rows_are_found_by_their_keys(pool: Pool, query: str) -> None:
    names = dict.fromkeys(re.findall(r"%\((\w+)\)s", query))
    values = [f"'{first_id(NEXT_MONDAY)}'" if name == "first_otp_id" else "NULL" for name in names]
    async with acquire(pool) as connection:
        await connection.execute(f"PREPARE checked AS {numbered(query)}".encode())
        rows = await connection.execute(f"EXPLAIN EXECUTE checked ({', '.join(values)})".encode())
        plan = "\n".join(row[0] for row in await rows.fetchall() if "Update on" not in row[0])
        await connection.execute("DEALLOCATE checked")

    assert f"_{NEXT_MONDAY:%Y%m%d}" in plan
    assert f"_{MONDAY:%Y%m%d}" not in plan
    conditions = re.findall(
        r"Index (?:Only )?Scan (?:Backward )?using (?:otps|deliveries)_\w+ on .*\n +Index Cond: (.*)", plan
    )
    assert [condition for condition in conditions if " = " not in condition] == []
    assert conditions


def test_the_statements_with_a_bound_are_found() -> None:
    assert len(BOUNDED) > 15
