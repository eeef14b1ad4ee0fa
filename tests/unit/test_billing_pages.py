"""The sample billing pages: both languages say the same things, and redirects lead to Stripe only."""

import re
from string import Formatter

import pytest
from pulsa.credit.v1.automatic_top_up_pb2 import AutomaticTopUpState
from pulsa.credit.v1.balance_pb2 import Balance
from pulsa.credit.v1.channel_pb2 import Channel
from pulsa.credit.v1.credit_service_pb2 import QuoteTopUpResponse
from pulsa.credit.v1.money_pb2 import Money
from pulsa.credit.v1.top_up_pb2 import TopUp, TopUpFlag, TopUpStatus
from pulsa.error.v1.error_reason_pb2 import ErrorReason

from server.sandbox.billing import pages, texts
from server.sandbox.billing.app import STRIPE_ORIGINS, origin_of


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def test_both_languages_have_the_same_texts_with_the_same_placeholders() -> None:
    english, indonesian = (
        {key: placeholders(text) for key, text in texts._WORDS[each].items()} for each in ("en", "id")
    )

    assert english == indonesian


def test_every_status_and_channel_has_a_text_and_every_reason_is_one() -> None:
    needed = {
        name
        for name in (*TopUpStatus.keys(), *Channel.keys(), *AutomaticTopUpState.keys())
        if not name.endswith("_UNSPECIFIED")
    }
    reasons = {
        key
        for key in texts._ENGLISH
        if key.isupper() and not key.startswith(("TOP_UP_STATUS_", "CHANNEL_", "AUTOMATIC_"))
    }
    known = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()}  # noqa: SIM118 - not a dict

    assert needed - set(texts._ENGLISH) == set()
    assert reasons - known == {"AMOUNT_INVALID", "FORM_EXPIRED", "LINK_REFUSED"}


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


def rupiah(units: int) -> Money:
    return Money(currency_code="IDR", units=units)


def words(html: str) -> str:
    """What is to be read in a part of a page."""
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_tax_is_shown_where_there_is_one() -> None:
    english = texts.LANGUAGES["en"]
    quote = QuoteTopUpResponse(unit_price=rupiah(150), subtotal=rupiah(150_000), total=rupiah(166_500))

    assert "Tax" not in words(pages.quote_part(english, quote))
    quote.tax.CopyFrom(rupiah(16_500))
    assert words(pages.quote_part(english, quote)) == (
        "Price of a credit Rp150 Subtotal Rp150,000 Tax Rp16,500 Total Rp166,500"
    )
    quote.tax_estimated = True
    assert "Tax (estimated, the invoice says it) Rp16,500" in words(pages.quote_part(english, quote))


@pytest.mark.parametrize(
    ("status", "flags", "said", "buttons"),
    [
        (TopUpStatus.TOP_UP_STATUS_CREATING, [], "is being made", set()),
        (TopUpStatus.TOP_UP_STATUS_OPEN, [], "Rp150,000 for 1,000 credits, due 6 Dec 2026.", {"complete", "cancel"}),
        (
            TopUpStatus.TOP_UP_STATUS_OPEN,
            [TopUpFlag.TOP_UP_FLAG_PARTLY_PAID],
            "Rp50,000 of Rp150,000 is paid, Rp100,000 remains.",
            {"complete"},
        ),
        (TopUpStatus.TOP_UP_STATUS_CANCELING, [], "is being canceled", set()),
        (TopUpStatus.TOP_UP_STATUS_CANCELING, [TopUpFlag.TOP_UP_FLAG_VOID_REFUSED], "A payment is on its way", set()),
    ],
)
def test_an_unfinished_top_up_says_what_can_be_done(
    status: TopUpStatus.ValueType, flags: list[TopUpFlag.ValueType], said: str, buttons: set[str]
) -> None:
    visit = pages.Visit(texts.LANGUAGES["en"], "token", "ann", [], may_subscribe=True)
    top_up = TopUp(top_up_id="1", status=status, flags=flags, credits=1000, total=rupiah(150_000))
    top_up.amount_paid.CopyFrom(rupiah(50_000))
    top_up.amount_remaining.CopyFrom(rupiah(100_000))
    top_up.due_time.FromJsonString("2026-12-06T00:00:00Z")

    part = pages.live_part(visit, Balance(), top_up, [top_up], "")

    assert said in words(part)
    assert set(re.findall(r'<button type="submit" id="(\w+)"', part)) == buttons
    assert "Complete or cancel the open invoice first." in part
