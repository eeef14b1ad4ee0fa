"""Balances as callers see them: read for many callers with one statement."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.credits.accounts import Account
from server.database.arrays import texts
from server.database.batcher import Batcher, Batching, as_it_is
from server.database.pool import Pool, pipelined_transaction
from server.database.queries import load_queries

SQL = load_queries(__file__)


@dataclass(frozen=True, slots=True)
class Balance:
    """An organization's credits at one moment."""

    organization_id: str
    available_credits: int
    low_balance_threshold: int
    last_sequence: int
    """Of the newest ledger entry: a larger number is a later balance."""

    @property
    def low_balance(self) -> bool:
        """True while the balance is below the threshold."""
        return self.available_credits < self.low_balance_threshold


def balance_of(account: Account) -> Balance:
    """The account's balance."""
    return Balance(
        account.organization_id, account.available_credits, account.low_balance_threshold, account.last_sequence
    )


class Balances:
    """Reads balances. Calls that come while others are on their way share one statement."""

    def __init__(self, pool: Pool, *, low_balance_threshold: int, batching: Batching) -> None:
        """low_balance_threshold is that of organizations without an account."""
        self._pool = pool
        self._low_balance_threshold = low_balance_threshold
        self._batcher: Batcher[str, Balance] = Batcher(lambda ids, _: self.read(ids), batching)

    async def get(self, organization_id: str) -> Balance:
        """The balance of now: everything committed before this call is in it. Nobody's is 0."""
        return await self._batcher.submit(organization_id, lambda: organization_id, as_it_is)

    async def read(self, organization_ids: Sequence[str]) -> list[Balance]:
        """The balance of each organization, in order, as of one moment."""
        async with pipelined_transaction(self._pool) as pipeline:
            rows = await pipeline.execute(SQL.read_balances, {"organization_ids": texts(set(organization_ids))})
        known = {row[0]: Balance(*row) for row in await rows.fetchall()}
        return [known.get(organization_id) or self._nothing(organization_id) for organization_id in organization_ids]

    async def drain(self) -> None:
        """Wait until every call is answered."""
        await self._batcher.drain()

    def _nothing(self, organization_id: str) -> Balance:
        return Balance(organization_id, 0, self._low_balance_threshold, 0)
