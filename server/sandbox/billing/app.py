"""The BFF: what the browser asks for, over HTTP, becomes calls of the Python client with the person's own token.

It guards what a BFF must guard. It answers to its own name only (DNS rebinding). A form has a token that pages of other
sites do not know (CSRF). An order has one request_id, so that a double click, a reload or a second try buys once.
Redirects lead to Stripe's hosts only. Pages can neither be framed nor cached, and run no script but their own
(Content-Security-Policy).
"""

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from html import unescape
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit
from uuid import uuid4

from aiohttp import web
from google.protobuf.field_mask_pb2 import FieldMask
from pulsa.client import PulsaClient
from pulsa.credit.v1 import credit_service_pb2 as credit
from pulsa.credit.v1.automatic_top_up_pb2 import AutomaticTopUpSettings
from pulsa.credit.v1.top_up_pb2 import TopUp, TopUpStatus
from pulsa.errors import PulsaError
from pulsa.otp.v1 import otp_service_pb2 as otp
from pulsa.otp.v1.settings_pb2 import Settings

from server.sandbox.billing import pages
from server.sandbox.billing.automatic_page import automatic_page
from server.sandbox.billing.live import Changes
from server.sandbox.billing.texts import LANGUAGES, preferred

STRIPE_ORIGINS: Final = frozenset(
    {"https://invoice.stripe.com", "https://pay.stripe.com", "https://checkout.stripe.com"}
)
"""Where Stripe's pages and PDFs of invoices are, and the pages on which a card is saved."""
_HOSTS: Final = frozenset({"127.0.0.1", "localhost"})
"""The names of this server. A site whose name is made to point here would otherwise be of one origin with the pages,
and could read them. A real BFF has its own name here."""
_FOLDER: Final = Path(__file__).parent
_LONGEST_NUMBER: Final = 12
_REFRESH_SECONDS: Final = {TopUpStatus.TOP_UP_STATUS_OPEN: 15.0, None: 60.0}
"""How often an open page is looked at although the balance is the same: another tab may have canceled the invoice."""
_UNSETTLED_REFRESH_SECONDS: Final = 1.0
"""While an invoice is being made or canceled."""
_SESSION: Final = web.RequestKey("session", str)
_PAGE_SIZE: Final = 10
_SHUTDOWN_SECONDS: Final = 1.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Person:
    """A person who is signed in, as the platform knows them."""

    name: str
    organization_id: str
    email: str
    may_subscribe: bool
    """Whether the token of `pulsa` has the permission `subscribe`: Pulsa refuses a purchase without it anyway."""
    pulsa: PulsaClient


