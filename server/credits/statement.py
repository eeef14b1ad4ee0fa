"""The ledger as bookkeepers read it: entries by kind, reference and time, past balances, and the export by month.

A time is found in the ledger without an index of times, which would cost every send: entries are in the order of their
sequence, and nearly in that of their times. An entry counts as no earlier than those before it, so that the entries
until a time, and the balance then, never change.
"""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

from server.credits.ledger import LedgerEntry, LedgerEntryKind, entry_from_row
from server.postgres.columns import TableColumns
from server.postgres.pipeline import Executor
from server.postgres.pool import Connection, Pool, acquire, retry_transient
from server.postgres.queries import load_queries

LOOKED_AT: Final = 10_000
"""The most entries that one page looks at when it searches for sends and other kinds at once."""
COLUMNS: Final = (
    "month,kind,sequence,create_time,credits,balance,reference_id,reason,created_by,invoice_number,currency_code,total"
)
"""The first line of an export."""
_OUT_OF_ORDER: Final = timedelta(minutes=1)
"""By how much an entry may be older than one before it: more than a call waits for the account and repeats."""
_RUNWAY: Final = timedelta(days=7)
_LONGEST_RUNWAY_DAYS: Final = 2**31
_PART_ENTRIES: Final = 1000
"""Of one message of an export: with the longest reasons it has less than 4 MB."""
_MICROSECOND: Final = timedelta(microseconds=1)
_FIRST_TIME, _LAST_TIME = datetime(1970, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)


def _quoted(column: str) -> str:
    """A text as a field of CSV (RFC 4180), as a SQL expression."""
    return f"""CASE WHEN {column} = '' THEN '' ELSE '"' || replace({column}, '"', '""') || '"' END"""


