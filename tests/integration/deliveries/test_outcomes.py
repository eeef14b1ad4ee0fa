"""What each outcome of a provider's call leaves: in the ledger, in the delivery, and in what GetOtp shows."""

import pytest

from server.channels.channel import Outcome, OutcomeKind
from server.otps.otp import DeliveryStatus
from server.otps.settlement import Report
from server.sandbox.providers import Answer, Conduct, twilio_error, vonage_status, whatsapp_error
from server.sandbox.relay import DROP
from tests.integration.deliveries.post import ACME, EMAIL, LEASE, SMS, WHATSAPP, Post, Windows

SENT, FAILED, UNKNOWN = DeliveryStatus.SENT, DeliveryStatus.FAILED, DeliveryStatus.UNKNOWN
MISCONFIGURED = (twilio_error(20003, status=401), vonage_status("4"))


async def test_an_accepted_message_stays_charged(post: Post, windows: Windows) -> None:
    (sms,) = await post.deliver(SMS)
    (whatsapp,) = await post.deliver(WHATSAPP)
    (email,) = await post.deliver(EMAIL)

    assert [one.status for one in (sms, whatsapp, email)] == [SENT] * 3
    assert await post.ledger() == [
        ("SEND", -3, sms.delivery_id),
        ("SEND", -2, whatsapp.delivery_id),
        ("SEND", -1, email.delivery_id),
    ]
    assert [call.provider for call in windows.sandbox.received] == ["twilio", "whatsapp"]
    assert len(windows.relay.mails) == 1
    assert await post.outbox_count() == 0


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
async def test_a_definite_failure_is_refunded_and_a_doubtful_one_stays_charged(
    post: Post, windows: Windows, provider: str, answers: list[Answer], status: DeliveryStatus, reason: str
) -> None:
    windows.sandbox.play(provider, *answers)

    (delivery,) = await post.deliver(SMS if provider == "twilio" else WHATSAPP)

    taken = ("SEND", -delivery.credits, delivery.delivery_id)
    given_back = ("REFUND", delivery.credits, delivery.delivery_id)
    assert (delivery.status, delivery.failure_reason) == (status, reason)
    assert delivery.refunded == (status is FAILED)
    assert await post.ledger() == ([taken, given_back] if status is FAILED else [taken])
    assert await post.credits() == (1000 if status is FAILED else 1000 - delivery.credits)
    assert await post.outbox_count() == 0
    assert len(windows.sandbox.received) == 1


@pytest.mark.parametrize(
    ("step", "reply", "status", "reason"),
    [
        ("RCPT", "550 5.1.1 no such user", FAILED, "smtp_550"),
        ("MAIL", "535 5.7.8 who are you", FAILED, "smtp_535"),
        ("CONTENT", DROP, UNKNOWN, "connection_lost"),
    ],
)
async def test_a_mail_is_refunded_only_when_it_surely_went_nowhere(
    post: Post, windows: Windows, step: str, reply: str, status: DeliveryStatus, reason: str
) -> None:
    windows.relay.play(step, reply)

    (delivery,) = await post.deliver(EMAIL)

    assert (delivery.status, delivery.refunded, delivery.failure_reason) == (status, status is FAILED, reason)
    assert await post.credits() == (1000 if status is FAILED else 999)


async def test_a_misconfigured_provider_leaves_the_message_to_the_next_one(post: Post, windows: Windows) -> None:
    windows.sandbox.play("twilio", MISCONFIGURED[0])

    (delivery,) = await post.deliver(SMS)

    assert (delivery.status, delivery.refunded) == (SENT, False)
    assert [call.provider for call in windows.sandbox.received] == ["twilio", "vonage"]
    assert await post.ledger() == [("SEND", -3, delivery.delivery_id)]


async def test_a_channel_whose_providers_are_all_misconfigured_costs_nothing(post: Post, windows: Windows) -> None:
    windows.sandbox.play("twilio", MISCONFIGURED[0])
    windows.sandbox.play("vonage", MISCONFIGURED[1])

    (delivery,) = await post.deliver(SMS)

    assert (delivery.status, delivery.refunded, delivery.failure_reason) == (FAILED, True, "twilio_20003")
    assert await post.credits() == 1000


async def test_providers_echo_whose_delivery_it_is(post: Post, windows: Windows) -> None:
    (sms,) = await post.deliver(SMS)
    (whatsapp,) = await post.deliver(WHATSAPP)

    calls = windows.sandbox.received
    assert calls[0].fields["StatusCallback"].endswith(f"?reference={ACME}%2F{sms.delivery_id.hex}")
    assert calls[1].fields["biz_opaque_callback_data"] == f"{ACME}/{whatsapp.delivery_id.hex}"


async def test_an_outcome_that_is_recorded_twice_counts_once(post: Post) -> None:
    post.closed = True
    accepted = await post.send(SMS)
    errand = post.errand(accepted)
    failed = Outcome(OutcomeKind.REJECTED_DESTINATION, "twilio", failure_reason="twilio_21211")

    await post.outcomes.record([Report(errand, failed), Report(errand, failed)])
    await post.outcomes.record([Report(errand, failed)])
    await post.outcomes.record([Report(errand, Outcome(OutcomeKind.ACCEPTED, "twilio"))])

    (delivery,) = await post.deliveries(accepted)
    assert (delivery.status, delivery.refunded) == (FAILED, True)
    assert [entry[0] for entry in await post.ledger()] == ["SEND", "REFUND"]


async def test_a_message_that_may_be_out_is_never_refunded_by_a_second_carrier(post: Post) -> None:
    post.closed = True
    accepted = await post.send(SMS)
    errand = post.errand(accepted)
    failed = Outcome(OutcomeKind.REJECTED_DESTINATION, "twilio", failure_reason="twilio_21211")
    accepted_by_provider = Outcome(OutcomeKind.ACCEPTED, "twilio", "SM1")

    await post.outcomes.record([Report(errand, accepted_by_provider), Report(errand, failed)])

    (delivery,) = await post.deliveries(accepted)
    assert (delivery.status, delivery.refunded) == (SENT, False)


@pytest.mark.parametrize("kind", [OutcomeKind.REJECTED_DESTINATION, OutcomeKind.NOT_SENT])
async def test_whoever_lost_the_lease_cannot_fail_or_postpone_the_delivery(post: Post, kind: OutcomeKind) -> None:
    post.closed = True
    accepted = await post.send(SMS)
    late = post.errand(accepted, lease_expire_time=accepted.delivery.create_time + LEASE / 2)
    before = await post.rows("SELECT attempts, next_attempt_time FROM outbox")

    fallbacks = await post.outcomes.record([Report(late, Outcome(kind, "twilio"))])

    (delivery,) = await post.deliveries(accepted)
    assert (fallbacks, delivery.status) == ([], DeliveryStatus.QUEUED)
    assert await post.rows("SELECT attempts, next_attempt_time FROM outbox") == before
    assert [entry[0] for entry in await post.ledger()] == ["SEND"]
