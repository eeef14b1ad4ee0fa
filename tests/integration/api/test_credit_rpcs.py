"""The credit service's rpcs except those of top-ups: balances, prices, corrections, alerts, the ledger."""

import asyncio
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import pytest
from pulsa.credit.v1.alerts_pb2 import Alerts
from pulsa.credit.v1.channel_pb2 import CHANNEL_EMAIL, CHANNEL_SMS, CHANNEL_WHATSAPP
from pulsa.credit.v1.ledger_entry_pb2 import LEDGER_ENTRY_KIND_ADJUSTMENT
from pulsa.credit.v1.money_pb2 import Money

from server.api.pagination import PageTokens
from tests.integration.api.credit_service_harness import CreditServiceHarness, reason_and_metadata


async def test_a_new_organization_has_no_credits(credit_service: CreditServiceHarness) -> None:
    balance = (await credit_service.call("GetBalance")).balance
    assert (balance.organization_id, balance.available_credits, balance.last_sequence) == ("acme", 0, 0)
    assert (balance.low_balance, balance.low_balance_threshold) == (True, 100)


async def test_a_balance_says_how_many_sends_it_pays_for(credit_service: CreditServiceHarness) -> None:
    await credit_service.adjust(1000)
    balance = (await credit_service.call("GetBalance")).balance
    assert {left.channel: left.sends for left in balance.sends_left} == {
        CHANNEL_EMAIL: 1000,
        CHANNEL_WHATSAPP: 500,
        CHANNEL_SMS: 333,
    }


async def test_the_pricing_lists_prices_limits_and_presets(credit_service: CreditServiceHarness) -> None:
    pricing = (await credit_service.call("GetPricing")).pricing
    assert {price.channel: price.credits for price in pricing.channel_prices} == {
        CHANNEL_EMAIL: 1,
        CHANNEL_WHATSAPP: 2,
        CHANNEL_SMS: 3,
    }
    assert (pricing.minimum_credits, pricing.maximum_credits) == (1000, 10_000_000)
    assert list(pricing.preset_credits) == [1000, 5000, 10_000, 50_000]
    assert list(pricing.unit_prices) == [
        Money(currency_code="IDR", units=150),
        Money(currency_code="USD", nanos=10_000_000),
    ]


async def test_a_quote_is_in_units_and_nanos(credit_service: CreditServiceHarness) -> None:
    rupiah = await credit_service.call("QuoteTopUp", credits=1000, currency_code="IDR")
    dollars = await credit_service.call("QuoteTopUp", credits=1234, currency_code="USD")
    assert rupiah.total == Money(currency_code="IDR", units=150_000)
    assert dollars.total == Money(currency_code="USD", units=12, nanos=340_000_000)


@pytest.mark.parametrize(
    ("credits", "currency_code", "refusal"),
    [
        (999, "IDR", ("TOP_UP_BELOW_MINIMUM", {"minimum_credits": "1000"})),
        (-5, "IDR", ("TOP_UP_BELOW_MINIMUM", {"minimum_credits": "1000"})),
        (10_000_001, "IDR", ("TOP_UP_ABOVE_MAXIMUM", {"maximum_credits": "10000000"})),
        (1000, "EUR", ("CURRENCY_NOT_SOLD", {"currency_codes": "IDR,USD"})),
    ],
)
async def test_a_purchase_outside_the_pricing_is_not_quoted(
    credit_service: CreditServiceHarness, credits: int, currency_code: str, refusal: tuple[str, dict[str, str]]
) -> None:
    assert (
        await reason_and_metadata(credit_service.call("QuoteTopUp", credits=credits, currency_code=currency_code))
        == refusal
    )


async def test_a_correction_names_its_author_and_its_reason(credit_service: CreditServiceHarness) -> None:
    request_id = str(uuid4())
    fields: dict[str, Any] = {"request_id": request_id, "adjust_credits": 50, "reason": "sorry"}
    first = await credit_service.call("AdjustCredits", **fields)
    again = await credit_service.call("AdjustCredits", **fields)
    assert again.ledger_entry == first.ledger_entry
    assert (first.ledger_entry.kind, first.ledger_entry.reference_id) == (LEDGER_ENTRY_KIND_ADJUSTMENT, request_id)
    assert (first.ledger_entry.reason, first.ledger_entry.created_by) == ("sorry", "ann")
    assert again.balance.available_credits == 50
    changed = credit_service.call("AdjustCredits", **(fields | {"adjust_credits": 51}))
    assert await reason_and_metadata(changed) == ("REQUEST_ID_REUSED", {})
    assert (await reason_and_metadata(credit_service.adjust(-51)))[0] == "INSUFFICIENT_CREDITS"


