"""Automatic top-ups, by a caller that has only the protos and docs: gRPC, Stripe's pages and the mails."""

import asyncio
import re
from typing import Any

import pytest
from pulsa.credit.v1 import automatic_top_up_pb2 as pb
from pulsa.credit.v1.automatic_top_up_pb2 import AutomaticTopUpState as State
from pulsa.credit.v1.credit_service_pb2 import WatchBalanceRequest
from pulsa.credit.v1.credit_service_pb2_grpc import CreditServiceStub
from pulsa.credit.v1.top_up_pb2 import TOP_UP_STATUS_CANCELED, TOP_UP_STATUS_OPEN, TOP_UP_STATUS_PAID

from tests.acceptance.deployment import Deployment
from tests.callers import reason_of, refusal_of
from tests.waiting import until

CONSENT = "Acme agrees that its card is charged 10 USD for 1,000 credits, at most 3 times a month."
SETTINGS = {
    "enabled": True,
    "threshold_credits": 100,
    "credits": 1000,
    "currency_code": "USD",
    "monthly_credit_cap": 3000,
    "billing_email": "billing@example.com",
}


async def save_card(pulsa: Deployment, behaviour: str = "works", organization_id: str = "acme", **fields: Any) -> None:
    """Save a card on Stripe's page, and wait until it is known here."""
    fields = {"billing_email": "billing@example.com", "return_url": "https://app.example.com/billing", **fields}
    page = await pulsa.call("StartCardSetup", organization_id, **fields)
    earlier = (await automatic(pulsa, organization_id)).card.save_time
    async with pulsa.browser.post(f"{page.setup_url}/{behaviour}", allow_redirects=False) as answer:
        assert answer.headers["Location"] == "https://app.example.com/billing"

    async def is_saved() -> bool:
        card = (await automatic(pulsa, organization_id)).card
        return bool(card.last4) and card.save_time != earlier

    await until(is_saved)


async def enable(pulsa: Deployment, organization_id: str = "acme", **changes: Any) -> pb.AutomaticTopUp:
    answer = await pulsa.call(
        "UpdateAutomaticTopUp", organization_id, automatic_settings=SETTINGS | changes, consent_text=CONSENT
    )
    message: pb.AutomaticTopUp = answer.automatic_top_up
    return message


async def automatic(pulsa: Deployment, organization_id: str = "acme") -> pb.AutomaticTopUp:
    message: pb.AutomaticTopUp = (await pulsa.call("GetAutomaticTopUp", organization_id)).automatic_top_up
    return message


async def wait_for_state(pulsa: Deployment, state: State.ValueType) -> pb.AutomaticTopUp:
    async def is_reached() -> bool:
        return (await automatic(pulsa)).state == state

    await until(is_reached)
    return await automatic(pulsa)


async def top_ups(pulsa: Deployment) -> list[Any]:
    return list((await pulsa.call("ListTopUps")).top_ups)


async def spend(pulsa: Deployment, number: int = 0) -> Any:
    """A send that costs one credit."""
    return await pulsa.send(email=f"jane{number}@mail.example")


async def test_the_send_that_crosses_the_threshold_buys_once_and_every_page_sees_it(pulsa: Deployment) -> None:
    assert (await automatic(pulsa)).state == State.AUTOMATIC_TOP_UP_STATE_OFF
    await pulsa.grant(101)
    await save_card(pulsa)
    enabled = await enable(pulsa)
    metadata = (("authorization", f"Bearer {pulsa.token()}"),)
    stream: Any = CreditServiceStub(pulsa.channel).WatchBalance(
        WatchBalanceRequest(organization_id="acme"), metadata=metadata
    )
    seen: list[Any] = [(await stream.read()).balance]
    await spend(pulsa, 1)
    assert await top_ups(pulsa) == []

    await asyncio.gather(*(spend(pulsa, number) for number in range(2, 12)))
    await pulsa.wait_for_balance(1090)
    while seen[-1].available_credits != 1090:
        seen.append((await stream.read()).balance)
    stream.cancel()

    [bought] = await top_ups(pulsa)
    assert (bought.status, bought.credits) == (TOP_UP_STATUS_PAID, 1000)
    assert (bought.automatic, bought.created_by) == (True, "ann")
    assert (bought.total.currency_code, bought.amount_paid.units) == ("USD", bought.total.units)
    assert (enabled.consent.consent_text, enabled.consent.given_by) == (CONSENT, "ann")
    assert (enabled.card.brand, enabled.card.last4) == ("visa", "4242")
    after = await automatic(pulsa)
    assert (after.state, after.last_top_up_id) == (State.AUTOMATIC_TOP_UP_STATE_READY, bought.top_up_id)
    assert after.month_credits == 1000
    assert (await pulsa.call("GetBalance")).balance.automatic_top_up_state == State.AUTOMATIC_TOP_UP_STATE_READY
    assert State.AUTOMATIC_TOP_UP_STATE_READY in {balance.automatic_top_up_state for balance in seen}
    assert (await pulsa.call("VerifyLedger")).holds
    assert await mails(pulsa, 2) == ["Payment received: 1,000 credits added", "Your OTP credits are running low"]


