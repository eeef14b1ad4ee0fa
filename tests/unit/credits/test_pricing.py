"""The pricing file: what it contains, and what is refused at start."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from server.credits.pricing import BUILT_IN, Money, Pricing, load_pricing
from server.errors import CurrencyNotSold, TopUpAboveMaximum, TopUpBelowMinimum
from server.providers.provider import Channel

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """The built-in file with one piece of text replaced."""

    def write(old: str, new: str) -> Path:
        text = BUILT_IN.read_text()
        assert old in text
        path = tmp_path / "pricing.toml"
        path.write_text(text.replace(old, new))
        return path

    return write


def test_the_built_in_prices_are_those_of_the_product() -> None:
    pricing = load_pricing(None)
    assert pricing.channel_credits == {Channel.EMAIL: 1, Channel.WHATSAPP: 2, Channel.SMS: 3}
    assert pricing.minimum_credits == 1000
    assert pricing.preset_credits[0] == 1000
    assert pricing.low_balance_threshold == 100


def test_a_quote_is_exact_in_each_currency() -> None:
    pricing = load_pricing(None)
    rupiah = pricing.quote(credits=1001, currency_code="IDR")
    dollars = pricing.quote(credits=1001, currency_code="USD")
    assert (rupiah.unit_price, rupiah.total) == (Money("IDR", Decimal(150)), Money("IDR", Decimal(150_150)))
    assert (dollars.unit_price, dollars.total) == (Money("USD", Decimal("0.01")), Money("USD", Decimal("10.01")))


@pytest.mark.parametrize(
    ("credits", "total"),
    [(1000, "12.35"), (1001, "12.36"), (2000, "24.69"), (1_000_000, "12345.00")],
)
def test_a_price_finer_than_a_cent_is_rounded_half_up_once(write: Write, credits: int, total: str) -> None:
    pricing = load_pricing(write("USD = 0.01", "USD = 0.012345"))
    assert pricing.quote(credits=credits, currency_code="USD").total == Money("USD", Decimal(total))


def test_a_quote_below_the_minimum_above_the_maximum_or_in_another_currency_is_refused() -> None:
    pricing = load_pricing(None)
    with pytest.raises(TopUpBelowMinimum) as below:
        pricing.quote(credits=999, currency_code="IDR")
    with pytest.raises(TopUpAboveMaximum) as above:
        pricing.quote(credits=10_000_001, currency_code="IDR")
    with pytest.raises(CurrencyNotSold) as currency:
        pricing.quote(credits=1000, currency_code="EUR")
    assert below.value.metadata == {"minimum_credits": "1000"}
    assert above.value.metadata == {"maximum_credits": "10000000"}
    assert currency.value.metadata == {"currency_codes": "IDR,USD"}


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("EMAIL = 1", "EMAIL = 0", "channel_credits.EMAIL: Input should be greater than 0"),
        ("EMAIL = 1", "EMAIL = 1.0", "channel_credits.EMAIL: Input should be a valid integer"),
        ("EMAIL = 1", 'EMAIL = "1"', "channel_credits.EMAIL: Input should be a valid integer"),
        ("EMAIL = 1", "EMAIL = true", "channel_credits.EMAIL: Input should be a valid integer"),
        ("EMAIL = 1", "FAX = 1", "channel_credits.FAX"),
        ("EMAIL = 1", "", "channel_credits lacks EMAIL"),
        ("minimum_credits = 1_000", "", "minimum_credits: Field required"),
        ("minimum_credits = 1_000", "minimal_credits = 1_000", "minimum_credits: Field required"),
        ("maximum_credits = 10_000_000", "maximum_credits = 10", "preset_credits must lie between"),
        ("[1_000, 5_000", "[999, 5_000", "preset_credits must lie between"),
        ("[1_000, 5_000", "[5_000, 1_000", "preset_credits must go from the smallest"),
        ("[1_000, 5_000", "[1_000, 1_000", "preset_credits must go from the smallest"),
        ("[1_000, 5_000, 10_000, 50_000]", "[]", "preset_credits: Tuple should have at least 1 item"),
        ("low_balance_threshold = 100", "low_balance_threshold = -1", "low_balance_threshold: Input should be greater"),
        ("IDR = 150", "IDR = 150.5", "unit_prices.IDR has more than 0 decimals"),
        ("IDR = 150", "IDR = 9", "minimum_credits cost less than 10000 IDR"),
        ("IDR = 150", "IDR = 1_000", "maximum_credits cost more than 9999999999 IDR"),
        ("IDR = 150", "ZZZ = 150", "unit_prices.ZZZ is not a currency known here: IDR, USD"),
        ("USD = 0.01", "USD = 0.0000000001", "unit_prices.USD has more than 9 decimals"),
        ("USD = 0.01", "USD = 0.000494", "minimum_credits cost less than 0.50 USD"),
        ("USD = 0.01", "USD = nan", "unit_prices.USD: Input should be a finite number"),
        ("USD = 0.01", "USD = -0.01", "unit_prices.USD: Input should be greater than 0"),
        ("[unit_prices]", "[unit_prices", "is not readable TOML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_that_names_the_key(
    write: Write, old: str, new: str, complaint: str
) -> None:
    path = write(old, new)
    with pytest.raises(ValueError, match=r"pricing\.toml") as refused:
        load_pricing(path)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing\.toml is not readable TOML"):
        load_pricing(tmp_path / "missing.toml")


def test_prices_cannot_be_changed_while_the_server_runs() -> None:
    pricing: Pricing = load_pricing(None)
    with pytest.raises(ValueError, match="frozen"):
        pricing.minimum_credits = 1  # type: ignore[misc]
