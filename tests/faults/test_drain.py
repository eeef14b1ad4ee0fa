"""SIGTERM: accepted calls and deliveries are finished, and the exit code is 0."""

import asyncio
import signal

import aiohttp

from tests.faults.process_deployment import ProcessDeployment


async def test_pending_calls_and_deliveries_are_finished(deployment: ProcessDeployment) -> None:
    await deployment.grant(1000)
    control = f"{deployment.stripe.url}/_control/faults"
    fault = {"match": {"method": "POST", "path": "/v1/invoices"}, "fault": "hold_before"}
    async with aiohttp.ClientSession() as browser:
        async with browser.post(control, json=fault) as answer:
            held = (await answer.json())["id"]
        ordering = asyncio.create_task(deployment.order())
        async with browser.get(f"{control}/{held}/met"):
            pass
        await asyncio.gather(*(deployment.send(email=f"j{number}@mail.example") for number in range(20)))
        deployment.running["serve"].signal(signal.SIGTERM)
        await deployment.running["serve"].wait_for_output('"draining"')
        async with browser.post(f"{control}/{held}/release"):
            pass

    assert (await ordering).hosted_invoice_url
    assert await deployment.running["serve"].wait_for_exit() == 0
    assert deployment.mails() == {f"j{number}@mail.example": 1 for number in range(20)}
