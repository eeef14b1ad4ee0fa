"""Why Stripe did not do a call: the words in the log, and what `doctor` tries one by one."""

import json
from typing import Any

import pytest

from server.cli import doctor
from server.credits.stripe.client import StripeClient
from server.credits.stripe.errors import StripeUnavailable
from server.environment import load_settings
from tests.integration.top_ups.driver import API_KEY, TopUpDriver, tax_rate

_MISSING = "The key does not have the required permissions. Having the 'rak_invoice_read' permission would allow this."


@pytest.mark.parametrize(
    ("fault", "options", "reason"),
    [
        ("refuse", {"status": 401}, "api_key_rejected"),
        ("refuse", {"status": 403, "message": _MISSING}, "permission_missing rak_invoice_read"),
        ("refuse", {"status": 403}, "permission_missing"),
        ("rate_limit", {}, "rate_limited"),
        ("server_error", {}, "server_error"),
        ("truncated", {}, "unexpected_answer"),
        ("change_answer", {"set": {"total": None}}, "unexpected_answer"),
        ("drop_before", {}, "no_answer"),
    ],
)
async def test_each_cause_has_its_word(driver: TopUpDriver, fault: str, options: dict[str, Any], reason: str) -> None:
    opened = await driver.buy()
    await driver.inject_fault("GET /v1/invoices/*", fault, times=0, **options)
    with pytest.raises(StripeUnavailable) as failed:
        await driver.replica.stripe_client.retrieve(str(opened.stripe_invoice_id))
    assert failed.value.reason == reason


@pytest.mark.parametrize(
    ("call", "right"),
    [
        ("POST /v1/customers/*", "write customers"),
        ("GET /v1/customers/*/balance_transactions", "read balance transactions"),
        ("DELETE /v1/customers/*/tax_ids/*", "write tax ids"),
        ("GET /v1/invoices", "read invoices"),
        ("POST /v1/invoices/*", "write invoices"),
        ("POST /v1/invoiceitems", "write invoice items"),
        ("POST /v1/checkout/sessions/*/expire", "write checkout sessions"),
        ("GET /v1/setup_intents/*", "read setup intents"),
        ("POST /v1/payment_methods/*/detach", "write payment methods"),
        ("GET /v1/invoice_payments", "read invoice payments"),
        ("GET /v1/disputes", "read disputes"),
        ("GET /v1/events", "read events"),
        ("GET /v1/webhook_endpoints", "read webhook endpoints"),
    ],
)
async def test_each_missing_right_is_named_and_trying_them_changes_nothing(
    driver: TopUpDriver, call: str, right: str
) -> None:
    stripe_client: StripeClient = driver.replica.stripe_client
    before = {kind: dict(kept) for kind, kept in driver.sandbox.account.objects.items()}
    assert await stripe_client.find_missing_rights() == []
    await driver.inject_fault(call, "refuse", status=403, times=0)
    assert await stripe_client.find_missing_rights() == [right]
    assert driver.sandbox.account.objects == before


async def test_a_rejected_key_is_no_missing_right(driver: TopUpDriver) -> None:
    stripe_client = StripeClient(api_key=API_KEY + "x", base_url=driver.sandbox.url)
    with pytest.raises(StripeUnavailable, match="api_key_rejected"):
        await stripe_client.find_missing_rights()
    await stripe_client.close()


async def test_doctor_checks_the_version_the_account_the_taxes_and_the_webhook_url(driver: TopUpDriver) -> None:
    rate = await tax_rate(driver)
    good = {
        "PULSA_STRIPE_API_KEY": API_KEY,
        "PULSA_STRIPE_BASE_URL": driver.sandbox.url,
        "PULSA_STRIPE_WEBHOOK_SECRETS": "whsec_a, whsec_b",
        "PULSA_STRIPE_TAX_RATES": json.dumps({"IDR": {"id": rate.rate_id, "percent": "11", "inclusive": False}}),
    }
    for changes, complaint in [
        ({}, "…/stripe/webhook"),
        ({"PULSA_STRIPE_API_VERSION": "2024-12-18.acacia"}, "PULSA_STRIPE_API_VERSION: must be 2025-03-31"),
        ({"PULSA_STRIPE_ACCOUNT_ID": "acct_other"}, "PULSA_STRIPE_ACCOUNT_ID"),
        ({"PULSA_STRIPE_TAX_RATES": good["PULSA_STRIPE_TAX_RATES"].replace("11", "12")}, "PULSA_STRIPE_TAX_RATES"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            await doctor._ask_stripe(load_settings(good | changes))
    driver.sandbox.set_webhook_url("https://pulsa.example/stripe/webhook")
    assert "https://pulsa.example/stripe/webhook" in await doctor._ask_stripe(load_settings(good))
    await driver.inject_fault("GET /v1/disputes", "refuse", status=403)
    with pytest.raises(ValueError, match="PULSA_STRIPE_API_KEY: lacks the right to read disputes"):
        await doctor._ask_stripe(load_settings(good))
