"""Webhooks and each of their faults, as seen by an endpoint."""

import pytest
import stripe

from tests.integration.sandbox.stripe_harness import SECRET, StripeHarness

PAID = {"event": "invoice.paid"}


async def test_an_event_is_signed_and_has_a_snapshot_of_the_invoice(harness: StripeHarness) -> None:
    invoice = await harness.open()
    await harness.receiver.wait_for("invoice.finalized")

    event = harness.receiver.deliveries[0].event()

    assert (event.type, event.livemode, event.pending_webhooks) == ("invoice.finalized", False, 1)
    assert event.api_version == stripe.api_version
    assert "account" not in event.to_dict()
    assert (event.data.object["id"], event.data.object["status"]) == (invoice.id, "open")
    assert event.request is not None
    assert str(event.request.id).startswith("req_")


async def test_only_subscribed_event_types_are_delivered(harness: StripeHarness) -> None:
    invoice = await harness.open()
    await harness.act(invoice, "pay")
    await harness.receiver.wait_for("invoice.finalized", "invoice.paid")

    endpoint = await harness.client().v1.webhook_endpoints.create_async(
        {"url": harness.receiver.url, "enabled_events": ["invoice.payment_succeeded"]}
    )
    await harness.control("PUT /webhook", {"url": None})
    harness.receiver.deliveries.clear()
    await harness.act(await harness.open(), "pay")

    await harness.receiver.wait_for("invoice.payment_succeeded")
    assert endpoint.secret is not None
    assert harness.receiver.deliveries[0].event(endpoint.secret).type == "invoice.payment_succeeded"


async def test_an_endpoint_can_be_changed_and_deleted(harness: StripeHarness) -> None:
    endpoints = harness.client().v1.webhook_endpoints
    made = await endpoints.create_async({"url": "http://127.0.0.1:1/", "enabled_events": ["*"]})

    changed = await endpoints.update_async(made.id, {"enabled_events": ["invoice.paid"], "disabled": True})
    assert (changed.enabled_events, changed.status) == (["invoice.paid"], "disabled")
    assert "secret" not in changed.to_dict()
    await endpoints.delete_async(made.id)
    assert [each.id for each in (await endpoints.list_async()).data] == ["we_default"]


async def test_an_event_is_retried_until_it_is_accepted(harness: StripeHarness) -> None:
    await harness.control("PATCH /settings", {"retry_delay_seconds": 0.01})
    harness.receiver.statuses.extend([503, 500])

    await harness.open()

    await harness.receiver.wait_for(*["invoice.finalized"] * 3)
    assert len({delivery.event().id for delivery in harness.receiver.deliveries}) == 1
    attempts = (await harness.control("GET /deliveries"))["deliveries"]
    assert [each["attempt"] for each in attempts][:2] == [1, 2]


async def test_deliveries_end_after_the_last_retry(harness: StripeHarness) -> None:
    await harness.control("PATCH /settings", {"retry_delay_seconds": 0.01, "retry_limit": 1})
    harness.receiver.statuses.extend([503, 503])

    await harness.open()
    await harness.control("GET /deliveries/done")

    assert harness.receiver.types() == ["invoice.finalized"] * 2
    undelivered = await harness.client().v1.events.list_async({"delivery_success": False})
    assert [event.type for event in undelivered.data] == ["invoice.finalized"]


async def test_both_secrets_sign_while_one_is_rolled(harness: StripeHarness) -> None:
    await harness.control("POST /webhook_secret/roll", {"secret": "whsec_new"})
    await harness.open()
    await harness.receiver.wait_for("invoice.finalized")
    delivery = harness.receiver.deliveries[0]
    assert delivery.event(SECRET).id == delivery.event("whsec_new").id

    await harness.control("POST /webhook_secret/expire")
    harness.receiver.deliveries.clear()
    await harness.open()
    await harness.receiver.wait_for("invoice.finalized")
    with pytest.raises(stripe.SignatureVerificationError):
        harness.receiver.deliveries[0].event(SECRET)
    assert harness.receiver.deliveries[0].event("whsec_new").type == "invoice.finalized"


async def test_one_event_can_be_delivered_many_times_at_once(harness: StripeHarness) -> None:
    invoice = await harness.open()
    await harness.fault(PAID, "duplicate", copies=49)

    await harness.act(invoice, "pay")

    await harness.receiver.wait_for("invoice.finalized", *["invoice.paid"] * 50)
    assert len({delivery.event().id for delivery in harness.receiver.deliveries}) == 2


async def test_one_payment_can_have_two_events(harness: StripeHarness) -> None:
    invoice = await harness.open()
    await harness.fault(PAID, "second_id")

    await harness.act(invoice, "pay")

    await harness.receiver.wait_for("invoice.finalized", "invoice.paid", "invoice.paid")
    first, second = [each.event() for each in harness.receiver.deliveries if each.event().type == "invoice.paid"]
    assert first.id != second.id
    assert first.data.object["id"] == second.data.object["id"] == invoice.id


