"""One round of the night watch over mails to billing contacts."""

from datetime import datetime

from server.credits.notices import Deliver, send_due_notices
from server.database.pool import Pool

_AT_ONCE = 16


async def watch_notices(pool: Pool, deliver: Deliver, *, now: datetime) -> int:
    """Send the notices whose time has come; how many were tried."""
    return await send_due_notices(pool, deliver, now=now, limit=_AT_ONCE)
