"""Entry nodes: a batch goes to the worker that has its organizations, as far as that is known and answers."""

import pytest
from psycopg_pool import PoolClosed

from server.postgres.conninfo import Timeouts, address_of
from server.postgres.pool import Pool, open_pool, pipelined_transaction
from server.postgres.shards import Shard
from tests.waiting import until

SECONDS = Timeouts(connection=5, transaction=5)


async def open_with_entry(url: str, entry_url: str) -> Pool:
    """A pool with an entry node, which believes that "acme" is on the host of `url`, and "bob" elsewhere."""
    pool = await open_pool(url, size=1, timeouts=SECONDS, entry_urls=[entry_url])
    for each in (pool, *pool.entries):
        await each.putconn(await each.getconn())
    pool.shards.replace([Shard(1, -100, *address_of(url)), Shard(2, 0, "elsewhere", 1)])
    pool.shards._hashes.update(acme=-5, bob=5)
    return pool


async def test_a_batch_goes_through_the_worker_of_its_organizations(database_url: str) -> None:
    pool = await open_with_entry(database_url, database_url)
    (entry,) = pool.entries
    assert pool.near("acme") is entry
    assert pool.near("bob") is entry  # its worker is no entry node: any other will do
    assert pool.near("unknown") is pool
    before = entry.last_success
    async with pipelined_transaction(pool, near="acme") as pipeline:
        assert await (await pipeline.execute("SELECT 1", {})).fetchall() == [(1,)]
    assert entry.last_success > before
    await pool.close()
    with pytest.raises(PoolClosed):
        await entry.getconn()


async def test_without_its_entry_nodes_a_batch_goes_through_the_coordinator(database_url: str) -> None:
    pool = await open_with_entry(database_url, database_url)
    (entry,) = pool.entries
    outages: list[bool] = []
    pool.on_change = outages.append
    entry._set_available(available=False)
    assert pool.near("acme") is pool
    assert pool.is_available
    entry._set_available(available=True)
    await until(lambda: pool.near("acme") is entry)
    assert outages == []
    await pool.close()


async def test_one_postgresql_has_no_other_entry(pool: Pool) -> None:
    assert pool.near("acme") is pool
