"""The settings of all organizations, as this process knows them.

Each process reads the changes every few seconds and on each new connection. A send is prepared with what the process
knows; under the account's lock the account tells the version in force, and what is not known of it is read then. Limits
are thus always those in force, and everything else is at most `PULSA_ORGANIZATION_SETTINGS_SECONDS` old.

An organization that has chosen nothing takes no memory; another one takes the text of its settings, mostly below 1 KB.
"""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from server.otps.admission import State
from server.otps.effective_settings import EffectiveSettings, OperatorSettings
from server.otps.organization_settings import NOTHING_CHOSEN, parse_settings
from server.postgres.columns import bigints
from server.postgres.pipeline import Executor
from server.postgres.pool import Connection, Pool, acquire
from server.postgres.queries import load_queries
from server.postgres.workers import find_on_connection

SQL = load_queries(__file__)

_MAXIMUM_APPLIED: Final = 10_000
_OVERLAP: Final = timedelta(minutes=1)
"""For rows that were committed late, or by a clock that is behind."""


class SettingsCache:
    """Knows the newest settings of every organization, and those versions that were asked for last."""

    def __init__(self, operator: OperatorSettings) -> None:
        self.operator = operator
        self._default = operator.apply("", 0, NOTHING_CHOSEN)
        self._newest: dict[str, tuple[int, str]] = {}
        """Version and JSON, by organization."""
        self._applied: dict[tuple[str, int], EffectiveSettings] = {}
        self._accountless = frozenset(operator.test_organizations)
        """Test organizations that may have no account: without one there is no send."""
        self._since = datetime.min.replace(tzinfo=UTC)

    async def refresh(self, pool: Pool) -> int:
        """Read what has changed; returns 0, as a job that has nothing to tell."""
        async with acquire(pool) as connection:
            await self.read(connection)
        return 0

    async def read(self, connection: Connection) -> None:
        """As `refresh`, on a connection: on each new one, so that no send comes before the first read."""
        if self._accountless:
            await connection.execute(SQL.create_test_accounts, {"organization_ids": sorted(self._accountless)})
            self._accountless = frozenset()
        found = await find_on_connection(connection, SQL.find_new, {"since": self._since}, parse=datetime.fromisoformat)
        since = self._since
        for organization_id, version, stored, create_time in found.rows:
            self._learn(organization_id, version, stored)
            since = max(since, create_time - _OVERLAP)
        if found.is_complete:
            self._since = since

    def of(self, organization_id: str) -> EffectiveSettings:
        """The newest settings of an organization that are known."""
        newest = self._newest.get(organization_id)
        return self._without_choice(organization_id) if newest is None else self._apply(organization_id, *newest)

    def known(self, organization_id: str, version: int) -> EffectiveSettings | None:
        """A version of an organization's settings, if this process has it."""
        if not version:
            return self._without_choice(organization_id)
        if (applied := self._applied.get((organization_id, version))) is not None:
            return applied
        newest = self._newest.get(organization_id)
        return self._apply(organization_id, *newest) if newest is not None and newest[0] == version else None

    def add_known(self, state: State) -> bool:
        """Add the limits of the organizations to a remembered state; False when they must be read first."""
        for organization_id, account in state.accounts.items():
            if not account.settings_version:
                continue
            settings = self.known(organization_id, account.settings_version)
            if settings is None or settings.limits.daily_credit_cap:
                return False
            state.limits[organization_id] = settings.limits
        return True

    async def at(
        self, connection: Executor, organization_id: str, versions: Collection[int]
    ) -> Mapping[int, EffectiveSettings]:
        """These versions of an organization's settings; reads those that this process does not have."""
        found = {version: settings for version in versions if (settings := self.known(organization_id, version))}
        if missing := sorted(set(versions) - found.keys()):
            values = {"organization_id": organization_id, "versions": bigints(missing)}
            for version, stored, is_newest in await (await connection.execute(SQL.read, values)).fetchall():
                if is_newest:
                    self._learn(organization_id, version, stored)
                found[version] = self._apply(organization_id, version, stored)
        return found

    def _without_choice(self, organization_id: str) -> EffectiveSettings:
        if organization_id in self.operator.test_organizations:
            return self.operator.apply(organization_id, 0, NOTHING_CHOSEN)
        return self._default

    def _learn(self, organization_id: str, version: int, stored: str) -> None:
        newest = self._newest.get(organization_id)
        if newest is None or newest[0] < version:
            self._newest[organization_id] = version, stored

    def _apply(self, organization_id: str, version: int, stored: str) -> EffectiveSettings:
        key = (organization_id, version)
        applied = self._applied.get(key)
        if applied is None:
            if len(self._applied) == _MAXIMUM_APPLIED:
                self._applied.clear()
            applied = self._applied[key] = self.operator.apply(organization_id, version, parse_settings(stored))
        return applied
