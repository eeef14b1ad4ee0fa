"""On a Citus cluster: what the organizations of the other worker notice while one is lost."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from server.credits.balances import Balances, BalanceStreams
from server.errors import DatabaseUnavailable
from server.events.log import EventSwitches, enable_events
from server.ids import new_id
from server.otps.admission import SendLimits
from server.otps.effective_settings import OperatorSettings
from server.otps.expiry import tell_expired
from server.otps.settings_cache import SettingsCache
from server.otps.sms_pumping import ALL_AREAS
from server.postgres.batcher import Batching
from server.postgres.pool import Pool, open_pool
from tests.conftest import TIMEOUTS

ACCOUNTS = """
INSERT INTO accounts (organization_id, low_balance_threshold, window_start_time, create_time)
SELECT 'organization-' || number, 0, now(), now()
FROM generate_series(1, 20) AS number
"""
SETTINGS = """
INSERT INTO organization_settings (organization_id, version, settings, changed_fields, updated_by, create_time)
SELECT organization_id, 1, '{}', '{}', 'owner', now() - %s
FROM accounts
WHERE organization_id = %s
"""
EXPIRED = """
INSERT INTO otps (
    organization_id, otp_id, purpose, channel, locale, destination_digest, code_key_id, code_length, context_digest,
    web_otp_domain, metadata, max_attempts, create_time, expire_time
)
SELECT organization_id, %(otp_id)s, 'login', 'SMS', 'en', '', 'k1', 6, '', '', '{}', 5, %(now)s, %(now)s
FROM accounts
WHERE organization_id = ANY(%(organization_ids)s)
"""
WORKER_OF = """
SELECT nodeid
FROM accounts
JOIN pg_dist_placement ON shardid = get_shard_id_for_distribution_column('accounts', organization_id)
JOIN pg_dist_node USING (groupid)
WHERE organization_id = %s
"""


class Cluster:
    """The test's database, with an organization on each of two workers."""

    def __init__(self, url: str, owner: psycopg.Connection) -> None:
        self.url = url
        self._owner = owner
        owner.execute(ACCOUNTS)
        by_worker = {self._worker_of(f"organization-{number}"): f"organization-{number}" for number in range(1, 21)}
        (self._worker, self.lost), (_, self.other) = list(by_worker.items())[:2]
        # The later change is the other worker's.
        owner.execute(SETTINGS, [timedelta(hours=1), self.lost])
        owner.execute(SETTINGS, [timedelta(0), self.other])

    def _worker_of(self, organization_id: str) -> int:
        ((worker,),) = self._owner.execute(WORKER_OF, [organization_id]).fetchall()
        return int(worker)

    def let_expire(self, *organization_ids: str, now: datetime) -> None:
        """An OTP of each organization expires now."""
        values = {"organization_ids": list(organization_ids), "otp_id": new_id(now), "now": now}
        self._owner.execute(EXPIRED, values)

    @contextmanager
    def without_a_worker(self) -> Iterator[None]:
        """Nobody answers at the worker of `lost`, for new sessions at the coordinator."""
        query = "UPDATE pg_dist_node SET nodeport = nodeport + %s WHERE nodeid = %s"
        self._owner.execute(query, [10_000, self._worker])
        try:
            yield
        finally:
            self._owner.execute(query, [-10_000, self._worker])


@pytest.fixture
def cluster(database_url: str) -> Iterator[Cluster]:
    with psycopg.connect(database_url, autocommit=True) as owner:
        yield Cluster(database_url, owner)


async def test_a_server_that_starts_then_knows_the_settings_of_the_others_and_later_of_all(cluster: Cluster) -> None:
    cache = SettingsCache(OperatorSettings(areas=ALL_AREAS, limits=SendLimits()))
    with cluster.without_a_worker():
        pool = await open_pool(cluster.url, size=2, timeouts=TIMEOUTS, on_connect=cache.read)
        await cache.refresh(pool)
        assert cache.known(cluster.other, 1) is not None
        assert cache.known(cluster.lost, 1) is None
    await cache.refresh(pool)
    assert cache.known(cluster.lost, 1) is not None
    await pool.close()


async def test_only_the_streams_of_its_own_organizations_end(cluster: Cluster, pool: Pool) -> None:
    balances = Balances(pool, low_balance_threshold=0, batching=Batching(size=10, linger_seconds=0))
    streams = BalanceStreams(balances, poll_seconds=0.01, spending_seconds=0.01, repeat_seconds=0.01)
    await balances.get(cluster.other)  # the pool knows the shards now
    with cluster.without_a_worker():
        async with aclosing(streams.follow(cluster.other)) as other, aclosing(streams.follow(cluster.lost)) as lost:
            first = asyncio.create_task(anext(lost))
            for _ in range(5):
                assert (await asyncio.wait_for(anext(other), 10)).organization_id == cluster.other
            with pytest.raises(DatabaseUnavailable):
                await asyncio.wait_for(first, 10)
            assert (await asyncio.wait_for(anext(other), 10)).organization_id == cluster.other


async def test_expired_otps_of_the_others_are_told_then_and_later_all(cluster: Cluster, database_url: str) -> None:
    now = datetime.now(UTC)
    pool = await open_pool(database_url, size=2, timeouts=TIMEOUTS)
    for organization_id in (cluster.lost, cluster.other):
        await enable_events(pool, organization_id, now=now - timedelta(minutes=1))
        await pool.shards.ask(organization_id)
    cluster.let_expire(cluster.lost, cluster.other, now=now)
    switches = EventSwitches(pool)
    await switches.refresh(now)
    with cluster.without_a_worker():
        assert await tell_expired(pool, switches, now=now + timedelta(minutes=1)) == 1
        assert await tell_expired(pool, switches, now=now + timedelta(minutes=4)) == 0
    assert await tell_expired(pool, switches, now=now + timedelta(minutes=5)) == 1
    await pool.close()
