"""Stripe's events: repeated, reordered, forged, stale, of another account, malformed, lost."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest

from server.credits.top_ups.state_machine import TopUpStatus
from server.errors import StripeEventInvalid
from server.sandbox.stripe.webhooks import sign
from tests.integration.top_ups.driver import SECRET, TopUpDriver
from tests.waiting import until


async def test_fifty_equal_simultaneous_webhooks_are_credited_once(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.inject_fault("invoice.paid", "duplicate", copies=49)
    await driver.pay_hosted_invoice(opened)
    await driver.wait_for_status(opened, TopUpStatus.PAID)
    await driver.wait_for_events()
    deliveries = await driver.control("GET /deliveries?type=invoice.paid")
    assert [each["status"] for each in deliveries["deliveries"]] == [200] * 50
    assert await driver.credits() == 1000
    assert await driver.query_value("SELECT count(*) FROM stripe_events WHERE type = 'invoice.paid'") == 1


async def test_a_second_event_id_for_the_same_payment_is_not_credited_again(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.inject_fault("invoice.paid", "second_id")
    await driver.pay_hosted_invoice(opened)
    await until(lambda: has_events(driver, "invoice.paid", count=2))
    await driver.wait_for_events()
    assert await driver.credits() == 1000


async def test_replays_of_old_events_change_nothing(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.pay_hosted_invoice(opened)
    paid = await driver.wait_for_status(opened, TopUpStatus.PAID)
    await driver.wait_for_events()
    events = (await driver.control("GET /events"))["events"]
    for event in events:
        await driver.control(f"POST /events/{event['id']}/deliver", {"times": 100 // len(events)})
        await driver.inbox.replay(event["id"])
    assert await driver.credits() == 1000
    assert (await driver.stored(opened)).paid_time == paid.paid_time


@pytest.mark.parametrize("reverse", [False, True])
async def test_the_order_of_events_does_not_matter(driver: TopUpDriver, *, reverse: bool) -> None:
    await driver.inject_fault("*", "hold", times=0)
    opened = await driver.buy()
    await driver.pay_hosted_invoice(opened)
    await driver.control("DELETE /faults")
    await driver.control("POST /events/release", {"reverse": reverse})
    await driver.wait_for_events()
    assert (await driver.stored(opened)).status is TopUpStatus.PAID
    assert await driver.credits() == 1000


async def test_a_payment_before_the_status_open_is_committed_is_credited_once(driver: TopUpDriver) -> None:
    await driver.inject_fault("invoice.finalized", "lose")
    held = await driver.inject_fault("POST */finalize", "hold_after")
    creating = await driver.buy(wait_seconds=0)
    await driver.wait_until_held(held)
    assert creating.status is TopUpStatus.CREATING
    await driver.invoice_action(await driver.stored(creating), "pay")
    await driver.wait_for_status(creating, TopUpStatus.PAID)
    await driver.control(f"POST /faults/{held['id']}/release")
    await driver.top_ups.close()
    assert (await driver.stored(creating)).status is TopUpStatus.PAID
    assert await driver.credits() == 1000


async def test_a_late_voided_event_does_not_undo_a_payment(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.pay_hosted_invoice(opened)
    await driver.wait_for_status(opened, TopUpStatus.PAID)
    await driver.invoice_action(opened, "emit", event="invoice.voided")
    await driver.wait_for_events()
    assert (await driver.stored(opened)).status is TopUpStatus.PAID


@pytest.mark.parametrize(
    "delivery",
    [
        {"secret": "whsec_of_another_account"},
        {"header": "t=,v1=0"},
        {"header": "t=1,v1="},
        {"header": "nonsense"},
        {"header": "t=1761000000,v1=é"},
        {"age_seconds": 301},
        {"age_seconds": -310},
    ],
)
async def test_a_webhook_without_a_valid_recent_signature_is_refused_and_not_stored(
    driver: TopUpDriver, delivery: Any
) -> None:
    body = await _event_body(driver)
    answers = await driver.control("POST /deliver", {"body": body, **delivery})
    assert [answer["status"] for answer in answers["answers"]] in ([400], [0])
    assert await driver.query_value("SELECT count(*) FROM stripe_events") == 0


async def test_a_webhook_without_a_signature_is_refused_and_not_stored(driver: TopUpDriver) -> None:
    with pytest.raises(StripeEventInvalid):
        await driver.inbox.record((await _event_body(driver)).encode(), "")
    assert await driver.query_value("SELECT count(*) FROM stripe_events") == 0


@pytest.mark.parametrize("age_seconds", [295, -295])
async def test_a_signature_within_five_minutes_is_accepted(driver: TopUpDriver, age_seconds: int) -> None:
    answers = await driver.control("POST /deliver", {"body": await _event_body(driver), "age_seconds": age_seconds})
    assert [answer["status"] for answer in answers["answers"]] == [200]


async def test_while_a_webhook_secret_is_rolled_both_are_accepted(driver: TopUpDriver) -> None:
    rolled = await driver.control("POST /webhook_secret/roll")
    body = await _event_body(driver)
    sent = {"body": body, "secret": rolled["secrets"][0]}
    assert [each["status"] for each in (await driver.control("POST /deliver", sent))["answers"]] == [400]
    # This one is signed with both; the old signature is valid.
    assert [each["status"] for each in (await driver.control("POST /deliver", {"body": body}))["answers"]] == [200]
    driver.secrets = (SECRET, rolled["secrets"][0])
    driver.start()
    assert [each["status"] for each in (await driver.control("POST /deliver", sent))["answers"]] == [200]


_EVENT = b'"object": "event", "type": "invoice.paid", "livemode": false'


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"null",
        b"3",
        b"",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"id": "evt_1", "id": "evt_2", "created": 1, "data": {"object": {}}, ' + _EVENT + b"}",
        b'{"id": "evt_1", "created": 1e400, "data": {"object": {}}, ' + _EVENT + b"}",
        b'{"id": ["evt_1"], "created": 1, "data": {"object": {}}, ' + _EVENT + b"}",
        b'{"id": "evt_1", "created": 1, "data": {"object": []}, ' + _EVENT + b"}",
        b'{"id": "evt_1", "created": 1, ' + _EVENT + b"}",
        b'{"id": "evt_1", "created": 1, "account": ["acct_1"], "data": {"object": {}}, ' + _EVENT + b"}",
        b'{"pad": "' + b"x" * 262_144 + b'"}',
    ],
    ids=lambda body: f"{len(body)}_{body[:12]!r}",
)
async def test_malformed_bodies_are_refused_although_they_are_signed(driver: TopUpDriver, body: bytes) -> None:
    now = int(driver.clock().timestamp())
    signature = sign(body.decode(errors="replace"), secrets=[SECRET], timestamp=now)
    with pytest.raises(StripeEventInvalid):
        await driver.inbox.record(body, signature)
    assert await driver.query_value("SELECT count(*) FROM stripe_events") == 0


@pytest.mark.parametrize("changes", [{"livemode": True}, {"account": "acct_other"}, {"object": "v2.core.event"}])
async def test_events_of_another_mode_or_account_are_rejected_and_credit_nothing(
    driver: TopUpDriver, changes: Any
) -> None:
    opened = await driver.buy()
    await driver.wait_for_events()
    await driver.inject_fault("invoice.paid", "change_event", set=changes)
    await driver.pay_hosted_invoice(opened)
    await driver.wait_for_events()
    assert await driver.event_statuses() == {"DONE", "REJECTED"}
    assert await driver.credits() == 0


async def test_events_about_invoices_of_other_systems_change_nothing(driver: TopUpDriver) -> None:
    invoice = {"object": "invoice", "id": "in_of_another_system", "metadata": {}}
    await driver.control("POST /events", {"type": "invoice.paid", "object": invoice})
    await driver.control("POST /events", {"type": "invoice.unknown_type", "object": invoice})
    await driver.wait_for_events()
    assert await driver.event_statuses() == {"DONE"}


async def test_a_payment_whose_webhook_is_lost_is_credited_by_the_jobs(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.inject_fault("invoice.paid", "lose")
    await driver.pay_hosted_invoice(opened)
    driver.clock.ahead = timedelta(seconds=10)
    await driver.run_jobs()
    assert (await driver.stored(opened)).status is TopUpStatus.PAID
    assert await driver.credits() == 1000


async def test_an_event_that_no_webhook_delivered_is_fetched_into_the_inbox(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.wait_for_events()
    await driver.inject_fault("invoice.paid", "lose")
    await driver.pay_hosted_invoice(opened)
    assert await driver.inbox.collect_undelivered(now=driver.clock()) == 1
    assert await driver.inbox.process_due(now=driver.clock(), limit=10) == 1
    assert await driver.credits() == 1000
    assert await driver.inbox.collect_undelivered(now=driver.clock()) == 0


async def test_an_event_waits_while_stripe_is_down_and_is_processed_later(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.wait_for_events()
    fault = await driver.inject_fault("GET /v1/invoices/*", "bad_gateway", times=0)
    await driver.pay_hosted_invoice(opened)
    await until(lambda: has_events(driver, "invoice.paid", count=1))
    await driver.inbox.close()
    assert await driver.credits() == 0
    await driver.control(f"DELETE /faults/{fault['id']}")
    driver.clock.ahead = timedelta(seconds=31)
    assert await driver.inbox.process_due(now=driver.clock(), limit=10) == 1
    assert await driver.credits() == 1000


async def test_a_dead_event_can_be_replayed(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.wait_for_events()
    fault = await driver.inject_fault("GET /v1/invoices/*", "bad_gateway", times=0)
    await driver.pay_hosted_invoice(opened)
    await until(lambda: has_events(driver, "invoice.paid", count=1))
    await driver.inbox.close()
    for _ in range(20):
        driver.clock.ahead += timedelta(hours=1, seconds=1)
        await driver.inbox.process_due(now=driver.clock(), limit=10)
    assert await driver.event_statuses() == {"DONE", "DEAD"}
    await driver.control(f"DELETE /faults/{fault['id']}")
    dead = await driver.query_value("SELECT event_id FROM stripe_events WHERE status = 'DEAD'")
    assert await driver.inbox.replay(dead)
    assert await driver.credits() == 1000


async def test_of_ten_workers_one_processes_an_event(driver: TopUpDriver) -> None:
    opened = await driver.buy()
    await driver.inject_fault("invoice.paid", "lose")
    await driver.pay_hosted_invoice(opened)
    await driver.inbox.collect_undelivered(now=driver.clock())
    event_id = await driver.query_value("SELECT event_id FROM stripe_events WHERE type = 'invoice.paid'")
    done = await asyncio.gather(*(driver.inbox.process(event_id) for _ in range(10)))
    assert sum(done) == 1
    assert await driver.credits() == 1000


async def has_events(driver: TopUpDriver, type: str, *, count: int) -> bool:  # noqa: A002 - Stripe's own word
    return bool(await driver.query_value("SELECT count(*) >= %s FROM stripe_events WHERE type = %s", count, type))


async def _event_body(driver: TopUpDriver) -> str:
    """An event about an unknown invoice, in Stripe's format."""
    invoice = {"object": "invoice", "id": "in_nothing", "metadata": {}}
    fields = {"id": "evt_1", "object": "event", "type": "invoice.paid", "livemode": False}
    return json.dumps(fields | {"created": int(driver.clock().timestamp()), "data": {"object": invoice}})