async def test_an_event_can_arrive_after_the_next(harness: StripeHarness) -> None:
    await harness.fault({"event": "invoice.finalized"}, "reorder")

    await harness.act(await harness.open(), "pay")

    await harness.receiver.wait_for("invoice.paid", "invoice.finalized")
    assert harness.receiver.types() == ["invoice.paid", "invoice.finalized"]


async def test_held_events_are_released_in_the_requested_order(harness: StripeHarness) -> None:
    await harness.fault({"event": "invoice.*"}, "hold", times=0)
    await harness.act(await harness.open(), "pay")
    await harness.control("GET /deliveries/done")
    assert harness.receiver.deliveries == []

    released = await harness.control("POST /events/release", {"reverse": True})

    assert [entry["statuses"] for entry in released["delivered"] if entry["statuses"]] == [[200], [200]]
    assert harness.receiver.types() == ["invoice.paid", "invoice.finalized"]


async def test_a_lost_event_is_never_delivered_but_listed_as_undelivered(harness: StripeHarness) -> None:
    await harness.fault(PAID, "lose")
    invoice = await harness.open()
    await harness.act(invoice, "pay")
    await harness.control("GET /deliveries/done")
    assert harness.receiver.types() == ["invoice.finalized"]

    lost = await harness.client().v1.events.list_async({"delivery_success": False, "types": ["invoice.paid"]})

    assert [event.data.object["id"] for event in lost.data] == [invoice.id]
    assert lost.data[0].pending_webhooks == 1
    assert (await harness.client().v1.events.retrieve_async(lost.data[0].id)).type == "invoice.paid"


async def test_an_event_can_be_of_the_wrong_mode_or_another_account(harness: StripeHarness) -> None:
    await harness.fault({"event": "invoice.finalized"}, "change_event", set={"livemode": True, "account": "acct_other"})

    await harness.open()

    await harness.receiver.wait_for("invoice.finalized")
    event = harness.receiver.deliveries[0].event()
    assert (event.livemode, event.account) == (True, "acct_other")


@pytest.mark.parametrize("options", [{"age_seconds": 301}, {"secret": "whsec_forged"}])
async def test_the_signature_of_a_first_attempt_can_be_old_or_forged_and_the_next_is_correct(
    harness: StripeHarness, options: dict[str, object]
) -> None:
    await harness.control("PATCH /settings", {"retry_delay_seconds": 0.01})
    harness.receiver.statuses.append(400)
    await harness.fault({"event": "invoice.finalized"}, "missign", **options)

    await harness.open()

    await harness.receiver.wait_for("invoice.finalized", "invoice.finalized")
    first, second = harness.receiver.deliveries
    with pytest.raises(stripe.SignatureVerificationError):
        first.event()
    assert second.event().type == "invoice.finalized"


async def test_an_event_of_yesterday_can_be_delivered_again(harness: StripeHarness) -> None:
    await harness.open()
    await harness.receiver.wait_for("invoice.finalized")
    await harness.control("POST /clock", {"advance_seconds": 86_400})
    event_id = harness.receiver.deliveries[0].event().id

    answered = await harness.control(f"POST /events/{event_id}/deliver", {"times": 10})

    assert answered == {"statuses": [200] * 10}
    assert {delivery.event().id for delivery in harness.receiver.deliveries} == {event_id}


async def test_any_body_can_be_delivered_with_any_signature(harness: StripeHarness) -> None:
    answered = await harness.control("POST /deliver", {"body": "[]", "age_seconds": -400})
    await harness.control("POST /deliver", {"body": "null", "header": "t=1,v1=é"})

    assert answered == {"answers": [{"status": 200, "body": ""}]}
    assert [delivery.body for delivery in harness.receiver.deliveries] == ["[]", "null"]
    assert stripe.WebhookSignature.verify_header("[]", harness.receiver.deliveries[0].signature, SECRET, 300)


async def test_events_of_refunds_and_disputes_refer_to_the_charge(harness: StripeHarness) -> None:
    invoice = await harness.open()
    await harness.act(invoice, "pay")
    await harness.act(invoice, "refund", amount=5_000_000)
    await harness.act(invoice, "dispute")
    await harness.act(invoice, "close_dispute", outcome="lost")

    disputes = [f"charge.dispute.{what}" for what in ("created", "funds_withdrawn", "closed")]
    await harness.receiver.wait_for("invoice.finalized", "invoice.paid", "refund.created", "charge.refunded", *disputes)
    events = {event.type: event.data.object for event in (each.event() for each in harness.receiver.deliveries)}
    charge = events["charge.refunded"]
    assert (charge["amount_refunded"], charge["refunded"]) == (5_000_000, False)
    assert events["charge.dispute.created"]["payment_intent"] == charge["payment_intent"]
    assert events["charge.dispute.closed"]["status"] == "lost"


async def test_an_event_about_any_object_can_be_sent(harness: StripeHarness) -> None:
    await harness.control("POST /events", {"type": "invoice.paid", "object": {"id": "in_foreign", "object": "invoice"}})
    await harness.act(await harness.open(), "emit", event="invoice.payment_action_required")

    await harness.receiver.wait_for("invoice.paid", "invoice.finalized", "invoice.payment_action_required")
