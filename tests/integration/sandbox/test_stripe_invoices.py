"""How an invoice is settled: by a payment, by credit, by more than was due, or not at all."""

import pytest
import stripe

from tests.integration.sandbox.stripe_harness import StripeHarness


async def test_an_invoice_below_the_minimum_charge_is_paid_without_a_payment(harness: StripeHarness) -> None:
    invoice = await harness.open(amount=49, currency="usd")

    assert (invoice.status, invoice.total, invoice.amount_due, invoice.amount_paid) == ("paid", 49, 0, 0)
    assert (invoice.starting_balance, invoice.ending_balance) == (0, 49)
    assert (await harness.client().v1.customers.retrieve_async(str(invoice.customer))).balance == 49


async def test_the_minimum_charge_can_be_set(harness: StripeHarness) -> None:
    await harness.control("PATCH /settings", {"minimum_charges": {"idr": 100}})

    assert (await harness.open(amount=100)).status == "open"
    assert (await harness.open(amount=99)).status == "paid"


async def test_the_customers_balance_is_applied_and_restored_by_a_void(harness: StripeHarness) -> None:
    first = await harness.draft()
    await harness.act(first, "set_customer_balance", amount=-1_000_000)

    opened = await harness.client().v1.invoices.finalize_invoice_async(first.id)
    assert (opened.total, opened.amount_due) == (15_000_000, 14_000_000)
    assert (opened.starting_balance, opened.ending_balance) == (-1_000_000, 0)

    await harness.client().v1.invoices.void_invoice_async(opened.id)
    assert (await harness.client().v1.customers.retrieve_async(str(first.customer))).balance == -1_000_000


async def test_a_large_credit_pays_the_whole_invoice(harness: StripeHarness) -> None:
    draft = await harness.draft(amount=15_000_000)
    await harness.act(draft, "set_customer_balance", amount=-20_000_000)

    paid = await harness.client().v1.invoices.finalize_invoice_async(draft.id)

    assert (paid.status, paid.amount_paid, paid.ending_balance) == ("paid", 0, -5_000_000)


async def test_tax_is_added_to_the_total(harness: StripeHarness) -> None:
    await harness.control("PATCH /settings", {"tax_percent": "11"})

    invoice = await harness.open(amount=15_000_000)

    assert (invoice.subtotal, invoice.total, invoice.amount_due) == (15_000_000, 16_650_000, 16_650_000)
    assert invoice.total_taxes is not None
    assert [tax.amount for tax in invoice.total_taxes] == [1_650_000]


async def test_a_partial_payment_leaves_the_invoice_open(harness: StripeHarness) -> None:
    invoice = await harness.open(amount=15_000_000)

    await harness.act(invoice, "pay", amount=5_000_000)

    partly = await harness.fetch(invoice)
    assert (partly.status, partly.amount_paid, partly.amount_remaining) == ("open", 5_000_000, 10_000_000)
    assert payments(partly) == [("paid", 5_000_000, "payment_intent"), ("open", None, "payment_intent")]
    await harness.act(invoice, "pay")
    assert (await harness.fetch(invoice)).amount_paid == 15_000_000


async def test_an_overpayment_is_added_to_the_customers_balance(harness: StripeHarness) -> None:
    invoice = await harness.open(amount=15_000_000)

    await harness.act(invoice, "pay", amount=15_500_000)

    paid = await harness.fetch(invoice)
    assert (paid.status, paid.amount_paid, paid.amount_overpaid) == ("paid", 15_000_000, 500_000)
    assert (await harness.client().v1.customers.retrieve_async(str(paid.customer))).balance == -500_000
    await harness.receiver.wait_for("invoice.finalized", "invoice.paid", "invoice.overpaid")


