"""The shards on which organizations live: a cached map, so that a transaction has organizations of one shard only.

Plain PostgreSQL, and Citus while the tables are not distributed, are one shard.
"""

import asyncio
import re
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, NamedTuple

from server.ids import ORGANIZATION_ID
from server.postgres.pipeline import PipelineConnection, Row

_READ_SHARDS: Final = """
SELECT shard.shardid, shard.shardminvalue::integer, node.nodename, node.nodeport
FROM pg_dist_shard AS shard
JOIN pg_dist_placement AS placement USING (shardid)
JOIN pg_dist_node AS node ON node.groupid = placement.groupid AND node.noderole = 'primary'
WHERE shard.logicalrelid = to_regclass('accounts')
ORDER BY 2
"""
READ_HASHES: Final = "SELECT organization_id, worker_hash(organization_id) FROM unnest(%s::text[]) AS organization_id"
_REMEMBERED: Final = 200_000
"""The most organizations whose hash is remembered: about 20 MB."""


_IS_ORGANIZATION: Final = re.compile(ORGANIZATION_ID)


class Shard(NamedTuple):
    """A shard of the table accounts, and with it those of the tables that are colocated."""

    shard_id: int
    least_hash: int
    """Of the organizations that it has: those up to the next shard's."""
    host: str
    port: int


ReadHashes = Callable[[Sequence[str]], Awaitable[Iterable[Row]]]
"""Asks the database what organizations are hashed to: with READ_HASHES."""


class ShardMap:
    """Tells the shard of an organization. Without `shards` everything is shard 0."""

    def __init__(self, read_hashes: ReadHashes) -> None:
        self.shards: Sequence[Shard] = ()
        self._least_hashes: list[int] = []
        self._workers: dict[int, tuple[str, int]] = {}
        self._read_hashes = read_hashes
        self._hashes: dict[str, int] = {}
        """By organization: what it is hashed to never changes, where that is kept does."""
        self._unknown: set[str] = set()
        self._asking: asyncio.Task[None] | None = None

    @property
    def is_distributed(self) -> bool:
        """Whether the tables are distributed."""
        return bool(self.shards)

    def find(self, organization_id: str) -> int | None:
        """The id of the organization's shard; None when the database has to be asked."""
        if not self.shards:
            return 0
        shard = self.locate(organization_id)
        return shard and shard.shard_id

    def locate(self, organization_id: str) -> Shard | None:
        """The organization's shard, with its worker; None when nothing is distributed, or it is not known."""
        hashed = self._hashes.get(organization_id)
        return None if hashed is None else self.shards[bisect_right(self._least_hashes, hashed) - 1]

    def worker(self, shard_id: int) -> tuple[str, int] | None:
        """The worker that has the shard; None when nothing is distributed, or there is no such shard any more."""
        return self._workers.get(shard_id)

    async def ask(self, organization_id: str) -> int:
        """As `find`; asks the database if it must, for all that ask at once. Raises DatabaseUnavailable.

        What is no organization_id is on any shard: the call will be refused.
        """
        while (shard_id := self.find(organization_id)) is None:
            if not _IS_ORGANIZATION.fullmatch(organization_id):
                return self.shards[0].shard_id
            self._unknown.add(organization_id)
            if self._asking is None:
                self._asking = asyncio.create_task(self._ask())
            await asyncio.shield(self._asking)
        return shard_id

    async def _ask(self) -> None:
        try:
            await asyncio.sleep(0)  # for those that ask in this turn of the event loop
            if len(self._hashes) >= _REMEMBERED:
                self._hashes.clear()
            unknown, self._unknown = list(self._unknown), set()
            self._hashes.update(await self._read_hashes(unknown))
        finally:
            self._asking = None

    async def read(self, connection: PipelineConnection) -> None:
        """Read the shards: on each new connection, and now and then, as shards may be moved and split."""
        rows = await (await connection.execute(_READ_SHARDS)).fetchall()
        self.replace([Shard(*row) for row in rows])

    def replace(self, shards: Sequence[Shard]) -> None:
        """Take these shards, in the order of their hashes, for those that there are now."""
        self.shards = shards
        self._least_hashes = [shard.least_hash for shard in shards]
        self._workers = {shard.shard_id: (shard.host, shard.port) for shard in shards}
