"""The API as seen through the real SDK: objects, paging, refusals."""

from decimal import Decimal
from typing import Any

import pytest
import stripe

from tests.integration.sandbox.stripe_harness import StripeHarness


async def test_an_invoice_goes_from_draft_to_paid(harness: StripeHarness) -> None:
    draft = await harness.draft(amount=15_000_000)
    assert (draft.status, draft.number, draft.hosted_invoice_url) == ("draft", None, None)

    opened = await harness.client().v1.invoices.finalize_invoice_async(draft.id)
    assert (opened.status, opened.total, opened.amount_due) == ("open", 15_000_000, 15_000_000)
    assert opened.due_date == (opened.status_transitions.finalized_at or 0) + 7 * 86_400
    assert str(opened.number).endswith("-0001")

    paid = await harness.client().v1.invoices.pay_async(opened.id, {"payment_method": "pm_card_visa"})
    assert (paid.status, paid.amount_paid, paid.amount_remaining) == ("paid", 15_000_000, 0)
    assert paid.metadata is not None
    assert paid.metadata["top_up_id"] == "top-up-1"


async def test_invoice_numbers_of_a_customer_are_consecutive(harness: StripeHarness) -> None:
    first = await harness.open()
    second = await harness.open(customer=str(first.customer))

    numbers = [str(invoice.number).split("-") for invoice in (first, second)]
    assert [count for _prefix, count in numbers] == ["0001", "0002"]
    assert numbers[0][0] == numbers[1][0]


async def test_a_unit_price_finer_than_a_cent_is_rounded_half_up_on_the_total(harness: StripeHarness) -> None:
    draft = await harness.draft(amount=100, currency="usd")
    items = harness.client().v1.invoice_items

    item = await items.create_async({"invoice": draft.id, "unit_amount_decimal": Decimal("1.2345"), "quantity": 1_000})
    half = await items.create_async({"invoice": draft.id, "unit_amount_decimal": Decimal("0.5"), "quantity": 1})

    assert (item.amount, half.amount) == (1_235, 1)
    assert item.pricing is not None
    assert item.pricing.unit_amount_decimal == Decimal("1.2345")
    assert (await harness.fetch(draft)).total == 100 + 1_235 + 1


async def test_rupiah_amounts_may_have_twelve_digits_and_no_more(harness: StripeHarness) -> None:
    assert (await harness.open(amount=999_999_999_999)).total == 999_999_999_999

    with pytest.raises(stripe.InvalidRequestError) as refused:
        await harness.open(amount=1_000_000_000_000)
    assert refused.value.code == "amount_too_large"


async def test_a_draft_can_be_deleted_and_an_open_invoice_can_not(harness: StripeHarness) -> None:
    invoices = harness.client().v1.invoices
    draft, opened = await harness.draft(), await harness.open()

    assert (await invoices.delete_async(draft.id)).deleted
    with pytest.raises(stripe.InvalidRequestError, match="only delete draft"):
        await invoices.delete_async(opened.id)
    with pytest.raises(stripe.InvalidRequestError) as gone:
        await invoices.retrieve_async(draft.id)
    assert (gone.value.http_status, gone.value.code) == (404, "resource_missing")


async def test_lists_are_filtered_and_paged_newest_first(harness: StripeHarness) -> None:
    opened = [await harness.open()]
    customer = str(opened[0].customer)
    opened += [await harness.open(customer=customer) for _ in range(4)]
    await harness.open()
    invoices = harness.client().v1.invoices

    page = await invoices.list_async({"customer": customer, "limit": 2, "created": {"gte": opened[0].created}})
    assert page.has_more
    assert [invoice.id async for invoice in page.auto_paging_iter()] == [each.id for each in reversed(opened)]
    assert (await invoices.list_async({"customer": customer, "status": "draft"})).data == []
    assert (await invoices.list_async({"created": {"lt": opened[0].created}})).data == []
    assert (await invoices.list_async({"created": {"gte": opened[0].created + 3_600}})).data == []
    before = await invoices.list_async({"customer": customer, "limit": 1, "ending_before": opened[0].id})
    assert [invoice.id for invoice in before.data] == [opened[1].id]


