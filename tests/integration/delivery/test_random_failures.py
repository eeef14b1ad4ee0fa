"""Whatever providers answer, whenever the process dies: what is charged is what was sent."""

import os
from collections import defaultdict
from typing import Any
from uuid import UUID

from server.credits.audit import audit_all
from server.providers.provider import OutcomeKind
from tests.integration.delivery.harness import OpenHarness, ProviderStandIns
from tests.integration.delivery.simulation import CREDITS, ORGANIZATIONS, Simulation, new_simulation

SENDS = int(os.environ.get("SIMULATION_SENDS", "300"))
SEED = int(os.environ.get("SIMULATION_SEED", "5"))
NOT_SENT = {OutcomeKind.REJECTED_DESTINATION, OutcomeKind.REJECTED_CONFIGURATION, OutcomeKind.NOT_SENT}
STATUSES = {OutcomeKind.ACCEPTED: "SENT", OutcomeKind.UNKNOWN: "UNKNOWN"}


async def test_after_random_failures_the_charges_are_what_was_sent(
    open_harness: OpenHarness, stand_ins: ProviderStandIns
) -> None:
    simulation = new_simulation(open_harness, stand_ins, sends=SENDS, seed=SEED)
    harness = simulation.harness
    for organization_id in ORGANIZATIONS:
        await harness.fund(CREDITS, organization_id)

    await simulation.run(SENDS, rounds=20)

    rows = await harness.rows(
        "SELECT delivery_id, otp_id, organization_id, status, refunded, credits, failure_reason FROM deliveries"
        " ORDER BY organization_id, ledger_sequence"
    )
    assert simulation.crashes > 0
    assert len({row[1] for row in rows}) == len(simulation.sent)
    for delivery_id, _, _, status, refunded, _, failure_reason in rows:
        check_delivery(simulation, delivery_id, status, failure_reason, refunded=refunded)
    check_fallbacks(rows)
    check_messages(simulation)
    for organization_id in ORGANIZATIONS:
        charged = sum(row[5] for row in rows if row[2] == organization_id and not row[4])
        assert await harness.credits(organization_id) == CREDITS - charged
    assert (await audit_all(harness.pool)).holds


def check_delivery(
    simulation: Simulation, delivery_id: UUID, status: str, failure_reason: str, *, refunded: bool
) -> None:
    """Its status is what the last provider call came to, or a report, or the end of its OTP."""
    kinds = [attempt.kind for attempt in simulation.record.attempts[delivery_id]]
    last = kinds[-1] if kinds else None
    assert refunded == (status == "FAILED")
    if status == "DELIVERED" or failure_reason == "reported":
        assert simulation.reported[delivery_id].value == status
    elif status == "FAILED":
        # An OTP's end refunds what a crash interrupted, but never what is known to be sent.
        assert failure_reason.startswith("otp_") or last in NOT_SENT
    else:
        assert last is not None
        assert status == STATUSES[last]


def check_fallbacks(rows: list[tuple[Any, ...]]) -> None:
    """No fallback is sent for a delivery that did not fail."""
    statuses = defaultdict(list)
    for row in rows:
        statuses[row[1]].append(row[3])
    assert all(chain[:-1] == ["FAILED"] * (len(chain) - 1) for chain in statuses.values())
    assert max(map(len, statuses.values())) == 2


def check_messages(simulation: Simulation) -> None:
    """No message was sent for an OTP that had ended, and all of an OTP's messages carry one code."""
    expiries = {one.record.otp.otp_id: one.record.otp for one in simulation.sent}
    otps = {one.delivery.delivery_id: one.record.otp.otp_id for one in simulation.sent}
    codes = defaultdict(set)
    repeated = 0
    for delivery_id, attempts in simulation.record.attempts.items():
        repeated += len(attempts) > 1
        for attempt in attempts:
            assert attempt.time < attempt.message.expire_time
            codes[attempt.message.reference].add(attempt.message.code)
            if otp_id := otps.get(delivery_id):
                assert attempt.message.expire_time == expiries[otp_id].expire_time
                assert otp_id not in simulation.cancel_times or attempt.time <= simulation.cancel_times[otp_id]
    assert repeated > 0
    assert all(len(found) == 1 for found in codes.values())
