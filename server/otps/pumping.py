"""What bounds the loss to SMS pumping: credits spent on an area's numbers for which no code has come back.

A pumping fraud asks for codes to numbers that earn it money, and types none of them in. What is verified, or failed for
sure, no longer counts; so the unverified rest has a limit for each organization, area and window. An area is a country,
and where prefixes count also what begins with the same digits.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter

from server.channels.destinations import Destination
from server.database.arrays import Array, bigints, texts, times, uuids
from server.database.pipeline import Rows, Statements
from server.database.queries import load_queries
from server.database.rows import Columns, write_rows
from server.otps.admission import Admitted, AreaKey, Send
from server.otps.limits import UnverifiedCredits
from server.otps.otp import Delivery, Otp

SQL = load_queries(__file__)

_SPENT: Columns[tuple[str, str, datetime, int]] = {
    "organization_ids": (texts, itemgetter(0)),
    "areas": (texts, itemgetter(1)),
    "window_start_times": (times, itemgetter(2)),
    "credits": (bigints, itemgetter(3)),
}

SpentOn = tuple[str, str, datetime, int]
"""Organization, areas, when, and credits of a send to a phone."""


@dataclass(frozen=True, slots=True)
class Served:
    """Whose numbers are sent to, by country (ID) or the beginning of a number (+62812), and what is counted of them."""

    areas: Sequence[str] = ()
    """None for all."""
    blocked: Sequence[str] = ()
    """Also of the areas above."""
    prefix_digits: int = 0
    """How many digits after the plus sign share a budget; 0: only a country's numbers do."""

    def serves(self, destination: Destination) -> bool:
        """Whether messages go there; always true for an address."""
        if not country_of(destination):
            return True
        if any(_is_in(destination, area) for area in self.blocked):
            return False
        return not self.areas or any(_is_in(destination, area) for area in self.areas)


EVERYBODY = Served()


def country_of(destination: Destination) -> str:
    """What a number counts towards: its country, or its calling code where that has none; empty for an address."""
    return destination.country or destination.calling_prefix


def _is_in(destination: Destination, area: str) -> bool:
    return destination.normalized.startswith(area) if area.startswith("+") else destination.country == area


async def request_unverified(connection: Statements, sends: Iterable[Send]) -> Rows | None:
    """For a pipeline: what was spent in the areas of these sends; asks nothing when none is to a phone."""
    phones = [send for send in sends if send.target.areas]
    keys = {(send.otp.organization_id, area) for send in phones for area in send.target.areas.split()}
    return await connection.execute(SQL.read_unverified, _columns(sorted(keys))) if keys else None


async def unverified_of(rows: Rows | None) -> dict[AreaKey, UnverifiedCredits]:
    """What the rows hold, by organization and area."""
    found = await rows.fetchall() if rows else []
    return {(row[0], row[1]): UnverifiedCredits(*row[2:]) for row in found}


async def add_unverified(
    connection: Statements, admitted: Iterable[Admitted], unverified: Mapping[AreaKey, UnverifiedCredits]
) -> None:
    """Count accepted sends to phones, in the windows that `admit` put them into. The accounts are locked."""
    phones = [one for one in admitted if one.delivery.areas]
    if not phones:
        return
    if unmarked := [one.send.otp for one in phones if one.send.resend and not one.send.otp.to_phone]:
        await connection.execute(SQL.mark_otps_to_phones, _ids(unmarked))
    spent: Counter[AreaKey] = Counter()
    for one in phones:
        for area in one.delivery.areas.split():
            spent[one.delivery.organization_id, area] += one.delivery.credits
    rows = [(*key, unverified[key].window_start_time, spent[key]) for key in sorted(spent)]
    await write_rows(connection, SQL.add_unverified, _SPENT, rows)


async def lower_verified(connection: Statements, otps: Iterable[Otp]) -> None:
    """No longer count what was sent of OTPs that are verified now."""
    if verified := [otp for otp in otps if otp.to_phone]:
        cursor = await connection.execute(SQL.find_sends_of_otps, _ids(verified))
        await _lower(connection, await cursor.fetchall())


async def lower_failed(connection: Statements, deliveries: Iterable[Delivery]) -> None:
    """No longer count deliveries that surely did not go out."""
    await _lower(connection, [(one.organization_id, one.areas, one.create_time, one.credits) for one in deliveries])


async def _lower(connection: Statements, sends: Sequence[SpentOn]) -> None:
    """Only in the window in which they were counted."""
    counted = [((send[0], area), *send[2:]) for send in sends for area in send[1].split()]
    if not counted:
        return
    keys = sorted({key for key, _, _ in counted})
    windows = await connection.execute(SQL.lock_unverified, _columns(keys))
    starts = {(row[0], row[1]): row[2] for row in await windows.fetchall()}
    lowered: Counter[AreaKey] = Counter()
    for key, create_time, credits in counted:
        if key in starts and create_time >= starts[key]:
            lowered[key] += credits
    if lowered:
        values = {**_columns(list(lowered)), "credits": bigints(lowered.values())}
        await connection.execute(SQL.lower_unverified, values)


def _columns(keys: Sequence[AreaKey]) -> dict[str, Array]:
    return {"organization_ids": texts(key[0] for key in keys), "areas": texts(key[1] for key in keys)}


def _ids(otps: Sequence[Otp]) -> dict[str, Array]:
    return {
        "organization_ids": texts(otp.organization_id for otp in otps),
        "otp_ids": uuids(otp.otp_id for otp in otps),
    }
