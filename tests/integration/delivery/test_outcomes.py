"""What each outcome of a provider call writes to the ledger and to the delivery, and what GetOtp shows of it."""

import pytest

from server.otps.delivery.outcome_policy import DeliveryResult
from server.otps.otp import DeliveryStatus
from server.providers.provider import Outcome, OutcomeKind
from server.sandbox.providers import Answer, Conduct, twilio_error, vonage_status, whatsapp_error
from server.sandbox.relay import DROP
from tests.integration.delivery.harness import ACME, EMAIL, LEASE, SMS, WHATSAPP, DeliveryHarness, ProviderStandIns

SENT, FAILED, UNKNOWN = DeliveryStatus.SENT, DeliveryStatus.FAILED, DeliveryStatus.UNKNOWN
MISCONFIGURED = (twilio_error(20003, status=401), vonage_status("4"))


async def test_an_accepted_message_stays_charged(harness: DeliveryHarness, stand_ins: ProviderStandIns) -> None:
    (sms,) = await harness.deliver(SMS)
    (whatsapp,) = await harness.deliver(WHATSAPP)
    (email,) = await harness.deliver(EMAIL)

    assert [one.status for one in (sms, whatsapp, email)] == [SENT] * 3
    assert await harness.ledger() == [
        ("SEND", -3, sms.delivery_id),
        ("SEND", -2, whatsapp.delivery_id),
        ("SEND", -1, email.delivery_id),
    ]
    assert [call.provider for call in stand_ins.sandbox.received] == ["twilio", "whatsapp"]
    assert len(stand_ins.relay.mails) == 1
    assert await harness.outbox_count() == 0


@pytest.mark.parametrize(
    ("provider", "answers", "status", "reason"),
    [
        ("twilio", [twilio_error(21211)], FAILED, "twilio_21211"),
        ("twilio", [Answer(503)], UNKNOWN, "twilio_http_503"),
        ("twilio", [Answer(conduct=Conduct.RESET)], UNKNOWN, "connection_lost"),
        ("whatsapp", [whatsapp_error(131026)], FAILED, "whatsapp_131026"),
        ("whatsapp", [whatsapp_error(190, status=401)], FAILED, "whatsapp_190"),
        ("whatsapp", [whatsapp_error(131000, status=500)], UNKNOWN, "whatsapp_131000"),
    ],
)
async def test_a_definite_failure_is_refunded_and_an_unknown_outcome_stays_charged(
    harness: DeliveryHarness,
    stand_ins: ProviderStandIns,
    provider: str,
    answers: list[Answer],
    status: DeliveryStatus,
    reason: str,
) -> None:
    stand_ins.sandbox.play(provider, *answers)

    (delivery,) = await harness.deliver(SMS if provider == "twilio" else WHATSAPP)

    charge = ("SEND", -delivery.credits, delivery.delivery_id)
    refund = ("REFUND", delivery.credits, delivery.delivery_id)
    assert (delivery.status, delivery.failure_reason) == (status, reason)
    assert delivery.refunded == (status is FAILED)
    assert await harness.ledger() == ([charge, refund] if status is FAILED else [charge])
    assert await harness.credits() == (1000 if status is FAILED else 1000 - delivery.credits)
    assert await harness.outbox_count() == 0
    assert len(stand_ins.sandbox.received) == 1


@pytest.mark.parametrize(
    ("step", "reply", "status", "reason"),
    [
        ("RCPT", "550 5.1.1 no such user", FAILED, "smtp_550"),
        ("MAIL", "535 5.7.8 who are you", FAILED, "smtp_535"),
        ("CONTENT", DROP, UNKNOWN, "connection_lost"),
    ],
)
async def test_a_mail_is_refunded_only_when_it_definitely_was_not_sent(
    harness: DeliveryHarness, stand_ins: ProviderStandIns, step: str, reply: str, status: DeliveryStatus, reason: str
) -> None:
    stand_ins.relay.play(step, reply)

    (delivery,) = await harness.deliver(EMAIL)

    assert (delivery.status, delivery.refunded, delivery.failure_reason) == (status, status is FAILED, reason)
    assert await harness.credits() == (1000 if status is FAILED else 999)


