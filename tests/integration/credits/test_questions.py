"""What waits for a person is counted: top-ups to resolve and events to replay, and nothing else."""

from prometheus_client import REGISTRY

from server.credits.questions import count_questions
from server.ids import new_id
from server.postgres.pool import Pool, acquire

TOP_UP = """
INSERT INTO top_ups (organization_id, top_up_id, status, failure_reason, flags, resolved_flags, credits, currency_code,
                     unit_price, total, created_by, create_time, stripe_parameters, attempt_time, next_check_time)
VALUES ('acme', %(id)s, %(status)s, %(reason)s, %(flags)s, %(resolved)s, 1000, 'IDR',
        150, 150000, 'ann', now(), '{}', now(), now())
"""
EVENT = """
INSERT INTO stripe_events (event_id, type, payload, status, next_attempt_time, create_time)
VALUES (%(id)s, 'invoice.paid', '{}', %(status)s, now(), now())
"""


async def gauges(pool: Pool) -> list[float | None]:
    await count_questions(pool)
    return [REGISTRY.get_sample_value(name) for name in ("pulsa_top_ups_to_resolve", "pulsa_stripe_events_to_replay")]


async def test_a_review_and_a_flag_that_is_not_resolved_wait_and_others_do_not(pool: Pool) -> None:
    rows = [
        ("REVIEW", [], []),
        ("FAILED", ["DISPUTED"], []),
        ("FAILED", ["REFUNDED"], ["REFUNDED"]),
        ("FAILED", [], []),
    ]
    async with acquire(pool) as connection:
        for status, flags, resolved in rows:
            values = {"id": new_id(), "status": status, "reason": "for_the_test", "flags": flags, "resolved": resolved}
            await connection.execute(TOP_UP, values)

    assert await gauges(pool) == [2, 0]


async def test_a_dead_event_waits_and_others_do_not(pool: Pool) -> None:
    async with acquire(pool) as connection:
        for status in ("DEAD", "DEAD", "DEAD", "DONE", "REJECTED", "RECEIVED"):
            await connection.execute(EVENT, {"id": f"evt_{new_id()}", "status": status})

    assert await gauges(pool) == [0, 3]
