"""An invoice's hosted page, which pays without JavaScript and without money, and its PDF."""

from datetime import UTC, datetime
from decimal import Decimal
from html import escape
from string import Template

from server.sandbox.stripe.account import Object

_MINOR_UNITS = 100
_STATUS = {
    "open": "Due",
    "paid": "Paid",
    "void": "Void",
    "uncollectible": "Overdue",
}

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Invoice $number</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; --page: #f4f5f8; --card: #fff; --text: #1a1f36; --faint: #566070; --line: #e3e8ee;
          --control: #c9d0da; --strong: #5851e0; --link: #4a43c9; --good: #d7f7c2; --on-good: #05690d;
          --problem: #a41c1c; }
  @media (prefers-color-scheme: dark) {
    :root { --page: #12141c; --card: #1c2030; --text: #eceef5; --faint: #aab2c2; --line: #363c4e; --control: #5c6479;
            --link: #b5b0ff; --good: #123d17; --on-good: #b9f2c9; --problem: #ffb4b4; }
  }
  body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
  main { box-sizing: border-box; max-width: 28rem; margin: 2rem auto; padding: 2rem; background: var(--card);
         border-radius: 12px; box-shadow: 0 2px 12px rgb(26 31 54 / 12%); }
  h1 { margin: 0; font-size: 2.25rem; }
  .status { float: right; padding: .1rem .75rem; border-radius: 1rem; background: var(--line); font-weight: 600; }
  .paid { background: var(--good); color: var(--on-good); }
  dl { display: grid; grid-template-columns: auto 1fr; gap: .25rem 1rem; }
  dt { color: var(--faint); }
  dd { margin: 0; text-align: right; }
  hr { margin: 1rem 0; border: 0; border-top: 1px solid var(--line); }
  button { width: 100%; padding: .8rem; border: 1px solid transparent; border-radius: 8px; background: var(--strong);
           color: #fff; font: inherit; font-weight: 600; cursor: pointer; }
  footer { margin-top: 1.5rem; color: var(--faint); font-size: .85rem; }
  a { color: var(--link); }
  form { margin-top: .5rem; }
  .other { border-color: var(--control); background: var(--card); color: var(--text); font-weight: 400; }
  .declined { color: var(--problem); }
  :focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
</style>
</head>
<body>
<main>
<span class="status $status" id="status">$status_text</span>
<h1>$total</h1>
<dl>
<dt>Invoice</dt><dd id="number">$number</dd>
<dt>To</dt><dd>$customer</dd>
<dt>Due</dt><dd>$due</dd>
</dl>
<hr>
<dl>$lines</dl>
<hr>
$action
<footer><a href="$pdf" id="pdf">Download PDF</a><br>Sandbox: no real money moves.</footer>
</main>
</body>
</html>
""")

_CARD = (
    ("pay", "Pay {amount} by card"),
    ("decline", "Pay with a card that is declined"),
    ("transfer", "Pay by virtual account"),
)
_TRANSFER = (("pay", "Let the transfer of {amount} arrive"), ("decline", "Let the transfer fail"))
_WAITS = "<p>Transfer {amount} to the virtual account 8808 0123 4567. The payment is pending until it arrives.</p>"


def hosted_page(invoice: Object, *, token: str, pending: bool, declined: bool = False) -> str:
    """The page as HTML; text from callers is escaped. `pending`: a transfer was begun. `declined`: the last payment."""
    currency = invoice["currency"]
    payable = invoice["status"] in {"open", "uncollectible"}
    action = _actions(token, format_amount(invoice["amount_remaining"], currency), pending=pending)
    if declined:
        action = f'<p class="declined" role="alert">The payment was declined. Try another way to pay.</p>{action}'
    return _PAGE.substitute(
        number=escape(invoice["number"]),
        status=invoice["status"],
        status_text=_STATUS[invoice["status"]],
        total=format_amount(invoice["total"], currency),
        customer=escape(invoice["customer_name"] or invoice["customer_email"] or invoice["customer"]),
        due=_date(invoice["due_date"]),
        lines=_lines(invoice),
        action=action if payable else "",
        pdf=f"/i/{token}/pdf",
    )


def _actions(token: str, amount: str, *, pending: bool) -> str:
    """A button for each way in which a payment can go on."""
    forms = "".join(
        f'<form method="post" action="/i/{token}/{path}"><button type="submit" id="{path}"'
        f" class={'primary' if path == 'pay' else 'other'}>{text.format(amount=amount)}</button></form>"
        for path, text in (_TRANSFER if pending else _CARD)
    )
    return _WAITS.format(amount=amount) + forms if pending else forms


def invoice_pdf(invoice: Object) -> bytes:
    """A one-page PDF with number, amount, status and lines."""
    currency = invoice["currency"]
    lines = [
        f"{line['description'] or 'Item'}: {format_amount(line['amount'], currency)}"
        for line in invoice["lines"]["data"]
    ]
    return _pdf_document(
        [
            f"Invoice {invoice['number']}",
            f"Total: {format_amount(invoice['total'], currency)}",
            f"Paid: {format_amount(invoice['amount_paid'], currency)}",
            f"Status: {invoice['status']}",
            "",
            *lines,
        ]
    )


def _pdf_document(lines: list[str]) -> bytes:
    """One A4 page with these lines of text, written without a library (ISO 32000-1, 7.5).

    Characters outside Latin-1 become question marks.
    """
    shown = " T* ".join(f"({_pdf_escaped(line)}) Tj" for line in lines)
    content = f"BT /F1 14 Tf 24 TL 72 760 Td {shown} ET".encode("latin-1", "replace")
    return _pdf_file(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Resources 6 0 R >>",
            b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
            b"<< /Font << /F1 5 0 R >> >>",
        ]
    )


def format_amount(amount: int, currency: str) -> str:
    """`Rp150.000`, `$10.00` or `10.00 EUR`. Every currency here has two decimals, as Stripe counts rupiah too."""
    number = Decimal(amount) / _MINOR_UNITS
    if currency == "idr":
        shown = f"{number:,.0f}" if amount % _MINOR_UNITS == 0 else f"{number:,.2f}"
        return "Rp" + shown.translate(str.maketrans(",.", ".,"))
    return f"${number:,.2f}" if currency == "usd" else f"{number:,.2f} {currency.upper()}"


def _lines(invoice: Object) -> str:
    currency = invoice["currency"]
    rows = [(line["description"] or "Item", line["amount"]) for line in invoice["lines"]["data"]]
    rows += [("Tax", tax["amount"]) for tax in invoice["total_taxes"]]
    return "".join(f"<dt>{escape(name)}</dt><dd>{format_amount(amount, currency)}</dd>" for name, amount in rows)


def _date(moment: int | None) -> str:
    return "on receipt" if moment is None else f"{datetime.fromtimestamp(moment, UTC):%d %B %Y}"


def _pdf_file(objects: list[bytes]) -> bytes:
    written = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(written))
        written += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    entries = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    table = b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, entries)
    return written + table + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(written))


def _pdf_escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
