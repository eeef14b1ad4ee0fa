"""The hosted page of a Checkout session in setup mode, which saves a card without JavaScript and without a card."""

from html import escape

from server.sandbox.frame import framed
from server.sandbox.stripe.account import Object

CARDS = {
    "works": "Save a card",
    "declined": "Save a card that will be declined",
    "authentication": "Save a card whose bank will ask for confirmation",
}
"""The button of each behaviour of a card."""
_STYLE = """
form { margin: .5rem 0; }
button { width: 100%; min-height: 2.75rem; border: 1px solid var(--control); border-radius: .5rem;
         background: var(--card); color: var(--text); font: inherit; cursor: pointer; }
"""


def card_page(session: Object, customer: Object) -> str:
    """The page as HTML; text from callers is escaped."""
    name = escape(customer["name"] or customer["email"] or customer["id"])
    if session["status"] != "open":
        content = '<p id="status">This page is no longer active.</p>'
    else:
        buttons = "".join(
            f'<form method="post" action="/c/{session["id"]}/{behaviour}"><button type="submit" id="{behaviour}">{text}'
            "</button></form>"
            for behaviour, text in CARDS.items()
        )
        back = f'<p><a href="{escape(session["cancel_url"])}" id="back">Back without saving a card</a></p>'
        content = f"<p>A card for {name}, to be charged without you later.</p>{buttons}{back}"
    return framed("Save a card", f'{content}<p class="faint">Sandbox: there is no real card.</p>', style=_STYLE)