class _Refused(Exception):
    """Shown to the person, on the balance page, as the text of this reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@asynccontextmanager
async def serve_billing(
    people: Mapping[str, Person], *, port: int, secret: bytes, other_origins: Collection[str] = ()
) -> AsyncIterator[int]:
    """Serve the pages on 127.0.0.1 while the block runs; yields the port, of which 0 takes any free one.

    `secret` makes the tokens of forms: pages that are open survive a restart with the same one. `other_origins` may be
    redirected to beside Stripe's: that of a stand-in.
    """
    application = _Billing(people, secret, STRIPE_ORIGINS | set(other_origins)).application()
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


class _Billing:
    def __init__(self, people: Mapping[str, Person], secret: bytes, origins: Collection[str]) -> None:
        self._people = people
        self._secret = secret
        self._origins = origins
        self._changes = Changes()
        self._headers = {
            "Cache-Control": "no-store",
            "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
            # A form's redirect counts too.
            f" img-src data:; form-action 'self' {' '.join(sorted(origins))}; base-uri 'none'; frame-ancestors 'none'",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self._guard])
        application.on_response_prepare.append(self._add_headers)
        application.add_routes(
            [
                web.get("/", self._start),
                web.get("/billing", self._balance),
                web.get("/billing/events", self._events),
                web.get("/billing/quote", self._quote),
                web.get("/billing/history", self._history),
                web.post("/billing/person", self._change_person),
                web.post("/billing/top-ups", self._order),
                web.get("/billing/automatic", self._automatic),
                web.post("/billing/automatic", self._enable_automatic),
                web.post("/billing/automatic/off", self._disable_automatic),
                web.post("/billing/automatic/card", self._save_card),
                web.post("/billing/automatic/remove-card", self._remove_card),
                web.post("/billing/automatic/brand", self._save_brand),
                web.get("/billing/top-ups/{id}", self._details),
                web.get("/billing/top-ups/{id}/invoice", self._invoice),
                web.get("/billing/top-ups/{id}/pdf", self._pdf),
                web.post("/billing/top-ups/{id}/cancel", self._cancel),
                *(web.get(f"/billing/{name}", self._file) for name in ("billing.css", "billing.js")),
            ]
        )
        return application

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check the host, and the token of each form; show why something was refused; keep session and language."""
        if request.host.partition(":")[0] not in _HOSTS:
            raise web.HTTPMisdirectedRequest
        request[_SESSION] = request.cookies.get("session") or secrets.token_urlsafe(32)
        try:
            if request.method not in {"GET", "HEAD"}:
                await self._check_form(request)
            response = await handler(request)
        except _Refused as refused:
            response = _see(_page_of(request), problem=refused.reason)
        except PulsaError as error:
            if request.path == _page_of(request) and request.method == "GET":
                page = pages.unreachable_page(self._visit(request))
                response = _html(page, status=HTTPStatus.SERVICE_UNAVAILABLE)
            else:
                response = _see(_page_of(request), problem=error.reason)
        if not response.prepared:
            self._set_cookies(request, response)
        return response

    async def _check_form(self, request: web.Request) -> None:
        given = str((await request.post()).get("form_token", ""))
        if not hmac.compare_digest(given.encode(), self._form_token(request).encode()):
            raise _Refused("FORM_EXPIRED")

    def _set_cookies(self, request: web.Request, response: web.StreamResponse) -> None:
        # A real BFF, which has TLS, adds secure=True and the prefix __Host-; its session is that of its sign-in.
        if "session" not in request.cookies:
            response.set_cookie("session", request[_SESSION], httponly=True, samesite="Lax")
        if (language := request.query.get("lang")) in LANGUAGES:
            response.set_cookie("lang", language, httponly=True, samesite="Lax")

    async def _add_headers(self, _request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(self._headers)

    def _person(self, request: web.Request) -> tuple[str, Person]:
        """Who is signed in: in the sandbox the chosen one, by default the first. A real BFF asks its sign-in."""
        chosen = request.cookies.get("person", "")
        return (chosen, self._people[chosen]) if chosen in self._people else next(iter(self._people.items()))

    def _form_token(self, request: web.Request) -> str:
        return hmac.new(self._secret, request[_SESSION].encode(), hashlib.sha256).hexdigest()

    def _visit(self, request: web.Request) -> pages.Visit:
        chosen = request.query.get("lang") or request.cookies.get("lang", "")
        texts = LANGUAGES.get(chosen) or preferred(request.headers.get("Accept-Language", ""))
        identifier, person = self._person(request)
        people = [(each, other.name) for each, other in self._people.items()]
        return pages.Visit(texts, self._form_token(request), identifier, people, person.may_subscribe)

    async def _start(self, _request: web.Request) -> web.StreamResponse:
        raise web.HTTPSeeOther("/billing")

    async def _file(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(_FOLDER / request.path.rpartition("/")[2])

    async def _balance(self, request: web.Request) -> web.StreamResponse:
        visit, query = self._visit(request), request.query
        live, unfinished = await self._live(request)
        wants_dialog = query.get("dialog") == "top-up" and visit.may_subscribe and unfinished is None
        message = pages.problem(visit.texts, query["problem"]) if "problem" in query else ""
        page = pages.balance_page(
            visit,
            live,
            version=_version(live),
            dialog=await self._dialog(request) if wants_dialog else "",
            message=message or pages.said(visit.texts, query.get("said", "")),
        )
        return _html(page)

    async def _live(self, request: web.Request) -> tuple[str, TopUp | None]:
        """The part of the page that changes, and the top-up that is not finished."""
        person = self._person(request)[1]
        organization_id, credits = person.organization_id, person.pulsa.credits
        balance, listed = await asyncio.gather(
            asyncio.to_thread(credits.GetBalance, credit.GetBalanceRequest(organization_id=organization_id)),
            asyncio.to_thread(
                credits.ListTopUps, credit.ListTopUpsRequest(organization_id=organization_id, page_size=_PAGE_SIZE)
            ),
        )
        unfinished = next((each for each in listed.top_ups if each.status in pages.UNFINISHED), None)
        live = pages.live_part(
            self._visit(request), balance.balance, unfinished, listed.top_ups, listed.next_page_token
        )
        return live, unfinished

    async def _dialog(self, request: web.Request) -> str:
        person, visit = self._person(request)[1], self._visit(request)
        asked = credit.GetPricingRequest(organization_id=person.organization_id)
        pricing = (await asyncio.to_thread(person.pulsa.credits.GetPricing, asked)).pricing
        credits, currency = pages.first_choice(pricing)
        quote = pages.quote_part(visit.texts, await self._ask_quote(person, credits, currency))
        return pages.dialog(visit, pricing, request_id=str(uuid4()), quote=quote)

    async def _ask_quote(self, person: Person, credits: int, currency: str) -> credit.QuoteTopUpResponse:
        asked = credit.QuoteTopUpRequest(
            organization_id=person.organization_id, credits=credits, currency_code=currency
        )
        return await asyncio.to_thread(person.pulsa.credits.QuoteTopUp, asked)

    async def _quote(self, request: web.Request) -> web.StreamResponse:
        """The price of a choice in the dialog, or why it cannot be bought, as a part of the page."""
        texts = self._visit(request).texts
        try:
            quote = await self._ask_quote(self._person(request)[1], *_choice(request.query))
        except _Refused as refused:
            return _html(pages.problem(texts, refused.reason))
        except PulsaError as error:
            return _html(pages.problem(texts, error.reason))
        return _html(pages.quote_part(texts, quote))

    async def _order(self, request: web.Request) -> web.StreamResponse:
        """Order, and go to Stripe's page. A form that is sent again gets the same invoice."""
        person, form = self._person(request)[1], await request.post()
        credits, currency = _choice(form)
        asked = credit.CreateTopUpRequest(
            organization_id=person.organization_id,
            request_id=str(form.get("request_id", "")),
            credits=credits,
            currency_code=currency,
            billing_email=person.email,
        )
        top_up = (await asyncio.to_thread(person.pulsa.credits.CreateTopUp, asked)).top_up
        if top_up.status == TopUpStatus.TOP_UP_STATUS_OPEN:
            return self._go(top_up.hosted_invoice_url)
        return _see_balance(said=_short(top_up))

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        """Cancel, unless a payment was faster: the answer says which."""
        person = self._person(request)[1]
        asked = credit.CancelTopUpRequest(organization_id=person.organization_id, top_up_id=request.match_info["id"])
        top_up = (await asyncio.to_thread(person.pulsa.credits.CancelTopUp, asked)).top_up
        return _see_balance(said=_short(top_up))

    async def _automatic(self, request: web.Request) -> web.StreamResponse:
        """Automatic top-ups and the settings of messages. Who may not change them goes back to the balance."""
        visit, person = self._visit(request), self._person(request)[1]
        if not visit.may_subscribe:
            return _see("/billing", problem="PERMISSION_MISSING")
        organization_id, credits = person.organization_id, person.pulsa.credits
        asked = credit.GetAutomaticTopUpRequest(organization_id=organization_id)
        found = (await asyncio.to_thread(credits.GetAutomaticTopUp, asked)).automatic_top_up
        priced = credit.GetPricingRequest(organization_id=organization_id)
        pricing = (await asyncio.to_thread(credits.GetPricing, priced)).pricing
        brand_name = None
        with suppress(PulsaError):  # the person may not see the settings
            settings = otp.GetSettingsRequest(organization_id=organization_id)
            brand_name = (await asyncio.to_thread(person.pulsa.otps.GetSettings, settings)).current.settings.brand_name
        message = pages.problem(visit.texts, request.query["problem"]) if "problem" in request.query else ""
        page = automatic_page(
            visit,
            found,
            currencies=[price.currency_code for price in pricing.unit_prices],
            brand_name=brand_name,
            request_id=str(uuid4()),
            message=message or pages.said(visit.texts, request.query.get("said", "")),
        )
        return _html(page)

    async def _enable_automatic(self, request: web.Request) -> web.StreamResponse:
        """Switch on what the person agreed to, with the text that the page showed."""
        person, form = self._person(request)[1], await request.post()
        threshold, credits, cap = (
            _choice({"amount": form.get(name, "")})[0]
            for name in ("threshold_credits", "credits", "monthly_credit_cap")
        )
        chosen = AutomaticTopUpSettings(
            enabled=True,
            threshold_credits=threshold,
            credits=credits,
            currency_code=str(form.get("currency", "")),
            monthly_credit_cap=cap,
            billing_email=person.email,
        )
        consent = unescape(self._visit(request).texts("consent")) if form.get("consent") == "yes" else ""
        return await self._update_automatic(person, chosen, consent)

    async def _disable_automatic(self, request: web.Request) -> web.StreamResponse:
        return await self._update_automatic(self._person(request)[1], AutomaticTopUpSettings(enabled=False), "")

    async def _update_automatic(
        self, person: Person, chosen: AutomaticTopUpSettings, consent: str
    ) -> web.StreamResponse:
        asked = credit.UpdateAutomaticTopUpRequest(
            organization_id=person.organization_id, automatic_settings=chosen, consent_text=consent
        )
        await asyncio.to_thread(person.pulsa.credits.UpdateAutomaticTopUp, asked)
        return _see("/billing/automatic", said="SAVED")

    async def _save_card(self, request: web.Request) -> web.StreamResponse:
        """Go to Stripe's page, which leads back here. A form that is sent again gets the same page."""
        person, form = self._person(request)[1], await request.post()
        asked = credit.StartCardSetupRequest(
            organization_id=person.organization_id,
            request_id=str(form.get("request_id", "")),
            billing_email=person.email,
            return_url=f"{request.scheme}://{request.host}/billing/automatic?said=CARD",
        )
        return self._go((await asyncio.to_thread(person.pulsa.credits.StartCardSetup, asked)).setup_url)

    async def _remove_card(self, request: web.Request) -> web.StreamResponse:
        person = self._person(request)[1]
        asked = credit.RemoveCardRequest(organization_id=person.organization_id)
        await asyncio.to_thread(person.pulsa.credits.RemoveCard, asked)
        return _see("/billing/automatic", said="SAVED")

    async def _save_brand(self, request: web.Request) -> web.StreamResponse:
        person, form = self._person(request)[1], await request.post()
        settings = Settings(brand_name=str(form.get("brand_name", "")).strip())
        asked = otp.UpdateSettingsRequest(
            organization_id=person.organization_id, settings=settings, update_mask=FieldMask(paths=["brand_name"])
        )
        await asyncio.to_thread(person.pulsa.otps.UpdateSettings, asked)
        return _see("/billing/automatic", said="SAVED")

    async def _invoice(self, request: web.Request) -> web.StreamResponse:
        if not self._person(request)[1].may_subscribe:
            raise _Refused("PERMISSION_MISSING")
        return self._go((await self._top_up(request)).hosted_invoice_url)

    async def _pdf(self, request: web.Request) -> web.StreamResponse:
        return self._go((await self._top_up(request)).invoice_pdf_url)

    async def _details(self, request: web.Request) -> web.StreamResponse:
        return _html(pages.details_page(self._visit(request), await self._top_up(request)))

    async def _history(self, request: web.Request) -> web.StreamResponse:
        person = self._person(request)[1]
        asked = credit.ListTopUpsRequest(
            organization_id=person.organization_id, page_size=_PAGE_SIZE, page_token=request.query.get("page", "")
        )
        listed = await asyncio.to_thread(person.pulsa.credits.ListTopUps, asked)
        return _html(pages.history_page(self._visit(request), listed.top_ups, listed.next_page_token))

    async def _top_up(self, request: web.Request) -> TopUp:
        """The top-up with fresh links: those of a list may have expired."""
        person = self._person(request)[1]
        asked = credit.GetTopUpRequest(organization_id=person.organization_id, top_up_id=request.match_info["id"])
        return (await asyncio.to_thread(person.pulsa.credits.GetTopUp, asked)).top_up

    def _go(self, url: str) -> web.StreamResponse:
        """Redirect to Stripe, and nowhere else."""
        if origin_of(url) not in self._origins:
            raise _Refused("LINK_REFUSED")
        return web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": url})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: the part that changes, now unless the page has it, and whenever it has changed."""
        person, shown = self._person(request)[1], request.headers.get("Last-Event-ID", "")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        with self._changes.watched(person.pulsa, person.organization_id) as changed, suppress(ConnectionError):
            while True:
                changed.clear()
                pause = _REFRESH_SECONDS[None]
                message = ":\n\n"  # a comment: finds out whether the page is still there
                with suppress(PulsaError):  # the server is away: look again later
                    live, unfinished = await self._live(request)
                    if _version(live) != shown:
                        shown = _version(live)
                        message = _event(shown, live)
                    pause = _REFRESH_SECONDS.get(unfinished and unfinished.status, _UNSETTLED_REFRESH_SECONDS)
                await response.write(message.encode())
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), pause)
        return response

    async def _change_person(self, request: web.Request) -> web.StreamResponse:
        response = _see_balance()
        if (person := (await request.post()).get("person")) in self._people:
            response.set_cookie("person", str(person), httponly=True, samesite="Lax")
        return response


