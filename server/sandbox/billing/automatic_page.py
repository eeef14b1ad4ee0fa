"""The page of automatic top-ups and of the settings of messages, as HTML. Every value from outside is escaped."""

from collections.abc import Sequence
from html import escape

from pulsa.credit.v1.automatic_top_up_pb2 import AutomaticTopUp, AutomaticTopUpState

from server.sandbox.billing.pages import Visit, back_link, form_token, whole_page
from server.sandbox.billing.texts import Texts

_FIELDS = (
    ("threshold_credits", "threshold_credits", 100),
    ("credits", "amount", 1000),
    ("monthly_credit_cap", "monthly_credit_cap", 5000),
)
"""What the form asks for: the field, its text, and what it has before anything is chosen."""


def automatic_page(
    visit: Visit,
    found: AutomaticTopUp,
    *,
    currencies: Sequence[str],
    brand_name: str | None,
    request_id: str,
    message: str,
) -> str:
    """The page; without a brand for who may not see it. `request_id` makes the card's form one page of Stripe."""
    texts = visit.texts
    brand = "" if brand_name is None else _brand(visit, brand_name)
    content = f"""<h1>{texts("automatic")}</h1>
{message}
<section class="card" aria-label="{texts("status")}"><p id="state">{_status(texts, found)}</p></section>
{_card(visit, found, request_id)}
{_settings(visit, found, currencies)}
{brand}
{back_link(texts)}"""
    return whole_page(visit, texts("automatic"), content)


def state_text(texts: Texts, state: AutomaticTopUpState.ValueType) -> str:
    """The state in a word."""
    name = AutomaticTopUpState.Name(state)
    return texts(name) if texts.has(name) else escape(name)


def _status(texts: Texts, found: AutomaticTopUp) -> str:
    reason = f" ({escape(found.off_reason or found.last_failure)})" if found.off_reason or found.last_failure else ""
    bought = texts("bought_this_month", credits=texts.number(found.month_credits))
    return f"<strong>{state_text(texts, found.state)}</strong>{reason}. {bought}"


def _card(visit: Visit, found: AutomaticTopUp, request_id: str) -> str:
    texts, card, token = visit.texts, found.card, form_token(visit)
    has_card = found.HasField("card")
    shown = texts("no_card")
    if has_card:
        month = f"{card.expire_month:02}/{card.expire_year}"
        shown = texts("card_detail", brand=card.brand.title(), last4=card.last4, expires=month)
    remove = f"""<form method="post" action="/billing/automatic/remove-card">{token}
<button type="submit" class="quiet" id="remove-card">{texts("remove_card")}</button></form>"""
    return f"""<section class="card" aria-labelledby="card-title"><h2 id="card-title">{texts("card")}</h2>
<p id="card">{shown}</p>
<div class="actions"><form method="post" action="/billing/automatic/card">{token}
<input type="hidden" name="request_id" value="{request_id}">
<button type="submit" id="save-card">{texts("replace_card" if has_card else "save_card")}</button></form>
{remove if has_card else ""}</div></section>"""


def _settings(visit: Visit, found: AutomaticTopUp, currencies: Sequence[str]) -> str:
    texts, chosen = visit.texts, found.automatic_settings
    numbers = "".join(
        f'<label class="faint" for="{name}">{texts(text)}</label><input type="number" inputmode="numeric" name="{name}"'
        f' id="{name}" min="1" step="1" required value="{getattr(chosen, name) or default}">'
        for name, text, default in _FIELDS
    )
    wanted = chosen.currency_code or next(iter(currencies), "")
    choices = "".join(
        f'<label class="choice"><input type="radio" name="currency" value="{escape(each)}"'
        f"{' checked' if each == wanted else ''}><span>{escape(each)}</span></label>"
        for each in currencies
    )
    off = f"""<form method="post" action="/billing/automatic/off">{form_token(visit)}
<button type="submit" class="quiet" id="off">{texts("switch_off")}</button></form>"""
    return f"""<section class="card" aria-labelledby="when-title"><h2 id="when-title">{texts("automatic_when")}</h2>
<form method="post" action="/billing/automatic">{form_token(visit)}{numbers}
<fieldset><legend>{texts("currency")}</legend><div class="choices">{choices}</div></fieldset>
<p><label><input type="checkbox" name="consent" value="yes" id="consent"> {texts("consent")}</label></p>
<button type="submit" id="on">{texts("save" if chosen.enabled else "switch_on")}</button></form>
{off if chosen.enabled else ""}</section>"""


def _brand(visit: Visit, brand_name: str) -> str:
    texts = visit.texts
    return f"""<section class="card" aria-labelledby="brand-title"><h2 id="brand-title">{texts("brand")}</h2>
<form method="post" action="/billing/automatic/brand">{form_token(visit)}
<label class="faint" for="brand_name">{texts("brand_detail")}</label>
<input type="text" name="brand_name" id="brand_name" maxlength="20" value="{escape(brand_name)}">
<button type="submit" id="save-brand">{texts("save")}</button></form></section>"""
