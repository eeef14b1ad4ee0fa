"""Fault groups 1 to 5, 14 and 15 of events: repeated, reordered, forged, stale, foreign, strange, lost."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest

from server.credits.top_up_states import TopUpStatus
from server.errors import StripeEventInvalid
from server.sandbox.stripe.delivery import sign
from tests.integration.top_ups.shop import SECRET, Shop, until


async def test_fifty_equal_webhooks_at_once_are_one_credit(shop: Shop) -> None:
    opened = await shop.buy()
    await shop.fault("invoice.paid", "duplicate", copies=49)
    await shop.press_pay(opened)
    await shop.becomes(opened, TopUpStatus.PAID)
    await shop.all_events_done()
    deliveries = await shop.control("GET /deliveries?type=invoice.paid")
    assert [each["status"] for each in deliveries["deliveries"]] == [200] * 50
    assert await shop.credits() == 1000
    assert await shop.value("SELECT count(*) FROM stripe_events WHERE type = 'invoice.paid'") == 1


async def test_a_second_event_id_for_the_same_payment_is_no_second_credit(shop: Shop) -> None:
    opened = await shop.buy()
    await shop.fault("invoice.paid", "second_id")
    await shop.press_pay(opened)
    await until(lambda: has_events(shop, "invoice.paid", count=2))
    await shop.all_events_done()
    assert await shop.credits() == 1000


async def test_replays_of_old_events_change_nothing(shop: Shop) -> None:
    opened = await shop.buy()
    await shop.press_pay(opened)
    paid = await shop.becomes(opened, TopUpStatus.PAID)
    await shop.all_events_done()
    events = (await shop.control("GET /events"))["events"]
    for event in events:
        await shop.control(f"POST /events/{event['id']}/deliver", {"times": 100 // len(events)})
        await shop.inbox.replay(event["id"])
    assert await shop.credits() == 1000
    assert (await shop.read(opened)).paid_time == paid.paid_time


@pytest.mark.parametrize("reverse", [False, True])
async def test_the_order_of_events_does_not_matter(shop: Shop, *, reverse: bool) -> None:
    await shop.fault("*", "hold", times=0)
    opened = await shop.buy()
    await shop.press_pay(opened)
    await shop.control("DELETE /faults")
    await shop.control("POST /events/release", {"reverse": reverse})
    await shop.all_events_done()
    assert (await shop.read(opened)).status is TopUpStatus.PAID
    assert await shop.credits() == 1000


async def test_a_payment_before_open_is_committed_is_credited_once(shop: Shop) -> None:
    await shop.fault("invoice.finalized", "lose")
    held = await shop.fault("POST */finalize", "hold_after")
    creating = await shop.buy(wait_seconds=0.2)
    assert creating.status is TopUpStatus.CREATING
    await shop.act(await shop.read(creating), "pay")
    await shop.becomes(creating, TopUpStatus.PAID)
    await shop.control(f"POST /faults/{held['id']}/release")
    await shop.top_ups.close()
    assert (await shop.read(creating)).status is TopUpStatus.PAID
    assert await shop.credits() == 1000


async def test_a_late_voided_event_does_not_undo_a_payment(shop: Shop) -> None:
    opened = await shop.buy()
    await shop.press_pay(opened)
    await shop.becomes(opened, TopUpStatus.PAID)
    await shop.act(opened, "emit", event="invoice.voided")
    await shop.all_events_done()
    assert (await shop.read(opened)).status is TopUpStatus.PAID


@pytest.mark.parametrize(
    "delivery",
    [
        {"secret": "whsec_of_a_stranger"},
        {"header": "t=,v1=0"},
        {"header": "t=1,v1="},
        {"header": "nonsense"},
        {"header": "t=1761000000,v1=é"},
        {"age_seconds": 301},
        {"age_seconds": -310},
    ],
)
async def test_what_stripe_did_not_sign_just_now_is_refused_and_not_stored(shop: Shop, delivery: Any) -> None:
    body = await _event_body(shop)
    answers = await shop.control("POST /deliver", {"body": body, **delivery})
    assert [answer["status"] for answer in answers["answers"]] in ([400], [0])
    assert await shop.value("SELECT count(*) FROM stripe_events") == 0


async def test_a_webhook_without_a_signature_is_refused_and_not_stored(shop: Shop) -> None:
    with pytest.raises(StripeEventInvalid):
        await shop.inbox.record((await _event_body(shop)).encode(), "")
    assert await shop.value("SELECT count(*) FROM stripe_events") == 0


@pytest.mark.parametrize("age_seconds", [295, -295])
async def test_a_signature_within_five_minutes_is_accepted(shop: Shop, age_seconds: int) -> None:
    answers = await shop.control("POST /deliver", {"body": await _event_body(shop), "age_seconds": age_seconds})
    assert [answer["status"] for answer in answers["answers"]] == [200]


async def test_while_a_secret_is_rolled_both_are_accepted(shop: Shop) -> None:
    rolled = await shop.control("POST /webhook_secret/roll")
    body = await _event_body(shop)
    sent = {"body": body, "secret": rolled["secrets"][0]}
    assert [each["status"] for each in (await shop.control("POST /deliver", sent))["answers"]] == [400]
    # Signed with both, the old one fits.
    assert [each["status"] for each in (await shop.control("POST /deliver", {"body": body}))["answers"]] == [200]
    shop.secrets = (SECRET, rolled["secrets"][0])
    shop.start()
    assert [each["status"] for each in (await shop.control("POST /deliver", sent))["answers"]] == [200]


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
async def test_strange_bodies_are_refused_even_when_they_are_signed(shop: Shop, body: bytes) -> None:
    now = int(shop.clock().timestamp())
    signature = sign(body.decode(errors="replace"), secrets=[SECRET], timestamp=now)
    with pytest.raises(StripeEventInvalid):
        await shop.inbox.record(body, signature)
    assert await shop.value("SELECT count(*) FROM stripe_events") == 0


@pytest.mark.parametrize("changes", [{"livemode": True}, {"account": "acct_other"}, {"object": "v2.core.event"}])
async def test_events_of_another_mode_or_account_are_kept_apart_and_not_used(shop: Shop, changes: Any) -> None:
    opened = await shop.buy()
    await shop.all_events_done()
    await shop.fault("invoice.paid", "change_event", set=changes)
    await shop.press_pay(opened)
    await shop.all_events_done()
    assert await shop.event_statuses() == {"DONE", "REJECTED"}
    assert await shop.credits() == 0


async def test_events_about_invoices_that_are_not_ours_do_nothing(shop: Shop) -> None:
    stranger = {"object": "invoice", "id": "in_of_another_system", "metadata": {}}
    await shop.control("POST /events", {"type": "invoice.paid", "object": stranger})
    await shop.control("POST /events", {"type": "invoice.unheard_of", "object": stranger})
    await shop.all_events_done()
    assert await shop.event_statuses() == {"DONE"}


async def test_a_lost_webhook_credits_by_the_watch(shop: Shop) -> None:
    opened = await shop.buy()
    await shop.fault("invoice.paid", "lose")
    await shop.press_pay(opened)
    shop.clock.ahead = timedelta(seconds=10)
    await shop.watch()
    assert (await shop.read(opened)).status is TopUpStatus.PAID
    assert await shop.credits() == 1000


async def test_an_event_that_no_webhook_brought_is_listed_into_the_inbox(shop: Shop) -> None:
    opened = await shop.buy()
    await shop.fault("invoice.paid", "lose")
    await shop.press_pay(opened)
    assert await shop.inbox.collect_undelivered(now=shop.clock()) == 1
    assert await shop.inbox.process_due(now=shop.clock(), limit=10) == 1
    assert await shop.credits() == 1000
    assert await shop.inbox.collect_undelivered(now=shop.clock()) == 0


async def test_an_event_waits_while_stripe_is_down_and_is_processed_later(shop: Shop) -> None:
    opened = await shop.buy()
    await shop.all_events_done()
    fault = await shop.fault("GET /v1/invoices/*", "bad_gateway", times=0)
    await shop.press_pay(opened)
    await until(lambda: has_events(shop, "invoice.paid", count=1))
    await shop.inbox.close()
    assert await shop.credits() == 0
    await shop.control(f"DELETE /faults/{fault['id']}")
    shop.clock.ahead = timedelta(seconds=31)
    assert await shop.inbox.process_due(now=shop.clock(), limit=10) == 1
    assert await shop.credits() == 1000


async def test_a_dead_event_can_be_replayed(shop: Shop) -> None:
    opened = await shop.buy()
    await shop.all_events_done()
    fault = await shop.fault("GET /v1/invoices/*", "bad_gateway", times=0)
    await shop.press_pay(opened)
    await until(lambda: has_events(shop, "invoice.paid", count=1))
    await shop.inbox.close()
    for _ in range(20):
        shop.clock.ahead += timedelta(hours=1, seconds=1)
        await shop.inbox.process_due(now=shop.clock(), limit=10)
    assert await shop.event_statuses() == {"DONE", "DEAD"}
    await shop.control(f"DELETE /faults/{fault['id']}")
    dead = await shop.value("SELECT event_id FROM stripe_events WHERE status = 'DEAD'")
    assert await shop.inbox.replay(dead)
    assert await shop.credits() == 1000


async def test_two_workers_do_not_process_one_event_twice(shop: Shop) -> None:
    opened = await shop.buy()
    await shop.fault("invoice.paid", "lose")
    await shop.press_pay(opened)
    await shop.inbox.collect_undelivered(now=shop.clock())
    event_id = await shop.value("SELECT event_id FROM stripe_events WHERE type = 'invoice.paid'")
    done = await asyncio.gather(*(shop.inbox.process(event_id) for _ in range(10)))
    assert sum(done) == 1
    assert await shop.credits() == 1000


async def has_events(shop: Shop, type: str, *, count: int) -> bool:  # noqa: A002 - Stripe's own word
    return bool(await shop.value("SELECT count(*) >= %s FROM stripe_events WHERE type = %s", count, type))


async def _event_body(shop: Shop) -> str:
    """An event about nothing, as Stripe would write it."""
    thing = {"object": "invoice", "id": "in_nothing", "metadata": {}}
    shape = {"id": "evt_1", "object": "event", "type": "invoice.paid", "livemode": False}
    return json.dumps(shape | {"created": int(shop.clock().timestamp()), "data": {"object": thing}})
