"""`make test-browser`: the story of the billing pages, by clicks in Chromium. Not part of `make test`.

The tests share one server of `make run` with a new data folder, and run in this order: each leaves no invoice open.
"""

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.browser.chromium import Chromium, ChromiumMissingError, Page, ProtocolError, chromium, executable
from tests.faults.processes import CHECKOUT, Process, free_ports
from tests.waiting import until

AXE = CHECKOUT / "build" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
PICTURES = CHECKOUT / "build" / "browser"
DESK, PHONE = {"width": 1000, "height": 800}, {"width": 360, "height": 740}


@dataclass
class MakeRun:
    """The server, which can be stopped and started again, and what the tests know of it."""

    settings: dict[str, str]
    folder: Path
    http: aiohttp.ClientSession
    processes: list[Process] = field(default_factory=list)

    @property
    def billing(self) -> str:
        return f"http://127.0.0.1:{self.settings['PULSA_SANDBOX_BILLING_PORT']}/billing"

    @property
    def stripe(self) -> str:
        return f"http://127.0.0.1:{self.settings['PULSA_SANDBOX_STRIPE_PORT']}"

    async def start(self) -> None:
        self.processes.append(Process("dev", self.settings, output=self.folder / f"dev-{len(self.processes)}.log"))
        await self.processes[-1].wait_for_output("Ctrl-C stops everything")

    async def stop(self) -> None:
        self.processes[-1].signal(signal.SIGINT)
        assert await self.processes[-1].wait_for_exit() == 0

    async def control(self, method: str, path: str, body: object = None) -> Any:
        async with self.http.request(method, f"{self.stripe}/_control/{path}", json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def invoices(self) -> list[dict[str, Any]]:
        """The stand-in's invoices, newest last."""
        found: list[dict[str, Any]] = (await self.control("GET", "invoices"))["invoices"]
        return found


@pytest.fixture(scope="module")
async def run(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MakeRun]:
    folder, ports = tmp_path_factory.mktemp("run"), free_ports(5)
    names = ("PULSA_LISTEN", "PULSA_WEBHOOK_LISTEN")
    sandboxes = ("BILLING", "STRIPE", "MESSAGES")
    settings = {"PULSA_DATA": str(folder / "data"), "PULSA_METRICS_LISTEN": "off"}
    settings |= {name: f"127.0.0.1:{ports.pop()}" for name in names}
    settings |= {f"PULSA_SANDBOX_{name}_PORT": str(ports.pop()) for name in sandboxes}
    async with aiohttp.ClientSession() as http:
        server = MakeRun(settings, folder, http)
        try:
            await server.start()
            yield server
            await server.stop()
        finally:
            for process in server.processes:
                await process.kill()


@pytest.fixture(scope="module")
async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Chromium]:
    try:
        executable()
    except ChromiumMissingError as error:
        pytest.exit(f"make test-browser {error}", returncode=2)
    if not AXE.exists():
        pytest.exit(f"make test-browser needs axe-core in {AXE}", returncode=2)
    PICTURES.mkdir(parents=True, exist_ok=True)
    async with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
async def page(browser: Chromium, run: MakeRun) -> AsyncIterator[Page]:
    """A tab with the balance page. No page may have had an error."""
    browser.errors.clear()
    tab = await browser.tab(run.billing)
    yield tab
    await tab.command("Page.close")
    # Chromium asks for the icon of a site when it shows a PDF.
    assert [error for error in browser.errors if not error.endswith("/favicon.ico")] == []


async def order(page: Page) -> None:
    """From the balance page to Stripe's, by clicks."""
    await page.click("#top-up-button")
    await page.click("dialog:modal #pay-now")
    await page.says("Sandbox: no real money moves.")


async def credits_of(page: Page) -> int:
    return int((await page.text("#credits strong")).replace(",", "").replace(".", ""))


async def shows_credits(page: Page, credits: int) -> None:
    await page.says(f"{credits:,} credits available", "#credits")


async def is_at(page: Page, end: str) -> bool:
    with suppress(ProtocolError):  # the viewer of PDFs is being opened
        history = await page.command("Page.getNavigationHistory")
        return str(history["entries"][history["currentIndex"]]["url"]).endswith(end)
    return False


