"""Money and the currencies that credits are sold in. Exact: Decimal everywhere, floats nowhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in whole units of its currency: 150000 rupiah, 12.34 dollars."""

    currency_code: str
    """ISO 4217."""
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Currency:
    """What an invoice in a currency can ask for."""

    charge_unit: Decimal
    """Every total is a multiple of it."""
    unit_price_decimals: int
    """Digits after the point that the price of one credit may have; 9 is what the API's Money can say."""
    minimum_charge: Decimal
    maximum_charge: Decimal

    def round(self, amount: Decimal) -> Decimal:
        """The amount as it can be charged: rounded half up to the charge unit."""
        return (amount / self.charge_unit).quantize(Decimal(1), ROUND_HALF_UP) * self.charge_unit


# Stripe's limits (docs.stripe.com/currencies#minimum-and-maximum-charge-amounts): about 0.50 USD at the least, also
# after conversion, so 10,000 rupiah leaves room for the rate; eight digits of cents at the most, twelve for IDR.
CURRENCIES: Mapping[str, Currency] = {
    "IDR": Currency(
        charge_unit=Decimal(1),
        unit_price_decimals=0,
        minimum_charge=Decimal(10_000),
        maximum_charge=Decimal(9_999_999_999),
    ),
    "USD": Currency(
        charge_unit=Decimal("0.01"),
        unit_price_decimals=9,
        minimum_charge=Decimal("0.50"),
        maximum_charge=Decimal("999999.99"),
    ),
}
