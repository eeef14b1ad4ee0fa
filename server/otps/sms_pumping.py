"""Bounds the loss to SMS pumping: which areas may be sent to, and the counters of unverified credits per area.

A pumping fraud requests codes for numbers that earn it money, and never verifies them. The credits of sends to phones
are therefore counted until their OTP is verified or they are refunded, per organization, area and window; `admit`
limits them. An area is a country, or, where prefixes are counted, the numbers with the same first digits.

Each delivery is subtracted once: by the verification of its OTP if it is not refunded by then, queued or not; else by
its refund. Both hold the OTP's lock, so that the later one sees the earlier.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import NamedTuple
from uuid import UUID

from server.otps.admission import Admitted, AreaKey, Send, UnverifiedCredits
from server.otps.destinations import NO_COUNTRY, Destination
from server.otps.otp import Delivery, Otp, OtpKey, OtpStatus
from server.postgres.columns import BIGINT, TEXT, TIMESTAMPTZ, Array, RowSource, bigints, texts, uuids
from server.postgres.pipeline import Executor, Rows
from server.postgres.queries import load_queries

_SPENT: RowSource[tuple[str, str, datetime, int]] = RowSource(
    organization_id=(TEXT, itemgetter(0)),
    area=(TEXT, itemgetter(1)),
    window_start_time=(TIMESTAMPTZ, itemgetter(2)),
    credits=(BIGINT, itemgetter(3)),
)
SQL = load_queries(__file__, spent=_SPENT)


@dataclass(frozen=True, slots=True)
class AreaPolicy:
    """Which countries (ID), prefixes (+62812) and types of numbers may be sent to, and how prefixes are counted."""

    allowed: Sequence[str] = ()
    """Empty: all areas."""
    blocked: Sequence[str] = ()
    """Refused, also inside an allowed area."""
    prefix_digits: int = 0
    """Numbers with the same first `prefix_digits` digits after the plus sign share a limit; 0: no limit per prefix."""
    number_types: frozenset[str] = frozenset({"mobile", "fixed_line_or_mobile"})
    """Of server.setting_types.NumberType. A message to a premium number or a satellite phone costs much."""
    extra_prefixes: tuple[str, ...] = ()
    """Prefixes of mobile numbers that the library does not know yet."""
    within: "AreaPolicy | None" = None
    """The operator's policy, for that of an organization: both must allow a destination."""

    def allows(self, destination: Destination) -> bool:
        """Whether the destination may be sent to; always true for an e-mail address."""
        if not destination.calling_prefix:
            return True
        if self.within is not None and not self.within.allows(destination):
            return False
        if destination.type not in self.number_types:
            return False
        if self.blocked and any(_is_in(destination, area) for area in self.blocked):
            return False
        return not self.allowed or any(_is_in(destination, area) for area in self.allowed)


ALL_AREAS = AreaPolicy()


def country_of(destination: Destination) -> str:
    """The area that a phone number is counted in: its country, or its calling code if it has none. Empty for e-mail."""
    return destination.country if destination.country != NO_COUNTRY else destination.calling_prefix


def _is_in(destination: Destination, area: str) -> bool:
    return destination.normalized.startswith(area) if area.startswith("+") else destination.country == area


async def queue_read_unverified(connection: Executor, sends: Iterable[Send]) -> Rows | None:
    """Queue the query of the counters of the sends' areas, for a pipeline; None when no send is to a phone."""
    phones = [send for send in sends if send.recipient.areas]
    keys = {(send.organization_id, area) for send in phones for area in send.recipient.areas.split()}
    return await connection.execute(SQL.read_unverified, _columns(sorted(keys))) if keys else None


async def fetch_unverified(rows: Rows | None) -> dict[AreaKey, UnverifiedCredits]:
    """Fetch the counters that `queue_read_unverified` queried, by organization and area."""
    found = await rows.fetchall() if rows else []
    return {(row[0], row[1]): UnverifiedCredits(*row[2:]) for row in found}


async def add_unverified(
    connection: Executor, admitted: Iterable[Admitted], unverified: Mapping[AreaKey, UnverifiedCredits]
) -> None:
    """Add the credits of accepted sends to phones, in the windows that `admit` chose. The accounts must be locked."""
    phones = [each.send for each in admitted if each.send.recipient.areas]
    if not phones:
        return
    if unmarked := [send.resent.otp for send in phones if send.resent and not send.resent.otp.to_phone]:
        await connection.execute(SQL.mark_otps_to_phones, _ids(unmarked))
    spent: Counter[AreaKey] = Counter()
    for send in phones:
        for area in send.recipient.areas.split():
            spent[send.organization_id, area] += send.recipient.credits
    rows = [(*key, unverified[key].window_start_time, spent[key]) for key in sorted(spent)]
    await _SPENT.write(connection, SQL.add_unverified, rows=rows)


async def subtract_verified(connection: Executor, otps: Sequence[Otp]) -> None:
    """Subtract the credits of all sends of these OTPs, which are locked and verified now, except refunded ones."""
    cursor = await connection.execute(SQL.find_sends_of_otps, _ids(otps))
    await _subtract(connection, [_CountedSend(*row) for row in await cursor.fetchall()])


async def subtract_refunded(
    connection: Executor, deliveries: Iterable[Delivery], statuses: Mapping[OtpKey, OtpStatus]
) -> None:
    """Subtract the credits of deliveries that are refunded now, unless the verification of their OTP did.

    `statuses` are those of the OTPs, which are locked.
    """
    await _subtract(
        connection,
        [
            _CountedSend(delivery.organization_id, delivery.areas, delivery.create_time, delivery.credits)
            for delivery in deliveries
            if statuses.get((delivery.organization_id, delivery.otp_id)) is not OtpStatus.VERIFIED
        ],
    )


class _CountedSend(NamedTuple):
    """A send to a phone that was counted in its areas."""

    organization_id: str
    areas: str
    create_time: datetime
    credits: int


async def _subtract(connection: Executor, sends: Sequence[_CountedSend]) -> None:
    """Subtract sends from their areas' counters, if the window in which they were counted is still the current one."""
    counted = [((send.organization_id, area), send) for send in sends for area in send.areas.split()]
    if not counted:
        return
    windows = await connection.execute(SQL.lock_unverified, _columns(sorted({key for key, _ in counted})))
    window_starts = {(row[0], row[1]): row[2] for row in await windows.fetchall()}
    credits: Counter[AreaKey] = Counter()
    for key, send in counted:
        if key in window_starts and send.create_time >= window_starts[key]:
            credits[key] += send.credits
    if credits:
        values = {**_columns(list(credits)), "credits": bigints(credits.values())}
        await connection.execute(SQL.subtract_unverified, values)


def _columns(keys: Sequence[AreaKey]) -> dict[str, Array]:
    return {"organization_ids": texts(key[0] for key in keys), "areas": texts(key[1] for key in keys)}


def _ids(otps: Sequence[Otp]) -> dict[str, Array | UUID]:
    return {
        "organization_ids": texts(otp.organization_id for otp in otps),
        "otp_ids": uuids(otp.otp_id for otp in otps),
        "first_otp_id": min(otp.otp_id for otp in otps),
    }