async def test_after_a_misconfigured_provider_the_next_one_is_asked(
    harness: DeliveryHarness, stand_ins: ProviderStandIns
) -> None:
    stand_ins.sandbox.play("twilio", MISCONFIGURED[0])

    (delivery,) = await harness.deliver(SMS)

    assert (delivery.status, delivery.refunded) == (SENT, False)
    assert [call.provider for call in stand_ins.sandbox.received] == ["twilio", "vonage"]
    assert await harness.ledger() == [("SEND", -3, delivery.delivery_id)]


async def test_a_send_through_a_channel_without_a_configured_provider_is_refunded(
    harness: DeliveryHarness, stand_ins: ProviderStandIns
) -> None:
    stand_ins.sandbox.play("twilio", MISCONFIGURED[0])
    stand_ins.sandbox.play("vonage", MISCONFIGURED[1])

    (delivery,) = await harness.deliver(SMS)

    assert (delivery.status, delivery.refunded, delivery.failure_reason) == (FAILED, True, "twilio_20003")
    assert await harness.credits() == 1000


async def test_providers_get_a_reference_to_the_delivery(harness: DeliveryHarness, stand_ins: ProviderStandIns) -> None:
    (sms,) = await harness.deliver(SMS)
    (whatsapp,) = await harness.deliver(WHATSAPP)

    calls = stand_ins.sandbox.received
    assert calls[0].fields["StatusCallback"].endswith(f"?reference={ACME}%2F{sms.delivery_id.hex}")
    assert calls[1].fields["biz_opaque_callback_data"] == f"{ACME}/{whatsapp.delivery_id.hex}"


async def test_an_outcome_that_is_recorded_twice_counts_once(harness: DeliveryHarness) -> None:
    harness.dispatches = False
    accepted = await harness.send(SMS)
    job = harness.job(accepted)
    failed = Outcome(OutcomeKind.REJECTED_DESTINATION, "twilio", failure_reason="twilio_21211")

    await harness.outcomes.record([DeliveryResult(job, failed), DeliveryResult(job, failed)])
    await harness.outcomes.record([DeliveryResult(job, failed)])
    await harness.outcomes.record([DeliveryResult(job, Outcome(OutcomeKind.ACCEPTED, "twilio"))])

    (delivery,) = await harness.deliveries(accepted)
    assert (delivery.status, delivery.refunded) == (FAILED, True)
    assert [entry[0] for entry in await harness.ledger()] == ["SEND", "REFUND"]


async def test_a_failure_recorded_beside_an_acceptance_of_the_same_delivery_is_not_refunded(
    harness: DeliveryHarness,
) -> None:
    harness.dispatches = False
    accepted = await harness.send(SMS)
    job = harness.job(accepted)
    failed = Outcome(OutcomeKind.REJECTED_DESTINATION, "twilio", failure_reason="twilio_21211")
    accepted_by_provider = Outcome(OutcomeKind.ACCEPTED, "twilio", "SM1")

    await harness.outcomes.record([DeliveryResult(job, accepted_by_provider), DeliveryResult(job, failed)])

    (delivery,) = await harness.deliveries(accepted)
    assert (delivery.status, delivery.refunded) == (SENT, False)


@pytest.mark.parametrize("kind", [OutcomeKind.REJECTED_DESTINATION, OutcomeKind.NOT_SENT])
async def test_a_replica_that_lost_the_lease_cannot_fail_or_postpone_the_delivery(
    harness: DeliveryHarness, kind: OutcomeKind
) -> None:
    harness.dispatches = False
    accepted = await harness.send(SMS)
    late = harness.job(accepted, lease_expire_time=accepted.delivery.create_time + LEASE / 2)
    before = await harness.rows("SELECT attempts, next_attempt_time FROM outbox")

    fallbacks = await harness.outcomes.record([DeliveryResult(late, Outcome(kind, "twilio"))])

    (delivery,) = await harness.deliveries(accepted)
    assert (fallbacks, delivery.status) == ([], DeliveryStatus.QUEUED)
    assert await harness.rows("SELECT attempts, next_attempt_time FROM outbox") == before
    assert [entry[0] for entry in await harness.ledger()] == ["SEND"]
