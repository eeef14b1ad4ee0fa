"""The story of the billing pages, by clicks: a top-up, and what can come between.

The tests share one server, and run in this order: each leaves no invoice open.
"""

import asyncio
import json

from tests.browser.chromium import Chromium, Page
from tests.browser.make_run import MakeRun, credits_of, is_at, order, pay, shows_credits
from tests.waiting import until

_MESSAGE = ".message:not(#away)"
_TOO_LATE = {
    "The payment had arrived already: the credits are in your balance.",
    "This invoice cannot be canceled any more.",
}
"""A payment came while the invoice was being canceled, or before."""


async def test_a_low_balance_is_topped_up_and_the_credits_arrive_without_a_reload(
    page: Page, browser: Chromium, run: MakeRun
) -> None:
    await page.says("Your balance is low", "#low")
    await shows_credits(page, 0)
    left_open = await browser.tab(run.billing)
    await left_open.value("window.isOld = true")

    await page.click("#top-up-button")
    await page.says("Rp150,000", "dialog:modal .total")
    assert await page.value("document.querySelector('[name=amount]:checked').value") == "1000"
    await page.click("[name=currency][value=USD]")
    await page.says("$", "dialog:modal .total")
    await page.click("[name=currency][value=IDR]")
    await page.click("#custom")
    await page.write("#custom-amount", "999")
    await page.says("less than the smallest purchase", "#quote")
    await page.click("[name=amount][value='5000']")
    await page.says("Rp750,000", "dialog:modal .total")
    await page.click("#custom")
    await page.write("#custom-amount", "1234")
    await page.says("Rp185,100", "dialog:modal .total")
    await page.click("#pay-now")
    await page.says("Pay Rp185.100 by card")
    await left_open.says("Rp185,100 for 1,234 credits", "#notice")
    await pay(page)

    await shows_credits(left_open, 1234)
    await left_open.shows("!document.getElementById('low') && !document.getElementById('notice')")
    assert await left_open.value("window.isOld") is True
    assert await left_open.text("#said") == "1,234 credits available"
    await left_open.command("Page.close")
    await page.back()
    await page.back()
    await shows_credits(page, 1234)
    await page.shows("!document.getElementById('low') && !document.querySelector('dialog:modal')")
    await page.says("1,234 credits Rp185,100 Paid", ".history li")
    await page.click(".history a[id^=details]")
    number = (await run.invoices())[-1]["number"]
    await page.says(number)
    pdf = await page.value("document.querySelector('a[id^=pdf]').href")
    async with run.http.get(pdf) as response:
        assert str(response.url).startswith(run.stripe)
        assert f"(Invoice {number}) Tj".encode() in await response.read()
    await page.click("a[id^=pdf]")
    await until(lambda: is_at(page, "/pdf"))


async def test_a_declined_card_a_failed_transfer_and_one_that_takes_its_time(page: Page, run: MakeRun) -> None:
    before = await credits_of(page)
    await order(page)
    await page.click("#decline")
    await page.says("The payment was declined.", "[role=alert]")
    await page.click("#transfer")
    await page.says("pending until it arrives")
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
    await pay(page)
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
    slow = {"match": {"method": "POST", "path": "/v1/invoices"}, "fault": "hold_before"}
    fault = (await run.control("POST", "faults", slow))["id"]
    await page.click("#top-up-button")
    await page.click("dialog:modal #pay-now")
    await run.control("GET", f"faults/{fault}/met")
    await page.open(run.billing)
    await page.says("The invoice for 1,000 credits is being made.", "#notice")
    await page.value("window.isOld = true")
    await run.control("POST", f"faults/{fault}/release")
    await page.shows("document.getElementById('complete')")
    assert await page.value("window.isOld") is True
    await page.reload()
    assert await page.value("document.getElementById('top-up-button').getAttribute('aria-disabled')") == "true"
    await page.says("Complete or cancel the open invoice first.", "#top-up-button-why")
    await page.click("#complete")
    await page.says("Sandbox: no real money moves.")
    await page.reload()
    await pay(page)
    await page.reload()
    await page.open(run.billing)
    await shows_credits(page, before + 1000)
    assert len(await run.invoices()) == count + 1


async def test_a_second_tab_is_led_to_the_open_invoice(page: Page, browser: Chromium, run: MakeRun) -> None:
    before, count = await credits_of(page), len(await run.invoices())
    other = await browser.tab(run.billing)
    await other.click("#top-up-button")
    await other.shows("document.querySelector('dialog:modal')")
    await order(page)
    await other.click("dialog:modal #pay-now")
    await other.says("An invoice is open already. Complete or cancel it first.", "[role=alert]")
    await other.click("#complete")
    await pay(other)
    await page.open(run.billing)
    await shows_credits(page, before + 1000)
    assert len(await run.invoices()) == count + 1
    await other.command("Page.close")


async def test_a_payment_wins_against_a_later_cancel(page: Page, browser: Chromium, run: MakeRun) -> None:
    before = await credits_of(page)
    stripe = await browser.tab(run.billing)
    await order(stripe)
    await stripe.click("#transfer")
    await stripe.says("pending until it arrives")
    await page.reload()
    await page.click("#cancel")
    await page.says("A payment is on its way", "#notice")
    await pay(stripe)
    await shows_credits(page, before + 1000)
    await page.shows("!document.getElementById('notice')")

    await run.control("POST", "faults", {"match": {"event": "invoice.paid"}, "fault": "hold"})
    await stripe.open(run.billing)
    await order(stripe)
    await page.reload()
    await page.shows("document.getElementById('cancel')")
    await pay(stripe)
    await page.click("#cancel")
    await page.says("The payment had arrived already", ".message")
    await shows_credits(page, before + 2000)
    await run.control("POST", "events/release")
    await run.control("GET", "deliveries/done")
    await page.reload()
    await shows_credits(page, before + 2000)
    await stripe.command("Page.close")


async def test_a_cancel_wins_against_a_later_payment(page: Page, browser: Chromium, run: MakeRun) -> None:
    before = await credits_of(page)
    stripe = await browser.tab(run.billing)
    await order(stripe)
    await page.click("#cancel")
    await page.says("The invoice was canceled.", ".message")
    browser.errors.clear()
    await stripe.click("#pay")
    await stripe.says("Void", "#status")
    await page.reload()
    assert await credits_of(page) == before
    await stripe.command("Page.close")
    browser.errors[:] = [error for error in browser.errors if "409" not in error]


async def test_of_a_cancel_and_a_payment_at_the_same_time_one_wins_and_both_tabs_say_which(
    page: Page, browser: Chromium, run: MakeRun
) -> None:
    before = await credits_of(page)
    stripe = await browser.tab(run.billing)
    await order(stripe)
    await page.shows("document.getElementById('cancel')")
    await asyncio.gather(
        page.value("document.getElementById('cancel').click()"), stripe.value("document.getElementById('pay').click()")
    )
    await stripe.shows("['Paid', 'Void'].includes(document.getElementById('status')?.innerText)")
    is_paid = await stripe.text("#status") == "Paid"
    assert (await run.invoices())[-1]["status"] == ("paid" if is_paid else "void")
    await page.says("1,000 credits Rp150,000 " + ("Paid" if is_paid else "Canceled"), ".history li")
    await page.shows(f"document.querySelector({_MESSAGE!r})")
    assert await page.text(_MESSAGE) in (_TOO_LATE if is_paid else {"The invoice was canceled. Nothing was paid."})
    await shows_credits(page, before + (1000 if is_paid else 0))
    await stripe.command("Page.close")
    browser.errors[:] = [error for error in browser.errors if "409" not in error]


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