async def test_the_invoice_of_a_charge_is_found_through_its_payments(harness: StripeHarness) -> None:
    invoice = await harness.open()
    await harness.act(invoice, "pay")
    payments = (await harness.fetch(invoice)).payments
    assert payments is not None
    intent = str(payments.data[0].payment.payment_intent)

    found = await harness.client().v1.invoice_payments.list_async(
        {"payment": {"type": "payment_intent", "payment_intent": intent}}
    )

    assert [payment.invoice for payment in found.data] == [invoice.id]


async def test_metadata_is_merged_and_an_empty_value_removes_an_entry(harness: StripeHarness) -> None:
    invoice = await harness.open()

    changed = await harness.client().v1.invoices.update_async(invoice.id, {"metadata": {"note": "1", "top_up_id": ""}})

    assert changed.metadata is not None
    assert changed.metadata.to_dict() == {"note": "1"}


REFUSALS: list[tuple[str, str, dict[str, Any], int, str | None, str | None]] = [
    ("post", "/v1/customers", {"nmae": "typo"}, 400, "parameter_unknown", "nmae"),
    ("get", "/v1/invoices", {"custmer": "typo"}, 400, "parameter_unknown", "custmer"),
    ("post", "/v1/invoices", {"currency": "idr"}, 400, "parameter_missing", "customer"),
    ("post", "/v1/invoices", {"customer": "cus_unknown"}, 404, "resource_missing", "customer"),
    ("post", "/v1/invoices", {"customer": ""}, 400, "parameter_invalid_empty", "customer"),
    ("post", "/v1/invoices", {"customer": "c", "days_until_due": "soon"}, 400, "parameter_invalid_integer",
     "days_until_due"),
    ("post", "/v1/invoices", {"customer": "c", "auto_advance": "maybe"}, 400, None, "auto_advance"),
    ("post", "/v1/invoices", {"customer": "c", "metadata": {"x" * 41: "1"}}, 400, None, f"metadata[{'x' * 41}]"),
    ("post", "/v1/invoices", {"customer": "c", "pending_invoice_items_behavior": "include"}, 400, None,
     "pending_invoice_items_behavior"),
    ("post", "/v1/invoiceitems", {"amount": 1, "invoice": "in_unknown"}, 404, "resource_missing", "invoice"),
    ("post", "/v1/invoiceitems", {"invoice": "i", "unit_amount_decimal": "1e-13"}, 400, None, "unit_amount_decimal"),
    ("get", "/v1/invoices/in_unknown", {}, 404, "resource_missing", "id"),
    ("get", "/v1/invoices", {"limit": 101}, 400, None, "limit"),
    ("get", "/v1/unknown", {}, 404, None, None),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "params", "status", "code", "param"), REFUSALS)
async def test_malformed_calls_are_refused_with_the_codes_of_stripe(
    harness: StripeHarness,
    method: str,
    path: str,
    params: dict[str, Any],
    status: int,
    code: str | None,
    param: str | None,
) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await harness.client().raw_request_async(method, path, **params)

    assert (refused.value.http_status, refused.value.code, refused.value.param) == (status, code, param)
    assert refused.value.request_id


async def test_a_wrong_api_key_is_unauthorized(harness: StripeHarness) -> None:
    with pytest.raises(stripe.AuthenticationError) as refused:
        await harness.client(api_key="sk_test_wrong").v1.customers.create_async({})

    assert refused.value.http_status == 401


async def test_a_field_that_cannot_be_expanded_is_refused(harness: StripeHarness) -> None:
    invoice = await harness.open()

    with pytest.raises(stripe.InvalidRequestError, match="cannot be expanded"):
        await harness.fetch(invoice, expand=["payment_intent"])
    listed = await harness.client().v1.invoices.list_async({"expand": ["data.payments"]})
    payments = listed.data[0].payments
    assert payments is not None
    assert payments.data[0].status == "open"


async def test_an_item_must_match_its_invoice(harness: StripeHarness) -> None:
    items = harness.client().v1.invoice_items
    draft, opened = await harness.draft(), await harness.open()

    with pytest.raises(stripe.InvalidRequestError, match="currency"):
        await items.create_async({"invoice": draft.id, "amount": 100, "currency": "usd"})
    with pytest.raises(stripe.InvalidRequestError, match="another customer"):
        await items.create_async({"invoice": draft.id, "amount": 100, "customer": str(opened.customer)})
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await items.create_async({"invoice": opened.id, "amount": 100})
    assert refused.value.code == "invoice_not_editable"
