"""Webhooks and each of their faults, as an endpoint sees them."""

import pytest
import stripe

from tests.integration.sandbox.stripe_world import SECRET, World

PAID = {"event": "invoice.paid"}


async def test_an_event_is_signed_and_carries_the_invoice_as_it_was(world: World) -> None:
    invoice = await world.open()
    await world.receiver.wait_for("invoice.finalized")

    event = world.receiver.deliveries[0].event()

    assert (event.type, event.livemode, event.pending_webhooks) == ("invoice.finalized", False, 1)
    assert event.api_version == stripe.api_version
    assert "account" not in event.to_dict()
    assert (event.data.object["id"], event.data.object["status"]) == (invoice.id, "open")
    assert event.request is not None
    assert str(event.request.id).startswith("req_")


async def test_only_what_the_endpoint_subscribes_to_is_delivered(world: World) -> None:
    invoice = await world.open()
    await world.act(invoice, "pay")
    await world.receiver.wait_for("invoice.finalized", "invoice.paid")

    endpoint = await world.client().v1.webhook_endpoints.create_async(
        {"url": world.receiver.url, "enabled_events": ["invoice.payment_succeeded"]}
    )
    await world.control("PUT /webhook", {"url": None})
    world.receiver.deliveries.clear()
    await world.act(await world.open(), "pay")

    await world.receiver.wait_for("invoice.payment_succeeded")
    assert endpoint.secret is not None
    assert world.receiver.deliveries[0].event(endpoint.secret).type == "invoice.payment_succeeded"


async def test_an_endpoint_can_be_changed_and_deleted(world: World) -> None:
    endpoints = world.client().v1.webhook_endpoints
    made = await endpoints.create_async({"url": "http://127.0.0.1:1/", "enabled_events": ["*"]})

    changed = await endpoints.update_async(made.id, {"enabled_events": ["invoice.paid"], "disabled": True})
    assert (changed.enabled_events, changed.status) == (["invoice.paid"], "disabled")
    assert "secret" not in changed.to_dict()
    await endpoints.delete_async(made.id)
    assert [each.id for each in (await endpoints.list_async()).data] == ["we_default"]


async def test_an_event_comes_again_until_it_is_taken(world: World) -> None:
    await world.control("PATCH /settings", {"retry_delay_seconds": 0.01})
    world.receiver.statuses.extend([503, 500])

    await world.open()

    await world.receiver.wait_for(*["invoice.finalized"] * 3)
    assert len({delivery.event().id for delivery in world.receiver.deliveries}) == 1
    attempts = (await world.control("GET /deliveries"))["deliveries"]
    assert [each["attempt"] for each in attempts][:2] == [1, 2]


async def test_deliveries_end_after_the_last_retry(world: World) -> None:
    await world.control("PATCH /settings", {"retry_delay_seconds": 0.01, "retry_limit": 1})
    world.receiver.statuses.extend([503, 503])

    await world.open()
    await world.control("GET /deliveries/done")

    assert world.receiver.types() == ["invoice.finalized"] * 2
    undelivered = await world.client().v1.events.list_async({"delivery_success": False})
    assert [event.type for event in undelivered.data] == ["invoice.finalized"]


async def test_both_secrets_sign_while_one_is_rolled(world: World) -> None:
    await world.control("POST /webhook_secret/roll", {"secret": "whsec_new"})
    await world.open()
    await world.receiver.wait_for("invoice.finalized")
    delivery = world.receiver.deliveries[0]
    assert delivery.event(SECRET).id == delivery.event("whsec_new").id

    await world.control("POST /webhook_secret/expire")
    world.receiver.deliveries.clear()
    await world.open()
    await world.receiver.wait_for("invoice.finalized")
    with pytest.raises(stripe.SignatureVerificationError):
        world.receiver.deliveries[0].event(SECRET)
    assert world.receiver.deliveries[0].event("whsec_new").type == "invoice.finalized"


async def test_one_event_can_come_many_times_at_once(world: World) -> None:
    invoice = await world.open()
    await world.fault(PAID, "duplicate", copies=49)

    await world.act(invoice, "pay")

    await world.receiver.wait_for("invoice.finalized", *["invoice.paid"] * 50)
    assert len({delivery.event().id for delivery in world.receiver.deliveries}) == 2


async def test_one_fact_can_have_two_events(world: World) -> None:
    invoice = await world.open()
    await world.fault(PAID, "second_id")

    await world.act(invoice, "pay")

    await world.receiver.wait_for("invoice.finalized", "invoice.paid", "invoice.paid")
    first, second = [each.event() for each in world.receiver.deliveries if each.event().type == "invoice.paid"]
    assert first.id != second.id
    assert first.data.object["id"] == second.data.object["id"] == invoice.id


