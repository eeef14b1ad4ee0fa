"""Seeded random histories of top-ups with faults and crashes; at the end the credits must match Stripe's payments.

One organization after another and without webhooks, so that a seed always gives the same actions in the same order.
"""

import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from http import HTTPStatus
from itertools import pairwise
from random import Random
from typing import Any
from uuid import UUID

import aiohttp
import pytest

from server.credits.stripe.errors import StripeCallError
from server.credits.stripe.reconcile import find_drift
from server.credits.top_ups.state_machine import IN_WORK, UNFINISHED, Resolution, TopUp, TopUpFlag, TopUpStatus
from server.errors import DomainError, TopUpNotResolvable, TopUpPartlyPaid
from server.ids import new_id
from server.sandbox.stripe.balances import balance_of, change_balance
from tests.integration.top_ups.cards import add_card, bought, enable, settle, spend, switch_off
from tests.integration.top_ups.driver import TopUpDriver, tax_rate
from tests.integration.top_ups.failpoints import SimulatedCrash, restart, run_until_crash
from tests.waiting import until

_ORGANIZATIONS, _ACTIONS = 20, 8
"""Of each seed, and of each organization."""
_SEEDS = -(-int(os.environ.get("LIVES", "40")) // _ORGANIZATIONS)
"""LIVES is the number of organizations of all seeds. A failing seed is repeated with `-k "[<seed>]"`."""
_THRESHOLD, _CAP = 100, 3000
"""Of automatic top-ups, in credits."""
_MOST_PASSES = 40
"""Failpoints that a replica passes at most before it crashes: a few actions' worth."""
_CALLS = ["POST /v1/customers*", "POST /v1/invoices", "POST /v1/invoiceitems", "POST */finalize", "POST */void",
          "GET /v1/invoices*", "DELETE *", "GET /v1/events", "POST */pay", "POST */pay", "POST /v1/checkout/sessions",
          "GET /v1/checkout/sessions/*", "POST */detach"]  # fmt: skip
_FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("rate_limit", {}), ("lock_timeout", {}), ("server_error", {}), ("server_error", {"stored": True}),
    ("server_error", {"stored": True, "executes": True}), ("bad_gateway", {}), ("bad_gateway", {"executes": True}),
    ("truncated", {}), ("cut_off", {}), ("drop_before", {}), ("drop_after", {}), ("refuse", {"code": "no_luck"}),
    ("refuse", {"type": "idempotency_error"}),
]  # fmt: skip
_ACTIONS_AT_STRIPE: list[tuple[str, dict[str, Any]]] = [
    ("pay", {}), ("pay", {}), ("pay", {"out_of_band": True}), ("pay", {"amount": 100}), ("void", {}),
    ("mark_uncollectible", {}), ("fail_payment", {}), ("pay", {"amount": 3 * 10**7}), ("overpay", {"amount": 10**6}),
    ("set_customer_balance", {"amount": -(10**6)}), ("set_customer_balance", {"amount": 0}),
]  # fmt: skip


