"""SIGTERM: what was accepted is finished, and the exit code is 0."""

import asyncio
import signal

import aiohttp

from tests.faults.site import Site


async def test_calls_and_deliveries_under_way_are_finished(site: Site) -> None:
    await site.grant(1000)
    control = f"{site.stripe.url}/_control/faults"
    fault = {"match": {"method": "POST", "path": "/v1/invoices"}, "fault": "hold_before"}
    async with aiohttp.ClientSession() as browser:
        async with browser.post(control, json=fault) as answer:
            held = (await answer.json())["id"]
        ordering = asyncio.create_task(site.order())
        async with browser.get(f"{control}/{held}/met"):
            pass
        await asyncio.gather(*(site.send(email=f"j{number}@mail.example") for number in range(20)))
        site.running["serve"].signal(signal.SIGTERM)
        await site.running["serve"].says('"draining"')
        async with browser.post(f"{control}/{held}/release"):
            pass

    assert (await ordering).hosted_invoice_url
    assert await site.running["serve"].ended() == 0
    assert site.mails() == {f"j{number}@mail.example": 1 for number in range(20)}
