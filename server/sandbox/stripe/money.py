"""Minor units as people read them."""

from decimal import Decimal

_MINOR_UNITS = 100


def display(amount: int, currency: str) -> str:
    """`Rp150.000`, `$10.00` or `10.00 EUR`. Every currency here has two decimals, as Stripe counts rupiah too."""
    number = Decimal(amount) / _MINOR_UNITS
    if currency == "idr":
        shown = f"{number:,.0f}" if amount % _MINOR_UNITS == 0 else f"{number:,.2f}"
        return "Rp" + shown.translate(str.maketrans(",.", ".,"))
    return f"${number:,.2f}" if currency == "usd" else f"{number:,.2f} {currency.upper()}"