async def test_a_payment_out_of_band_creates_a_payment_record_and_no_charge(harness: StripeHarness) -> None:
    by_api, by_hand = await harness.open(), await harness.open()

    await harness.client().v1.invoices.pay_async(by_api.id, {"paid_out_of_band": True})
    await harness.act(by_hand, "pay", out_of_band=True)

    for invoice in (by_api, by_hand):
        paid = await harness.fetch(invoice, expand=("payments", "amount_paid_off_stripe"))
        assert (paid.status, paid.amount_paid, paid.amount_paid_off_stripe) == ("paid", 15_000_000, 15_000_000)
        assert payments(paid) == [("paid", 15_000_000, "payment_record"), ("canceled", None, "payment_intent")]
    assert not harness.sandbox.account.objects["charge"]


async def test_a_credit_note_can_settle_an_invoice_without_a_payment(harness: StripeHarness) -> None:
    invoice = await harness.open()

    await harness.act(invoice, "credit_note")

    settled = await harness.fetch(invoice)
    assert (settled.status, settled.amount_paid, settled.amount_due) == ("paid", 0, 0)
    assert (settled.total, settled.pre_payment_credit_notes_amount) == (15_000_000, 15_000_000)
    await harness.receiver.wait_for("invoice.finalized", "credit_note.created", "invoice.paid")


async def test_a_credit_note_after_the_payment_changes_only_the_credited_amount(harness: StripeHarness) -> None:
    invoice = await harness.open()
    await harness.act(invoice, "pay")

    await harness.act(invoice, "credit_note", amount=1_000)

    credited = await harness.fetch(invoice)
    assert (credited.post_payment_credit_notes_amount, credited.amount_paid) == (1_000, 15_000_000)


async def test_voiding_is_refused_while_a_payment_is_pending(harness: StripeHarness) -> None:
    invoice = await harness.open()
    await harness.act(invoice, "start_payment")

    with pytest.raises(stripe.InvalidRequestError) as refused:
        await harness.client().v1.invoices.void_invoice_async(invoice.id)
    assert refused.value.code == "payment_intent_unexpected_state"
    assert (await harness.fetch(invoice)).status == "open"

    await harness.act(invoice, "pay")
    assert (await harness.fetch(invoice)).status == "paid"


async def test_an_uncollectible_invoice_can_still_be_paid_or_voided(harness: StripeHarness) -> None:
    paid, voided = await harness.open(), await harness.open()
    invoices = harness.client().v1.invoices
    for invoice in (paid, voided):
        assert (await invoices.mark_uncollectible_async(invoice.id)).status == "uncollectible"

    await harness.act(paid, "pay")
    await invoices.void_invoice_async(voided.id)

    assert (await harness.fetch(paid)).status == "paid"
    assert (await harness.fetch(voided)).status == "void"
    assert payments(await harness.fetch(voided)) == [("canceled", None, "payment_intent")]


async def test_a_paid_or_void_invoice_can_neither_be_paid_nor_voided(harness: StripeHarness) -> None:
    invoices = harness.client().v1.invoices
    paid, voided = await harness.open(), await harness.open()
    await harness.act(paid, "pay")
    await harness.act(voided, "void")

    for invoice in (paid, voided):
        with pytest.raises(stripe.InvalidRequestError):
            await invoices.pay_async(invoice.id, {"payment_method": "pm_card_visa"})
        with pytest.raises(stripe.InvalidRequestError):
            await invoices.void_invoice_async(invoice.id)
        with pytest.raises(stripe.InvalidRequestError):
            await invoices.finalize_invoice_async(invoice.id)


async def test_a_declined_card_leaves_the_invoice_open(harness: StripeHarness) -> None:
    invoice = await harness.open()

    with pytest.raises(stripe.CardError) as declined:
        await harness.client().v1.invoices.pay_async(invoice.id, {"payment_method": "pm_card_chargeDeclined"})

    assert declined.value.code == "card_declined"
    assert (await harness.fetch(invoice)).attempted
    await harness.receiver.wait_for("invoice.finalized", "invoice.payment_failed")


def payments(invoice: stripe.Invoice) -> list[tuple[str, int | None, str]]:
    """Status, amount paid and type of each payment, newest first."""
    assert invoice.payments is not None
    return [(payment.status, payment.amount_paid, payment.payment.type) for payment in invoice.payments.data]
