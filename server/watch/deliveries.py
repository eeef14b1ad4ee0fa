"""One round of the night watch over deliveries."""

from datetime import datetime, timedelta

from server.database.pool import Pool
from server.otps.dispatch import Dispatcher
from server.otps.outbox import claim_due, find_due
from server.otps.vault import Vault


async def watch_deliveries(
    pool: Pool, vault: Vault, dispatcher: Dispatcher, *, lease: timedelta, now: datetime, limit: int
) -> int:
    """Hand over deliveries that a crash left, or whose next try has come; how many they were.

    No more than the dispatcher has room for, so that a backlog waits in the database and not in memory, and a fair
    share of that for each organization that waits.
    """
    room = min(limit, dispatcher.room)
    if room <= 0:
        return 0
    taken = 0
    organization_ids = await find_due(pool, now=now, limit=room)
    for position, organization_id in enumerate(organization_ids):
        # What sends have filled meanwhile is no longer room.
        share = min(room - taken, dispatcher.room) // (len(organization_ids) - position)
        if share > 0:
            errands = await claim_due(pool, vault, organization_id, lease=lease, now=now, limit=share)
            taken += dispatcher.hand_over(errands)
    return taken
