"""Shards for tests of batches: each organization on a shard of its own, as far as a transaction is concerned."""

from dataclasses import dataclass, field


@dataclass
class ShardOfEach:
    """Numbers the organizations in the order in which they are asked for."""

    numbers: dict[str, int] = field(default_factory=dict)
    workers: dict[int, int] = field(default_factory=dict)
    """By shard, when it is not worker 0."""

    def find(self, organization_id: str) -> int:
        return self.numbers.setdefault(organization_id, len(self.numbers))

    async def ask(self, organization_id: str) -> int:
        return self.find(organization_id)

    def worker(self, shard_id: int) -> int:
        return self.workers.get(shard_id, 0)
