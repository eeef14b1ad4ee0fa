"""Accounts: one row and one balance for each organization."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter

from server.database.arrays import bigints, texts, times
from server.database.pipeline import Rows, Statements
from server.database.queries import load_queries
from server.database.rows import Columns, write_rows
from server.ids import new_id

SQL = load_queries(__file__)


@dataclass(slots=True)
class Account:
    """An organization's credits, as read from its row; the caller that holds the row's lock may change it."""

    organization_id: str
    available_credits: int
    last_sequence: int
    low_balance_threshold: int
    low_balance_since: datetime | None
    """When the balance fell below the threshold; None once credits were added beyond it."""
    window_start_time: datetime
    """The start of the minute in which window_send_count sends were accepted."""
    window_send_count: int
    alert_email: str | None = None
    stripe_customer_id: str | None = None

    @property
    def low_balance(self) -> bool:
        """True while the balance is below the threshold."""
        return self.available_credits < self.low_balance_threshold

    def apply(self, credits: int, *, now: datetime) -> bool:
        """Add (or, negative, take) credits and give the change its sequence.

        True when this made the balance low: only once until credits are added again. The caller has made sure that the
        balance stays at 0 or above.
        """
        self.available_credits += credits
        self.last_sequence += 1
        if not self.low_balance:
            if credits > 0:
                self.low_balance_since = None
            return False
        crossed = self.low_balance_since is None
        if crossed:
            self.low_balance_since = now
        return crossed

    def give_back(self, credits: int) -> None:
        """Add the credits of a send that failed, and give the change its sequence.

        These are no new credits: whoever was told that the balance is low is not told again when a send takes them.
        """
        self.available_credits += credits
        self.last_sequence += 1


_BALANCES: Columns[Account] = {
    "organization_ids": (texts, attrgetter("organization_id")),
    "available_credits": (bigints, attrgetter("available_credits")),
    "last_sequences": (bigints, attrgetter("last_sequence")),
    "low_balance_sinces": (times, attrgetter("low_balance_since")),
    "window_start_times": (times, attrgetter("window_start_time")),
    "window_send_counts": (bigints, attrgetter("window_send_count")),
}


def empty_account(organization_id: str, *, low_balance_threshold: int, now: datetime) -> Account:
    """What an organization without a row has: nothing."""
    return Account(
        organization_id=organization_id,
        available_credits=0,
        last_sequence=0,
        low_balance_threshold=low_balance_threshold,
        low_balance_since=now,
        window_start_time=now,
        window_send_count=0,
    )


async def read_accounts(connection: Statements, organization_ids: Iterable[str]) -> dict[str, Account]:
    """The accounts that exist, by organization."""
    return await accounts_of(await request_read(connection, organization_ids))


async def lock_accounts(connection: Statements, organization_ids: Iterable[str]) -> dict[str, Account]:
    """The accounts that exist, by organization; nobody else changes them until this transaction ends."""
    return await accounts_of(await request_lock(connection, organization_ids))


async def request_lock(connection: Statements, organization_ids: Iterable[str]) -> Rows:
    """As `lock_accounts`, for a pipeline: the accounts arrive when `accounts_of` fetches them."""
    return await connection.execute(SQL.lock_accounts, {"organization_ids": texts(sorted(set(organization_ids)))})


async def request_read(connection: Statements, organization_ids: Iterable[str]) -> Rows:
    """As `request_lock`, without the lock."""
    return await connection.execute(SQL.read_accounts, {"organization_ids": texts(organization_ids)})


async def expect_unchanged(connection: Statements, account: Account) -> None:
    """As `request_lock`, for an account that is known: a contradiction when it is not exactly that, or locked already.

    It never waits for somebody else.
    """
    await connection.execute(
        SQL.expect_unchanged,
        {
            "organization_id": account.organization_id,
            "available_credits": account.available_credits,
            "last_sequence": account.last_sequence,
            "low_balance_threshold": account.low_balance_threshold,
            "low_balance_since": account.low_balance_since,
            "window_start_time": account.window_start_time,
            "window_send_count": account.window_send_count,
            "alert_email": account.alert_email,
        },
    )


async def accounts_of(rows: Rows) -> dict[str, Account]:
    """The accounts that the rows hold, by organization."""
    return {row[0]: Account(*row) for row in await rows.fetchall()}


async def lock_or_create_account(
    connection: Statements, organization_id: str, *, low_balance_threshold: int, now: datetime
) -> Account:
    """The organization's account, made when it has none; nobody else changes it until this transaction ends."""
    await connection.execute(
        SQL.create_account,
        {"organization_id": organization_id, "low_balance_threshold": low_balance_threshold, "now": now},
    )
    return (await lock_accounts(connection, [organization_id]))[organization_id]


async def write_balances(connection: Statements, accounts: Sequence[Account]) -> None:
    """Store accounts that were changed under their locks."""
    await write_rows(connection, SQL.write_balances, _BALANCES, accounts)


async def announce_low_balances(connection: Statements, accounts: Sequence[Account], *, now: datetime) -> None:
    """Put a notice into the outbox for each account that has just become low and has somebody to tell.

    At most one for each time the line is crossed: the notice is named by the ledger entry that crossed it.
    """
    told = [account for account in accounts if account.alert_email]
    if not told:
        return
    await connection.execute(
        SQL.insert_low_balance_notices,
        {
            "organization_ids": [account.organization_id for account in told],
            "notice_ids": [new_id() for _ in told],
            "reference_ids": [str(account.last_sequence) for account in told],
            "emails": [account.alert_email for account in told],
            "details": [
                json.dumps(
                    {
                        "available_credits": account.available_credits,
                        "low_balance_threshold": account.low_balance_threshold,
                    }
                )
                for account in told
            ],
            "now": now,
        },
    )
