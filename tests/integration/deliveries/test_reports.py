"""Delivery reports in any order and any number: each delivery ends in one state, and money moves once."""

import asyncio
from itertools import permutations
from uuid import uuid4

import pytest

from server.channels.channel import Outcome, OutcomeKind
from server.errors import DeliveryNotFound
from server.otps.otp import Delivery, DeliveryStatus
from server.otps.reports import report_delivery
from server.otps.settlement import Report
from server.sandbox.providers import Answer, twilio_error
from tests.integration.deliveries.post import EMAIL, LEASE, SMS, Post, Windows

QUEUED, SENT, DELIVERED = DeliveryStatus.QUEUED, DeliveryStatus.SENT, DeliveryStatus.DELIVERED
FAILED, UNKNOWN = DeliveryStatus.FAILED, DeliveryStatus.UNKNOWN
ACCEPTED = Outcome(OutcomeKind.ACCEPTED, "twilio", "SM1")


async def test_a_report_settles_a_delivery_whose_answer_never_came(post: Post, windows: Windows) -> None:
    windows.sandbox.play("twilio", Answer(503), Answer(503), Answer(503))
    sent, delivered, failed = [(await post.deliver(SMS))[0] for _ in range(3)]

    await post.report(sent, SENT)
    await post.report(delivered, DELIVERED)
    after = await post.report(failed, FAILED, reason="twilio_30005")

    assert (after.status, after.refunded, after.failure_reason) == (FAILED, True, "twilio_30005")
    assert await post.credits() == 1000 - 6


@pytest.mark.parametrize("refund_accepted", [True, False])
async def test_a_failure_after_acceptance_is_refunded_if_the_setting_says_so(
    post: Post, *, refund_accepted: bool
) -> None:
    (delivery,) = await post.deliver(SMS)

    for _ in range(3):
        after = await post.report(delivery, FAILED, reason="twilio_30003", refund_accepted=refund_accepted)

    assert (after.status, after.refunded) == (FAILED, refund_accepted)
    assert await post.credits() == (1000 if refund_accepted else 997)


@pytest.mark.parametrize("refund_accepted", [True, False])
async def test_a_report_that_overtakes_our_own_answer_means_the_same(post: Post, *, refund_accepted: bool) -> None:
    post.closed = True
    accepted = await post.send(SMS)

    await post.report(accepted.delivery, FAILED, reason="twilio_30003", refund_accepted=refund_accepted)
    assert await post.outbox_count() == 0
    await post.outcomes.record([Report(post.errand(accepted), ACCEPTED)])

    (delivery,) = await post.deliveries(accepted)
    assert (delivery.status, delivery.refunded) == (FAILED, refund_accepted)
    assert await post.watch(ahead=LEASE) == 0


@pytest.mark.parametrize("reports", list(permutations([SENT, SENT, DELIVERED])))
async def test_receipts_end_delivered_in_any_order(post: Post, reports: tuple[DeliveryStatus, ...]) -> None:
    (delivery,) = await post.deliver(SMS)

    for status in reports:
        await post.report(delivery, status)

    assert await _again(post, delivery) == [(DELIVERED.value, False)]


@pytest.mark.parametrize("late", [SENT, DELIVERED, FAILED])
async def test_nothing_is_said_about_a_delivery_that_was_refunded(
    post: Post, windows: Windows, late: DeliveryStatus
) -> None:
    windows.sandbox.play("twilio", twilio_error(21211))
    (delivery,) = await post.deliver(SMS)

    after = await post.report(delivery, late, reason="", refund_accepted=True)

    assert (after.status, after.refunded, after.failure_reason) == (FAILED, True, "twilio_21211")
    assert await post.credits() == 1000


async def test_a_delivered_message_does_not_fail_any_more(post: Post) -> None:
    (delivery,) = await post.deliver(SMS)
    await post.report(delivery, DELIVERED)

    after = await post.report(delivery, FAILED, reason="twilio_30003", refund_accepted=True)

    assert (after.status, after.refunded, after.failure_reason) == (DELIVERED, False, "")


async def test_many_equal_reports_at_once_refund_once(post: Post, windows: Windows) -> None:
    windows.sandbox.play("twilio", Answer(503))
    (delivery,) = await post.deliver(SMS)

    await asyncio.gather(*(post.report(delivery, FAILED, reason="twilio_30005") for _ in range(20)))

    assert [entry[0] for entry in await post.ledger()] == ["SEND", "REFUND"]


async def test_reports_and_outcomes_at_once_move_money_once(post: Post) -> None:
    post.closed = True
    sent = [await post.send(EMAIL) for _ in range(20)]
    rejected = Outcome(OutcomeKind.REJECTED_DESTINATION, "smtp", failure_reason="smtp_550")

    await asyncio.gather(
        *(post.report(one.delivery, FAILED, reason="smtp_550", refund_accepted=True) for one in sent),
        *(post.outcomes.record([Report(post.errand(one), rejected)]) for one in sent),
        *(post.outcomes.record([Report(post.errand(one), ACCEPTED)]) for one in sent),
    )

    refunds = [entry for entry in await post.ledger() if entry[0] == "REFUND"]
    ended = [(await post.deliveries(one))[0] for one in sent]
    assert {one.status for one in ended} <= {SENT, FAILED}
    assert len(refunds) == sum(one.status is FAILED for one in ended)
    assert await post.credits() == 1000 - sum(one.status is SENT for one in ended)


async def test_another_organizations_delivery_is_not_found(post: Post) -> None:
    (delivery,) = await post.deliver(SMS)
    wrong = [("another", delivery.delivery_id), (delivery.organization_id, uuid4())]

    for organization_id, delivery_id in wrong:
        with pytest.raises(DeliveryNotFound):
            await report_delivery(
                post.pool,
                organization_id,
                delivery_id,
                status=FAILED,
                failure_reason="",
                refund_accepted=True,
                now=post.clock(),
            )
    assert await _again(post, delivery) == [(SENT.value, False)]


async def _again(post: Post, delivery: Delivery) -> list[tuple[str, bool]]:
    query = "SELECT status, refunded FROM deliveries WHERE delivery_id = %s"
    return [(row[0], row[1]) for row in await post.rows(query, delivery.delivery_id)]
