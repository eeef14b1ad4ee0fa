"""A dispatcher that stops: what it took is finished or left in the outbox, and what found no room was never taken."""

from server.channels.channel import ChannelName
from server.channels.console import Console
from server.database.pool import Pool, connection
from server.otps.dispatch import Dispatcher
from tests.integration.otps.replica import VAULT, Replica, count_rows, fund


async def statuses(pool: Pool) -> list[str]:
    """Of the deliveries, in the order in which they were accepted."""
    async with connection(pool) as lent:
        cursor = await lent.execute("SELECT status FROM deliveries ORDER BY ledger_sequence")
        return [row[0] for row in await cursor.fetchall()]


def dispatcher_of(replica: Replica, console: Console, *, queue: int) -> Dispatcher:
    return Dispatcher({ChannelName.EMAIL: console}, VAULT, replica.outcomes, concurrency=2, queue=queue)


async def test_drain_finishes_what_fitted_and_the_outbox_keeps_the_rest(replica: Replica) -> None:
    await fund(replica.pool, 10)
    errands = [replica.errand(await replica.send()) for _ in range(6)]
    console = Console(None)
    dispatcher = dispatcher_of(replica, console, queue=4)
    assert (dispatcher.room, dispatcher.hand_over(errands), dispatcher.room) == (4, 4, 0)
    await dispatcher.drain(30)
    assert {message.delivery_id for message in console.messages} == {
        errand.delivery.delivery_id for errand in errands[:4]
    }
    assert await statuses(replica.pool) == ["SENT"] * 4 + ["QUEUED"] * 2
    assert await count_rows(replica.pool, "outbox") == 2


async def test_a_drain_without_time_leaves_what_is_unfinished_to_the_night_watch(replica: Replica) -> None:
    await fund(replica.pool, 10)
    errands = [replica.errand(await replica.send()) for _ in range(6)]
    console = Console(None)
    dispatcher = dispatcher_of(replica, console, queue=10)
    dispatcher.hand_over(errands)
    await dispatcher.drain(0)
    # In one statement: an outcome that was on its way to the database still arrives there.
    async with connection(replica.pool) as lent:
        cursor = await lent.execute(
            "SELECT count(*) FILTER (WHERE status = 'QUEUED'), count(outbox.delivery_id), count(*)"
            " FROM deliveries LEFT JOIN outbox USING (organization_id, delivery_id)"
        )
        row = await cursor.fetchone()
    assert row is not None
    queued, in_outbox, everything = row
    assert queued == in_outbox >= everything - len(console.messages)
    assert len(console.messages) <= 2
