"""Low-balance alerts: the threshold below which a balance is low, and the address that is notified."""

from dataclasses import dataclass
from datetime import datetime

from server.credits.accounts import (
    Account,
    balance_event,
    empty_account,
    insert_low_balance_notices,
    lock_or_create_account,
    read_accounts,
)
from server.credits.balances import Balance, balance_from_account
from server.events.log import append_events
from server.postgres.pool import Connection, Pool, acquire, retry_transient, transaction
from server.postgres.queries import load_queries

SQL = load_queries(__file__)


@dataclass(frozen=True, slots=True)
class Alerts:
    """An organization's alert settings, with its balance under them."""

    balance: Balance
    alert_email: str
    """Empty when no address is notified."""
    locale: str
    """Of the notices; empty: English."""
    time_zone: str
    """Of the notices, an IANA name; empty: UTC."""


async def read_alerts(pool: Pool, organization_id: str, *, default_threshold: int) -> Alerts:
    """Read the alert settings; without an account, default_threshold and no address."""

    async def once() -> Alerts:
        async with acquire(pool) as connection:
            contact = await connection.execute(SQL.read_contact, {"organization_id": organization_id})
            locale, time_zone = await contact.fetchone() or ("", "")
            accounts = await read_accounts(connection, [organization_id])
        account = accounts.get(organization_id) or empty_account(
            organization_id, low_balance_threshold=default_threshold, now=pool.now()
        )
        return Alerts(balance_from_account(account), account.alert_email or "", locale, time_zone)

    return await retry_transient(once)


async def update_alerts(
    pool: Pool,
    organization_id: str,
    *,
    low_balance_threshold: int | None,
    alert_email: str | None,
    locale: str | None = None,
    time_zone: str | None = None,
    default_threshold: int,
    now: datetime,
) -> Alerts:
    """Set what is not None: the threshold, the address (empty: none), and the language and time zone of notices.

    A threshold that makes the balance low causes a notice, as a spend does. default_threshold is the threshold of an
    account that this call creates.
    """

    async def once() -> Alerts:
        async with transaction(pool) as connection:
            account = await lock_or_create_account(
                connection, organization_id, low_balance_threshold=default_threshold, now=now
            )
            was_low = account.low_balance_since is not None
            if alert_email is not None:
                account.alert_email = alert_email or None
            if low_balance_threshold is not None:
                account.low_balance_threshold = low_balance_threshold
            await _write(connection, account, now=now)
            contact = {"organization_id": organization_id, "locale": locale, "time_zone": time_zone}
            row = await (await connection.execute(SQL.write_contact, contact)).fetchone()
            stored_locale, stored_zone = row or ("", "")
            if (is_low := account.low_balance_since is not None) is not was_low:
                await append_events(connection, [balance_event(account, is_low=is_low)], now=now)
            return Alerts(balance_from_account(account), account.alert_email or "", stored_locale, stored_zone)

    return await retry_transient(once)


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
        await insert_low_balance_notices(connection, [account], now=now)
