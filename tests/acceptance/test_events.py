"""WatchEvents, as a caller sees it: what happens to an organization, in order, from a cursor on."""

from typing import Any

from pulsa.aio import connect
from pulsa.credit.v1.top_up_pb2 import TOP_UP_STATUS_CREATING, TOP_UP_STATUS_OPEN, TOP_UP_STATUS_PAID
from pulsa.event.v1.event_pb2 import Event
from pulsa.otp.v1.delivery_pb2 import DELIVERY_STATUS_DELIVERED, DELIVERY_STATUS_SENT
from pulsa.otp.v1.otp_pb2 import OTP_STATUS_VERIFIED

from tests.acceptance.deployment import Deployment
from tests.callers import reason_of

NUMBER = "+6281234567890"


async def events_after(pulsa: Deployment, cursor: str, last: Any) -> tuple[list[Event], str]:
    """The events after a cursor up to the one that `last` holds for, and the cursor after them."""
    found: list[Event] = []
    async with connect(pulsa.address, token=pulsa.token()) as client:
        async for response in client.watch_events("acme", cursor=cursor):
            found += response.events
            if found and last(found[-1]):
                return found, response.cursor
    raise AssertionError


def kinds(events: list[Event]) -> list[str | None]:
    return [event.WhichOneof("change") for event in events]


async def test_events_tell_what_happened_in_order_and_go_on_from_each_cursor(pulsa: Deployment) -> None:
    start = (await pulsa.call("EnableEvents")).cursor
    top_up = await pulsa.order()
    await pulsa.pay(top_up)
    bought, cursor = await events_after(pulsa, start, lambda event: event.top_up_changed.status == TOP_UP_STATUS_PAID)
    sent = await pulsa.send(sms=NUMBER)
    delivery_id = sent.otp.deliveries[0].delivery_id
    code = await pulsa.code_sent_to(NUMBER)
    delivered, cursor = await events_after(
        pulsa, cursor, lambda event: event.delivery_changed.status == DELIVERY_STATUS_SENT
    )
    await pulsa.call("ReportDelivery", delivery_id=delivery_id, status=DELIVERY_STATUS_DELIVERED)
    await pulsa.call("ReportDelivery", delivery_id=delivery_id, status=DELIVERY_STATUS_DELIVERED)
    await pulsa.call("VerifyOtp", otp_id=sent.otp.otp_id, code=code)
    await pulsa.call("UpdateAlerts", low_balance_threshold=2000)
    rest, _ = await events_after(pulsa, cursor, lambda event: event.HasField("balance_low"))

    statuses = [event.top_up_changed.status for event in bought if event.HasField("top_up_changed")]
    assert statuses == [TOP_UP_STATUS_CREATING, TOP_UP_STATUS_OPEN, TOP_UP_STATUS_PAID]
    assert "balance_recovered" in kinds(bought)
    assert {event.top_up_changed.top_up_id for event in bought if event.HasField("top_up_changed")} == {
        top_up.top_up_id
    }
    assert kinds(delivered) == ["delivery_changed"]
    assert delivered[0].delivery_changed.delivery_id == delivery_id
    assert kinds(rest) == ["delivery_changed", "otp_ended", "balance_low"]
    assert (rest[1].otp_ended.status, rest[1].otp_ended.purpose) == (OTP_STATUS_VERIFIED, "login")
    assert rest[2].balance_low.available_credits == 997
    everything = bought + delivered + rest
    assert [event.number for event in everything] == list(range(1, len(everything) + 1))
    again, _ = await events_after(pulsa, start, lambda event: event.HasField("balance_low"))
    assert again == everything
    assert NUMBER[-6:].encode() not in b"".join(event.SerializeToString() for event in everything)
    assert code.encode() not in b"".join(event.SerializeToString() for event in everything)


async def test_events_are_off_until_they_are_enabled_and_a_gap_is_no_secret(pulsa: Deployment) -> None:
    assert await reason_of(pulsa.call("WatchEvents")) == "EVENTS_OFF"
    first = (await pulsa.call("EnableEvents")).cursor
    assert (await pulsa.call("WatchEvents", cursor=first)).cursor == first
    assert (await pulsa.call("DisableEvents")).were_on
    assert await reason_of(pulsa.call("WatchEvents", cursor=first)) == "EVENTS_OFF"
    second = (await pulsa.call("EnableEvents")).cursor
    assert await reason_of(pulsa.call("WatchEvents", cursor=first)) == "EVENTS_MISSED"
    assert (await pulsa.call("WatchEvents", cursor=second)).cursor == second
    await pulsa.call("EnableEvents", "other")
    assert await reason_of(pulsa.call("WatchEvents", "other", cursor=second)) == "INVALID_FIELDS"
