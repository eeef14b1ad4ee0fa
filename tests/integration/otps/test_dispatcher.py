"""A dispatcher at work: how much it risks while outcomes cannot be stored, and what shares a transaction."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from server.channels.channel import ChannelName, Message, Outcome, OutcomeKind
from server.channels.console import Console
from server.database.batcher import Batching
from server.database.pool import Pool
from server.otps.dispatch import Dispatcher
from server.otps.otp import DeliveryStatus
from server.otps.outcomes import Outcomes
from server.otps.settlement import Report
from tests.integration.otps.replica import LEASE, VAULT, Replica, count_rows, fund, stored
from tests.integration.otps.waiting import until

SENT, QUEUED = DeliveryStatus.SENT, DeliveryStatus.QUEUED
OpenDispatcher = Callable[[Console], Dispatcher]


class Confused(Console):
    """Answers about the first message with what PostgreSQL cannot store."""

    async def deliver(self, message: Message) -> Outcome:
        outcome = await super().deliver(message)
        return outcome._replace(provider_message_id="\0") if len(self.messages) == 1 else outcome


@pytest.fixture
async def open_dispatcher(replica: Replica) -> AsyncIterator[OpenDispatcher]:
    """Opens dispatchers that carry two errands at once."""
    opened: list[Dispatcher] = []

    def open_one(console: Console) -> Dispatcher:
        opened.append(Dispatcher({ChannelName.EMAIL: console}, VAULT, replica.outcomes, concurrency=2, queue=100))
        return opened[-1]

    yield open_one
    for dispatcher in opened:
        await dispatcher.drain(0)


@asynccontextmanager
async def taken(pool: Pool) -> AsyncIterator[None]:
    """Inside, the database is away: nobody is lent a connection."""
    connections = [await pool.getconn() for _ in range(pool.max_size)]
    pool.timeout, patience = 0.02, pool.timeout
    yield
    pool.timeout = patience
    for connection in connections:
        await pool.putconn(connection)


async def test_no_more_messages_leave_than_are_carried_at_once_while_their_outcomes_wait(
    replica: Replica, open_dispatcher: OpenDispatcher
) -> None:
    await fund(replica.pool, 10)
    errands = [replica.errand(await replica.send()) for _ in range(7)]
    console = Console(None)
    dispatcher = open_dispatcher(console)
    async with taken(replica.pool):
        dispatcher.hand_over(errands)
        await until(lambda: replica.pool.get_stats().get("requests_errors", 0) >= 1)
        assert (len(console.messages), dispatcher.room) == (2, 95)
    await dispatcher.idle()
    assert [message.delivery_id for message in console.messages] == [one.delivery.delivery_id for one in errands]
    assert await count_rows(replica.pool, "outbox") == 0


async def test_an_outcome_that_cannot_be_stored_is_left_to_the_night_watch_and_stops_nothing(
    replica: Replica, open_dispatcher: OpenDispatcher
) -> None:
    await fund(replica.pool, 10)
    sends = [await replica.send() for _ in range(5)]
    dispatcher = open_dispatcher(Confused(None))
    for send in sends:
        dispatcher.hand_over([replica.errand(send)])
        await dispatcher.idle()
    statuses = [(await stored(replica.pool, send.record.otp)).deliveries[0].status for send in sends]
    assert statuses == [QUEUED] + [SENT] * 4
    assert await count_rows(replica.pool, "outbox") == 1


async def test_after_a_drain_nothing_is_taken(replica: Replica, open_dispatcher: OpenDispatcher) -> None:
    await fund(replica.pool, 10)
    console = Console(None)
    dispatcher = open_dispatcher(console)
    await dispatcher.drain(1)
    assert dispatcher.hand_over([replica.errand(await replica.send())]) == 0
    await dispatcher.idle()
    assert not console.messages


@pytest.mark.parametrize(
    ("by_organization", "parts"), [(False, ["aabb", "aba"]), (True, ["aaaa", "bbb"])], ids=["PostgreSQL", "Citus"]
)
async def test_outcomes_that_share_a_transaction(replica: Replica, *, by_organization: bool, parts: list[str]) -> None:
    for organization_id in "ab":
        await fund(replica.pool, 10, organization_id=organization_id)
    sends = [await replica.send(organization_id=organization_id) for organization_id in "aabbaba"]
    accepted = Outcome(OutcomeKind.ACCEPTED, "console")
    batching = Batching(size=4, by_organization=by_organization)
    outcomes = Outcomes(replica.pool, batching=batching, lease=LEASE)
    batches = outcomes.batches([Report(replica.errand(send), accepted) for send in sends])
    assert ["".join(report.errand.delivery.organization_id for report in batch) for batch in batches] == parts