def origin_of(url: str) -> str:
    """Scheme, host and port of an address, and what is written before the host, which no origin has."""
    address = urlsplit(url)
    return f"{address.scheme}://{address.netloc}"


def _choice(fields: Mapping[str, Any]) -> tuple[int, str]:
    """The credits and the currency of the dialog. Refused when the credits are not a whole number."""
    amount = str(fields.get("amount", ""))
    written = str(fields.get("custom", "")) if amount == "custom" else amount
    if not (written.isascii() and written.isdigit() and len(written) <= _LONGEST_NUMBER):
        raise _Refused("AMOUNT_INVALID")
    return int(written), str(fields.get("currency", ""))


def _short(top_up: TopUp) -> str:
    return TopUpStatus.Name(top_up.status).removeprefix("TOP_UP_STATUS_")


def _page_of(request: web.Request) -> str:
    """The page whose form was sent."""
    return "/billing/automatic" if request.path.startswith("/billing/automatic") else "/billing"


def _see_balance(**query: str) -> web.Response:
    return _see("/billing", **query)


def _see(page: str, **query: str) -> web.Response:
    location = f"{page}?{urlencode(query)}" if query else page
    return web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": location})


def _html(text: str, *, status: int = HTTPStatus.OK) -> web.Response:
    return web.Response(text=text, content_type="text/html", status=status)


def _version(live: str) -> str:
    return hashlib.sha256(live.encode()).hexdigest()[:16]


def _event(identifier: str, live: str) -> str:
    data = "".join(f"data: {line}\n" for line in live.splitlines())
    return f"event: live\nid: {identifier}\n{data}\n"
