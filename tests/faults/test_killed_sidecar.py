"""Kill -9 of the webhook sidecar, or of the server behind it: every paid credit arrives, once."""

import asyncio
from typing import Any

import aiohttp

from tests.faults.site import Site, start_sidecar
from tests.waiting import until

BUYERS = [f"buyer-{number}" for number in range(10)]


async def pay(browser: aiohttp.ClientSession, top_up: Any) -> None:
    async with browser.post(f"{top_up.hosted_invoice_url}/pay") as page:
        assert page.status == 200


async def are_credited(site: Site) -> bool:
    return await asyncio.gather(*map(site.balance, BUYERS)) == [1000] * len(BUYERS)


async def test_while_customers_pay_no_paid_credit_is_lost_or_doubled(site: Site) -> None:
    await start_sidecar(site)
    top_ups = await asyncio.gather(*map(site.order, BUYERS))

    async with aiohttp.ClientSession() as browser:
        await asyncio.gather(*(pay(browser, top_up) for top_up in top_ups[:5]))
        await site.kill("webhook")
        await asyncio.gather(*(pay(browser, top_up) for top_up in top_ups[5:]))
        await site.kill("serve")
    await site.start("serve")
    # Without the sidecar no webhook comes: the server asks Stripe by itself.
    await until(lambda: are_credited(site))
    await site.start("webhook")
    async with aiohttp.ClientSession() as stripe, stripe.get(f"{site.stripe.url}/_control/deliveries/done"):
        assert await are_credited(site)

    for buyer in BUYERS:
        assert (await site.call("VerifyLedger", buyer)).entry_count == 1
