"""When a balance counts as low, and who is told."""

from dataclasses import dataclass
from datetime import datetime

from server.credits.accounts import Account, announce_low_balances, lock_or_create_account
from server.credits.balances import Balance, balance_of
from server.database.pool import Connection, Pool, repeat_transient, transaction
from server.database.queries import load_queries

SQL = load_queries(__file__)


@dataclass(frozen=True, slots=True)
class Alerts:
    """An organization's alerts as they stand, with the balance that they are about."""

    balance: Balance
    alert_email: str
    """Empty for nobody."""


async def update_alerts(
    pool: Pool,
    organization_id: str,
    *,
    low_balance_threshold: int | None,
    alert_email: str | None,
    default_threshold: int,
    now: datetime,
) -> Alerts:
    """Set the threshold, or who is mailed (empty: nobody), or both; None leaves a thing as it is.

    A threshold that makes the balance low is announced as if credits had been spent. default_threshold is a new
    account's.
    """

    async def once() -> Alerts:
        async with transaction(pool) as connection:
            account = await lock_or_create_account(
                connection, organization_id, low_balance_threshold=default_threshold, now=now
            )
            if alert_email is not None:
                account.alert_email = alert_email or None
            if low_balance_threshold is not None:
                account.low_balance_threshold = low_balance_threshold
            await _write(connection, account, now=now)
            return Alerts(balance_of(account), account.alert_email or "")

    return await repeat_transient(once)


async def _write(connection: Connection, account: Account, *, now: datetime) -> None:
    crossed = account.low_balance and account.low_balance_since is None
    if crossed:
        account.low_balance_since = now
    elif not account.low_balance:
        account.low_balance_since = None
    await connection.execute(
        SQL.write_alerts,
        {
            "organization_id": account.organization_id,
            "low_balance_threshold": account.low_balance_threshold,
            "low_balance_since": account.low_balance_since,
            "alert_email": account.alert_email,
        },
    )
    if crossed:
        await announce_low_balances(connection, [account], now=now)
