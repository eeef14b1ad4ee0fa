"""Kill -9 of the webhook sidecar, or of the server behind it: every paid credit is added exactly once."""

import asyncio
from typing import Any

import aiohttp

from tests.faults.process_deployment import ProcessDeployment, start_sidecar
from tests.waiting import until

BUYERS = [f"buyer-{number}" for number in range(10)]


async def pay(browser: aiohttp.ClientSession, top_up: Any) -> None:
    async with browser.post(f"{top_up.hosted_invoice_url}/pay") as page:
        assert page.status == 200


async def are_credited(deployment: ProcessDeployment) -> bool:
    return await asyncio.gather(*map(deployment.balance, BUYERS)) == [1000] * len(BUYERS)


async def test_no_paid_credit_is_lost_or_added_twice_while_customers_pay(deployment: ProcessDeployment) -> None:
    await start_sidecar(deployment)
    top_ups = await asyncio.gather(*map(deployment.order, BUYERS))

    async with aiohttp.ClientSession() as browser:
        await asyncio.gather(*(pay(browser, top_up) for top_up in top_ups[:5]))
        await deployment.kill("webhook")
        await asyncio.gather(*(pay(browser, top_up) for top_up in top_ups[5:]))
        await deployment.kill("serve")
    await deployment.start("serve")
    # Without the sidecar no webhook arrives: the server lists the undelivered events at Stripe.
    await until(lambda: are_credited(deployment))
    await deployment.start("webhook")
    async with aiohttp.ClientSession() as stripe, stripe.get(f"{deployment.stripe.url}/_control/deliveries/done"):
        assert await are_credited(deployment)

    for buyer in BUYERS:
        assert (await deployment.call("VerifyLedger", buyer)).entry_count == 1
