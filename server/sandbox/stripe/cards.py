"""Saved cards: Checkout sessions in setup mode, their setup intents, and payment methods, each with a behaviour.

Functions over the account's state; none knows HTTP.
"""

from http import HTTPStatus
from typing import Final

from server.sandbox.stripe import objects
from server.sandbox.stripe.account import Object, StripeAccount
from server.sandbox.stripe.errors import ApiError, not_allowed, not_found

_SECONDS_OF_A_SESSION: Final = 86_400
_NUMBERS: Final = {"works": "4242", "declined": "0341", "authentication": "3155"}
"""The last digits of Stripe's test card of each behaviour (docs.stripe.com/testing)."""
BEHAVIOURS: Final = frozenset(_NUMBERS)
"""How a charge of a saved card ends: it is paid, is declined, or needs the customer's authentication."""


def create_session(account: StripeAccount, given: Object) -> Object:
    """Create a page on which a customer saves a card."""
    customer = account.find("customer", given["customer"], param="customer")
    data = given.get("setup_intent_data", {})
    intent = account.add(objects.new_setup_intent(account, customer, metadata=data.get("metadata", {})))
    session = objects.new_session(account, customer, given, setup_intent=intent["id"])
    session["expires_at"] = account.now() + _SECONDS_OF_A_SESSION
    return account.add(session)


def complete_session(account: StripeAccount, session: Object, *, behaviour: str) -> Object:
    """Save a card of this behaviour on the page; refused once the page is completed or has expired."""
    if session["status"] != "open" or session["expires_at"] <= account.now():
        raise not_allowed("This Checkout Session is no longer active.")
    customer = account.find("customer", session["customer"])
    method = account.add(objects.new_payment_method(account, customer, last4=_NUMBERS[behaviour]))
    account.private[method["id"]] = {"behaviour": behaviour}
    intent = account.find("setup_intent", session["setup_intent"])
    intent.update(payment_method=method["id"], status="succeeded")
    session.update(status="complete", url=None)
    account.emit("payment_method.attached", method)
    account.emit("setup_intent.succeeded", intent)
    account.emit("checkout.session.completed", session)
    return session


def expire_session(account: StripeAccount, session: Object, _given: Object) -> Object:
    """End a page on which no card was saved."""
    if session["status"] != "open":
        raise not_allowed('Only Checkout Sessions with a status in ["open"] can be expired.')
    session.update(status="expired", url=None)
    account.emit("checkout.session.expired", session)
    return session


def detach(account: StripeAccount, method: Object, _given: Object | None = None) -> Object:
    """Remove a card from its customer: it cannot be charged any more."""
    if method["customer"] is None:
        raise not_allowed("The payment method you provided is not attached to a customer so detachment is impossible.")
    previous = {"customer": method["customer"]}
    method["customer"] = None
    account.emit("payment_method.detached", method, previous=previous)
    return method


def renew(account: StripeAccount, method: Object) -> Object:
    """Let the bank give the customer a new card with another number and date, of which the network tells Stripe."""
    previous = {name: method["card"][name] for name in ("exp_year", "last4")}
    method["card"] |= {"exp_year": previous["exp_year"] + 4, "last4": f"{(int(previous['last4']) + 1) % 10_000:04}"}
    account.emit("payment_method.automatically_updated", method, previous={"card": previous})
    return method


def set_behaviour(account: StripeAccount, method: Object, *, behaviour: str) -> Object:
    """Let the next charges of a saved card end in this way."""
    if behaviour not in BEHAVIOURS:
        raise ValueError(f"the behaviours are {', '.join(sorted(BEHAVIOURS))}")
    account.private[method["id"]]["behaviour"] = behaviour
    return method


def behaviour_of(account: StripeAccount, identifier: str, *, customer: str) -> str:
    """The behaviour of a card that a charge names; refused when the customer does not have the card.

    Stripe's own test cards, such as `pm_card_visa`, need no customer.
    """
    if identifier.startswith("pm_card_"):
        return "declined" if identifier == "pm_card_chargeDeclined" else "works"
    method = account.objects["payment_method"].get(identifier)
    if method is None:
        raise not_found("PaymentMethod", identifier, param="payment_method")
    if method["customer"] != customer:
        message = f"The customer does not have a payment method with the ID {identifier}."
        raise ApiError(message, code="resource_missing", param="payment_method", stored=True)
    return str(account.private[identifier]["behaviour"])


def declined() -> ApiError:
    """The error of a charge that the card's bank refuses."""
    status = HTTPStatus.PAYMENT_REQUIRED
    return ApiError("Your card was declined.", status=status, kind="card_error", code="card_declined", stored=True)


def needs_authentication() -> ApiError:
    """The error of a charge for which the card's bank wants the customer's confirmation."""
    return ApiError(
        "This payment requires additional user action before it can be completed successfully.",
        status=HTTPStatus.PAYMENT_REQUIRED,
        kind="card_error",
        code="invoice_payment_intent_requires_action",
        stored=True,
    )
