"""Prices: the credits of a send, and the money of a credit. Read from the operator's TOML file and checked at start."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from server.errors import CurrencyNotSold, TopUpAboveMaximum, TopUpBelowMinimum
from server.providers.provider import Channel


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in whole units of its currency: 150000 rupiah, 12.34 dollars."""

    currency_code: str
    """ISO 4217."""
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Currency:
    """The amounts that a Stripe invoice in this currency can charge."""

    charge_unit: Decimal
    """Every total is a multiple of it."""
    unit_price_decimals: int
    """Decimal places that the price of one credit may have; pulsa.credit.v1.Money holds at most 9."""
    minimum_charge: Decimal
    maximum_charge: Decimal

    def round(self, amount: Decimal) -> Decimal:
        """The amount rounded half up to a multiple of charge_unit."""
        return (amount / self.charge_unit).quantize(Decimal(1), ROUND_HALF_UP) * self.charge_unit


# Stripe's limits (docs.stripe.com/currencies#minimum-and-maximum-charge-amounts). The minimum is about 0.50 USD, also
# after conversion; 10,000 rupiah leaves a margin for the exchange rate. The maximum is eight digits of minor units,
# twelve for IDR.
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
BUILT_IN = Path(__file__).with_name("pricing.toml")

Credits = Annotated[int, Field(strict=True, gt=0, le=1_000_000_000)]
UnitPrice = Annotated[Decimal, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Quote:
    """The price of a top-up, before tax."""

    credits: int
    unit_price: Money
    total: Money


class Pricing(BaseModel, frozen=True, extra="forbid"):
    """The prices in force; pricing.toml explains each field."""

    channel_credits: Mapping[Channel, Credits]
    minimum_credits: Credits
    maximum_credits: Credits
    preset_credits: Annotated[tuple[Credits, ...], Field(min_length=1)]
    low_balance_threshold: Annotated[int, Field(strict=True, ge=0, le=1_000_000_000)]
    unit_prices: Annotated[Mapping[str, UnitPrice], Field(min_length=1)]

    def quote(self, *, credits: int, currency_code: str) -> Quote:
        """The price of these credits, exactly as the invoice will charge it.

        Raises TopUpBelowMinimum, TopUpAboveMaximum or CurrencyNotSold.
        """
        if credits < self.minimum_credits:
            raise TopUpBelowMinimum(minimum_credits=self.minimum_credits)
        if credits > self.maximum_credits:
            raise TopUpAboveMaximum(maximum_credits=self.maximum_credits)
        if currency_code not in self.unit_prices:
            raise CurrencyNotSold(currency_codes=",".join(self.unit_prices))
        return Quote(
            credits=credits,
            unit_price=Money(currency_code, self.unit_prices[currency_code]),
            total=Money(currency_code, self._total(credits, currency_code)),
        )

    def _total(self, credits: int, currency_code: str) -> Decimal:
        return CURRENCIES[currency_code].round(self.unit_prices[currency_code] * credits)

    @model_validator(mode="after")
    def _check_channels(self) -> Self:
        if missing := Channel.__members__.keys() - self.channel_credits:
            raise ValueError(f"channel_credits lacks {', '.join(sorted(missing))}")
        return self

    @model_validator(mode="after")
    def _check_presets(self) -> Self:
        if any(larger <= smaller for smaller, larger in pairwise(self.preset_credits)):
            raise ValueError("preset_credits must go from the smallest to the largest, each once")
        if self.preset_credits[0] < self.minimum_credits or self.preset_credits[-1] > self.maximum_credits:
            raise ValueError("preset_credits must lie between minimum_credits and maximum_credits")
        return self

    @model_validator(mode="after")
    def _check_unit_prices(self) -> Self:
        for code, unit_price in self.unit_prices.items():
            currency = CURRENCIES.get(code)
            if currency is None:
                raise ValueError(f"unit_prices.{code} is not a currency known here: {', '.join(CURRENCIES)}")
            if round(unit_price, currency.unit_price_decimals) != unit_price:
                raise ValueError(f"unit_prices.{code} has more than {currency.unit_price_decimals} decimals")
            if self._total(self.minimum_credits, code) < currency.minimum_charge:
                raise ValueError(
                    f"minimum_credits cost less than {currency.minimum_charge} {code}, the least that Stripe charges"
                )
            if self._total(self.maximum_credits, code) > currency.maximum_charge:
                raise ValueError(
                    f"maximum_credits cost more than {currency.maximum_charge} {code}, the most that Stripe charges"
                )
        return self


def load_pricing(path: Path | None) -> Pricing:
    """Read and check a TOML file of prices; None reads the built-in pricing.toml.

    Raises ValueError with a one-line message that names the file and the key.
    """
    path = path or BUILT_IN
    try:
        return Pricing.model_validate(tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{path}: {key}: {message}" if key else f"{path}: {message}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path} is not readable TOML: {error}") from error
