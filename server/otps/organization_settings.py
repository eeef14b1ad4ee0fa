"""What an organization has chosen for its sends: the settings, their versions, and the statements of both.

Every change is a row that stays: who made it, when, and which fields. `effective_settings` says what applies to a send.
"""

import json
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from psycopg.types.json import Jsonb
from pydantic import BaseModel, ConfigDict

from server.credits.accounts import lock_or_create_account
from server.errors import SettingsChanged
from server.postgres.pool import Connection, Pool, acquire, retry_transient, transaction
from server.postgres.queries import load_queries
from server.providers.provider import Channel
from server.setting_types import NumberType

SQL = load_queries(__file__)


class RefundPolicy(StrEnum):
    """Which failed deliveries are refunded; see pulsa.otp.v1.RefundPolicy."""

    NOT_ACCEPTED = "NOT_ACCEPTED"
    REPORTED_FAILURES = "REPORTED_FAILURES"


class _Stored(BaseModel):
    """A part of the settings as stored; immutable. Fields of a later version of Pulsa are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class Sender(_Stored):
    """Who messages through a channel to a country come from."""

    channel: Channel
    country_code: str = ""
    """Empty: every country without a sender of its own."""
    sender_id: str


class DefaultFallback(_Stored):
    """A channel to try after the others, to the same number."""

    channel: Channel
    after_seconds: float | None = None
    """As Fallback.after_seconds."""


class BillingContact(_Stored):
    """A person or mailbox that gets the notices. The statements of notices read it."""

    email: str
    locale: str = ""
    time_zone: str = ""


class OrganizationSettings(_Stored):
    """The settings of an organization: see pulsa.otp.v1.Settings. 0 and empty values are the operator's defaults."""

    brand_name: str = ""
    senders: tuple[Sender, ...] = ()
    email_sender_name: str = ""
    email_reply_to: str = ""
    """An ASCII address."""
    locale: str = ""
    code_length: int = 0
    ttl: timedelta | None = None
    max_attempts: int = 0
    allowed_areas: tuple[str, ...] = ()
    blocked_areas: tuple[str, ...] = ()
    number_types: tuple[NumberType, ...] = ()
    cooldown: timedelta | None = None
    sends_per_destination_per_hour: int = 0
    sends_per_destination_per_day: int = 0
    default_fallbacks: tuple[DefaultFallback, ...] = ()
    refund_policy: RefundPolicy | None = None
    daily_credit_cap: int = 0
    billing_contacts: tuple[BillingContact, ...] = ()


NOTHING_CHOSEN = OrganizationSettings()


class SettingsVersion(NamedTuple):
    """The settings as they were from one change to the next."""

    version: int = 0
    """0: before the first change."""
    settings: OrganizationSettings = NOTHING_CHOSEN
    changed_fields: Sequence[str] = ()
    """Names of fields of OrganizationSettings."""
    updated_by: str = ""
    create_time: datetime | None = None


async def read_settings(pool: Pool, organization_id: str) -> SettingsVersion:
    """The settings in force."""

    async def once() -> SettingsVersion:
        async with acquire(pool) as connection:
            return await _read_newest(connection, organization_id)

    return await retry_transient(once)


async def list_versions(
    pool: Pool, organization_id: str, *, before_version: int, limit: int
) -> Sequence[SettingsVersion]:
    """At most `limit` versions below `before_version`, newest first."""

    async def once() -> Sequence[SettingsVersion]:
        async with acquire(pool) as connection:
            return await _read_versions(connection, organization_id, before_version=before_version, limit=limit)

    return await retry_transient(once)


async def update_settings(
    pool: Pool,
    organization_id: str,
    chosen: OrganizationSettings,
    fields: Collection[str],
    *,
    check: Callable[[OrganizationSettings], None],
    expected_version: int | None,
    updated_by: str,
    low_balance_threshold: int,
    now: datetime,
) -> SettingsVersion:
    """Set these fields to what `chosen` has; returns the settings in force, a new version if that changes them.

    `check` raises the error of settings that may not be. `low_balance_threshold` is that of an account that this call
    creates. Raises SettingsChanged when another version than `expected_version` is in force; None: any.
    """

    async def once() -> SettingsVersion:
        async with transaction(pool) as connection:
            await lock_or_create_account(
                connection, organization_id, low_balance_threshold=low_balance_threshold, now=now
            )
            earlier = await _read_newest(connection, organization_id)
            if expected_version not in {None, earlier.version}:
                raise SettingsChanged(version=earlier.version)
            settings = earlier.settings.model_copy(update={field: getattr(chosen, field) for field in fields})
            if settings == earlier.settings:
                return earlier
            check(settings)
            changed = [
                field for field in sorted(fields) if getattr(settings, field) != getattr(earlier.settings, field)
            ]
            new = SettingsVersion(earlier.version + 1, settings, changed, updated_by, now)
            key = {"organization_id": organization_id, "version": new.version}
            stored = Jsonb(settings.model_dump(mode="json", exclude_defaults=True))
            await connection.execute(
                SQL.insert_version,
                {**key, "settings": stored, "changed_fields": changed, "updated_by": updated_by, "now": now},
            )
            await connection.execute(SQL.set_version, key)
            return new

    return await retry_transient(once)


def parse_settings(stored: str) -> OrganizationSettings:
    """The settings in a row's JSON."""
    return OrganizationSettings.model_validate(json.loads(stored))


async def _read_newest(connection: Connection, organization_id: str) -> SettingsVersion:
    newest = await _read_versions(connection, organization_id, before_version=_AFTER_THE_LAST, limit=1)
    return newest[0] if newest else SettingsVersion()


async def _read_versions(
    connection: Connection, organization_id: str, *, before_version: int, limit: int
) -> Sequence[SettingsVersion]:
    values = {"organization_id": organization_id, "before_version": before_version, "limit": limit}
    rows = await (await connection.execute(SQL.read_versions, values)).fetchall()
    return [SettingsVersion(row[0], parse_settings(row[1]), *row[2:]) for row in rows]


_AFTER_THE_LAST = 2**63 - 1