async def test_alert_settings_that_a_call_leaves_out_stay_as_they_are(credit_service: CreditServiceHarness) -> None:
    await credit_service.adjust(500)
    await credit_service.call("UpdateAlerts", alert_email="billing@example.com")
    raised = await credit_service.call("UpdateAlerts", low_balance_threshold=600)
    read = await credit_service.call("GetAlerts")
    silenced = await credit_service.call("UpdateAlerts", alert_email="")
    assert raised.alerts == read.alerts == Alerts(low_balance_threshold=600, alert_email="billing@example.com")
    assert raised.balance.low_balance
    assert silenced.alerts == Alerts(low_balance_threshold=600)
    assert not (await credit_service.call("UpdateAlerts", low_balance_threshold=0)).balance.low_balance


async def test_alerts_without_an_account_are_the_defaults(credit_service: CreditServiceHarness) -> None:
    balance = (await credit_service.call("GetBalance")).balance
    assert (await credit_service.call("GetAlerts")).alerts == Alerts(
        low_balance_threshold=balance.low_balance_threshold
    )


async def test_a_suspended_organization_keeps_its_balance_and_buys_nothing(
    credit_service: CreditServiceHarness,
) -> None:
    await credit_service.adjust(50)
    first = await credit_service.create_top_up()
    suspended = await credit_service.call("SuspendOrganization", reason="abuse, ticket 7")
    again = await credit_service.call("SuspendOrganization", reason="another")
    assert again == suspended
    assert (suspended.suspension.reason, suspended.suspension.created_by) == ("abuse, ticket 7", "ann")
    # What is bought already can still be paid: the money would otherwise arrive for nothing.
    assert (await credit_service.call("GetTopUp", top_up_id=first.top_up_id)).top_up.status == first.status
    await credit_service.call("CancelTopUp", top_up_id=first.top_up_id)
    assert await reason_and_metadata(credit_service.create_top_up()) == ("ORGANIZATION_SUSPENDED", {})
    assert (await credit_service.call("GetBalance")).balance.available_credits == 50
    await credit_service.adjust(1)

    resumed = await credit_service.call("ResumeOrganization")
    assert resumed.suspension == suspended.suspension
    assert not (await credit_service.call("ResumeOrganization")).HasField("suspension")
    assert (await credit_service.create_top_up()).hosted_invoice_url


async def test_the_ledger_is_paged_newest_first(credit_service: CreditServiceHarness) -> None:
    for credits in (10, 20, -5, 30, 40):
        await credit_service.adjust(credits)
    sequences, token, pages = [], "", 0
    while pages == 0 or token:
        page = await credit_service.call("ListLedgerEntries", page_size=2, page_token=token)
        sequences += [entry.sequence for entry in page.ledger_entries]
        token, pages = page.next_page_token, pages + 1
    assert (sequences, pages) == ([5, 4, 3, 2, 1], 3)
    whole = await credit_service.call("ListLedgerEntries", page_size=5)
    assert ([entry.balance_after for entry in whole.ledger_entries], whole.next_page_token) == (
        [95, 55, 25, 30, 10],
        "",
    )


@pytest.mark.parametrize("rpc", ["ListLedgerEntries", "ListTopUps"])
@pytest.mark.parametrize(
    "token",
    ["nonsense", PageTokens("ListLedgerEntries", "other", newest=1 << 62).write(3), "A" * 32, "é", "-" * 256],
)
async def test_a_page_token_of_another_list_is_a_field_violation(
    credit_service: CreditServiceHarness, rpc: str, token: str
) -> None:
    assert await reason_and_metadata(credit_service.call(rpc, page_token=token)) == (
        "INVALID_FIELDS",
        {"fields": "page_token"},
    )


async def test_an_organization_sees_only_its_own_ledger(credit_service: CreditServiceHarness) -> None:
    await credit_service.adjust(10, "acme")
    await credit_service.adjust(20, "other")
    entries = (await credit_service.call("ListLedgerEntries", "other")).ledger_entries
    assert [entry.credits for entry in entries] == [20]


async def test_the_ledger_can_be_verified(credit_service: CreditServiceHarness) -> None:
    await credit_service.adjust(10)
    await credit_service.adjust(-3)
    verified = await credit_service.call("VerifyLedger")
    assert (verified.holds, verified.entry_count, list(verified.findings)) == (True, 2, [])
    assert verified.HasField("verify_time")


async def test_a_stream_sends_the_balance_and_then_its_changes(credit_service: CreditServiceHarness) -> None:
    async with aclosing(aiter(credit_service.watch())) as stream:
        first = await asyncio.wait_for(anext(stream), 10)
        await credit_service.adjust(1000)
        second = await asyncio.wait_for(anext(stream), 10)
        await credit_service.adjust(-1)
        third = await asyncio.wait_for(anext(stream), 10)
    assert [each.balance.available_credits for each in (first, second, third)] == [0, 1000, 999]
    assert [each.balance.last_sequence for each in (first, second, third)] == [0, 1, 2]