async def is_fine(page: Page, picture: str = "") -> None:
    """The checker finds nothing, and nothing is wider than the screen: phone and desk, light and dark."""
    for dark in (False, True):
        for name, size in (("phone", PHONE), ("desk", DESK)):
            await page.look(**size, dark=dark)
            wider = await page.value("document.documentElement.scrollWidth - innerWidth")
            assert wider <= 0, f"{name}: {wider} pixels too wide"
            await page.value("Promise.all(document.getAnimations().map((each) => each.finished)).then(() => 0)")
            if not await page.value("typeof axe === 'object'"):
                await page.value(AXE.read_text() + ";0")
            found = await page.value(
                "axe.run().then((r) => r.violations.map((v) => [v.id, v.nodes.map((n) => n.html + n.failureSummary)]))"
            )
            assert found == [], json.dumps(found, indent=2)
            if picture and not (dark and "-id" in picture):
                await page.picture(PICTURES / f"{picture}-{name}{'-dark' if dark else ''}.webp")


async def test_every_state_is_accessible_fits_a_phone_and_is_in_both_languages(page: Page, run: MakeRun) -> None:
    """Takes the pictures of the documents."""
    for language in ("id", "en"):
        await page.open(f"{run.billing}?lang={language}")
        await is_fine(page, f"low-{language}")
        await page.open(f"{run.billing}?lang={language}&dialog=top-up")
        await page.shows("document.querySelector('dialog:modal')")
        await is_fine(page, f"dialog-{language}")
    assert await page.text("#pay-now") == "Pay Now"
    await page.click("#pay-now")
    await page.says("Sandbox: no real money moves.")
    await is_fine(page, "hosted")
    await page.click("#transfer")
    await page.says("pending until it arrives")
    await is_fine(page)
    hosted = await page.value("location.href")
    for language in ("id", "en"):
        await page.open(f"{run.billing}?lang={language}")
        await is_fine(page, f"open-{language}")
    await page.open(hosted)
    await page.click("#pay")
    await page.says("Paid", "#status")
    for language in ("id", "en"):
        await page.open(f"{run.billing}?lang={language}")
        await page.shows("document.querySelector('.history .paid') && !document.getElementById('low')")
        await is_fine(page, f"paid-{language}")
    await page.click(".history a[id^=details]")
    await page.says("Payment details")
    await is_fine(page, "details")
    await page.open(run.stripe)
    await is_fine(page)


async def test_what_make_run_prints_works_in_its_order(page: Page, run: MakeRun) -> None:
    printed = run.processes[0].output
    addresses, token = re.findall(r"http://[^ ]*", printed), re.search(r"export TOKEN=.*", printed)
    assert addresses[0] == run.billing
    assert token
    commands = re.findall(r"^  (\.venv/bin/buf (?:.*\n)*?    http://.*)$", printed, re.MULTILINE)
    answers = []
    for command in commands:
        arguments = ("bash", "-c", f"{token[0]}\n{command}")
        process = await asyncio.create_subprocess_exec(*arguments, cwd=CHECKOUT, stdout=asyncio.subprocess.PIPE)
        answer = json.loads((await process.communicate())[0])
        answers.append(next(iter(answer)))
        if "topUp" in answer:
            await page.open(answer["topUp"]["hostedInvoiceUrl"])
            await page.click("#pay")
            await page.says("Paid", "#status")
            await run.control("GET", "deliveries/done")
    assert answers == ["balance", "topUp", "otp"]
    await page.open(f"http://127.0.0.1:{run.settings['PULSA_SANDBOX_MESSAGES_PORT']}/")
    await page.shows("document.querySelector('article') || location.reload()")
    await page.says("to you@example.com")
    await is_fine(page)


