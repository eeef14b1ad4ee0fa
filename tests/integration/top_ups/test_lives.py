"""Seeded random lives of organizations with faults and crashes mixed in; in the end Stripe's books say what is right.

One life after another and without webhooks: a seed's chances are always drawn by the same deeds in the same order.
"""

import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import timedelta
from random import Random
from typing import Any

import aiohttp
import pytest

from server.credits.drift import find_drift
from server.credits.top_up_rows import TopUp
from server.credits.top_up_states import IN_WORK, TopUpStatus
from server.errors import DomainError
from tests.integration.top_ups.shop import Shop, until
from tests.integration.top_ups.stopping import Stop, play, replace_process

_LIVES, _DEEDS = 20, 6
_SEEDS = int(os.environ.get("LIFE_SEEDS", "3"))
"""Each is the lives of _LIVES organizations. A failing one is repeated with `-k "[<seed>]"`."""
_LONGEST_WAY = 40
"""Points after which a process that is to stop has surely stopped or done a few things."""
_CALLS = ["POST /v1/customers*", "POST /v1/invoices", "POST /v1/invoiceitems", "POST */finalize", "POST */void",
          "GET /v1/invoices*", "DELETE *", "GET /v1/events"]  # fmt: skip
_FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("rate_limit", {}), ("lock_timeout", {}), ("server_error", {}), ("server_error", {"stored": True}),
    ("server_error", {"stored": True, "executes": True}), ("bad_gateway", {}), ("bad_gateway", {"executes": True}),
    ("truncated", {}), ("cut_off", {}), ("drop_before", {}), ("drop_after", {}), ("refuse", {"code": "no_luck"}),
    ("refuse", {"type": "idempotency_error"}),
]  # fmt: skip
_EVENTS_AT_STRIPE: list[tuple[str, dict[str, Any]]] = [
    ("pay", {}), ("pay", {}), ("pay", {"out_of_band": True}), ("pay", {"amount": 100}), ("void", {}),
    ("mark_uncollectible", {}), ("fail_payment", {}),
]  # fmt: skip


class Life:
    """One organization and the chances it meets."""

    def __init__(self, shop: Shop, chance: Random, organization_id: str) -> None:
        self._shop = shop
        self._chance = chance
        self._stop = Stop()
        self.organization_id = organization_id

    async def deed(self) -> None:
        """Anything that can happen next. When the process stops in the middle of it, another takes its place."""
        deeds: list[Callable[[], Coroutine[None, None, None]]] = [
            self._buy, self._buy, self._cancel, self._stripe, self._stripe, self._fault, self._crash, self._watch,
        ]  # fmt: skip
        with suppress(DomainError):
            await play(self._chance.choice(deeds)(), self._stop)
        if self._stop.stopped.is_set():
            await self._crash()

    async def _buy(self) -> None:
        await self._shop.buy(self.organization_id)

    async def _cancel(self) -> None:
        for top_up in await self._top_ups():
            await self._shop.cancel(top_up)

    async def _stripe(self) -> None:
        action, options = self._chance.choice(_EVENTS_AT_STRIPE)
        for top_up in await self._top_ups():
            if top_up.stripe_invoice_id:
                with suppress(aiohttp.ClientError, AssertionError):  # what the invoice's state forbids
                    await self._shop.act(top_up, action, **options)

    async def _fault(self) -> None:
        kind, options = self._chance.choice(_FAULTS)
        await self._shop.fault(self._chance.choice(_CALLS), kind, times=self._chance.randint(1, 4), **options)

    async def _crash(self) -> None:
        """The process stops for good; the next one does so too, some way on."""
        self._stop = Stop(passes=self._chance.randint(0, _LONGEST_WAY))
        await replace_process(self._shop, self._shop.desk, self._stop)

    async def _watch(self) -> None:
        self._shop.clock.ahead += timedelta(seconds=61)
        await self._shop.watch()

    async def _top_ups(self) -> list[TopUp]:
        return await self._shop.top_ups.list(self.organization_id, limit=100)


async def _come_to_rest(shop: Shop) -> None:
    """No more faults: everything that was begun is brought to its end by the watch."""
    await shop.control("DELETE /faults")
    await replace_process(shop, shop.desk)

    async def at_rest() -> bool:
        shop.clock.ahead += timedelta(minutes=6)
        await shop.watch()
        in_work = await shop.value("SELECT count(*) FROM top_ups WHERE status = ANY(%s)", list(IN_WORK))
        return not in_work and "RECEIVED" not in await shop.event_statuses()

    await until(at_rest)
    # Uncollectible ones are looked up hourly.
    shop.clock.ahead += timedelta(hours=3)
    for _ in range(10):
        await shop.watch()


async def _owed(shop: Shop, organization_id: str) -> int:
    """The model: what Stripe itself collected in full is what was bought."""
    credits = 0
    for invoice in await shop.invoices():
        collected = sum(
            payment["amount_paid"] or 0
            for payment in invoice["payments"]["data"]
            if payment["payment"]["type"] == "payment_intent"
        )
        whole = invoice["status"] == "paid" and collected >= invoice["total"] > 0
        if invoice["metadata"]["organization_id"] == organization_id and whole:
            credits += 1000
    return credits


@pytest.mark.parametrize("seed", range(_SEEDS))
async def test_every_life_ends_as_stripes_books_say(shop: Shop, seed: int) -> None:
    shop.sandbox.set_webhook_url("http://127.0.0.1:9/closed")
    chance = Random(seed)  # noqa: S311 - a test's chances
    lives = [Life(shop, chance, f"organization-{number}") for number in range(_LIVES)]
    for life in lives:
        for _ in range(_DEEDS):
            await life.deed()
        await replace_process(shop, shop.desk)
        await shop.control("DELETE /faults")
    await _come_to_rest(shop)
    for life in lives:
        assert await shop.credits(life.organization_id) == await _owed(shop, life.organization_id)
        assert await _can_buy(shop, life.organization_id)
    report = await find_drift(shop.pool, shop.desk.payments, environment="test", now=shop.clock())
    assert [drift for drift in report.drifts if drift.kind != "invoice_without_top_up"] == []


async def _can_buy(shop: Shop, organization_id: str) -> bool:
    for found in await shop.top_ups.list(organization_id, statuses=[TopUpStatus.OPEN], limit=10):
        await shop.cancel(found)
    return (await shop.buy(organization_id)).status is TopUpStatus.OPEN
