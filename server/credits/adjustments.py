"""An operator's corrections of a balance."""

from datetime import datetime
from uuid import UUID

from server.credits.accounts import lock_or_create_account
from server.credits.balances import Balance, balance_of
from server.credits.ledger import LedgerEntry, LedgerEntryKind, append_entry
from server.database.pool import Pool, repeat_transient, transaction
from server.errors import RequestIdReused


async def adjust_credits(
    pool: Pool,
    organization_id: str,
    *,
    request_id: UUID,
    credits: int,
    reason: str,
    created_by: str,
    low_balance_threshold: int,
    now: datetime,
) -> tuple[LedgerEntry, Balance]:
    """Add (or, negative, take) credits once for each request_id; the entry that was written and the balance of now.

    A repeat gives the first call's entry. Raises RequestIdReused when that had other credits or another reason, and
    InsufficientCredits when the balance would become negative. low_balance_threshold is a new account's.
    """

    async def once() -> tuple[LedgerEntry, Balance]:
        async with transaction(pool) as connection:
            account = await lock_or_create_account(
                connection, organization_id, low_balance_threshold=low_balance_threshold, now=now
            )
            entry = await append_entry(
                connection,
                account,
                kind=LedgerEntryKind.ADJUSTMENT,
                credits=credits,
                reference_id=request_id,
                now=now,
                reason=reason,
                created_by=created_by,
            )
            if (entry.credits, entry.reason) != (credits, reason):
                raise RequestIdReused
            return entry, balance_of(account)

    return await repeat_transient(once)
