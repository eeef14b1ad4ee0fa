"""A connection that is lost in the middle of a batch: the batch is repeated, and counts once."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from server.clock import utc_now
from server.otps.delivery.reports import report_delivery
from server.otps.otp import DeliveryStatus, OtpStatus, read_otp
from server.otps.send import Accepted
from server.postgres.pool import Pool, open_pool, run_idempotent, transaction
from server.providers.provider import OutcomeKind
from tests.fault_proxy import BreakAt, FaultProxy, proxy_to
from tests.integration.otps.backends import open_as_owner, wait_for_blocked_backend
from tests.integration.otps.replica import Replica, count_rows, fund, ledger, spent, stored
from tests.outages import end_sessions


@dataclass
class ProxiedReplica:
    """A replica whose only connection goes through a proxy that can lose it."""

    replica: Replica
    proxy: FaultProxy


@pytest.fixture
async def proxied(database_url: str) -> AsyncIterator[ProxiedReplica]:
    async with proxy_to(database_url) as (proxy, url):
        pool = await open_pool(url, size=1)
        await fund(pool, 100)
        yield ProxiedReplica(Replica(pool), proxy)
        await pool.close()


breaks = pytest.mark.parametrize("at", BreakAt)


@breaks
async def test_sends_are_charged_once_and_dispatched_once(proxied: ProxiedReplica, at: BreakAt) -> None:
    proxied.proxy.break_at(at)
    answers = await asyncio.gather(*(proxied.replica.send() for _ in range(10)))
    assert proxied.proxy.breaks == 1
    assert [answer.replayed for answer in answers] == [False] * 10
    assert await spent(proxied.replica.pool) == [1] * 10
    dispatched = [one.delivery.delivery_id for one in proxied.replica.accepted]
    assert sorted(dispatched) == sorted(answer.delivery.delivery_id for answer in answers)


@pytest.mark.plain_postgres  # on Citus every send takes the normal path
@breaks
async def test_a_lone_send_on_a_cached_account_is_charged_once(proxied: ProxiedReplica, at: BreakAt) -> None:
    for _ in range(3):
        await proxied.replica.send()
    proxied.proxy.break_at(at, statement_alone=True)
    answer = await proxied.replica.send()
    assert proxied.proxy.breaks == 1
    assert (answer.replayed, answer.delivery.ledger_sequence) == (False, 5)
    assert await spent(proxied.replica.pool) == [1] * 4
    assert [one.delivery.delivery_id for one in proxied.replica.accepted][3:] == [answer.delivery.delivery_id]


@breaks
async def test_a_right_guess_is_answered_with_ok(proxied: ProxiedReplica, at: BreakAt) -> None:
    sent = await proxied.replica.send()
    proxied.proxy.break_at(at)
    verified = await proxied.replica.verify(sent.record.otp)
    assert proxied.proxy.breaks == 1
    assert verified.status is OtpStatus.VERIFIED
    assert (await stored(proxied.replica.pool, verified)).otp == verified


@breaks
async def test_a_failure_is_refunded_once(proxied: ProxiedReplica, at: BreakAt) -> None:
    sent = await proxied.replica.send()
    proxied.proxy.break_at(at)
    await proxied.replica.record_outcome(sent, OutcomeKind.REJECTED_DESTINATION)
    assert proxied.proxy.breaks == 1
    assert [entry.kind for entry in await ledger(proxied.replica.pool)] == ["ADJUSTMENT", "SEND", "REFUND"]
    assert await count_rows(proxied.replica.pool, "outbox") == 0


@breaks
async def test_a_reported_failure_is_refunded_once(proxied: ProxiedReplica, at: BreakAt) -> None:
    delivery = (await proxied.replica.send()).delivery
    proxied.proxy.break_at(at)
    reported = await report_delivery(
        proxied.replica.pool,
        "acme",
        delivery.delivery_id,
        status=DeliveryStatus.FAILED,
        failure_reason="absent",
        refund_accepted=True,
        now=utc_now(),
    )
    assert proxied.proxy.breaks == 1
    assert (reported.status, reported.refunded) == (DeliveryStatus.FAILED, True)
    assert [entry.kind for entry in await ledger(proxied.replica.pool)] == ["ADJUSTMENT", "SEND", "REFUND"]


async def test_a_backend_that_is_terminated_while_it_waits_is_replaced_and_charges_once(pool: Pool) -> None:
    replica = Replica(pool)
    await fund(pool, 100)
    async with transaction(pool) as holder:
        await holder.execute("SELECT FROM accounts WHERE organization_id = 'acme' FOR UPDATE")
        sends = [asyncio.create_task(replica.send()) for _ in range(10)]
        victim = await wait_for_blocked_backend(pool)
        async with await open_as_owner(pool) as owner:
            await owner.execute("SELECT pg_terminate_backend(%s::integer, 0)", [victim])
        assert await wait_for_blocked_backend(pool) != victim
    answers = await asyncio.gather(*sends, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Accepted] * 10
    assert await spent(pool) == [1] * 10


async def test_reads_are_repeated_when_their_connection_is_lost(pool: Pool, database_url: str) -> None:
    await fund(pool, 100)
    replica = Replica(pool)
    otp = (await replica.send()).record.otp
    await end_sessions(database_url)
    found = await run_idempotent(pool, lambda connection: read_otp(connection, "acme", otp.otp_id))
    assert found.otp == otp
