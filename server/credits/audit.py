"""The audit: replays ledgers and compares them with accounts, deliveries and top-ups, which must agree with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from server.postgres.pool import Connection, Pool, allow_all_plans, transaction
from server.postgres.queries import load_queries

SQL = load_queries(__file__)
RULES: Final[Mapping[str, str]] = {
    name.removeprefix("finding_"): query for name, query in SQL if name.startswith("finding_")
}
"""The queries by the name of the rule's violation. Each returns (organization_id, description) per violation."""
MAXIMUM_FINDINGS: Final = 100
"""The most findings that an audit reports per rule."""
# Tolerance for retention, which may run on a replica whose clock is ahead, and which removes an OTP's resends together
# with its first delivery although they are minutes younger.
_CLOCK_SKEW = timedelta(hours=1)


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

    @property
    def holds(self) -> bool:
        """True when there are no findings."""
        return not self.findings


async def audit_all(pool: Pool, *, deliveries_kept: timedelta | None = None) -> AuditReport:
    """Replay every ledger and compare it with accounts, deliveries and top-ups.

    Reads one snapshot, so it is correct while the server is running. Sends older than deliveries_kept may lack their
    delivery, because retention removes it; with None every send must have its delivery.
    """
    return await _audit(pool, None, deliveries_kept)


async def audit_organization(
    pool: Pool, organization_id: str, *, deliveries_kept: timedelta | None = None
) -> AuditReport:
    """Audit one organization as `audit_all` does; reads its rows only."""
    return await _audit(pool, organization_id, deliveries_kept)


async def audit_snapshot(
    connection: Connection, organization_id: str | None, deliveries_since: datetime | None, *, verify_time: datetime
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
    return AuditReport(organization_count, entry_count, tuple(findings), verify_time)


async def _audit(pool: Pool, organization_id: str | None, deliveries_kept: timedelta | None) -> AuditReport:
    now = datetime.now(UTC)
    deliveries_since = None if deliveries_kept is None else now - deliveries_kept + _CLOCK_SKEW
    async with transaction(pool, seconds=pool.timeouts.job) as connection:
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        return await audit_snapshot(connection, organization_id, deliveries_since, verify_time=now)
