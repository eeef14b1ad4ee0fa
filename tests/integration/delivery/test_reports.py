"""Delivery reports in any order and any number: each delivery ends in one status, and is refunded at most once."""

import asyncio
from itertools import permutations
from uuid import uuid4

import pytest

from server.errors import DeliveryNotFound
from server.otps.delivery.outcome_policy import DeliveryResult
from server.otps.delivery.reports import report_delivery
from server.otps.otp import Delivery, DeliveryStatus
from server.providers.provider import Outcome, OutcomeKind
from server.sandbox.providers import Answer, twilio_error
from tests.integration.delivery.harness import EMAIL, LEASE, SMS, DeliveryHarness, ProviderStandIns

QUEUED, SENT, DELIVERED = DeliveryStatus.QUEUED, DeliveryStatus.SENT, DeliveryStatus.DELIVERED
FAILED, UNKNOWN = DeliveryStatus.FAILED, DeliveryStatus.UNKNOWN
ACCEPTED = Outcome(OutcomeKind.ACCEPTED, "twilio", "SM1")


async def test_a_report_ends_a_delivery_whose_outcome_is_unknown(
    harness: DeliveryHarness, stand_ins: ProviderStandIns
) -> None:
    stand_ins.sandbox.play("twilio", Answer(503), Answer(503), Answer(503))
    sent, delivered, failed = [(await harness.deliver(SMS))[0] for _ in range(3)]

    await harness.report(sent, SENT)
    await harness.report(delivered, DELIVERED)
    after = await harness.report(failed, FAILED, reason="twilio_30005")

    assert (after.status, after.refunded, after.failure_reason) == (FAILED, True, "twilio_30005")
    assert await harness.credits() == 1000 - 6


@pytest.mark.parametrize("refund_accepted", [True, False])
async def test_a_failure_after_acceptance_is_refunded_if_the_setting_says_so(
    harness: DeliveryHarness, *, refund_accepted: bool
) -> None:
    (delivery,) = await harness.deliver(SMS)

    for _ in range(3):
        after = await harness.report(delivery, FAILED, reason="twilio_30003", refund_accepted=refund_accepted)

    assert (after.status, after.refunded) == (FAILED, refund_accepted)
    assert await harness.credits() == (1000 if refund_accepted else 997)


@pytest.mark.parametrize("refund_accepted", [True, False])
async def test_a_report_that_comes_before_the_providers_answer_has_the_same_effect(
    harness: DeliveryHarness, *, refund_accepted: bool
) -> None:
    harness.dispatches = False
    accepted = await harness.send(SMS)

    await harness.report(accepted.delivery, FAILED, reason="twilio_30003", refund_accepted=refund_accepted)
    assert await harness.outbox_count() == 0
    await harness.outcomes.record([DeliveryResult(harness.job(accepted), ACCEPTED)])

    (delivery,) = await harness.deliveries(accepted)
    assert (delivery.status, delivery.refunded) == (FAILED, refund_accepted)
    assert await harness.take_over(after=LEASE) == 0


@pytest.mark.parametrize("reports", list(permutations([SENT, SENT, DELIVERED])))
async def test_receipts_end_delivered_in_any_order(
    harness: DeliveryHarness, reports: tuple[DeliveryStatus, ...]
) -> None:
    (delivery,) = await harness.deliver(SMS)

    for status in reports:
        await harness.report(delivery, status)

    assert await _stored(harness, delivery) == [(DELIVERED.value, False)]


@pytest.mark.parametrize("late", [SENT, DELIVERED, FAILED])
async def test_a_report_does_not_change_a_refunded_delivery(
    harness: DeliveryHarness, stand_ins: ProviderStandIns, late: DeliveryStatus
) -> None:
    stand_ins.sandbox.play("twilio", twilio_error(21211))
    (delivery,) = await harness.deliver(SMS)

    after = await harness.report(delivery, late, reason="", refund_accepted=True)

    assert (after.status, after.refunded, after.failure_reason) == (FAILED, True, "twilio_21211")
    assert await harness.credits() == 1000


async def test_a_delivered_message_cannot_fail_later(harness: DeliveryHarness) -> None:
    (delivery,) = await harness.deliver(SMS)
    await harness.report(delivery, DELIVERED)

    after = await harness.report(delivery, FAILED, reason="twilio_30003", refund_accepted=True)

    assert (after.status, after.refunded, after.failure_reason) == (DELIVERED, False, "")


async def test_many_equal_concurrent_reports_refund_once(harness: DeliveryHarness, stand_ins: ProviderStandIns) -> None:
    stand_ins.sandbox.play("twilio", Answer(503))
    (delivery,) = await harness.deliver(SMS)

    await asyncio.gather(*(harness.report(delivery, FAILED, reason="twilio_30005") for _ in range(20)))

    assert [entry[0] for entry in await harness.ledger()] == ["SEND", "REFUND"]


async def test_concurrent_reports_and_outcomes_refund_each_delivery_once(harness: DeliveryHarness) -> None:
    harness.dispatches = False
    sent = [await harness.send(EMAIL) for _ in range(20)]
    rejected = Outcome(OutcomeKind.REJECTED_DESTINATION, "smtp", failure_reason="smtp_550")

    await asyncio.gather(
        *(harness.report(one.delivery, FAILED, reason="smtp_550", refund_accepted=True) for one in sent),
        *(harness.outcomes.record([DeliveryResult(harness.job(one), rejected)]) for one in sent),
        *(harness.outcomes.record([DeliveryResult(harness.job(one), ACCEPTED)]) for one in sent),
    )

    refunds = [entry for entry in await harness.ledger() if entry[0] == "REFUND"]
    ended = [(await harness.deliveries(one))[0] for one in sent]
    assert {one.status for one in ended} <= {SENT, FAILED}
    assert len(refunds) == sum(one.status is FAILED for one in ended)
    assert await harness.credits() == 1000 - sum(one.status is SENT for one in ended)


async def test_another_organizations_delivery_is_not_found(harness: DeliveryHarness) -> None:
    (delivery,) = await harness.deliver(SMS)
    wrong = [("another", delivery.delivery_id), (delivery.organization_id, uuid4())]

    for organization_id, delivery_id in wrong:
        with pytest.raises(DeliveryNotFound):
            await report_delivery(
                harness.pool,
                organization_id,
                delivery_id,
                status=FAILED,
                failure_reason="",
                refund_accepted=True,
                now=harness.clock(),
            )
    assert await _stored(harness, delivery) == [(SENT.value, False)]


async def _stored(harness: DeliveryHarness, delivery: Delivery) -> list[tuple[str, bool]]:
    query = "SELECT status, refunded FROM deliveries WHERE delivery_id = %s"
    return [(row[0], row[1]) for row in await harness.rows(query, delivery.delivery_id)]