async def test_credits_are_bought_and_arrive_without_a_reload(page: Page, browser: Chromium, run: MakeRun) -> None:
    before = await credits_of(page)
    other = await browser.tab(run.billing)
    await other.value("window.isOld = true")

    await page.click("#top-up-button")
    await page.says("Rp150,000", "dialog:modal .total")
    assert await page.value("document.querySelector('[name=amount]:checked').value") == "1000"
    await page.click("[name=currency][value=USD]")
    await page.says("$", "dialog:modal .total")
    await page.click("[name=currency][value=IDR]")
    await page.write("#custom-amount", "999")
    await page.says("less than the smallest purchase", "#quote")
    await page.click("[name=amount][value='5000']")
    await page.says("Rp750,000", "dialog:modal .total")
    await page.click("#pay-now")
    await page.says("Pay Rp750.000")
    await page.click("#pay")
    await page.says("Paid", "#status")

    await shows_credits(other, before + 5000)
    assert await other.value("window.isOld") is True
    assert await other.text("#said") == f"{before + 5000:,} credits available"
    await other.command("Page.close")
    await page.back()
    await page.back()
    await shows_credits(page, before + 5000)
    assert not await page.value("document.querySelector('dialog:modal')")
    await page.says("5,000 credits Rp750,000 Paid", ".history li")
    await page.click(".history a[id^=details]")
    number = (await run.invoices())[-1]["number"]
    await page.says(number)
    pdf = await page.value("document.querySelector('a[id^=pdf]').href")
    async with run.http.get(pdf) as response:
        assert response.url.host == "127.0.0.1"
        assert f"(Invoice {number}) Tj".encode() in await response.read()
    await page.click("a[id^=pdf]")

    await until(lambda: is_at(page, "/pdf"))


async def test_a_declined_card_and_then_a_transfer_that_takes_its_time(page: Page, run: MakeRun) -> None:
    before = await credits_of(page)
    await order(page)
    await page.click("#decline")
    await page.says("The payment was declined.", "[role=alert]")
    await page.click("#transfer")
    await page.says("pending until it arrives")
    hosted = await page.value("location.href")
    await page.open(run.billing)
    await page.says("An invoice is open", "#notice")
    assert await credits_of(page) == before
    await page.click("#complete")
    await page.shows(f"location.href.startsWith({json.dumps(hosted.split('?')[0])})")
    await page.click("#pay")
    await page.says("Paid", "#status")
    await page.back()
    await page.back()
    await shows_credits(page, before + 1000)


async def test_a_double_click_on_pay_now_buys_once_and_the_invoice_can_be_canceled(page: Page, run: MakeRun) -> None:
    count = len(await run.invoices())
    await page.click("#top-up-button")
    await page.shows("document.querySelector('dialog:modal')")
    form = await page.value("Object.fromEntries(new FormData(document.getElementById('order')))")
    cookies = {each["name"]: each["value"] for each in (await page.command("Network.getCookies"))["cookies"]}
    await page.click("#pay-now", times=2)
    await page.says("Sandbox: no real money moves.")
    # The form once more, as after a lost answer.
    again = {"data": form, "cookies": cookies, "allow_redirects": False}
    async with run.http.post(f"{run.billing}/top-ups", **again) as response:
        assert response.headers["Location"] == await page.value("location.href")
    assert len(await run.invoices()) == count + 1
    await page.open(run.billing)
    await page.click("#cancel")
    await page.says("The invoice was canceled. Nothing was paid.", ".message")
    assert await page.value("document.getElementById('notice')") is None
    await page.says("Canceled", ".history li")


async def test_a_reload_in_the_middle_loses_nothing(page: Page, run: MakeRun) -> None:
    before, count = await credits_of(page), len(await run.invoices())
    await page.click("#top-up-button")
    await page.shows("document.querySelector('dialog:modal')")
    await page.reload()
    assert await page.value("document.querySelector('dialog:modal')") is None
    await order(page)
    await page.reload()
    await page.open(run.billing)
    await page.reload()
    assert await page.value("document.getElementById('top-up-button').getAttribute('aria-disabled')") == "true"
    await page.says("Complete or cancel the open invoice first.", "#top-up-button-why")
    await page.click("#complete")
    await page.click("#pay")
    await page.says("Paid", "#status")
    await page.open(run.billing)
    await shows_credits(page, before + 1000)
    assert len(await run.invoices()) == count + 1


