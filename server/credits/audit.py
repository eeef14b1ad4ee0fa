"""The audit: replays ledgers and compares them with accounts, deliveries and top-ups, which must agree with them.

It tells edited history by MACs, whose keys are not in the database: of each entry that brings credits from outside,
made with the entry; of each organization's entries of a day, made by a periodic job after the day; and of each day.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Final, NamedTuple

import structlog

from server.credits.ledger import DIGEST, AuditKeys, entry_parts, insert_entry_mac
from server.postgres.columns import BIGINT, BYTEA, TEXT, RowSource
from server.postgres.pool import Connection, Pool, read_time, transaction
from server.postgres.queries import load_queries
from server.postgres.sessions import allow_all_plans


class LedgerMac(NamedTuple):
    """The MAC of an organization's entries after its previous MAC up to last_sequence."""

    organization_id: str
    last_sequence: int
    key_id: str
    mac: bytes


_NEW_MACS: RowSource[LedgerMac] = RowSource(organization_id=TEXT, last_sequence=BIGINT, key_id=TEXT, mac=BYTEA)
SQL = load_queries(__file__, digest=DIGEST, new_mac=_NEW_MACS)
_log = structlog.get_logger(__name__)
RULES: Final[Mapping[str, str]] = {
    name.removeprefix("finding_"): query for name, query in SQL if name.startswith("finding_")
}
"""The queries by the name of the rule's violation. Each returns (organization_id, description) per violation."""
MAXIMUM_FINDINGS: Final = 100
"""The most findings that an audit reports per rule."""
# Tolerance for retention, which removes an OTP's resends together with its first delivery although they are minutes
# younger, and decides by ids, whose time is that of a machine's clock.
_TOLERANCE = timedelta(hours=1)
_ACCOUNTS: Final = 100
"""The most accounts of one transaction of the daily MACs."""
_ENTRIES: Final = 10_000
"""The most entries of one MAC."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation of a rule."""

    organization_id: str
    rule: str
    """A key of RULES, such as `broken_chain`."""
    description: str


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The result of an audit of one snapshot."""

    organization_count: int
    """Organizations with ledger entries."""
    entry_count: int
    findings: tuple[Finding, ...]
    verify_time: datetime
    days: tuple[date, date] | None = None
    """The first and the last day with MACs, when those of all organizations were checked."""

    @property
    def holds(self) -> bool:
        """True when there are no findings."""
        return not self.findings


async def audit_all(
    pool: Pool, *, deliveries_kept: timedelta | None = None, audit_keys: AuditKeys | None = None
) -> AuditReport:
    """Replay every ledger, compare it with accounts, deliveries and top-ups, and with audit_keys check its MACs.

    Reads one snapshot, so it is correct while the server is running. Sends older than deliveries_kept may lack their
    delivery, because retention removes it; with None every send must have its delivery.
    """
    return await _audit(pool, None, deliveries_kept, audit_keys)


async def audit_organization(
    pool: Pool,
    organization_id: str,
    *,
    deliveries_kept: timedelta | None = None,
    audit_keys: AuditKeys | None = None,
) -> AuditReport:
    """Audit one organization as `audit_all` does; reads its rows only, and so checks no MACs of whole days."""
    return await _audit(pool, organization_id, deliveries_kept, audit_keys)


async def audit_snapshot(
    connection: Connection,
    organization_id: str | None,
    deliveries_since: datetime | None,
    *,
    verify_time: datetime,
    audit_keys: AuditKeys | None = None,
) -> AuditReport:
    """Audit the snapshot of the caller's transaction: one organization, or all with None.

    Only sends since deliveries_since need their delivery; with None all do.
    """
    await allow_all_plans(connection)
    parameters = {
        "organization_id": organization_id,
        "deliveries_since": deliveries_since,
        "limit": MAXIMUM_FINDINGS,
    }
    counts = await (await connection.execute(SQL.count_entries, parameters)).fetchone()
    findings: list[Finding] = []
    for rule, query in RULES.items():
        cursor = await connection.execute(query, parameters)
        findings.extend(Finding(row[0], rule, row[1]) for row in await cursor.fetchall())
    organization_count, entry_count = counts or (0, 0)
    report = AuditReport(organization_count, entry_count, tuple(findings), verify_time)
    return await _check_macs(connection, audit_keys, organization_id, report) if audit_keys else report


async def make_daily_macs(pool: Pool, audit_keys: AuditKeys, *, now: datetime) -> int:
    """Make the MACs of all entries until yesterday (UTC), once; returns how many. A repeat continues.

    A MAC is of a range of sequences: an entry that is committed late belongs to the next day's MAC. Before the first
    day, entries that bring credits from outside get the MACs that they lack: the history is taken as it is.
    """
    if not await _begin_day(pool, audit_keys, now.astimezone(UTC).date() - timedelta(days=1)):
        return 0
    after = ""
    while batch := await _make_macs(pool, audit_keys, after=after, accounts=_ACCOUNTS):
        for organization_id, entry_count in batch:
            while entry_count == _ENTRIES:  # there may be more
                rest = await _make_macs(pool, audit_keys, after=after, accounts=1)
                entry_count = sum(count for _, count in rest)  # noqa: PLW2901 - the loop's own variable
            after = organization_id
    return await _finish_day(pool, audit_keys)


async def _audit(
    pool: Pool, organization_id: str | None, deliveries_kept: timedelta | None, audit_keys: AuditKeys | None
) -> AuditReport:
    async with transaction(pool, seconds=pool.timeouts.job) as connection:
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        now = await read_time(connection)
        deliveries_since = None if deliveries_kept is None else now - deliveries_kept + _TOLERANCE
        return await audit_snapshot(
            connection, organization_id, deliveries_since, verify_time=now, audit_keys=audit_keys
        )


async def _check_macs(
    connection: Connection, audit_keys: AuditKeys, organization_id: str | None, report: AuditReport
) -> AuditReport:
    """Add what the MACs tell to the report."""
    findings = [
        *report.findings,
        *await _find_forged_entries(connection, audit_keys, organization_id),
        *await _find_edited_history(connection, audit_keys, organization_id),
    ]
    if organization_id is not None:
        return replace(report, findings=tuple(findings))
    days: list[date] = []
    for day, begun, key_id, mac, *digests in await (await connection.execute(SQL.digest_days)).fetchall():
        if not begun:
            findings.append(Finding("", "edited_days", f"{day} has MACs of organizations, but none of its own"))
        elif mac is not None:
            days.append(day)
            if objection := audit_keys.objection(key_id, mac, *_day_parts(day, *digests)):
                findings.append(Finding("", "edited_days", f"the MACs of {day}: {objection}"))
    return replace(report, findings=tuple(findings), days=(days[0], days[-1]) if days else None)


async def _find_forged_entries(
    connection: Connection, audit_keys: AuditKeys, organization_id: str | None
) -> list[Finding]:
    """Entries that bring credits from outside, and were not made by the server."""
    findings: list[Finding] = []
    rows = connection.cursor().stream(SQL.digest_entries_with_own_mac, {"organization_id": organization_id})
    async for own, sequence, key_id, mac, digest in rows:
        objection: str | None
        if digest is None:
            objection = "it has a MAC, and is no top-up or adjustment"
        elif mac is None:
            objection = "it has no MAC"
        else:
            objection = audit_keys.objection(key_id, mac, *entry_parts(own, digest))
        if objection and len(findings) < MAXIMUM_FINDINGS:
            findings.append(Finding(own, "forged_entry", f"entry {sequence}: {objection}"))
    return findings


async def _find_edited_history(
    connection: Connection, audit_keys: AuditKeys, organization_id: str | None
) -> list[Finding]:
    """The first daily MAC of each organization that is not of the entries that there are."""
    findings: dict[str, Finding] = {}
    rows = connection.cursor().stream(SQL.digest_covered_entries, {"organization_id": organization_id})
    async for own, last_sequence, day, key_id, mac, *digests in rows:
        if own not in findings and len(findings) < MAXIMUM_FINDINGS:
            objection = audit_keys.objection(key_id, mac, *ledger_parts(own, last_sequence, day, *digests))
            if objection:
                description = f"the entries until {last_sequence}, made until {day}: {objection}"
                findings[own] = Finding(own, "edited_history", description)
    return list(findings.values())


async def _begin_day(pool: Pool, audit_keys: AuditKeys, day: date) -> bool:
    """Begin the day, if it is the next one; returns whether there is an unfinished day.

    The first one is begun once the entries have their MACs, in a transaction of its own: on Citus the days are on
    another server. A crash between the two repeats what is missing.
    """
    async with transaction(pool, seconds=pool.timeouts.job) as connection:
        if await (await connection.execute(SQL.find_any_day)).fetchone() is None:
            _log.warning("the first MACs of the ledger are made", alert=True, day=str(day))
            cursor = await connection.execute(SQL.digest_entries_with_own_mac, {"organization_id": None})
            for organization_id, sequence, _, mac, digest in await cursor.fetchall():
                if mac is None:
                    await insert_entry_mac(connection, audit_keys, organization_id, sequence, digest)
    async with transaction(pool) as connection:
        begun = await (await connection.execute(SQL.begin_day, {"day": day})).fetchone()
        return begun is not None or await _lock_unfinished_day(connection) is not None


async def _make_macs(pool: Pool, audit_keys: AuditKeys, *, after: str, accounts: int) -> list[tuple[str, int]]:
    """Make the next MAC of each of the next accounts; returns their ids, with the number of entries of the MAC."""
    async with transaction(pool, seconds=pool.timeouts.job) as connection:
        day = await _lock_unfinished_day(connection)
        if day is None:  # another replica has finished it
            return []
        end_time = datetime.combine(day + timedelta(days=1), time(), UTC)
        values = {"after": after, "accounts": accounts}
        found = await (await connection.execute(SQL.find_next_accounts, values)).fetchall()
        wanted = {"organization_ids": [own for (own,) in found], "entries": _ENTRIES, "end_time": end_time}
        rows = await (await connection.execute(SQL.digest_next_entries, wanted)).fetchall() if found else []
        macs = [
            LedgerMac(own, last, *audit_keys.make(*ledger_parts(own, last, day, previous_mac, digest)))
            for own, _, previous_mac, last, digest in rows
            if last is not None
        ]
        if macs:
            await _NEW_MACS.write(connection, SQL.insert_ledger_macs, rows=macs, day=day)
        return [(own, 0 if last is None else last - previous) for own, previous, _, last, _ in rows]


async def _finish_day(pool: Pool, audit_keys: AuditKeys) -> int:
    """Make the MAC of the unfinished day; returns how many MACs the day has."""
    async with transaction(pool, seconds=pool.timeouts.job) as connection:
        day = await _lock_unfinished_day(connection)
        if day is None:
            return 0
        previous = await (await connection.execute(SQL.read_previous_day, {"day": day})).fetchone()
        ((digest, count),) = await (await connection.execute(SQL.digest_day, {"day": day})).fetchall()
        key_id, mac = audit_keys.make(*_day_parts(day, previous[0] if previous else b"", digest))
        await connection.execute(SQL.finish_day, {"day": day, "key_id": key_id, "mac": mac})
    _log.info("the MACs of a day are made", day=str(day), count=count, mac=mac.hex())
    return int(count)


async def _lock_unfinished_day(connection: Connection) -> date | None:
    row = await (await connection.execute(SQL.lock_unfinished_day)).fetchone()
    return row[0] if row else None


def ledger_parts(
    organization_id: str, last_sequence: int, day: date, previous_mac: bytes, digest: bytes
) -> tuple[bytes, ...]:
    """What the MAC of an organization's entries is of."""
    return (
        b"ledger 1",
        organization_id.encode(),
        str(last_sequence).encode(),
        day.isoformat().encode(),
        previous_mac,
        digest,
    )


def _day_parts(day: date, previous_mac: bytes, digest: bytes) -> tuple[bytes, ...]:
    """What the MAC of a day is of."""
    return b"day 1", day.isoformat().encode(), previous_mac, digest
