"""The pages as HTML. Every value from outside is escaped, and no page has a link to another site: `app` makes those."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

from google.protobuf.timestamp_pb2 import Timestamp
from pulsa.credit.v1.automatic_top_up_pb2 import AutomaticTopUpState
from pulsa.credit.v1.balance_pb2 import Balance
from pulsa.credit.v1.channel_pb2 import Channel
from pulsa.credit.v1.credit_service_pb2 import QuoteTopUpResponse
from pulsa.credit.v1.pricing_pb2 import Pricing
from pulsa.credit.v1.top_up_pb2 import TopUp, TopUpFlag, TopUpStatus

from server.sandbox.billing.texts import LANGUAGES, Texts

UNFINISHED = (
    TopUpStatus.TOP_UP_STATUS_CREATING,
    TopUpStatus.TOP_UP_STATUS_OPEN,
    TopUpStatus.TOP_UP_STATUS_CANCELING,
)
"""At most one of an organization's top-ups has one of these."""
_DEFAULT_AMOUNT = 1000
_AMOUNTS = ("unit_price", "subtotal", "tax", "total", "amount_paid", "amount_remaining")
_TIMES = ("due_time", "paid_time", "cancel_time")


@dataclass(frozen=True, slots=True)
class Visit:
    """Who looks at a page, and how."""

    texts: Texts
    form_token: str
    """Every form repeats it: a page of another site does not know it."""
    person: str
    people: Sequence[tuple[str, str]]
    """The sandbox's choice of people, as id and name; empty with a real sign-in."""
    may_subscribe: bool


def balance_page(visit: Visit, live: str, *, version: str, dialog: str, message: str) -> str:
    """The page Billing > Balance: `live` with a dialog, and with a message about the last action."""
    texts = visit.texts
    content = f"""<h1>{texts("balance")}</h1>
{message}
<p class="message" id="away" role="status" hidden>{texts("away")}</p>
<p class="unseen" id="said" role="status"></p>
{dialog}
<div id="live" data-version="{version}" tabindex="-1">{live}</div>"""
    return whole_page(visit, texts("balance"), content)


def live_part(visit: Visit, balance: Balance, unfinished: TopUp | None, top_ups: Sequence[TopUp], older: str) -> str:
    """What changes while the page is open: banner, notice, balance and history."""
    texts = visit.texts
    sends = ", ".join(
        texts(Channel.Name(each.channel), sends=texts.number(each.sends))
        for each in balance.sends_left
        if texts.has(Channel.Name(each.channel))
    )
    why_off = "off_permission" if not visit.may_subscribe else "off_open" if unfinished else ""
    return f"""{_low_banner(texts, balance)}
{_notice(visit, unfinished) if unfinished else ""}
<section class="card balance" aria-label="{texts("balance")}">
<p id="credits"><strong>{texts.number(balance.available_credits)}</strong> <span>{texts("available")}</span></p>
<p class="faint">{texts("pays_for", sends=sends)}</p>
<form action="/billing">{
        _button(
            "top-up-button",
            texts("top_up"),
            why_off=why_off and texts(why_off),
            attributes='name="dialog" value="top-up"',
        )
    }</form>
{_automatic_link(visit, balance)}
</section>
<h2>{texts("history")}</h2>
{_history(texts, top_ups, older)}"""


def _automatic_link(visit: Visit, balance: Balance) -> str:
    """The state of automatic top-ups, with the way to their page for who may change them."""
    name = AutomaticTopUpState.Name(balance.automatic_top_up_state)
    if not visit.texts.has(name):
        return ""
    text = f"{visit.texts('automatic')}: {visit.texts(name)}"
    link = f'<a href="/billing/automatic" id="automatic">{text}</a>' if visit.may_subscribe else text
    return f'<p class="faint">{link}</p>'


