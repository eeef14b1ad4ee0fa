"""What waits for a person: top-ups to resolve and Stripe's events to replay, as gauges for the alerts."""

from typing import Final

from prometheus_client import Gauge

from server.postgres.pool import Pool, acquire
from server.postgres.queries import load_queries

SQL = load_queries(__file__)

TOP_UPS: Final = Gauge(
    "pulsa_top_ups_to_resolve",
    "Top-ups that wait for a person, on all replicas together: in REVIEW, or with a flag that is not resolved.",
    multiprocess_mode="livemostrecent",
)
EVENTS: Final = Gauge(
    "pulsa_stripe_events_to_replay",
    "Stripe's events that were given up after many tries, on all replicas together.",
    multiprocess_mode="livemostrecent",
)


async def count_questions(pool: Pool) -> int:
    """Set the gauges; returns 0, as nothing was processed."""
    for gauge, query in ((TOP_UPS, SQL.count_top_ups_to_resolve), (EVENTS, SQL.count_events_to_replay)):
        async with acquire(pool) as connection:
            row = await (await connection.execute(query)).fetchone()
        gauge.set(row[0] if row else 0)
    return 0
