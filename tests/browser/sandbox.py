"""What `make run` prints, in its order; and the pages of the stand-ins.

The tests share one server, and run in this order.
"""

import asyncio
import json
import re
from typing import Any

from tests.browser.chromium import Page
from tests.browser.make_run import MakeRun, credits_of, is_fine, order, pay, shows_credits
from tests.faults.processes import CHECKOUT


async def call(run: MakeRun, command: str) -> dict[str, Any]:
    """The answer of a command that was printed, with the token that was printed."""
    token = re.search(r"export TOKEN=.*", run.processes[0].output)
    assert token
    script = ("bash", "-c", f"{token[0]}\n{command}")
    process = await asyncio.create_subprocess_exec(*script, cwd=CHECKOUT, stdout=asyncio.subprocess.PIPE)
    answer: dict[str, Any] = json.loads((await process.communicate())[0])
    return answer


def commands(run: MakeRun) -> list[str]:
    """GetBalance, CreateTopUp and SendOtp, as printed."""
    return re.findall(r"^  (\.venv/bin/buf (?:.*\n)*?    http://.*)$", run.processes[0].output, re.MULTILINE)


async def test_what_make_run_prints_works_in_its_order(page: Page, run: MakeRun) -> None:
    addresses = re.findall(r"http://[^ ]*", run.processes[0].output)
    assert addresses[0] == run.billing
    for address, title in ((run.billing, "Balance"), (run.stripe, "Stripe stand-in"), (run.messages, "Messages")):
        assert address.removesuffix("/") in addresses
        await page.open(address)
        await page.says(title, "h1")
    answers = []
    for command in commands(run):
        answer = await call(run, command)
        answers.append(next(iter(answer)))
        if "topUp" in answer:
            await page.open(answer["topUp"]["hostedInvoiceUrl"])
            await pay(page)
            await run.control("GET", "deliveries/done")
    assert answers == ["balance", "topUp", "otp"]


async def test_messages_look_as_on_a_phone_and_in_a_mailbox(page: Page, run: MakeRun) -> None:
    send = commands(run)[2]
    for destination in ('"sms": "+6281234567890"', '"whatsapp": "+6281234567891"'):
        assert "otp" in await call(run, send.replace('"email": "you@example.com"', destination))
    await page.open(run.messages)
    await page.shows("document.querySelector('.sms') && document.querySelector('.whatsapp') || location.reload()")
    async with run.http.get(f"{run.messages}messages", params={"to": "+6281234567890"}) as response:
        code = (await response.json())[0]["code"]
    await page.says(f"{code} is your sign-in code.", ".sms .bubble")
    await page.says("to you@example.com", "[aria-labelledby=mailbox]")
    await is_fine(page, "messages")


async def test_the_stand_in_shows_invoices_and_webhooks_and_has_faults_to_play_with(page: Page, run: MakeRun) -> None:
    before = await credits_of(page)
    await page.open(run.stripe)
    await page.click("button[value=hold]")
    await page.says("The webhook of the next payment is held", "#faults ~ ul")
    await page.click("nav a[href$='/billing']")
    await order(page)
    number = await page.text("#number")
    await pay(page)
    await page.open(run.stripe)
    await page.says("Held: the webhook invoice.paid", "#faults ~ ul")
    await page.says(f"Invoice {number} Rp150.000 paid", "tr:first-child")
    await is_fine(page, "stand-in")
    await page.click("button[value=end]")
    await page.says("Nothing.", "#faults ~ ul")
    await page.says("invoice.paid answered 200", "#webhooks ~ table")
    await page.click("button[value=missign]")
    await page.says("The webhook of the next payment has a wrong signature", "#faults ~ ul")
    await page.open(run.billing)
    await shows_credits(page, before + 1000)
    await order(page)
    await page.open(run.stripe)
    await page.click("a[href^='/i/']")
    await pay(page)
    await page.open(run.stripe)
    await page.shows("document.querySelector('#webhooks ~ table')?.innerText.includes('400') || location.reload()")
    await page.open(run.billing)
    await shows_credits(page, before + 2000)
