"""The billing pages for everyone: by keyboard, by ear, on a phone, in both languages, without script.

The tests share one server, and run in this order: each leaves no invoice open. The first takes the documents' pictures.
"""

from tests.browser.chromium import Page
from tests.browser.make_run import MakeRun, credits_of, is_fine, pay, shows_credits

_FOCUSED = "document.activeElement"
_SHOWS_FOCUS = """(() => {
  const at = document.activeElement, shown = at.matches(".choice input") ? at.nextElementSibling : at;
  return getComputedStyle(shown).outlineStyle !== "none";
})()"""
_CONTROLS = {"button", "dialog", "group", "heading", "link", "radio", "spinbutton"}


async def test_every_state_is_accessible_fits_a_phone_and_is_in_both_languages(page: Page, run: MakeRun) -> None:
    for language in ("id", "en"):
        await page.open(f"{run.billing}?lang={language}")
        await is_fine(page, f"low-{language}")
        await page.open(f"{run.billing}?lang={language}&dialog=top-up")
        await page.shows("document.querySelector('dialog:modal')")
        await is_fine(page, f"dialog-{language}")
    await page.click("#custom")
    await is_fine(page)
    await page.click("[name=amount][value='1000']")
    assert await page.text("#pay-now") == "Pay Now"
    await page.click("#pay-now")
    await page.says("Sandbox: no real money moves.")
    await is_fine(page, "hosted")
    await page.click("#decline")
    await page.says("The payment was declined.", "[role=alert]")
    await is_fine(page)
    await page.click("#transfer")
    await page.says("pending until it arrives")
    await is_fine(page)
    hosted = await page.value("location.href")
    for language in ("id", "en"):
        await page.open(f"{run.billing}?lang={language}")
        await is_fine(page, f"open-{language}")
    await page.open(hosted)
    await pay(page)
    for language in ("id", "en"):
        await page.open(f"{run.billing}?lang={language}")
        await page.shows("document.querySelector('.history .paid') && !document.getElementById('low')")
        await is_fine(page, f"paid-{language}")
    await page.click(".history a[id^=details]")
    await page.says("Payment details")
    await is_fine(page, "details")
    await page.click("[hreflang=id]")
    await page.says("Rincian pembayaran", "h1")
    await page.click("[hreflang=en]")
    await page.says("Payment details", "h1")


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
    await page.says("Only people with", "#top-up-button-why")
    await page.click("button[value=ayu]")
    await page.shows("document.getElementById('top-up-button')?.type === 'submit'")


async def tab_to(page: Page, identifier: str) -> None:
    """Press Tab until the element has the focus; each one on the way shows that it has it."""
    for _ in range(30):
        await page.press("Tab")
        assert await page.value(f"{_FOCUSED} === document.body || {_SHOWS_FOCUS}"), await page.value(
            f"{_FOCUSED}.outerHTML"
        )
        if await page.value(f"{_FOCUSED}.id") == identifier:
            return
    raise AssertionError(f"Tab does not reach {identifier}")


async def test_a_keyboard_is_enough(page: Page, run: MakeRun) -> None:
    before = await credits_of(page)
    await tab_to(page, "top-up-button")
    await page.press("Enter")
    await page.shows(f"document.querySelector('dialog:modal')?.contains({_FOCUSED}) && {_FOCUSED}.value === '1000'")
    await page.press("ArrowRight")
    await page.says("Rp750,000", "#quote")
    for _ in range(12):
        await page.press("Tab")
        assert await page.value(
            f"{_FOCUSED} === document.body || document.querySelector('dialog').contains({_FOCUSED})"
        )
    await page.press("Escape")
    await page.shows(f"{_FOCUSED}.id === 'top-up-button'")
    await page.press("Enter")
    await page.shows(f"document.querySelector('dialog:modal')?.contains({_FOCUSED})")
    await tab_to(page, "pay-now")
    await page.press("Enter")
    await page.says("Sandbox: no real money moves.")
    await page.open(run.billing)
    await tab_to(page, "cancel")
    await run.control("POST", f"invoices/{(await run.invoices())[-1]['id']}/pay", {})
    await shows_credits(page, before + 1000)
    # The button is gone: the focus stays in the part that it was in.
    assert await page.value(f"{_FOCUSED}.id") == "live"
    await tab_to(page, "top-up-button")


async def heard(page: Page, within: str) -> list[str]:
    """The role and name of each control and heading, as a screen reader is told them, with its description."""
    found = await page.command("Runtime.evaluate", expression=f"document.querySelector({within!r})")
    tree = await page.command("Accessibility.queryAXTree", objectId=found["result"]["objectId"])
    return [
        " ".join(node[key]["value"] for key in ("role", "name", "description") if node.get(key, {}).get("value"))
        for node in tree["nodes"]
        if not node["ignored"] and node["role"]["value"] in _CONTROLS
    ]


async def test_a_screen_reader_is_told_the_name_of_every_control(page: Page, run: MakeRun) -> None:
    numbers = [each["number"] for each in reversed(await run.invoices())]
    assert await heard(page, "main") == [
        "heading Balance",
        "button Top Up Balance",
        "link Automatic top-ups: Off",
        "heading History",
        *(f"link {text} of invoice {number}" for number in numbers for text in ("PDF", "Details")),
    ]
    await page.click("#top-up-button")
    await page.shows("document.querySelector('dialog:modal')")
    assert await heard(page, "dialog") == [
        "dialog Top Up Balance",
        "heading Top Up Balance",
        "group Credits",
        *(f"radio {each}" for each in ("1,000", "5,000", "10,000", "50,000", "Other amount")),
        "group Currency",
        *("radio IDR", "radio USD", "button Pay Now", "link Close"),
    ]
    await page.click("#custom")
    assert "spinbutton Other amount: 1,000 or more credits" in await heard(page, "dialog")


async def test_without_script_the_pages_sell_too(page: Page, run: MakeRun) -> None:
    before = await credits_of(page)
    await page.command("Emulation.setScriptExecutionDisabled", value=True)
    await page.open(run.billing)
    await page.click("#top-up-button")
    await page.click("dialog[open] #custom")
    await page.write("#custom-amount", "2000")
    await page.click("#pay-now")
    await page.says("Pay Rp300.000 by card")
    await pay(page)
    await run.control("GET", "deliveries/done")
    await page.open(run.billing)
    await shows_credits(page, before + 2000)
    await page.click("#top-up-button")
    await page.click("dialog[open] #pay-now")
    await page.says("Sandbox: no real money moves.")
    await page.open(run.billing)
    await page.click("#cancel")
    await page.says("The invoice was canceled.", ".message")
