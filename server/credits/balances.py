"""Balances: single reads, gathered into few statements, and streams of changes for open pages.

One poller per process reads the balances of all streams with one query; on Citus one of each shard.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from server.background import until_done
from server.credits.accounts import Account
from server.errors import DatabaseUnavailable
from server.postgres.batcher import Batcher, Batching
from server.postgres.columns import texts
from server.postgres.pool import Pool, pipelined_transaction, retry_transient
from server.postgres.queries import load_queries

AUTOMATIC_STATE: Final = """CASE
        WHEN automatic_top_ups.organization_id IS NULL THEN 'OFF'
        WHEN off_reason <> '' THEN 'SWITCHED_OFF'
        WHEN NOT is_enabled THEN 'OFF'
        WHEN failed_charges > 0 THEN 'DECLINED'
        WHEN cap_reached AND next_attempt_time > now() THEN 'CAP_REACHED'
        WHEN EXISTS (
            SELECT
            FROM top_ups
            WHERE top_ups.organization_id = automatic_top_ups.organization_id
                AND top_ups.status IN ('CREATING', 'OPEN', 'CANCELING')
                AND top_ups.is_automatic
                AND top_ups.organization_id = ANY(%(organization_ids)s) -- shard
        ) THEN 'BUYING'
        ELSE 'READY'
    END"""
"""The state of an organization's automatic top-ups, a name of AutomaticTopUpState, as an SQL expression."""
SQL = load_queries(__file__, automatic_state=AUTOMATIC_STATE)


@dataclass(frozen=True, slots=True)
class Balance:
    """An organization's credits at one moment."""

    organization_id: str
    available_credits: int
    low_balance_threshold: int
    last_sequence: int
    """The sequence of the newest ledger entry: a larger number is a later balance."""
    automatic_state: str = ""
    """The state of automatic top-ups, a name of AutomaticTopUpState; empty where it was not looked up."""

    @property
    def low_balance(self) -> bool:
        """True while the balance is below the threshold."""
        return self.available_credits < self.low_balance_threshold


def balance_from_account(account: Account) -> Balance:
    """The account's balance, without the state of automatic top-ups."""
    return Balance(
        account.organization_id, account.available_credits, account.low_balance_threshold, account.last_sequence
    )


class Balances:
    """Reads balances. Calls that arrive while a read is in flight share the next statement."""

    def __init__(self, pool: Pool, *, low_balance_threshold: int, batching: Batching) -> None:
        """low_balance_threshold is the threshold of organizations without an account."""
        self._pool = pool
        self._low_balance_threshold = low_balance_threshold
        self._batcher: Batcher[str, Balance] = Batcher(self._flush, batching, name="batch of balances")

    async def get(self, organization_id: str) -> Balance:
        """The current balance; it includes everything committed before this call. Without an account it is 0."""
        return await self._batcher.submit(organization_id, organization_id)

    async def read(self, organization_ids: Sequence[str]) -> list[Balance]:
        """Read the balance of each organization, all of one shard, in one snapshot; the result has their order."""
        found = await retry_transient(lambda: self._read(organization_ids))
        return [found.get(organization_id) or self._empty(organization_id) for organization_id in organization_ids]

    async def find_shards(self, organization_ids: Sequence[str]) -> list[int | None]:
        """The shard of each organization; asks for those that are not known. Raises DatabaseUnavailable."""
        shards = self._pool.shards
        await asyncio.gather(*(shards.ask(each) for each in organization_ids if shards.find(each) is None))
        return [shards.find(each) for each in organization_ids]

    async def drain(self) -> None:
        """Wait until every pending call is answered."""
        await self._batcher.drain()

    async def _flush(self, organization_ids: Sequence[str], *, wait: bool) -> Sequence[Balance]:  # noqa: ARG002
        return await self.read(organization_ids)  # locks nothing

    async def _read(self, organization_ids: Sequence[str]) -> dict[str, Balance]:
        async with pipelined_transaction(self._pool, near=next(iter(organization_ids), None)) as pipeline:
            rows = await pipeline.execute(SQL.read_balances, {"organization_ids": texts(set(organization_ids))})
        return {row[0]: Balance(*row) for row in await rows.fetchall()}

    def _empty(self, organization_id: str) -> Balance:
        return Balance(organization_id, 0, self._low_balance_threshold, 0, "OFF")


