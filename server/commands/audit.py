"""`audit`: replays every ledger."""

import asyncio
import os
from datetime import timedelta

from server.commands.serve import database
from server.credits.audit import Report, audit_all
from server.database.pool import open_pool
from server.environment import load_settings
from server.settings import Settings


def audit() -> int:
    """Print what was found; 0 when every ledger holds, 1 otherwise."""
    settings = load_settings(os.environ)
    with database(settings) as url:
        report = asyncio.run(_audit(settings, url))
    for finding in report.findings:
        print(f"{finding.organization_id}: {finding.rule}: {finding.description}")
    verdict = "every ledger holds" if report.holds else f"{len(report.findings)} findings"
    print(f"{report.organization_count} organizations, {report.entry_count} ledger entries: {verdict}")
    return 0 if report.holds else 1


async def _audit(settings: Settings, url: str) -> Report:
    pool = await open_pool(url, size=2, timeout_seconds=settings.database.timeout_seconds)
    try:
        return await audit_all(pool, deliveries_kept=timedelta(days=settings.delivery.retention_days))
    finally:
        await pool.close()