def history_page(visit: Visit, top_ups: Sequence[TopUp], older: str) -> str:
    """A further page of the history."""
    history = _history(visit.texts, top_ups, older)
    return whole_page(
        visit, visit.texts("history"), f"<h1>{visit.texts('history')}</h1>{history}{back_link(visit.texts)}"
    )


def details_page(visit: Visit, top_up: TopUp) -> str:
    """The payment details of one top-up."""
    texts = visit.texts
    rows = [
        (texts("status"), _status(texts, top_up)),
        (texts("invoice"), escape(top_up.invoice_number)),
        (texts("amount"), texts.number(top_up.credits)),
        *((texts(name), texts.money(getattr(top_up, name))) for name in _AMOUNTS if _is_set(top_up, name)),
        (texts("ordered"), _time(texts, top_up.create_time)),
        (texts("ordered_by"), escape(top_up.created_by)),
        *((texts(name), _time(texts, getattr(top_up, name))) for name in _TIMES if _is_set(top_up, name)),
        (texts("reference"), escape(top_up.top_up_id)),
    ]
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows if value)
    content = f"""<h1>{texts("payment_details")}</h1>
<section class="card" aria-label="{texts("payment_details")}"><dl>{listed}</dl>{_pdf_link(texts, top_up)}</section>
{back_link(texts)}"""
    return whole_page(visit, texts("payment_details"), content)


def unreachable_page(visit: Visit) -> str:
    """Instead of a page that needs Pulsa, while it does not answer."""
    texts = visit.texts
    content = f"""<h1>{texts("unreachable")}</h1><p>{texts("unreachable_detail")}</p>
<p><a class="button" href="/billing">{texts("again")}</a></p>"""
    return whole_page(visit, texts("unreachable"), content)


def dialog(visit: Visit, pricing: Pricing, *, request_id: str, quote: str) -> str:
    """The order. `request_id` makes it one purchase however often it is sent; `quote` is that of the first choice."""
    texts = visit.texts
    presets = "".join(
        f'<label class="choice"><input type="radio" name="amount" value="{credits}"'
        f"{_flag('checked', number == 0)}>"
        f"<span>{texts.number(credits)}</span></label>"
        for number, credits in enumerate(pricing.preset_credits)
    )
    currencies = "".join(
        f'<label class="choice"><input type="radio" name="currency" value="{escape(price.currency_code)}"'
        f"{_flag('checked', number == 0)}><span>{escape(price.currency_code)}</span></label>"
        for number, price in enumerate(pricing.unit_prices)
    )
    return f"""<dialog id="top-up" open aria-labelledby="top-up-title">
<form method="post" action="/billing/top-ups" id="order">
<h2 id="top-up-title">{texts("top_up")}</h2>
{form_token(visit)}<input type="hidden" name="request_id" value="{request_id}">
<fieldset><legend>{texts("amount")}</legend><div class="choices amounts">{presets}
<label class="choice other"><input type="radio" name="amount" value="custom" id="custom"><span>{texts("custom")}</span>
</label></div>
<div id="custom-part">
<label for="custom-amount" class="faint">{texts("custom_amount", minimum=texts.number(pricing.minimum_credits))}</label>
<input type="number" inputmode="numeric" name="custom" id="custom-amount" min="{pricing.minimum_credits}"
 max="{pricing.maximum_credits}" step="1"></div></fieldset>
<fieldset><legend>{texts("currency")}</legend><div class="choices">{currencies}</div></fieldset>
<div id="quote" aria-live="polite">{quote}</div>
<p class="faint">{texts("stripe")}</p>
<div class="actions"><button type="submit" id="pay-now">{texts("pay_now")}</button>
<a class="button quiet" id="close" href="/billing">{texts("close")}</a></div>
</form>
</dialog>"""


def first_choice(pricing: Pricing) -> tuple[int, str]:
    """The credits and the currency that the dialog has chosen when it opens."""
    return next(iter(pricing.preset_credits), _DEFAULT_AMOUNT), pricing.unit_prices[0].currency_code