SQL = load_queries(
    __file__,
    entry=TableColumns(LedgerEntry),
    **{name: _quoted(name) for name in ("reason", "created_by", "invoice_number")},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EntrySearch:
    """What is searched for; an empty sequence and None admit all."""

    kinds: Sequence[LedgerEntryKind] = ()
    reference_id: UUID | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    """Exclusive."""


class PastBalance(NamedTuple):
    """The balance after an entry."""

    available_credits: int
    last_sequence: int
    """0 before the first entry."""


class Position(NamedTuple):
    """Where an export goes on."""

    last_sequence: int
    """The last entry of the export; 0: the newest that there is."""
    sequence: int
    """The last one that was exported."""


class Part(NamedTuple):
    """The next lines of an export."""

    csv: bytes
    position: Position | None
    """After these lines; None in the last part."""
    exported_entries: int
    """Until here."""
    total_entries: int


class _Month(NamedTuple):
    name: str
    """YYYY-MM"""
    start: datetime
    end: datetime


async def search_entries(
    connection: Connection,
    organization_id: str,
    search: EntrySearch,
    *,
    before_sequence: int,
    limit: int,
    looked_at: int = LOOKED_AT,
) -> tuple[list[LedgerEntry], int | None]:
    """At most `limit` matching entries below `before_sequence`, newest first, and below which sequence to go on.

    That sequence is None when all were looked at. Only a search for sends and other kinds looks at entries that do not
    match: at most `looked_at`.
    """
    first, bound = 1, None
    if search.start_time is not None:
        first = await find_first_sequence(connection, organization_id, search.start_time)
    if search.end_time is not None:
        before_sequence = min(before_sequence, await find_first_sequence(connection, organization_id, search.end_time))
    kinds = sorted({kind.value for kind in search.kinds or LedgerEntryKind})
    if search.reference_id is not None:
        reference = {"organization_id": organization_id, "kinds": kinds, "reference_id": search.reference_id}
        rows = await (await connection.execute(SQL.find_entries_of, reference)).fetchall()
        found = sorted(map(entry_from_row, rows), key=attrgetter("sequence"), reverse=True)
        return [entry for entry in found if first <= entry.sequence < before_sequence][:limit], None
    if search.kinds and LedgerEntryKind.SEND not in search.kinds:
        query = SQL.find_entries_of_kinds
    else:
        query = SQL.find_entries
        before_sequence = min(before_sequence, await _last_sequence(connection, organization_id) + 1)
        if (low := before_sequence - looked_at) > first:
            first = bound = low
    values = {
        "organization_id": organization_id,
        "kinds": kinds,
        "before_sequence": before_sequence,
        "first_sequence": first,
        "limit": limit,
    }
    entries = [entry_from_row(row) for row in await (await connection.execute(query, values)).fetchall()]
    return entries, entries[-1].sequence if len(entries) == limit else bound


async def find_first_sequence(connection: Executor, organization_id: str, time: datetime) -> int:
    """The sequence of the first entry from a time on; the next one's that will be written if there is none."""
    time = min(max(time, _FIRST_TIME), _LAST_TIME)
    values = {"organization_id": organization_id, "time": time, "certain_time": time - _OUT_OF_ORDER}
    ((sequence,),) = await (await connection.execute(SQL.find_first_sequence, values)).fetchall()
    return int(sequence)


async def read_balance_at(pool: Pool, organization_id: str, time: datetime) -> PastBalance:
    """The balance at the end of a time; now, if it is in the future."""
    async with acquire(pool) as connection:
        sequence = await find_first_sequence(connection, organization_id, min(time, _LAST_TIME) + _MICROSECOND) - 1
        return PastBalance(await _balance_after(connection, organization_id, sequence), sequence)


async def read_runway(pool: Pool, organization_id: str, *, now: datetime) -> int | None:
    """The whole days that the credits last at the spending of the last 7 days; None when nothing was spent.

    Of a ledger that is younger, its own age counts, but at least a day.
    """
    async with acquire(pool) as connection:
        first = await find_first_sequence(connection, organization_id, now - _RUNWAY)
        values = {"organization_id": organization_id, "first_sequence": first}
        row = await (await connection.execute(SQL.read_spending, values)).fetchone()
        elapsed = _RUNWAY
        if first == 1 and (entry := await _read_entry(connection, organization_id, 1)):
            elapsed = max(now - entry[1], timedelta(days=1))
    if row is None:
        return None
    available: int = row[0]
    spent = (row[1] or 0) + (row[2] or 0) - available
    if spent <= 0:
        return None
    return min(available * int(elapsed.total_seconds()) // (spent * 86_400), _LONGEST_RUNWAY_DAYS)


async def read_spent(connection: Executor, organization_id: str, first_sequence: int) -> int:
    """The credits that sends took from a ledger entry on, less those that were refunded since."""
    values = {"organization_id": organization_id, "first_sequence": first_sequence}
    rows = await (await connection.execute(SQL.read_spending, values)).fetchall()
    available, before, added = rows[0] if rows else (0, None, None)
    return int((before or 0) + (added or 0) - available)


async def export_ledger(
    pool: Pool, organization_id: str, start_month: str, end_month: str, *, resume: Position | None = None
) -> AsyncGenerator[Part, None]:
    """Yield the ledger as CSV, in parts of at most 1000 entries: see pulsa.credit.v1.CreditService.ExportLedger.

    Months are YYYY-MM in UTC; empty: from the first entry, and to the current month. Each part is read for itself, so
    that a slow reader holds no connection. The position of any part resumes the export behind it.
    """
    begin, last, months = await _range(pool, organization_id, start_month, end_month, resume)
    first, total = begin, max(last - begin + 1, 0)
    sequence = resume.sequence if resume else begin - 1
    lines = [] if resume else [COLUMNS]
    for month in months:
        async with acquire(pool) as connection:
            next_begin = await find_first_sequence(connection, organization_id, month.end)
            opening = await _balance_after(connection, organization_id, begin - 1)
            is_over = next_begin <= last + 1 and pool.now() >= month.end + _OUT_OF_ORDER
            end = min(next_begin, last + 1)
            closing = await _balance_after(connection, organization_id, end - 1)
        if end <= sequence and resume is not None:  # exported already
            begin = end
            continue
        if begin > sequence:
            lines.append(f"{month.name},OPENING_BALANCE,,{month.start:%Y-%m-%d %H:%M:%SZ},,{opening},,,,,,")
        while sequence < end - 1:
            text, sequence = await _export_part(pool, organization_id, month.name, after=sequence, end=end)
            csv = "".join(f"{line}\n" for line in lines) + text
            lines = []
            yield Part(csv.encode(), Position(last, sequence), sequence - first + 1, total)
        if not is_over:
            lines.append(f"{month.name},CURRENT_BALANCE,,,,{closing},,,,,,")
            break
        lines.append(f"{month.name},CLOSING_BALANCE,,{month.end:%Y-%m-%d %H:%M:%SZ},,{closing},,,,,,")
        begin = end
    yield Part("".join(f"{line}\n" for line in lines).encode(), None, total, total)


async def _range(
    pool: Pool, organization_id: str, start_month: str, end_month: str, resume: Position | None
) -> tuple[int, int, Iterator[_Month]]:
    """The first and the last sequence of an export, and its months."""
    now = pool.now().astimezone(UTC)
    async with acquire(pool) as connection:
        entry = await _read_entry(connection, organization_id, 1)
        if entry is None:
            return 1, 0, iter(())
        earliest = f"{entry[1].astimezone(UTC):%Y-%m}"
        months = list(_months(max(start_month, earliest), min(end_month or "9999-12", f"{now:%Y-%m}")))
        if not months:
            return 1, 0, iter(())
        begin = await find_first_sequence(connection, organization_id, months[0].start)
        if resume is not None and resume.last_sequence:
            return begin, resume.last_sequence, iter(months)
        return begin, await find_first_sequence(connection, organization_id, months[-1].end) - 1, iter(months)


def _months(start: str, end: str) -> Iterator[_Month]:
    year, month = map(int, start.split("-"))
    while (name := f"{year:04}-{month:02}") <= end:
        begin = datetime(year, month, 1, tzinfo=UTC)
        year, month = (year, month + 1) if month < 12 else (year + 1, 1)  # noqa: PLR2004 - the months of a year
        yield _Month(name, begin, datetime(year, month, 1, tzinfo=UTC))


async def _export_part(pool: Pool, organization_id: str, month: str, *, after: int, end: int) -> tuple[str, int]:
    """The lines of the next entries of a month, and the sequence of the last one."""
    values = {
        "organization_id": organization_id,
        "month": month,
        "sequence": after,
        "end_sequence": end,
        "limit": _PART_ENTRIES,
    }

    async def read() -> list[tuple[Any, ...]]:
        async with acquire(pool) as connection:
            return await (await connection.execute(SQL.export_entries, values)).fetchall()

    ((text, sequence),) = await retry_transient(read)
    if sequence is None:
        raise LookupError(f"entry {after + 1} of {organization_id} is missing: run python -m server audit")
    return text, sequence


async def _balance_after(connection: Connection, organization_id: str, sequence: int) -> int:
    entry = await _read_entry(connection, organization_id, sequence) if sequence else None
    return int(entry[0]) if entry else 0


async def _read_entry(connection: Connection, organization_id: str, sequence: int) -> tuple[Any, ...] | None:
    values: Mapping[str, object] = {"organization_id": organization_id, "sequence": sequence}
    return await (await connection.execute(SQL.read_entry, values)).fetchone()


async def _last_sequence(connection: Connection, organization_id: str) -> int:
    row = await (await connection.execute(SQL.read_last_sequence, {"organization_id": organization_id})).fetchone()
    return int(row[0]) if row else 0