async def test_a_second_tab_is_led_to_the_open_invoice(page: Page, browser: Chromium, run: MakeRun) -> None:
    before = await credits_of(page)
    other = await browser.tab(run.billing)
    await other.click("#top-up-button")
    await other.shows("document.querySelector('dialog:modal')")
    await order(page)
    await other.click("dialog:modal #pay-now")
    await other.says("An invoice is open already. Complete or cancel it first.", "[role=alert]")
    await other.click("#complete")
    await other.click("#pay")
    await page.open(run.billing)
    await shows_credits(page, before + 1000)
    await other.command("Page.close")


async def test_a_payment_wins_against_a_cancel(page: Page, browser: Chromium, run: MakeRun) -> None:
    before = await credits_of(page)
    stripe = await browser.tab(run.billing)
    await order(stripe)
    await stripe.click("#transfer")
    await page.reload()
    await page.click("#cancel")
    await page.says("A payment is on its way", "#notice")
    await stripe.click("#pay")
    await shows_credits(page, before + 1000)
    await page.shows("!document.getElementById('notice')")

    await run.control("POST", "faults", {"match": {"event": "invoice.paid"}, "fault": "hold"})
    await stripe.open(run.billing)
    await order(stripe)
    await page.reload()
    await page.shows("document.getElementById('cancel')")
    await stripe.click("#pay")
    await stripe.says("Paid", "#status")
    await page.click("#cancel")
    await page.says("The payment had arrived already", ".message")
    await shows_credits(page, before + 2000)
    await run.control("POST", "events/release")
    await run.control("GET", "deliveries/done")
    await page.reload()
    await shows_credits(page, before + 2000)
    await stripe.command("Page.close")


async def test_an_open_page_goes_on_after_a_restart(page: Page, browser: Chromium, run: MakeRun) -> None:
    before = await credits_of(page)
    ordering = await browser.tab(run.billing)
    await ordering.click("#top-up-button")
    await ordering.shows("document.querySelector('dialog:modal')")
    await page.value("window.isOld = true")
    await run.stop()
    await page.shows("!document.getElementById('away').hidden")
    await run.start()
    await page.shows("document.getElementById('away').hidden")
    await ordering.click("dialog:modal #pay-now")
    await ordering.click("#pay")
    await shows_credits(page, before + 1000)
    assert await page.value("window.isOld") is True
    await ordering.command("Page.close")
    browser.errors[:] = [error for error in browser.errors if not error.endswith("/billing/events")]


async def test_without_subscribe_the_buttons_say_why_they_are_off(page: Page, run: MakeRun) -> None:
    await page.click("button[value=budi]")
    await page.says("Only people with the permission Subscribe can buy credits.", "#top-up-button-why")
    assert await page.value("document.getElementById('top-up-button').ariaDescribedByElements[0].id") == (
        "top-up-button-why"
    )
    await is_fine(page, "without-subscribe")
    await page.click("#top-up-button")
    await page.open(f"{run.billing}?dialog=top-up")
    assert await page.value("document.querySelector('dialog')") is None
    await page.click("[hreflang=id]")
    await page.says("Hanya orang dengan izin Subscribe", "#top-up-button-why")
    await page.click("[hreflang=en]")
    await page.click("button[value=ayu]")
    await page.shows("document.getElementById('top-up-button')?.type === 'submit'")


async def test_the_keyboard_is_enough(page: Page) -> None:
    active = "document.activeElement"
    while await page.value(f"{active}.id") != "top-up-button":
        await page.press("Tab")
    await page.press("Enter")
    await page.shows(f"document.querySelector('dialog:modal')?.contains({active}) && {active}.value === '1000'")
    await page.press("ArrowRight")
    await page.says("Rp750,000", "#quote")
    for _ in range(12):
        await page.press("Tab")
        assert await page.value(f"{active} === document.body || document.querySelector('dialog').contains({active})")
    await page.press("Escape")
    await page.shows(f"{active}.id === 'top-up-button'")


async def test_a_form_of_another_site_orders_nothing(run: MakeRun) -> None:
    count = len(await run.invoices())
    form = {"amount": "1000", "currency": "IDR", "request_id": "2b1c3b52-2f5a-4c0e-9d5e-7c64a35fcd5a"}
    for token in ("", "0" * 64):
        async with run.http.post(f"{run.billing}/top-ups", data=form | {"form_token": token}) as response:
            assert "This form is too old." in await response.text()
    assert len(await run.invoices()) == count