def quote_part(texts: Texts, quote: QuoteTopUpResponse) -> str:
    """Unit price, tax where there is one, and total."""
    rows = [(texts("unit_price"), texts.money(quote.unit_price))]
    if quote.tax_estimated or quote.tax.units or quote.tax.nanos:
        rows.append((texts("subtotal"), texts.money(quote.subtotal)))
        rows.append((texts("tax_estimated" if quote.tax_estimated else "tax"), texts.money(quote.tax)))
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    total = f'<div class="total"><dt>{texts("total")}</dt><dd>{texts.money(quote.total)}</dd></div>'
    return f"<dl>{listed}{total}</dl>"


def problem(texts: Texts, reason: str) -> str:
    """Why something did not work, by the reason of Pulsa's error; a general sentence for one without a text."""
    text = texts(reason if texts.has(reason) and reason.isupper() else "")
    return f'<p class="message problem" role="alert">{text}</p>'


def said(texts: Texts, status: str) -> str:
    """What became of a top-up, by the end of its status's name."""
    key = f"said_{status}"
    return f'<p class="message" role="status">{texts(key)}</p>' if texts.has(key) else ""


def whole_page(visit: Visit, title: str, content: str) -> str:
    """A page with its frame: languages, and the sandbox's choice of people."""
    texts = visit.texts
    languages = "".join(
        f'<a href="?lang={each.language}" lang="{each.language}" hreflang="{each.language}"'
        f"{_flag('aria-current', each == texts)}>{each('language')}</a>"
        for each in LANGUAGES.values()
    )
    return f"""<!doctype html>
<html lang="{texts.language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · {texts("billing")}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/billing/billing.css">
<script src="/billing/billing.js" defer></script>
</head>
<body>
<header><p><a href="/billing">{texts("billing")}</a></p><nav aria-label="{texts("language")}">{languages}</nav></header>
<main>{content}</main>
{_people(visit)}
</body>
</html>
"""


def _people(visit: Visit) -> str:
    """The sandbox's stand-in for a sign-in."""
    if not visit.people:
        return ""
    buttons = "".join(
        f'<button class="quiet" name="person" value="{escape(each)}"'
        f"{_flag('aria-current', each == visit.person)}>{escape(name)}</button>"
        for each, name in visit.people
    )
    form = f'<form method="post" action="/billing/person">{form_token(visit)}{visit.texts("seen_as")}: {buttons}</form>'
    return f"<footer>{form}</footer>"


def _low_banner(texts: Texts, balance: Balance) -> str:
    if not balance.low_balance:
        return ""
    detail = texts("low_detail", threshold=texts.number(balance.low_balance_threshold))
    return f"""<section class="message low" id="low" aria-label="{texts("low")}">
<strong>{texts("low")}</strong> {detail}</section>"""


def _notice(visit: Visit, top_up: TopUp) -> str:
    texts, credits = visit.texts, visit.texts.number(top_up.credits)
    partly = TopUpFlag.TOP_UP_FLAG_PARTLY_PAID in top_up.flags
    actions = ""
    if top_up.status == TopUpStatus.TOP_UP_STATUS_CREATING:
        detail = texts("creating", credits=credits)
    elif top_up.status == TopUpStatus.TOP_UP_STATUS_CANCELING:
        pending = TopUpFlag.TOP_UP_FLAG_VOID_REFUSED in top_up.flags
        detail = texts("pending" if pending else "canceling", credits=credits)
    else:
        due = texts.day(_moment(top_up.due_time))
        detail = texts("open_detail", total=texts.money(top_up.total), credits=credits, due=due)
        if partly:
            amounts = {"paid": top_up.amount_paid, "total": top_up.total, "remaining": top_up.amount_remaining}
            detail += " " + texts("partly_detail", **{name: texts.money(each) for name, each in amounts.items()})
        why_off = "" if visit.may_subscribe else texts("off_permission")
        action = f"/billing/top-ups/{escape(top_up.top_up_id)}"
        actions = f"""<div class="actions">
<form action="{action}/invoice">{_button("complete", texts("complete"), why_off=why_off)}</form>
<form method="post" action="{action}/cancel">{form_token(visit)}{
            _button("cancel", texts("cancel"), why_off=why_off or (texts("off_partly") if partly else ""), quiet=True)
        }</form></div>"""
    return f"""<section class="card" id="notice" aria-labelledby="notice-title">
<h2 id="notice-title">{texts("open")}</h2><p>{detail}</p>{actions}</section>"""