class BalanceStreams:
    """Streams of balances. Polls the balances of all open streams every `poll_seconds`; stops when no stream is open.

    Polling sees every commit, of any replica and of an operator's own SQL, and needs no connection per stream.
    """

    def __init__(
        self, balances: Balances, *, poll_seconds: float, spending_seconds: float, repeat_seconds: float = 30.0
    ) -> None:
        """spending_seconds is the minimum interval before a message that only reports spent credits.

        repeat_seconds is the longest time without a message: then the balance is sent again.
        """
        self._balances = balances
        self._poll_seconds = poll_seconds
        self._spending_seconds = spending_seconds
        self._repeat_seconds = repeat_seconds
        self._streams: set[_Stream] = set()
        self._wake = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None

    async def follow(self, organization_id: str) -> AsyncGenerator[Balance, None]:
        """Yield the current balance, then each change that a page should show. Ends only when the caller closes it.

        Yields at the next poll when credits were added, the low-balance threshold was crossed or changed, or automatic
        top-ups have another state; at most once per spending_seconds when credits were spent; the same balance again
        after repeat_seconds. A slow reader misses intermediate balances, never the latest. last_sequence never
        decreases. Raises DatabaseUnavailable when the database stops answering.
        """
        stream = _Stream(organization_id)
        self._streams.add(stream)
        self._wake.set()
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(until_done("balance streams", self._poll))
        try:
            while True:
                yield await stream.next()
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self._wake.set()  # lets the poller end

    async def _poll(self) -> None:
        try:
            while self._streams:
                self._wake.clear()
                await self._poll_once()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._poll_seconds)
        except Exception as error:  # noqa: BLE001 - every stream raises it
            for stream in self._streams:
                stream.fail(error)

    async def _poll_once(self) -> None:
        # By shard, so that a worker of Citus that is lost ends only its own streams.
        streams = list(self._streams)
        by_shard: defaultdict[int | None, list[_Stream]] = defaultdict(list)
        shards = await self._balances.find_shards([stream.organization_id for stream in streams])
        for stream, shard_id in zip(streams, shards, strict=True):
            by_shard[shard_id].append(stream)
        await asyncio.gather(*map(self._poll_shard, by_shard.values()))

    async def _poll_shard(self, streams: Sequence["_Stream"]) -> None:
        # Only streams that were open before the read: a stream must not get a balance that is older than itself.
        try:
            balances = await self._balances.read([stream.organization_id for stream in streams])
        except DatabaseUnavailable as error:
            for stream in streams:
                stream.fail(error)
            return
        now = time.monotonic()
        for stream, balance in zip(streams, balances, strict=True):
            stream.publish(
                balance, now=now, spending_seconds=self._spending_seconds, repeat_seconds=self._repeat_seconds
            )


@dataclass(slots=True, eq=False)
class _Stream:
    """One open stream: the balance that it published last, and whether its reader has taken it."""

    organization_id: str
    _published: Balance | None = None
    _publish_time: float = 0.0
    """On the monotonic clock, in seconds."""
    _error: Exception | None = None
    _unread: asyncio.Event = field(default_factory=asyncio.Event)

    def publish(self, balance: Balance, *, now: float, spending_seconds: float, repeat_seconds: float) -> None:
        """Make the balance the reader's next one, if it is to be reported by now."""
        seconds_passed = now - self._publish_time
        if self._is_change(balance, has_waited=seconds_passed >= spending_seconds) or (
            seconds_passed >= repeat_seconds and balance == self._published
        ):
            self._published, self._publish_time = balance, now
            self._unread.set()

    def fail(self, error: Exception) -> None:
        """Raise the error at the reader's next read."""
        self._error = error
        self._unread.set()

    async def next(self) -> Balance:
        """Wait for a published balance that was not read yet. Raises the error of `fail`."""
        await self._unread.wait()
        self._unread.clear()
        if self._error is not None:
            raise self._error
        assert self._published is not None  # noqa: S101 - publish sets it before _unread
        return self._published

    def _is_change(self, balance: Balance, *, has_waited: bool) -> bool:
        """Whether a page should show the balance now; `has_waited` allows changes that only report spent credits."""
        last = self._published
        if last is None:
            return True
        if balance == last or balance.last_sequence < last.last_sequence:
            return False
        urgent = (
            balance.available_credits > last.available_credits
            or balance.low_balance != last.low_balance
            or balance.low_balance_threshold != last.low_balance_threshold
            or balance.automatic_state != last.automatic_state
        )
        return urgent or has_waited
