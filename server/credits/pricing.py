"""What sends cost in credits, and what credits cost in money: read from the operator's file, checked at start."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from server.channels.channel import ChannelName
from server.credits.money import CURRENCIES, Money
from server.errors import CurrencyNotSold, TopUpAboveMaximum, TopUpBelowMinimum

BUILT_IN = Path(__file__).with_name("pricing.toml")

Credits = Annotated[int, Field(strict=True, gt=0, le=1_000_000_000)]
UnitPrice = Annotated[Decimal, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Quote:
    """What a top-up asks for, before tax."""

    credits: int
    unit_price: Money
    total: Money


class Pricing(BaseModel, frozen=True, extra="forbid"):
    """The prices in force; see pricing.toml for what each field means."""

    channel_credits: Mapping[ChannelName, Credits]
    minimum_credits: Credits
    maximum_credits: Credits
    preset_credits: Annotated[tuple[Credits, ...], Field(min_length=1)]
    low_balance_threshold: Annotated[int, Field(strict=True, ge=0, le=1_000_000_000)]
    unit_prices: Annotated[Mapping[str, UnitPrice], Field(min_length=1)]

    def quote(self, *, credits: int, currency_code: str) -> Quote:
        """What these credits cost: exactly what an invoice will ask for.

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
        if missing := ChannelName.__members__.keys() - self.channel_credits:
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
    """The pricing of a TOML file, or with None the built-in one.

    Raises ValueError with one line that names the file and the key.
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