class History:
    """One organization and its random actions."""

    def __init__(self, driver: TopUpDriver, random: Random, organization_id: str) -> None:
        self._driver = driver
        self._random = random
        self._crash = SimulatedCrash()
        self.organization_id = organization_id

    async def act(self) -> None:
        """Take a random action. If the replica crashes during it, another one starts."""
        actions: list[Callable[[], Coroutine[None, None, None]]] = [
            self._buy, self._buy, self._cancel, self._act_at_stripe, self._act_at_stripe,
            self._inject_fault, self._restart, self._run_jobs, self._resolve,
            self._save_card, self._agree, self._agree, self._spend, self._spend, self._spend, self._change_card,
            self._switch_off,
        ]  # fmt: skip
        with suppress(DomainError):
            await run_until_crash(self._random.choice(actions)(), self._crash)
        if self._crash.happened.is_set():
            await self._restart()

    async def _buy(self) -> None:
        await self._driver.buy(self.organization_id)

    async def _cancel(self) -> None:
        for top_up in await self._top_ups():
            await self._driver.cancel(top_up)

    async def _act_at_stripe(self) -> None:
        action, options = self._random.choice(_ACTIONS_AT_STRIPE)
        for top_up in await self._top_ups():
            if top_up.stripe_invoice_id:
                with suppress(aiohttp.ClientError, AssertionError):  # the invoice's status forbids it
                    await self._driver.invoice_action(top_up, action, **options)

    async def _resolve(self) -> None:
        """Add one credit for a top-up in REVIEW or partly paid: the model knows of no other."""
        for top_up in await self._top_ups():
            if top_up.status is TopUpStatus.REVIEW or (
                TopUpFlag.PARTLY_PAID in top_up.flags and top_up.resolved_credits == 0
            ):
                resolution = Resolution(new_id(), 1, "one", "olga")
                with suppress(TopUpNotResolvable):
                    await self._driver.top_ups.resolve(self.organization_id, top_up.top_up_id, resolution)

    async def _save_card(self) -> None:
        behaviour = self._random.choice(["works", "works", "works", "declined", "authentication"])
        with suppress(StripeCallError):
            await add_card(self._driver, self.organization_id, behaviour, UUID(int=self._random.getrandbits(128)))

    async def _agree(self) -> None:
        """Save a card if there is none, and switch automatic top-ups on."""
        if (await self._driver.automatic.read(self.organization_id)).row.payment_method_id is None:
            await self._save_card()
        await enable(self._driver, self.organization_id, threshold_credits=_THRESHOLD, monthly_credit_cap=_CAP)
        await settle(self._driver)

    async def _spend(self) -> None:
        """Spend so much that the balance is above, at or below the threshold, or 0."""
        left = await self._driver.credits(self.organization_id)
        kept = self._random.choice([0, 99, 100, 101, left // 2])
        if kept < left:
            await spend(self._driver, left - kept, self.organization_id)
            await settle(self._driver)

    async def _change_card(self) -> None:
        """Let the bank decide otherwise about the card, or remove it, here or at Stripe."""
        row = (await self._driver.automatic.read(self.organization_id)).row
        action = self._random.choice(["works", "declined", "authentication", "detach", "remove"])
        if action == "remove":
            await self._driver.automatic.remove_card(self.organization_id)
        elif row.payment_method_id is not None:
            with suppress(AssertionError):  # it is detached already
                await self._driver.control(f"POST /cards/{row.payment_method_id}/{action}")

    async def _switch_off(self) -> None:
        await switch_off(self._driver, self.organization_id)

    async def _inject_fault(self) -> None:
        kind, options = self._random.choice(_FAULTS)
        await self._driver.inject_fault(self._random.choice(_CALLS), kind, times=self._random.randint(1, 4), **options)

    async def _restart(self) -> None:
        """End the replica; the next one crashes after a random number of failpoints."""
        self._crash = SimulatedCrash(passes=self._random.randint(0, _MOST_PASSES))
        await restart(self._driver, self._driver.replica, self._crash)

    async def _run_jobs(self) -> None:
        self._driver.clock.ahead += timedelta(seconds=61)
        await self._driver.run_jobs()

    async def _top_ups(self) -> list[TopUp]:
        return await self._driver.top_ups.list(self.organization_id, limit=100)


async def _finish_all(driver: TopUpDriver) -> None:
    """Let the periodic jobs finish all unfinished work, without faults."""
    await driver.control("DELETE /faults")
    await restart(driver, driver.replica)
    await driver.run_jobs()

    async def is_finished() -> bool:
        driver.clock.ahead += timedelta(minutes=6)
        await driver.run_due()
        in_work = await driver.query_value("SELECT count(*) FROM top_ups WHERE status = ANY(%s)", list(IN_WORK))
        return not in_work and "RECEIVED" not in await driver.event_statuses()

    await until(is_finished)
    # Uncollectible invoices are retrieved hourly.
    driver.clock.ahead += timedelta(hours=3)
    await driver.run_jobs()
    for _ in range(10):
        await driver.run_due()


async def _credits_of_the_model(driver: TopUpDriver, organization_id: str) -> int:
    """1,000 credits for each invoice whose total was paid through Stripe, with credit of the balance that was paid.

    An invoice that a person resolved adds one credit and never 1,000.
    """
    resolved = {
        top_up.stripe_invoice_id: top_up.resolved_credits
        for top_up in await driver.top_ups.list(organization_id, limit=100)
        if top_up.status is TopUpStatus.RESOLVED
    }
    assert set(resolved.values()) <= {1}
    adjusted = "FROM ledger_entries WHERE organization_id = %s AND created_by = 'test'"
    spent = f"SELECT coalesce(sum(credits), 0)::bigint {adjusted}"
    credits = sum(resolved.values()) + int(await driver.query_value(spent, organization_id))
    customers: dict[str, list[dict[str, Any]]] = {}
    for change in driver.sandbox.account.objects["customer_balance_transaction"].values():
        customers.setdefault(change["customer"], []).append(change)
    for invoice in await driver.invoices():
        collected = sum(
            payment["amount_paid"] or 0
            for payment in invoice["payments"]["data"]
            if payment["payment"]["type"] == "payment_intent"
        ) + _paid_balance(customers.get(invoice["customer"], []), invoice["id"])
        is_collected = invoice["status"] == "paid" and collected >= invoice["total"] > 0
        is_own = invoice["metadata"]["organization_id"] == organization_id
        if is_own and is_collected and invoice["id"] not in resolved:
            credits += 1000
    return credits


async def _assert_one_charge_per_crossing(driver: TopUpDriver, organization_id: str) -> None:
    """No more automatic top-ups than consents and crossings, charges within the cap, and none without a consent."""
    automatic = {each.stripe_invoice_id for each in await bought(driver, organization_id)}
    consents = await driver.query_value("SELECT count(*) FROM consents WHERE organization_id = %s", organization_id)
    cards = await driver.query_value(
        "SELECT count(*) FROM requests WHERE organization_id = %s AND rpc = 'StartCardSetup'", organization_id
    )
    balances = await driver.query_value(
        "SELECT jsonb_agg(balance_after ORDER BY sequence) FROM ledger_entries WHERE organization_id = %s",
        organization_id,
    )
    crossings = sum(before >= _THRESHOLD > after for before, after in pairwise([0, *(balances or [])]))
    paid = {each["id"] for each in await driver.invoices() if each["status"] == "paid"} & automatic
    assert len(paid) <= crossings + consents + cards
    assert consents or not automatic
    requests = (await driver.control("GET /requests?method=POST&path=*/pay"))["requests"]
    charged = {each["path"].split("/")[3] for each in requests if each["status"] == HTTPStatus.OK}
    assert 1000 * len(charged & automatic) <= _CAP
    row = (await driver.automatic.read(organization_id)).row
    if row.is_enabled and await driver.credits(organization_id) < _THRESHOLD:
        assert (
            row.cap_reached
            or row.failed_charges
            or row.next_attempt_time > driver.clock()
            or await _has_open(driver, organization_id)
        )


async def _has_open(driver: TopUpDriver, organization_id: str) -> bool:
    found = await driver.top_ups.list(organization_id, statuses=UNFINISHED, limit=1)
    return bool(found)


def _paid_balance(changes: list[dict[str, Any]], invoice_id: str) -> int:
    """The credit that the invoice took, when all credit at that time was of overpayments; written down anew."""
    given = credit = 0
    used: dict[str, int] = {}
    for change in changes:
        amount, kind = -change["amount"], change["type"]
        credit += amount
        if kind == "adjustment" and amount > 0:
            given += amount
        if kind == "applied_to_invoice" and amount < 0:
            used[change["invoice"]] = 0 if given else -amount
        if kind == "unapplied_from_invoice" and amount > 0:
            given += amount - used.pop(change["invoice"], 0)
        given = max(0, min(given, credit))
    return used.get(invoice_id, 0)


@pytest.mark.parametrize("seed", range(_SEEDS))
async def test_the_credits_of_every_organization_match_its_payments_at_stripe(driver: TopUpDriver, seed: int) -> None:
    driver.sandbox.set_webhook_url("http://127.0.0.1:9/closed")
    rate = await tax_rate(driver)
    driver.terms = replace(driver.terms, tax_rates={"IDR": rate} if seed % 2 else {})
    await restart(driver, driver.replica)
    random = Random(seed)  # noqa: S311 - a test's choices
    histories = [History(driver, random, f"organization-{number}") for number in range(_ORGANIZATIONS)]
    for history in histories:
        if seed % 2:
            await driver.adjust(150, history.organization_id)
        for _ in range(_ACTIONS):
            await history.act()
        await restart(driver, driver.replica)
        await driver.control("DELETE /faults")
    await _finish_all(driver)
    for history in histories:
        assert await driver.credits(history.organization_id) == await _credits_of_the_model(
            driver, history.organization_id
        )
        await _assert_one_charge_per_crossing(driver, history.organization_id)
        assert await _can_buy(driver, history.organization_id)
    report = await find_drift(driver.pool, driver.replica.stripe_client, environment="test", now=driver.clock())
    assert [drift for drift in report.drifts if drift.kind != "invoice_without_top_up"] == []


async def _can_buy(driver: TopUpDriver, organization_id: str) -> bool:
    """After its debts, gifts and parts were settled, the organization can buy."""
    for found in await driver.top_ups.list(organization_id, limit=100):
        if found.status is TopUpStatus.OPEN:
            with suppress(TopUpPartlyPaid):
                await driver.cancel(found)
                continue
            await driver.top_ups.resolve(organization_id, found.top_up_id, Resolution(new_id(), 0, "settled", "olga"))
    account = driver.sandbox.account  # itself: a customer may have no invoice left, after a draft was deleted
    for customer in account.objects["customer"].values():
        if customer["metadata"]["organization_id"] == organization_id:
            settled = -balance_of(account, customer, "idr")
            change_balance(account, customer, amount=settled, kind="adjustment", currency="idr")
    return (await driver.buy(organization_id)).status is TopUpStatus.OPEN