async def test_what_is_enabled_below_the_threshold_buys_at_once_and_no_more_than_the_cap(pulsa: Deployment) -> None:
    await save_card(pulsa)
    await enable(pulsa, monthly_credit_cap=1999, threshold_credits=1000)
    await pulsa.wait_for_balance(1000)

    await spend(pulsa)
    reached = await wait_for_state(pulsa, State.AUTOMATIC_TOP_UP_STATE_CAP_REACHED)

    assert await pulsa.balance() == 999
    assert reached.next_attempt_time.ToDatetime().day == 1
    await enable(pulsa, monthly_credit_cap=2000, threshold_credits=1000)
    await pulsa.wait_for_balance(1999)
    paid, capped = "Payment received: 1,000 credits added", "The monthly cap of your automatic top-ups is reached"
    assert await mails(pulsa, 3) == [paid, paid, capped]


async def mails(pulsa: Deployment, count: int) -> list[str]:
    """The subjects of the mails to the billing contact, sorted, once there are so many."""

    async def subjects() -> list[str]:
        return sorted(re.findall(r"<h3>([^<]*)</h3>to billing@", await mailbox(pulsa)))

    async def has_all() -> bool:
        return len(await subjects()) >= count

    await until(has_all)
    return await subjects()


async def mailbox(pulsa: Deployment) -> str:
    """The page that shows the mails."""
    async with pulsa.browser.get(pulsa.messages_url.removesuffix("messages")) as page:
        return await page.text()


async def test_nothing_is_enabled_without_card_consent_or_a_complete_order(pulsa: Deployment) -> None:
    assert await reason_of(enable(pulsa)) == "CARD_MISSING"
    await save_card(pulsa)
    assert await reason_of(pulsa.call("UpdateAutomaticTopUp", automatic_settings=SETTINGS)) == "CONSENT_MISSING"
    incomplete = await refusal_of(enable(pulsa, threshold_credits=1001, monthly_credit_cap=999))
    assert [each.field for each in incomplete.violations] == [
        "automatic_settings.threshold_credits", "automatic_settings.monthly_credit_cap"
    ]  # fmt: skip
    assert await reason_of(enable(pulsa, credits=999)) == "TOP_UP_BELOW_MINIMUM"
    assert await reason_of(enable(pulsa, currency_code="EUR")) == "CURRENCY_NOT_SOLD"
    assert (await automatic(pulsa)).state == State.AUTOMATIC_TOP_UP_STATE_OFF

    await enable(pulsa)
    more = {"credits": 2000, "threshold_credits": 50}
    assert await reason_of(pulsa.call("UpdateAutomaticTopUp", automatic_settings=more)) == "CONSENT_MISSING"
    assert (await automatic(pulsa)).automatic_settings.credits == 1000


@pytest.mark.parametrize(("behaviour", "code"), [("declined", "card_declined"), ("authentication", "requires_action")])
async def test_a_charge_that_fails_is_told_once_and_can_be_paid_on_the_hosted_page(
    pulsa: Deployment, behaviour: str, code: str
) -> None:
    await save_card(pulsa, behaviour)
    await enable(pulsa)

    failed = await wait_for_state(pulsa, State.AUTOMATIC_TOP_UP_STATE_DECLINED)

    assert (failed.failed_charges, failed.last_failure.endswith(code)) == (1, True)
    [waiting] = await top_ups(pulsa)
    assert waiting.status == TOP_UP_STATUS_OPEN
    refused = await refusal_of(pulsa.order())
    assert refused.metadata["top_up_id"] == waiting.top_up_id
    assert await mails(pulsa, 1) == ["Your card could not be charged for OTP credits"]
    assert waiting.hosted_invoice_url in await mailbox(pulsa)
    await pulsa.pay(waiting)
    await pulsa.wait_for_balance(1000)
    assert (await wait_for_state(pulsa, State.AUTOMATIC_TOP_UP_STATE_READY)).failed_charges == 0


