"""Rows that another session has locked: they delay their own organization, or their own OTP, and nobody else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from server.errors import AccountBusy
from server.otps.delivery.dispatcher import Dispatcher
from server.otps.otp import DeliveryStatus, OtpStatus
from server.otps.send import Accepted
from server.postgres.conninfo import Timeouts
from server.postgres.pool import Pool, open_pool
from server.providers.console import Console
from server.providers.provider import Channel, Message, Outcome, OutcomeKind
from tests.integration.otps.backends import open_as_owner
from tests.integration.otps.replica import CRYPTO, Replica, fund, spent, stored
from tests.waiting import until

OTHERS = [f"other-{number}" for number in range(5)]


@asynccontextmanager
async def locked(pool: Pool, *queries: str) -> AsyncIterator[None]:
    """Inside, a session of its own holds the rows of the queries locked."""
    async with await open_as_owner(pool) as owner, owner.transaction():
        for query in queries:
            await owner.execute(query.encode())
        yield


ACCOUNT = "SELECT FROM accounts WHERE organization_id = 'acme' FOR UPDATE"


class RefusingConsole(Console):
    """Refuses every message."""

    async def deliver(self, message: Message) -> Outcome:
        await super().deliver(message)
        return Outcome(OutcomeKind.REJECTED_DESTINATION, self.name, failure_reason="refused")


@pytest.fixture
async def replica(pool: Pool) -> Replica:
    for organization_id in ("acme", *OTHERS):
        await fund(pool, 100, organization_id=organization_id)
    return Replica(pool, busy_seconds=0.5)


async def test_others_send_while_an_account_is_locked_and_its_own_sends_hear_account_busy(replica: Replica) -> None:
    async with locked(replica.pool, ACCOUNT):
        own = [asyncio.create_task(replica.send()) for _ in range(3)]
        for _ in range(3):
            await asyncio.gather(*(replica.send(organization_id=name) for name in OTHERS))
        for task in own:
            with pytest.raises(AccountBusy):
                await task
        await asyncio.gather(*(replica.send(organization_id=name) for name in OTHERS))
    await replica.send()
    assert await spent(replica.pool) == [1]


async def test_others_send_in_the_batch_in_which_an_account_is_found_locked(replica: Replica) -> None:
    async with locked(replica.pool, ACCOUNT):
        sends = [asyncio.create_task(replica.send(organization_id=name)) for name in ("acme", *OTHERS, "acme")]
        await asyncio.gather(*sends[1:-1])
        assert not sends[0].done()
        assert not sends[-1].done()
    await asyncio.gather(*sends)
    assert await spent(replica.pool) == [1, 1]


async def test_a_send_on_a_cached_account_that_is_locked_delays_nobody_else(replica: Replica) -> None:
    for _ in range(3):
        await replica.send()
    async with locked(replica.pool, ACCOUNT):
        own = asyncio.create_task(replica.send())
        await asyncio.sleep(0)
        await asyncio.gather(*(replica.send(organization_id=name) for name in OTHERS))
        assert not own.done()
    await own
    assert await spent(replica.pool) == [1] * 4


async def test_many_locked_accounts_delay_nobody_else(replica: Replica) -> None:
    names = [f"locked-{number}" for number in range(20)]
    for name in names:
        await fund(replica.pool, 100, organization_id=name)
    async with locked(replica.pool, *(ACCOUNT.replace("acme", name) for name in names)):
        own = [asyncio.create_task(replica.send(organization_id=name)) for name in names]
        await asyncio.sleep(0)
        await asyncio.gather(*(replica.send(organization_id=name) for name in OTHERS))
        assert all(isinstance(end, AccountBusy) for end in await asyncio.gather(*own, return_exceptions=True))


async def test_sends_wait_in_order_until_their_account_is_unlocked(pool: Pool) -> None:
    await fund(pool, 100)
    replica = Replica(pool, busy_seconds=60)
    async with locked(pool, ACCOUNT):
        sends = [asyncio.create_task(replica.send()) for _ in range(3)]
        await until(lambda: any(each.lock_waits for each in replica.sender._batcher._workers.values()))
        sends += [asyncio.create_task(replica.send()) for _ in range(3)]
        await asyncio.sleep(1.5 * pool.timeouts.lock)  # PostgreSQL ends a wait, and the sends wait on
    accepted = await asyncio.gather(*sends)
    sequences = [one.delivery.ledger_sequence for one in accepted]
    assert sequences == sorted(sequences)
    assert await spent(pool) == [1] * 6


async def test_a_locked_otp_delays_no_other_guess(replica: Replica) -> None:
    first, second = await replica.send(), await replica.send(organization_id=OTHERS[0])
    query = f"SELECT FROM otps WHERE organization_id = 'acme' AND otp_id = '{first.record.otp.otp_id}' FOR UPDATE"
    async with locked(replica.pool, query):
        own = asyncio.create_task(replica.verify(first.record.otp))
        await asyncio.sleep(0)
        assert (await replica.verify(second.record.otp)).status is OtpStatus.VERIFIED
        with pytest.raises(AccountBusy):
            await own
    assert (await replica.verify(first.record.otp)).status is OtpStatus.VERIFIED


async def test_two_replicas_share_one_organization(pool: Pool, other_pool: Pool) -> None:
    await fund(pool, 1000)
    counts = [0, 0]
    ended = asyncio.Event()

    async def send_until_ended(number: int, replica: Replica) -> None:
        while not ended.is_set():
            await replica.send()
            counts[number] += 1
            if sum(counts) >= 400:
                ended.set()

    replicas = [Replica(pool), Replica(other_pool)]
    await asyncio.gather(*(send_until_ended(number, replicas[number]) for number in (0, 1) for _ in range(20)))
    assert min(counts) >= 0.3 * max(counts)


async def test_a_wait_for_a_lock_is_no_outage(replica: Replica) -> None:
    pool = replica.pool
    pool.timeouts = replace(pool.timeouts, lock=0.1)
    async with locked(pool, ACCOUNT):
        with pytest.raises(AccountBusy):
            await replica.send()
    assert pool.is_available


async def test_a_frozen_replica_stops_no_other_for_longer_than_an_idle_transaction_may_last(
    pool: Pool, database_url: str
) -> None:
    await fund(pool, 100)
    frozen_pool = await open_pool(database_url, size=1, timeouts=Timeouts(idle_in_transaction=0.3))
    frozen = await frozen_pool.getconn()
    await frozen.execute("BEGIN")
    await frozen.execute(ACCOUNT.encode())
    await Replica(pool, busy_seconds=10).send()
    assert await spent(pool) == [1]
    await frozen_pool.putconn(frozen)
    await frozen_pool.close()


async def test_outcomes_of_a_locked_account_wait_by_themselves_and_are_stored(replica: Replica) -> None:
    own, other = await replica.send(), await replica.send(organization_id=OTHERS[0])
    providers = {Channel.EMAIL: RefusingConsole(None)}
    dispatcher = Dispatcher(providers, CRYPTO, replica.outcomes, concurrency=4, queue=100, clock=replica.clock)

    async def is_failed(send: Accepted) -> bool:
        return (await stored(replica.pool, send.record.otp)).deliveries[0].status is DeliveryStatus.FAILED

    async with locked(replica.pool, ACCOUNT):
        dispatcher.enqueue([replica.job(own), replica.job(other)])
        await until(lambda: is_failed(other))
        assert not await is_failed(own)
    await until(lambda: is_failed(own))
    await dispatcher.drain(10)


async def test_a_sent_message_is_recorded_while_a_refused_one_waits_for_the_account(replica: Replica) -> None:
    """Otherwise its lease would end, and another replica would send it again."""
    sent = await replica.send()
    refused = await replica.send("+6281234567890", channel=Channel.SMS)
    providers = {Channel.EMAIL: Console(None), Channel.SMS: RefusingConsole(None)}
    dispatcher = Dispatcher(providers, CRYPTO, replica.outcomes, concurrency=4, queue=100, clock=replica.clock)

    async def status_of(send: Accepted) -> DeliveryStatus:
        return (await stored(replica.pool, send.record.otp)).deliveries[0].status

    async def is_sent() -> bool:
        return await status_of(sent) is DeliveryStatus.SENT

    async with locked(replica.pool, ACCOUNT):
        dispatcher.enqueue([replica.job(sent), replica.job(refused)])
        await until(is_sent)
        assert await status_of(refused) is DeliveryStatus.QUEUED
    await dispatcher.idle()
    assert await status_of(refused) is DeliveryStatus.FAILED
