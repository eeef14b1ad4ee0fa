"""Stopping a dispatcher: each job is finished or stays in the outbox; one beyond the queue limit is not enqueued."""

import asyncio

from server.otps.delivery.dispatcher import Dispatcher
from server.postgres.pool import Pool, acquire
from server.providers.console import Console
from server.providers.provider import Channel
from tests.integration.otps.replica import CRYPTO, Replica, count_rows, fund
from tests.waiting import until


async def statuses(pool: Pool) -> list[str]:
    """Of the deliveries, in the order in which they were accepted."""
    async with acquire(pool) as connection:
        cursor = await connection.execute("SELECT status FROM deliveries ORDER BY ledger_sequence")
        return [row[0] for row in await cursor.fetchall()]


def dispatcher_of(replica: Replica, console: Console, *, queue: int) -> Dispatcher:
    return Dispatcher(
        {Channel.EMAIL: console}, CRYPTO, replica.outcomes, concurrency=2, queue=queue, clock=replica.clock
    )


async def test_drain_finishes_the_enqueued_jobs_and_the_outbox_keeps_the_rest(replica: Replica) -> None:
    await fund(replica.pool, 10)
    jobs = [replica.job(await replica.send()) for _ in range(6)]
    console = Console(None)
    dispatcher = dispatcher_of(replica, console, queue=4)
    assert (dispatcher.free_places, dispatcher.enqueue(jobs), dispatcher.free_places) == (4, 4, 0)
    await dispatcher.drain(30)
    assert {message.delivery_id for message in console.messages} == {job.send.delivery_id for job in jobs[:4]}
    assert await statuses(replica.pool) == ["SENT"] * 4 + ["QUEUED"] * 2
    assert await count_rows(replica.pool, "outbox") == 2


async def test_a_drain_without_time_leaves_unfinished_jobs_in_the_outbox(replica: Replica) -> None:
    await fund(replica.pool, 10)
    jobs = [replica.job(await replica.send()) for _ in range(6)]
    console = Console(None)
    replica.outcomes.batch_size = 2
    dispatcher = dispatcher_of(replica, console, queue=10)
    dispatcher.enqueue(jobs)
    await dispatcher.drain(0)
    # In one statement: an outcome that was on its way to the database still arrives there.
    async with acquire(replica.pool) as connection:
        cursor = await connection.execute(
            "SELECT count(*) FILTER (WHERE status = 'QUEUED'), count(outbox.delivery_id), count(*)"
            " FROM deliveries LEFT JOIN outbox USING (organization_id, delivery_id)"
        )
        row = await cursor.fetchone()
    assert row is not None
    queued, in_outbox, everything = row
    assert queued == in_outbox >= everything - len(console.messages)
    assert len(console.messages) <= 2


async def test_an_outcome_that_a_drain_interrupts_is_stored_in_the_end(replica: Replica) -> None:
    """Otherwise another replica sends the message again."""
    await fund(replica.pool, 10)
    jobs = [replica.job(await replica.send()) for _ in range(3)]
    console = Console(None)
    dispatcher = Dispatcher(
        {Channel.EMAIL: console}, CRYPTO, replica.outcomes, concurrency=4, queue=100, clock=replica.clock
    )
    connections = [await replica.pool.getconn() for _ in range(replica.pool.max_size)]
    dispatcher.enqueue(jobs)
    await until(lambda: len(console.messages) == 3)
    draining = asyncio.create_task(dispatcher.drain(3))
    await until(lambda: dispatcher.free_places == 0)  # the time is over
    for connection in connections:
        await replica.pool.putconn(connection)
    await draining

    assert await statuses(replica.pool) == ["SENT"] * 3
    assert await count_rows(replica.pool, "outbox") == 0
