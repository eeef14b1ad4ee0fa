"""Amounts in Stripe's minor units, and the price in the parameters of an invoice."""

from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.credits.stripe.invoices import InvoiceOrder, from_minor_units, invoice_parameters, to_minor_units


@pytest.mark.parametrize(
    ("amount", "currency_code", "minor_units"),
    [
        ("150000", "IDR", 15_000_000),
        ("9999999999", "IDR", 999_999_999_900),
        ("0.5", "IDR", 100),
        ("0.49", "IDR", 0),
        ("12.34", "USD", 1234),
        ("12.345", "USD", 1235),
        ("12.3449", "USD", 1234),
        ("0.005", "USD", 1),
    ],
)
def test_amounts_are_rounded_half_up_to_what_can_be_charged(amount: str, currency_code: str, minor_units: int) -> None:
    assert to_minor_units(Decimal(amount), currency_code) == minor_units


@given(st.integers(min_value=0, max_value=10**12))
def test_minor_units_survive_the_conversion_there_and_back(minor_units: int) -> None:
    assert to_minor_units(from_minor_units(minor_units), "USD") == minor_units


@given(st.decimals(min_value=0, max_value=10**10, places=4))
def test_rupiah_are_always_whole(amount: Decimal) -> None:
    assert to_minor_units(amount, "IDR") % 100 == 0


def _item(*, unit_price: str, total: str, currency_code: str = "USD") -> dict[str, object]:
    order = InvoiceOrder(
        environment="test", organization_id="acme", top_up_id=UUID(int=1), request_id=UUID(int=2), credits=1001,
        currency_code=currency_code, unit_price=Decimal(unit_price), total=Decimal(total),
        billing_email="", billing_name="", days_until_due=7,
    )  # fmt: skip
    item: dict[str, object] = invoice_parameters(order)["item"]
    return {name: value for name, value in item.items() if name not in {"currency", "description"}}


def test_an_exact_price_is_shown_as_quantity_and_unit_price() -> None:
    assert _item(unit_price="0.01", total="10.01") == {"quantity": 1001, "unit_amount_decimal": "1"}
    rupiah = _item(unit_price="150", total="150150", currency_code="IDR")
    assert rupiah == {"quantity": 1001, "unit_amount_decimal": "15000"}


def test_a_rounded_total_is_charged_as_one_amount() -> None:
    assert _item(unit_price="0.0123", total="12.31") == {"amount": 1231}
