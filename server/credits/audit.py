"""The proof that money is exact: replays ledgers and compares them with everything that must agree."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from server.database.pool import Connection, Pool, allow_all_plans, transaction
from server.database.queries import load_queries

SQL = load_queries(__file__)
RULES: Final[Mapping[str, str]] = {
    name.removeprefix("finding_"): query for name, query in SQL if name.startswith("finding_")
}
"""By the name of what would be wrong, the query that gives each (organization_id, description) of it."""
MAXIMUM_FINDINGS: Final = 100
"""Of each rule: more of them would say nothing new."""
# Retention may run elsewhere, by a clock that is ahead of ours, and takes the resends of an OTP's minutes with it.
_CLOCK_DIFFERENCE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not hold."""

    organization_id: str
    rule: str
    """A key of RULES, such as `broken_chain`."""
    description: str


@dataclass(frozen=True, slots=True)
class Report:
    """What an audit saw, as of one moment."""

    organization_count: int
    """Organizations that have entries."""
    entry_count: int
    findings: tuple[Finding, ...]
    verify_time: datetime

    @property
    def holds(self) -> bool:
        """True when nothing was found."""
        return not self.findings


async def audit_all(pool: Pool, *, deliveries_kept: timedelta | None = None) -> Report:
    """Replay every ledger and compare it with accounts, deliveries and top-ups.

    Right while the server works: all of it sees one snapshot. Sends older than deliveries_kept may lack their delivery,
    because retention removes those; with None every send must have it.
    """
    return await _audit(pool, None, deliveries_kept)


async def audit_organization(pool: Pool, organization_id: str, *, deliveries_kept: timedelta | None = None) -> Report:
    """`audit_all` for one organization, at the cost of its own entries only."""
    return await _audit(pool, organization_id, deliveries_kept)


async def _audit(pool: Pool, organization_id: str | None, deliveries_kept: timedelta | None) -> Report:
    now = datetime.now(UTC)
    deliveries_since = None if deliveries_kept is None else now - deliveries_kept + _CLOCK_DIFFERENCE
    async with transaction(pool) as connection:
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        return await audit_snapshot(connection, organization_id, deliveries_since, verify_time=now)


async def audit_snapshot(
    connection: Connection, organization_id: str | None, deliveries_since: datetime | None, *, verify_time: datetime
) -> Report:
    """The report of what this transaction sees, where only sends since deliveries_since need their delivery."""
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
    return Report(organization_count, entry_count, tuple(findings), verify_time)