async def test_an_event_can_be_overtaken_by_the_next(world: World) -> None:
    await world.fault({"event": "invoice.finalized"}, "reorder")

    await world.act(await world.open(), "pay")

    await world.receiver.wait_for("invoice.paid", "invoice.finalized")
    assert world.receiver.types() == ["invoice.paid", "invoice.finalized"]


async def test_held_events_are_released_in_the_order_asked_for(world: World) -> None:
    await world.fault({"event": "invoice.*"}, "hold", times=0)
    await world.act(await world.open(), "pay")
    await world.control("GET /deliveries/done")
    assert world.receiver.deliveries == []

    released = await world.control("POST /events/release", {"reverse": True})

    assert [entry["statuses"] for entry in released["delivered"] if entry["statuses"]] == [[200], [200]]
    assert world.receiver.types() == ["invoice.paid", "invoice.finalized"]


async def test_a_lost_event_never_comes_but_is_listed_as_undelivered(world: World) -> None:
    await world.fault(PAID, "lose")
    invoice = await world.open()
    await world.act(invoice, "pay")
    await world.control("GET /deliveries/done")
    assert world.receiver.types() == ["invoice.finalized"]

    lost = await world.client().v1.events.list_async({"delivery_success": False, "types": ["invoice.paid"]})

    assert [event.data.object["id"] for event in lost.data] == [invoice.id]
    assert lost.data[0].pending_webhooks == 1
    assert (await world.client().v1.events.retrieve_async(lost.data[0].id)).type == "invoice.paid"


async def test_an_event_can_be_from_the_wrong_mode_or_another_account(world: World) -> None:
    await world.fault({"event": "invoice.finalized"}, "change_event", set={"livemode": True, "account": "acct_other"})

    await world.open()

    await world.receiver.wait_for("invoice.finalized")
    event = world.receiver.deliveries[0].event()
    assert (event.livemode, event.account) == (True, "acct_other")


@pytest.mark.parametrize("options", [{"age_seconds": 301}, {"secret": "whsec_forged"}])
async def test_a_first_attempt_can_be_stale_or_forged_and_the_next_is_right(
    world: World, options: dict[str, object]
) -> None:
    await world.control("PATCH /settings", {"retry_delay_seconds": 0.01})
    world.receiver.statuses.append(400)
    await world.fault({"event": "invoice.finalized"}, "missign", **options)

    await world.open()

    await world.receiver.wait_for("invoice.finalized", "invoice.finalized")
    first, second = world.receiver.deliveries
    with pytest.raises(stripe.SignatureVerificationError):
        first.event()
    assert second.event().type == "invoice.finalized"


async def test_yesterdays_event_can_be_delivered_again(world: World) -> None:
    await world.open()
    await world.receiver.wait_for("invoice.finalized")
    await world.control("POST /clock", {"advance_seconds": 86_400})
    event_id = world.receiver.deliveries[0].event().id

    answered = await world.control(f"POST /events/{event_id}/deliver", {"times": 10})

    assert answered == {"statuses": [200] * 10}
    assert {delivery.event().id for delivery in world.receiver.deliveries} == {event_id}


async def test_any_body_can_be_delivered_with_any_signature(world: World) -> None:
    answered = await world.control("POST /deliver", {"body": "[]", "age_seconds": -400})
    await world.control("POST /deliver", {"body": "null", "header": "t=1,v1=é"})

    assert answered == {"answers": [{"status": 200, "body": ""}]}
    assert [delivery.body for delivery in world.receiver.deliveries] == ["[]", "null"]
    assert stripe.WebhookSignature.verify_header("[]", world.receiver.deliveries[0].signature, SECRET, 300)


async def test_refunds_and_disputes_tell_of_the_charge(world: World) -> None:
    invoice = await world.open()
    await world.act(invoice, "pay")
    await world.act(invoice, "refund", amount=5_000_000)
    await world.act(invoice, "dispute")
    await world.act(invoice, "close_dispute", outcome="lost")

    told = ["charge.refunded", "charge.dispute.created", "charge.dispute.closed"]
    await world.receiver.wait_for("invoice.finalized", "invoice.paid", *told)
    events = {event.type: event.data.object for event in (each.event() for each in world.receiver.deliveries)}
    charge = events["charge.refunded"]
    assert (charge["amount_refunded"], charge["refunded"]) == (5_000_000, False)
    assert events["charge.dispute.created"]["payment_intent"] == charge["payment_intent"]
    assert events["charge.dispute.closed"]["status"] == "lost"


async def test_an_event_can_be_made_up(world: World) -> None:
    await world.control("POST /events", {"type": "invoice.paid", "object": {"id": "in_foreign", "object": "invoice"}})
    await world.act(await world.open(), "emit", event="invoice.payment_action_required")

    await world.receiver.wait_for("invoice.paid", "invoice.finalized", "invoice.payment_action_required")
