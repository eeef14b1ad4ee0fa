"""Whatever providers answer, whenever the process dies: what is charged is what was sent."""

import os
from collections import defaultdict
from typing import Any
from uuid import UUID

from server.channels.channel import OutcomeKind
from server.credits.audit import audit_all
from tests.integration.deliveries.post import OpenPost, Windows
from tests.integration.deliveries.storm import CREDITS, ORGANIZATIONS, Storm, gather_clouds

SENDS = int(os.environ.get("STORM_SENDS", "600"))
SEED = int(os.environ.get("STORM_SEED", "5"))
NOT_OUT = {OutcomeKind.REJECTED_DESTINATION, OutcomeKind.REJECTED_CONFIGURATION, OutcomeKind.NOT_SENT}
STATUSES = {OutcomeKind.ACCEPTED: "SENT", OutcomeKind.UNKNOWN: "UNKNOWN"}


async def test_after_a_storm_charges_are_what_was_sent(open_post: OpenPost, windows: Windows) -> None:
    storm = gather_clouds(open_post, windows, sends=SENDS, seed=SEED)
    for organization_id in ORGANIZATIONS:
        await storm.post.fund(CREDITS, organization_id)

    await storm.rage(SENDS, rounds=20)

    rows = await storm.post.rows(
        "SELECT delivery_id, otp_id, organization_id, status, refunded, credits, failure_reason FROM deliveries"
        " ORDER BY organization_id, ledger_sequence"
    )
    assert storm.crashes > 0
    assert len({row[1] for row in rows}) == len(storm.sent)
    for row in rows:
        check_delivery(storm, *row)
    check_fallbacks(rows)
    check_messages(storm)
    for organization_id in ORGANIZATIONS:
        charged = sum(row[5] for row in rows if row[2] == organization_id and not row[4])
        assert await storm.post.credits(organization_id) == CREDITS - charged
    assert (await audit_all(storm.post.pool)).holds


def check_delivery(
    storm: Storm, delivery_id: UUID, _otp: UUID, _organization: str, status: str, refunded: Any, _credits: int, why: str
) -> None:
    """Its end is what the last call of a provider came to, or a report, or the end of its OTP."""
    kinds = [attempt.kind for attempt in storm.notebook.attempts[delivery_id]]
    last = kinds[-1] if kinds else None
    assert refunded == (status == "FAILED")
    if status == "DELIVERED" or why == "reported":
        assert storm.reported[delivery_id].value == status
    elif status == "FAILED":
        # An OTP's end refunds what a crash cut off, but never what is known to be out.
        assert why.startswith("otp_") or last in NOT_OUT
    else:
        assert last is not None
        assert status == STATUSES[last]


def check_fallbacks(rows: list[tuple[Any, ...]]) -> None:
    """Nothing is sent beside a delivery that did not fail."""
    chains = defaultdict(list)
    for row in rows:
        chains[row[1]].append(row[3])
    assert all(chain[:-1] == ["FAILED"] * (len(chain) - 1) for chain in chains.values())
    assert max(map(len, chains.values())) == 2


def check_messages(storm: Storm) -> None:
    """No message left for an OTP that was over, and all of an OTP's messages carry one code."""
    expiries = {one.record.otp.otp_id: one.record.otp for one in storm.sent}
    otps = {one.delivery.delivery_id: one.record.otp.otp_id for one in storm.sent}
    codes = defaultdict(set)
    repeated = 0
    for delivery_id, attempts in storm.notebook.attempts.items():
        repeated += len(attempts) > 1
        for attempt in attempts:
            assert attempt.time < attempt.message.expire_time
            codes[attempt.message.reference].add(attempt.message.code)
            if otp_id := otps.get(delivery_id):
                assert attempt.message.expire_time == expiries[otp_id].expire_time
                assert otp_id not in storm.closings or attempt.time <= storm.closings[otp_id]
    assert repeated > 0
    assert all(len(found) == 1 for found in codes.values())
