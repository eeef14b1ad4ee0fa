"""The sample billing pages over HTTP, as a browser and as an attacker call them: what the BFF guards."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus

import aiohttp
import pytest
from pulsa.client import connect

from server.sandbox.billing import Person, serve_billing
from server.sandbox.billing.live import Changes
from tests.acceptance.deployment import Deployment
from tests.waiting import SECONDS


@dataclass
class Browser:
    """A session with cookies, which follows no redirect."""

    http: aiohttp.ClientSession
    url: str
    form: dict[str, str] = field(default_factory=dict)
    """The order as the dialog has it."""

    async def get(self, path: str = "", **headers: str) -> tuple[aiohttp.ClientResponse, str]:
        async with self.http.get(self.url + path, headers=headers, allow_redirects=False) as response:
            return response, await response.text()

    async def post(self, path: str, form: dict[str, str]) -> str:
        """Send a form; answers where it leads."""
        async with self.http.post(self.url + path, data=form, allow_redirects=False) as response:
            assert response.status == HTTPStatus.SEE_OTHER, await response.text()
            return response.headers["Location"]

    async def open_dialog(self) -> None:
        _, page = await self.get("?dialog=top-up")
        hidden = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]+)"', page))
        self.form = {"amount": "1000", "currency": "IDR"} | hidden


@asynccontextmanager
async def billing(
    pulsa: Deployment, *, permissions: tuple[str, ...] = ("balance.read", "subscribe"), origins: tuple[str, ...] = ()
) -> AsyncIterator[Browser]:
    """The pages in front of the server, with the dialog open."""
    async with AsyncExitStack() as stack:
        client = stack.enter_context(connect(pulsa.address, token=pulsa.token(permissions=permissions)))
        ann = Person("Ann", "acme", "ann@example.com", "subscribe" in permissions, client)
        port = await stack.enter_async_context(
            serve_billing({"ann": ann}, port=0, secret=b"secret", other_origins=origins)
        )
        jar = aiohttp.CookieJar(unsafe=True)  # of an address instead of a name
        http = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=jar))
        browser = Browser(http, f"http://127.0.0.1:{port}/billing")
        await browser.open_dialog()
        yield browser


async def orders(pulsa: Deployment) -> int:
    return len((await pulsa.control("GET", "invoices"))["invoices"])


async def test_a_form_is_one_purchase_however_often_and_at_once_it_is_sent(pulsa: Deployment) -> None:
    async with billing(pulsa, origins=(pulsa.stripe_url,)) as browser:
        places = await asyncio.gather(*(browser.post("/top-ups", browser.form) for _ in range(5)))

    assert len(set(places)) == 1
    assert places[0].startswith(f"{pulsa.stripe_url}/i/")
    assert await orders(pulsa) == 1


async def test_a_form_without_the_token_of_the_session_orders_nothing(pulsa: Deployment) -> None:
    async with billing(pulsa, origins=(pulsa.stripe_url,)) as browser, billing(pulsa) as other:
        for token in ("", "0" * 64, other.form["form_token"]):
            assert await browser.post("/top-ups", browser.form | {"form_token": token}) == (
                "/billing?problem=FORM_EXPIRED"
            )
        browser.http.cookie_jar.clear()
        assert await browser.post("/top-ups", browser.form) == "/billing?problem=FORM_EXPIRED"

    assert await orders(pulsa) == 0


async def test_a_name_that_was_made_to_point_here_reads_nothing(pulsa: Deployment) -> None:
    async with billing(pulsa) as browser:
        port = browser.url.rpartition(":")[2].partition("/")[0]
        answers = {
            host: (await browser.get("?dialog=top-up", Host=host))
            for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", f"localhost:{port}")
        }

    statuses = {host.partition(":")[0]: response.status for host, (response, _) in answers.items()}
    assert statuses == {"evil.example": 421, "127.0.0.1.evil.example": 421, "localhost": 200}
    assert "form_token" not in answers["evil.example"][1]


async def test_an_invoice_on_another_host_than_stripes_is_not_opened(pulsa: Deployment) -> None:
    async with billing(pulsa) as browser:
        assert await browser.post("/top-ups", browser.form) == "/billing?problem=LINK_REFUSED"
        _, page = await browser.get()
        top_up = re.search(r'/top-ups/[^/"]+', page)
        assert top_up
        places = [(await browser.get(f"{top_up[0]}/{link}"))[0].headers["Location"] for link in ("invoice", "pdf")]

    assert places == ["/billing?problem=LINK_REFUSED"] * 2


async def test_without_subscribe_neither_order_nor_cancel_nor_link_to_pay(pulsa: Deployment) -> None:
    async with billing(pulsa, permissions=("balance.read",), origins=(pulsa.stripe_url,)) as browser:
        _, page = await browser.get("?dialog=top-up")
        top_up = await pulsa.order()
        token = {"form_token": re.findall(r'name="form_token" value="([^"]+)"', page)[0]}
        order = token | {"request_id": "2b1c3b52-2f5a-4c0e-9d5e-7c64a35fcd5a", "amount": "1000", "currency": "IDR"}
        places = [
            await browser.post("/top-ups", order),
            await browser.post(f"/top-ups/{top_up.top_up_id}/cancel", token),
            (await browser.get(f"/top-ups/{top_up.top_up_id}/invoice"))[0].headers["Location"],
        ]

    assert "<dialog" not in page
    assert places == ["/billing?problem=PERMISSION_MISSING"] * 3


@pytest.mark.parametrize("path", ["", "/history", "/billing.js", "/no-such-page"])
async def test_every_answer_forbids_frames_other_scripts_and_caches(pulsa: Deployment, path: str) -> None:
    async with billing(pulsa) as browser:
        response, _ = await browser.get(path)

    policy = dict(each.strip().split(" ", 1) for each in response.headers["Content-Security-Policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "data:",
        "form-action": "'self' https://checkout.stripe.com https://invoice.stripe.com https://pay.stripe.com",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize(
    "written", ["", "999.5", "-1000", "1e3", "\u0661\u0660\u0660\u0660", "0" * 13 + "9" * 30, "1000 "]
)
async def test_an_amount_that_is_not_a_whole_number_is_refused_before_the_call(pulsa: Deployment, written: str) -> None:
    async with billing(pulsa) as browser:
        place = await browser.post("/top-ups", browser.form | {"amount": "custom", "custom": written})
        _, page = await browser.get(place.removeprefix("/billing"))

    assert place == "/billing?problem=AMOUNT_INVALID"
    assert "Enter a whole number of credits." in page


async def test_what_an_address_says_is_never_html(pulsa: Deployment) -> None:
    async with billing(pulsa) as browser:
        _, page = await browser.get("?problem=<b>&said=<b>&lang=<b>&dialog=<b>")
        form = browser.form | {"request_id": "<b>"}
        place = await browser.post("/top-ups", form)

    assert "<b>" not in page
    assert "That did not work. Please try again." in page
    assert place == "/billing?problem=INVALID_FIELDS"


async def test_no_script_reads_a_cookie_and_no_other_site_sends_one_with_a_form(pulsa: Deployment) -> None:
    async with billing(pulsa) as browser:
        await browser.get("?lang=id")
        await browser.post("/person", {"form_token": browser.form["form_token"], "person": "ann"})

        cookies = {cookie.key: (cookie["httponly"], cookie["samesite"]) for cookie in browser.http.cookie_jar}

    assert cookies == dict.fromkeys(("session", "lang", "person"), (True, "Lax"))


async def test_a_choice_of_person_that_does_not_exist_is_ignored(pulsa: Deployment) -> None:
    async with billing(pulsa) as browser:
        await browser.post("/person", {"form_token": browser.form["form_token"], "person": "mallory"})

        assert "person" not in {cookie.key for cookie in browser.http.cookie_jar}


async def test_a_changed_balance_is_told_to_the_pages_by_watch_balance(pulsa: Deployment) -> None:
    with connect(pulsa.address, token=pulsa.token()) as client, Changes().watched(client, "acme") as changed:
        await asyncio.wait_for(changed.wait(), SECONDS)  # the first message says how it is
        changed.clear()
        await pulsa.call("AdjustCredits", adjust_credits=7, reason="a test")

        await asyncio.wait_for(changed.wait(), SECONDS)
