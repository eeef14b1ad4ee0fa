"""Money as Stripe counts it: whole minor units. Rupiah has two decimals in the API although people use none.

docs.stripe.com/currencies: every currency that credits are sold in (IDR, USD) has two.
"""

from decimal import ROUND_HALF_UP, Decimal

_DECIMALS = 2
_WHOLE_UNITS_ONLY = frozenset({"IDR"})


def to_minor_units(amount: Decimal, currency_code: str) -> int:
    """The amount in minor units, rounded half up to what can be charged: Rp150,000 is 15000000, always whole rupiah."""
    whole = Decimal(1) if currency_code in _WHOLE_UNITS_ONLY else Decimal(1).scaleb(-_DECIMALS)
    return int((amount / whole).quantize(Decimal(1), ROUND_HALF_UP) * whole.scaleb(_DECIMALS))


def from_minor_units(minor_units: int) -> Decimal:
    """Stripe's number as an amount of money; exact."""
    return Decimal(minor_units).scaleb(-_DECIMALS)