async def test_a_new_card_is_charged_for_the_top_up_that_the_old_one_did_not_pay(pulsa: Deployment) -> None:
    await save_card(pulsa, "declined")
    await enable(pulsa)
    await wait_for_state(pulsa, State.AUTOMATIC_TOP_UP_STATE_DECLINED)
    await save_card(pulsa)

    await pulsa.wait_for_balance(1000)

    assert len(await top_ups(pulsa)) == 1
    await until(lambda: is_detached(pulsa, 0))


async def is_detached(pulsa: Deployment, number: int) -> bool:
    return (await pulsa.control("GET", "cards"))["cards"][number]["customer"] is None


async def test_a_canceled_automatic_top_up_switches_them_off_until_the_next_consent(pulsa: Deployment) -> None:
    await save_card(pulsa, "declined")
    await enable(pulsa)
    await wait_for_state(pulsa, State.AUTOMATIC_TOP_UP_STATE_DECLINED)
    [waiting] = await top_ups(pulsa)

    canceled = (await pulsa.call("CancelTopUp", top_up_id=waiting.top_up_id)).top_up

    assert canceled.status == TOP_UP_STATUS_CANCELED
    off = await automatic(pulsa)
    assert (off.state, off.off_reason) == (State.AUTOMATIC_TOP_UP_STATE_SWITCHED_OFF, "CANCELED")
    assert (await mails(pulsa, 2))[0] == "Automatic top-ups are switched off"
    await save_card(pulsa)
    await enable(pulsa)
    await pulsa.wait_for_balance(1000)


async def test_a_removed_card_is_not_charged_and_is_removed_at_stripe(pulsa: Deployment) -> None:
    await pulsa.grant(100)
    await save_card(pulsa)
    await enable(pulsa)

    for _ in range(2):
        removed = (await pulsa.call("RemoveCard")).automatic_top_up
        assert not removed.HasField("card")
        assert removed.state == State.AUTOMATIC_TOP_UP_STATE_OFF

    await spend(pulsa)
    await until(lambda: is_detached(pulsa, 0))
    assert await top_ups(pulsa) == []


async def test_a_card_that_was_removed_in_the_dashboard_switches_them_off(pulsa: Deployment) -> None:
    await pulsa.grant(100)
    await save_card(pulsa)
    await enable(pulsa)
    [card] = (await pulsa.control("GET", "cards"))["cards"]
    await pulsa.control("POST", f"cards/{card['id']}/detach")

    off = await wait_for_state(pulsa, State.AUTOMATIC_TOP_UP_STATE_SWITCHED_OFF)

    assert (off.off_reason, off.HasField("card")) == ("CARD_REMOVED", False)


async def test_an_automatic_top_up_waits_for_the_end_of_an_open_manual_one(pulsa: Deployment) -> None:
    await save_card(pulsa)
    manual = await pulsa.order()
    await enable(pulsa)
    assert [each.top_up_id for each in await top_ups(pulsa)] == [manual.top_up_id]

    await pulsa.call("CancelTopUp", top_up_id=manual.top_up_id)

    await pulsa.wait_for_balance(1000)
    assert [each.automatic for each in await top_ups(pulsa)] == [True, False]


async def test_switched_off_on_request_nothing_is_bought(pulsa: Deployment) -> None:
    await pulsa.grant(100)
    await save_card(pulsa)
    await enable(pulsa)

    off = await pulsa.call("UpdateAutomaticTopUp", automatic_settings={"enabled": False})

    assert off.automatic_top_up.state == State.AUTOMATIC_TOP_UP_STATE_OFF
    assert off.automatic_top_up.automatic_settings.credits == 1000
    assert off.automatic_top_up.consent.consent_text == CONSENT
    await spend(pulsa)
    assert await top_ups(pulsa) == []


async def test_a_repeated_card_setup_gets_the_same_page(pulsa: Deployment) -> None:
    fields = {
        "request_id": "01920000-0000-4000-8000-000000000001",
        "billing_email": "billing@example.com",
        "return_url": "https://app.example.com/billing",
    }
    pages = [await pulsa.call("StartCardSetup", **fields) for _ in range(2)]

    assert pages[0] == pages[1]
    other = fields | {"return_url": "https://app.example.com/"}
    assert await reason_of(pulsa.call("StartCardSetup", **other)) == "REQUEST_ID_REUSED"
    assert (
        await reason_of(pulsa.call("StartCardSetup", **fields | {"return_url": "javascript:alert(1)"}))
        == "INVALID_FIELDS"
    )
