"""The hosted page and the PDF of an invoice, as a browser without JavaScript uses them."""

import re

import pytest

from server.sandbox.stripe.invoice_pages import format_amount
from tests.integration.sandbox.stripe_harness import StripeHarness


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [
        (15_000_000, "idr", "Rp150.000"),
        (15_000_050, "idr", "Rp150.000,50"),
        (999_999_999_900, "idr", "Rp9.999.999.999"),
        (1_000, "usd", "$10.00"),
        (123_456_789, "usd", "$1,234,567.89"),
        (1_000, "eur", "10.00 EUR"),
    ],
)
def test_amounts_are_formatted_by_currency(amount: int, currency: str, shown: str) -> None:
    assert format_amount(amount, currency) == shown


async def test_the_pay_button_of_the_hosted_page_pays_the_invoice(harness: StripeHarness) -> None:
    invoice = await harness.open(amount=15_000_000)
    page = await text_of(harness, str(invoice.hosted_invoice_url))
    assert str(invoice.number) in page
    assert "Pay Rp150.000" in page
    assert "<script" not in page
    assert not re.search(r"(src|href)=.https?:", page)
    form = re.search(r'<form method="post" action="([^"]+)"><button type="submit"', page)
    assert form

    async with harness.session.post(harness.sandbox.url + form[1]) as response:
        after = await response.text()

    assert response.url.path == form[1].removesuffix("/pay")
    assert '<span class="status paid" id="status">Paid</span>' in after
    assert "<form" not in after
    assert (await harness.fetch(invoice)).status == "paid"
    await harness.receiver.wait_for("invoice.finalized", "invoice.paid")


async def test_a_stale_page_can_pay_neither_a_paid_nor_a_void_invoice(harness: StripeHarness) -> None:
    paid, voided = await harness.open(), await harness.open()
    await harness.act(paid, "pay")
    await harness.act(voided, "void")

    for invoice in (paid, voided):
        async with harness.session.post(f"{invoice.hosted_invoice_url}/pay") as response:
            assert response.status == 409
    assert len(harness.sandbox.account.objects["charge"]) == 1


async def test_a_customers_name_is_escaped_on_the_page(harness: StripeHarness) -> None:
    customer = await harness.client().v1.customers.create_async({"name": "<script>alert(1)</script>"})
    invoice = await harness.open(customer=customer.id)

    page = await text_of(harness, str(invoice.hosted_invoice_url))

    assert "<script" not in page
    assert "&lt;script&gt;" in page


async def test_links_expire_and_the_invoice_has_new_ones(harness: StripeHarness) -> None:
    invoice = await harness.open()

    await harness.act(invoice, "expire_links")

    async with harness.session.get(str(invoice.hosted_invoice_url)) as response:
        assert response.status == 404
    fresh = await harness.fetch(invoice)
    assert "Pay Rp150.000" in await text_of(harness, str(fresh.hosted_invoice_url))


async def test_the_pdf_is_one_well_formed_page(harness: StripeHarness) -> None:
    invoice = await harness.open(amount=15_000_000)

    async with harness.session.get(str(invoice.invoice_pdf)) as response:
        content = await response.read()

    assert response.content_type == "application/pdf"
    assert content.startswith(b"%PDF-1.4\n")
    assert content.endswith(b"%%EOF\n")
    assert f"(Invoice {invoice.number}) Tj".encode() in content
    assert b"(Total: Rp150.000) Tj" in content
    start = int(content.split(b"startxref\n")[1].split(b"\n")[0])
    assert content[start:].startswith(b"xref\n")
    offsets = [int(entry) for entry in re.findall(rb"(\d{10}) 00000 n ", content[start:])]
    for number, offset in enumerate(offsets, start=1):
        assert content[offset:].startswith(b"%d 0 obj\n" % number)
    stream = re.search(rb"/Length (\d+) >>\nstream\n(.*?)\nendstream", content, re.DOTALL)
    assert stream
    assert len(stream[2]) == int(stream[1])


async def text_of(harness: StripeHarness, url: str) -> str:
    async with harness.session.get(url) as response:
        assert response.status == 200
        return await response.text()


async def test_the_start_page_links_every_hosted_page(harness: StripeHarness) -> None:
    assert "No invoice yet" in await text_of(harness, f"{harness.sandbox.url}/")

    invoice = await harness.open(amount=15_000_000)

    page = await text_of(harness, f"{harness.sandbox.url}/")
    assert f'<a href="{str(invoice.hosted_invoice_url).removeprefix(harness.sandbox.url)}">' in page
    assert '<td>Rp150.000</td><td><span class="state waits">open</span>' in page
