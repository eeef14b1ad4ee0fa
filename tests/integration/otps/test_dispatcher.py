"""The dispatcher: how many messages it risks while outcomes cannot be stored, and which share a transaction."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise

import pytest

from server.errors import DatabaseUnavailable
from server.otps.delivery.dispatcher import Dispatcher
from server.otps.delivery.outbox import DeliveryJob
from server.otps.delivery.outcome_policy import DeliveryResult
from server.otps.delivery.outcomes import Outcomes
from server.otps.otp import DeliveryStatus
from server.postgres.batcher import ONE_SHARD, Batching, Shards
from server.postgres.pool import Pool
from server.providers.console import Console
from server.providers.provider import Channel, Message, Outcome, OutcomeKind
from tests.integration.otps.replica import CRYPTO, LEASE, Replica, count_rows, fund, stored
from tests.shards import ShardOfEach
from tests.waiting import until

SENT, QUEUED = DeliveryStatus.SENT, DeliveryStatus.QUEUED
OpenDispatcher = Callable[[Console], Dispatcher]


class NulMessageIdConsole(Console):
    """Answers the first message with an outcome that PostgreSQL cannot store."""

    async def deliver(self, message: Message) -> Outcome:
        outcome = await super().deliver(message)
        return outcome._replace(provider_message_id="\0") if len(self.messages) == 1 else outcome


class CancelledConsole(Console):
    """Is interrupted at the first messages, as by a library that cancels what it waits for."""

    left = 2

    async def deliver(self, message: Message) -> Outcome:
        if self.left:
            self.left -= 1
            raise asyncio.CancelledError
        return await super().deliver(message)


@pytest.fixture
async def open_dispatcher(replica: Replica) -> AsyncIterator[OpenDispatcher]:
    """Opens dispatchers that run two jobs at once."""
    opened: list[Dispatcher] = []

    def open_one(console: Console) -> Dispatcher:
        providers = {Channel.EMAIL: console}
        opened.append(Dispatcher(providers, CRYPTO, replica.outcomes, concurrency=2, queue=100, clock=replica.clock))
        return opened[-1]

    yield open_one
    for dispatcher in opened:
        await dispatcher.drain(0)


@asynccontextmanager
async def exhausted(pool: Pool) -> AsyncIterator[None]:
    """Inside, no connection is to be had, as if the database were unavailable."""
    connections = [await pool.getconn() for _ in range(pool.max_size)]
    timeouts = pool.timeouts
    pool.timeouts = replace(timeouts, connection=0.02)
    yield
    pool.timeouts = timeouts
    for connection in connections:
        await pool.putconn(connection)


async def test_no_more_messages_than_a_batch_has_are_sent_while_their_outcomes_wait(
    replica: Replica, open_dispatcher: OpenDispatcher
) -> None:
    await fund(replica.pool, 10)
    jobs = [replica.job(await replica.send()) for _ in range(7)]
    console = Console(None)
    replica.outcomes.batch_size = 3
    dispatcher = open_dispatcher(console)
    async with exhausted(replica.pool):
        dispatcher.enqueue(jobs)
        await until(lambda: replica.pool.get_stats().get("requests_errors", 0) >= 1)
        assert (len(console.messages), dispatcher.free_places) == (3, 96)
    await dispatcher.idle()
    assert [message.delivery_id for message in console.messages] == [one.send.delivery_id for one in jobs]
    assert await count_rows(replica.pool, "outbox") == 0


async def test_other_work_has_its_turn_while_a_provider_answers_without_waiting(
    replica: Replica, open_dispatcher: OpenDispatcher
) -> None:
    await fund(replica.pool, 100)
    jobs = [replica.job(await replica.send()) for _ in range(80)]
    console, sent = Console(None), [0]
    dispatcher = open_dispatcher(console)

    dispatcher.enqueue(jobs)
    while sent[-1] < len(jobs):
        await asyncio.sleep(0)
        sent.append(len(console.messages))

    assert max(after - before for before, after in pairwise(sent)) <= 32
    await dispatcher.idle()
    assert await count_rows(replica.pool, "outbox") == 0


async def test_an_outcome_that_cannot_be_stored_stays_in_the_outbox_and_delays_no_other(
    replica: Replica, open_dispatcher: OpenDispatcher
) -> None:
    await fund(replica.pool, 10)
    sends = [await replica.send() for _ in range(5)]
    dispatcher = open_dispatcher(NulMessageIdConsole(None))
    for send in sends:
        dispatcher.enqueue([replica.job(send)])
        await dispatcher.idle()
    statuses = [(await stored(replica.pool, send.record.otp)).deliveries[0].status for send in sends]
    assert statuses == [QUEUED] + [SENT] * 4
    assert await count_rows(replica.pool, "outbox") == 1


async def test_an_outcome_that_cannot_be_stored_leaves_the_others_of_its_batch_stored(
    replica: Replica, open_dispatcher: OpenDispatcher
) -> None:
    await fund(replica.pool, 10)
    sends = [await replica.send() for _ in range(5)]
    replica.outcomes.linger_seconds = 0.2
    dispatcher = open_dispatcher(NulMessageIdConsole(None))
    dispatcher.enqueue([replica.job(send) for send in sends])
    await dispatcher.idle()
    statuses = [(await stored(replica.pool, send.record.otp)).deliveries[0].status for send in sends]
    assert statuses == [QUEUED] + [SENT] * 4
    assert await count_rows(replica.pool, "outbox") == 1


async def test_workers_that_are_interrupted_begin_again(replica: Replica, open_dispatcher: OpenDispatcher) -> None:
    await fund(replica.pool, 10)
    sends = [await replica.send() for _ in range(4)]
    dispatcher = open_dispatcher(CancelledConsole(None))
    dispatcher.enqueue([replica.job(send) for send in sends])
    await dispatcher.idle()
    statuses = [(await stored(replica.pool, send.record.otp)).deliveries[0].status for send in sends]
    assert statuses == [QUEUED] * 2 + [SENT] * 2


async def test_after_a_drain_no_job_is_enqueued(replica: Replica, open_dispatcher: OpenDispatcher) -> None:
    await fund(replica.pool, 10)
    console = Console(None)
    dispatcher = open_dispatcher(console)
    await dispatcher.drain(1)
    assert dispatcher.enqueue([replica.job(await replica.send())]) == 0
    await dispatcher.idle()
    assert not console.messages


@pytest.mark.parametrize(
    ("shards", "parts"), [(ONE_SHARD, ["aabb", "aba"]), (ShardOfEach(), ["aaaa", "bbb"])], ids=["one shard", "two"]
)
async def test_outcomes_are_stored_in_batches_of_one_shard(replica: Replica, shards: Shards, parts: list[str]) -> None:
    for organization_id in "ab":
        await fund(replica.pool, 10, organization_id=organization_id)
    sends = [await replica.send(organization_id=organization_id) for organization_id in "aabbaba"]
    accepted = Outcome(OutcomeKind.ACCEPTED, "console")
    batching = Batching(size=4, shards=shards)
    outcomes = Outcomes(replica.pool, batching=batching, lease=LEASE, clock=replica.clock)
    batches = outcomes.batches([DeliveryResult(replica.job(send), accepted) for send in sends])
    assert ["".join(result.job.send.organization_id for result in batch) for batch in batches] == parts


class OutcomesWithoutAWorker(Outcomes):
    """As on Citus while the worker of `lost` is away."""

    async def record(self, results: Sequence[DeliveryResult]) -> list[DeliveryJob]:
        if any(result.job.send.organization_id == "lost" for result in results):
            raise DatabaseUnavailable(retry_after_seconds=0.1)
        return await super().record(results)


async def test_outcomes_of_a_lost_worker_delay_no_others(pool: Pool) -> None:
    replica = Replica(pool)
    for organization_id in ("lost", "other"):
        await fund(pool, 100, organization_id=organization_id)
    batching = Batching(size=5, linger_seconds=0.0, shards=ShardOfEach())
    outcomes = OutcomesWithoutAWorker(pool, batching=batching, lease=LEASE, clock=replica.clock)
    console = Console(None)
    dispatcher = Dispatcher({Channel.EMAIL: console}, CRYPTO, outcomes, concurrency=2, queue=100, clock=replica.clock)
    dispatcher.enqueue([replica.job(await replica.send(organization_id="lost"))])
    await until(lambda: len(console.messages) == 1)
    others = [await replica.send(organization_id="other") for _ in range(20)]
    dispatcher.enqueue([replica.job(each) for each in others])

    async def are_stored() -> bool:
        return {(await stored(pool, each.record.otp)).deliveries[0].status for each in others} == {SENT}

    await until(are_stored)
    await dispatcher.drain(0)


class StuckConsole(Console):
    """Takes every message, and answers none."""

    async def deliver(self, message: Message) -> Outcome:
        await super().deliver(message)
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


async def test_a_provider_that_does_not_answer_leaves_slots_and_places_to_the_other_channels(replica: Replica) -> None:
    await fund(replica.pool, 1000)
    mails, messages = Console(None), StuckConsole(None)
    providers = {Channel.EMAIL: mails, Channel.SMS: messages}
    dispatcher = Dispatcher(providers, CRYPTO, replica.outcomes, concurrency=5, queue=10, clock=replica.clock)
    by_sms = [replica.job(await replica.send(f"+62812000000{number:02}", channel=Channel.SMS)) for number in range(20)]
    taken = dispatcher.enqueue(by_sms)
    await until(lambda: len(messages.messages) == 4)
    taken += dispatcher.enqueue(by_sms[taken:])
    by_mail = [replica.job(await replica.send()) for _ in range(2)]

    assert dispatcher.enqueue(by_mail) == 2
    await until(lambda: len(mails.messages) == 2)
    assert (taken, dispatcher.free_places) == (12, 0)
    await dispatcher.drain(0)
