"""The spending caps of organizations: what a day's sends took so far, and the notice that a cap is reached.

What was spent follows from the ledger: the credits at 00:00 UTC, and those that came from outside since, less what is
left. It is read under the account's lock, so that no other replica spends at the same time, and needs no counter. Only
sends of an organization with a cap cost this read.
"""

from datetime import datetime
from typing import Final

from server.credits.accounts import insert_notices
from server.credits.statement import find_first_sequence, read_spent
from server.otps.admission import State, start_of_day
from server.otps.settings_cache import SettingsCache
from server.postgres.pipeline import Executor

_MAXIMUM_DAYS: Final = 10_000


class SpendingCaps:
    """Reads the limits that organizations have chosen, and what they spent today where that is capped."""

    def __init__(self, settings: SettingsCache) -> None:
        self._settings = settings
        self._first_sequences: dict[tuple[str, datetime], int] = {}
        """Of the first ledger entry of a day, by organization and the day's start."""

    async def read(self, connection: Executor, state: State, *, now: datetime) -> None:
        """Add the limits of those organizations that have chosen some. Their accounts are locked, or read."""
        for organization_id, account in state.accounts.items():
            version = account.settings_version
            if not version:
                continue
            settings = (await self._settings.at(connection, organization_id, [version]))[version]
            state.limits[organization_id] = settings.limits
            if settings.limits.daily_credit_cap:
                state.spent[organization_id] = await self._read_spent(connection, organization_id, start_of_day(now))

    async def _read_spent(self, connection: Executor, organization_id: str, day: datetime) -> int:
        key = (organization_id, day)
        first = self._first_sequences.get(key)
        if first is None:
            if len(self._first_sequences) > _MAXIMUM_DAYS:
                self._first_sequences.clear()
            first = self._first_sequences[key] = await find_first_sequence(connection, organization_id, day)
        return await read_spent(connection, organization_id, first)


async def tell_contacts(connection: Executor, state: State, *, now: datetime) -> None:
    """Store the notices of the caps that sends were refused by: one for each contact and day, however often."""
    day = f"{start_of_day(now):%Y-%m-%d}"
    causes = {
        organization_id: (day, {"daily_credit_cap": cap, "spent_credits": state.spent[organization_id]})
        for organization_id, cap in state.capped.items()
    }
    await insert_notices(connection, "SPENDING_CAP_REACHED", causes, now=now)