def _history(texts: Texts, top_ups: Sequence[TopUp], older: str) -> str:
    if not top_ups:
        return f'<p class="faint">{texts("no_history")}</p>'
    items = "".join(_history_item(texts, top_up) for top_up in top_ups)
    link = f'<p><a href="/billing/history?page={escape(older)}">{texts("older")}</a></p>' if older else ""
    return f'<ul class="history">{items}</ul>{link}'


def _history_item(texts: Texts, top_up: TopUp) -> str:
    about = texts("of_invoice", number=top_up.invoice_number or top_up.top_up_id)
    identifier = escape(top_up.top_up_id)
    return f"""<li class="card"><strong>{texts("credits", credits=texts.number(top_up.credits))}</strong>
<span>{texts.money(top_up.total)}</span>{_status(texts, top_up)}
<span class="faint">{_time(texts, top_up.create_time)}</span>
<span class="links">{_pdf_link(texts, top_up)}
<a id="details-{identifier}" href="/billing/top-ups/{identifier}">{texts("details")}
<span class="unseen"> {about}</span></a></span></li>"""


def _pdf_link(texts: Texts, top_up: TopUp) -> str:
    if not top_up.invoice_pdf_url:
        return ""
    about = texts("of_invoice", number=top_up.invoice_number)
    identifier = escape(top_up.top_up_id)
    return (
        f'<a id="pdf-{identifier}" href="/billing/top-ups/{identifier}/pdf">{texts("pdf")}'
        f'<span class="unseen"> {about}</span></a>'
    )


def _status(texts: Texts, top_up: TopUp) -> str:
    name = TopUpStatus.Name(top_up.status)
    kind = name.removeprefix("TOP_UP_STATUS_").lower()
    return f'<span class="status {kind}">{texts(name) if texts.has(name) else escape(kind)}</span>'


def _button(identifier: str, text: str, *, why_off: str, attributes: str = "", quiet: bool = False) -> str:
    """A button that submits its form, or one that is off, can still be focused, and says why it is off."""
    kind = ' class="quiet"' if quiet else ""
    if not why_off:
        return f'<button type="submit" id="{identifier}"{kind} {attributes}>{text}</button>'
    return (
        f'<button type="button" id="{identifier}"{kind} aria-disabled="true" aria-describedby="{identifier}-why">{text}'
        f'</button><p class="faint" id="{identifier}-why">{why_off}</p>'
    )


def form_token(visit: Visit) -> str:
    """The hidden field that every form repeats."""
    return f'<input type="hidden" name="form_token" value="{visit.form_token}">'


def back_link(texts: Texts) -> str:
    """The way back to the balance."""
    return f'<p><a href="/billing">{texts("back")}</a></p>'


def _flag(attribute: str, holds: bool) -> str:  # noqa: FBT001 - whether the attribute is there
    return f' {attribute}="true"' if holds else ""


def _is_set(top_up: TopUp, name: str) -> bool:
    return any(field.name == name for field, _ in top_up.ListFields())


def _time(texts: Texts, moment: Timestamp) -> str:
    return f'<time datetime="{moment.ToJsonString()}">{texts.time(_moment(moment))}</time>'


def _moment(moment: Timestamp) -> datetime:
    return moment.ToDatetime(tzinfo=UTC)
