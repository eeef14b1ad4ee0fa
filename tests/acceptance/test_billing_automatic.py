"""Automatic top-ups and the brand on the sample billing pages, without script, in both languages."""

import re

from pulsa.credit.v1.automatic_top_up_pb2 import AutomaticTopUpState as State

from tests.acceptance.deployment import Deployment
from tests.acceptance.test_billing_guards import Browser, billing
from tests.acceptance.test_top_ups_by_card import automatic, wait_for_state
from tests.waiting import until

PERMISSIONS = ("balance.read", "subscribe", "settings.read", "settings.write")
CHOICE = {"threshold_credits": "100", "credits": "1000", "monthly_credit_cap": "2000", "currency": "USD"}


async def submit(browser: Browser, path: str, **fields: str) -> str:
    """Send a form of the page with its token; answers where it leads."""
    _, page = await browser.get("/automatic")
    hidden = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]+)"', page))
    return await browser.post(path, hidden | fields)


async def test_a_person_saves_a_card_agrees_and_sees_what_becomes_of_it(pulsa: Deployment) -> None:
    async with billing(pulsa, permissions=PERMISSIONS, origins=(pulsa.stripe_url,)) as browser:
        _, balance = await browser.get()
        assert "Automatic top-ups: Off" in balance
        assert (await submit(browser, "/automatic", **CHOICE, consent="yes")).endswith("problem=CARD_MISSING")
        card_page = await submit(browser, "/automatic/card")
        assert card_page.startswith(f"{pulsa.stripe_url}/c/")
        async with browser.http.post(f"{card_page}/works", allow_redirects=False) as saved:
            assert saved.headers["Location"] == f"{browser.url}/automatic?said=CARD"

        async def shows_card() -> bool:
            return "Visa ending in 4242, expires 12/2040" in (await browser.get("/automatic"))[1]

        await until(shows_card)
        assert (await submit(browser, "/automatic", **CHOICE)).endswith("problem=CONSENT_MISSING")
        wrong = await submit(browser, "/automatic", **CHOICE | {"threshold_credits": "1001"}, consent="yes")
        assert wrong.endswith("problem=INVALID_FIELDS")
        assert await submit(browser, "/automatic", **CHOICE, consent="yes") == "/billing/automatic?said=SAVED"
        await pulsa.wait_for_balance(1000)

        consent = (await automatic(pulsa)).consent.consent_text
        _, page = await browser.get("/automatic?lang=en")
        assert consent in page
        assert consent.startswith("I agree that our saved card is charged")
        await wait_for_state(pulsa, State.AUTOMATIC_TOP_UP_STATE_READY)
        _, indonesian = await browser.get("/automatic?lang=id")
        assert "<strong>Hidup</strong>. Dibeli bulan ini: 1.000 kredit." in indonesian
        await submit(browser, "/automatic/off")
        assert (await automatic(pulsa)).state == State.AUTOMATIC_TOP_UP_STATE_OFF
        await submit(browser, "/automatic/remove-card")
        assert not (await automatic(pulsa)).HasField("card")


async def test_the_brand_is_changed_and_only_by_who_may_change_settings(pulsa: Deployment) -> None:
    async with billing(pulsa, permissions=PERMISSIONS) as browser:
        await submit(browser, "/automatic/brand", brand_name=' <Toko> "K" ')
        _, page = await browser.get("/automatic")
        assert 'value="&lt;Toko&gt; &quot;K&quot;"' in page
    assert (await pulsa.call("GetSettings")).current.settings.brand_name == '<Toko> "K"'
    async with billing(pulsa) as browser:
        _, page = await browser.get("/automatic")
        assert "brand_name" not in page
    async with billing(pulsa, permissions=("balance.read",)) as browser:
        response, _ = await browser.get("/automatic")
        assert response.headers["Location"] == "/billing?problem=PERMISSION_MISSING"


async def test_every_form_of_the_page_needs_its_token(pulsa: Deployment) -> None:
    async with billing(pulsa, permissions=PERMISSIONS, origins=(pulsa.stripe_url,)) as browser:
        for path in ("", "/off", "/card", "/remove-card", "/brand"):
            assert (await browser.post(f"/automatic{path}", {"form_token": "x"})).endswith("problem=FORM_EXPIRED")
