"""The sample billing pages: both languages say the same things, and redirects lead to Stripe only."""

from string import Formatter

import pytest
from pulsa.credit.v1.channel_pb2 import Channel
from pulsa.credit.v1.money_pb2 import Money
from pulsa.credit.v1.top_up_pb2 import TopUpStatus
from pulsa.error.v1.error_reason_pb2 import ErrorReason

from server.sandbox.billing import texts
from server.sandbox.billing.app import STRIPE_ORIGINS, origin_of


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def test_both_languages_have_the_same_texts_with_the_same_placeholders() -> None:
    english, indonesian = (
        {key: placeholders(text) for key, text in texts._WORDS[each].items()} for each in ("en", "id")
    )

    assert english == indonesian


def test_every_status_and_channel_has_a_text_and_every_reason_is_one() -> None:
    needed = {name for name in (*TopUpStatus.keys(), *Channel.keys()) if not name.endswith("_UNSPECIFIED")}
    reasons = {key for key in texts._ENGLISH if key.isupper() and not key.startswith(("TOP_UP_STATUS_", "CHANNEL_"))}
    known = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()}  # noqa: SIM118 - not a dict

    assert needed - set(texts._ENGLISH) == set()
    assert reasons - known == {"FORM_EXPIRED", "LINK_REFUSED"}


@pytest.mark.parametrize(
    ("money", "english", "indonesian"),
    [
        (Money(currency_code="IDR", units=1_500_000), "Rp1,500,000", "Rp1.500.000"),
        (Money(currency_code="USD", units=1234, nanos=500_000_000), "$1,234.50", "US$1.234,50"),
        (Money(currency_code="USD", nanos=9_500_000), "$0.0095", "US$0,0095"),
    ],
)
def test_amounts_are_written_as_the_language_writes_them(money: Money, english: str, indonesian: str) -> None:
    assert texts.LANGUAGES["en"].money(money) == english
    assert texts.LANGUAGES["id"].money(money) == indonesian


@pytest.mark.parametrize(
    ("header", "language"), [("", "en"), ("id-ID,id;q=0.9,en;q=0.8", "id"), ("de, en;q=0.5", "en"), ("fr", "en")]
)
def test_the_browsers_language_is_taken(header: str, language: str) -> None:
    assert texts.preferred(header).language == language


def test_values_that_a_text_has_are_escaped() -> None:
    assert "&lt;b&gt;" in texts.LANGUAGES["en"]("of_invoice", number="<b>")


@pytest.mark.parametrize(
    ("url", "is_stripe"),
    [
        ("https://invoice.stripe.com/i/acct_1/test_1?s=ap", True),
        ("https://pay.stripe.com/invoice/acct_1/test_1/pdf", True),
        ("http://invoice.stripe.com/i/1", False),
        ("https://invoice.stripe.com.evil.example/i/1", False),
        ("https://invoice.stripe.com@evil.example/i/1", False),
        ("https://evil.example/invoice.stripe.com", False),
        ("//evil.example", False),
        ("javascript:alert(1)", False),
        ("", False),
    ],
)
def test_redirects_lead_to_stripe_only(url: str, *, is_stripe: bool) -> None:
    assert (origin_of(url) in STRIPE_ORIGINS) is is_stripe
