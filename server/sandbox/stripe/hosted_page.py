"""The page that a customer sees behind an invoice's link: what is due, and a Pay button that needs no JavaScript."""

from datetime import UTC, datetime
from html import escape
from string import Template

from server.sandbox.stripe.books import Object
from server.sandbox.stripe.money import display

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
<title>Invoice $number</title>
<style>
  body { margin: 0; background: #f4f5f8; color: #1a1f36; font: 16px/1.5 system-ui, sans-serif; }
  main { max-width: 26rem; margin: 4rem auto; padding: 2rem; background: #fff; border-radius: 12px;
         box-shadow: 0 2px 12px rgb(26 31 54 / 12%); }
  h1 { margin: 0; font-size: 2.25rem; }
  .status { float: right; padding: .1rem .75rem; border-radius: 1rem; background: #e3e8ee; font-weight: 600; }
  .paid { background: #d7f7c2; color: #05690d; }
  dl { display: grid; grid-template-columns: auto 1fr; gap: .25rem 1rem; }
  dt { color: #687385; }
  dd { margin: 0; text-align: right; }
  hr { margin: 1rem 0; border: 0; border-top: 1px solid #e3e8ee; }
  button { width: 100%; padding: .8rem; border: 0; border-radius: 8px; background: #635bff; color: #fff; font: inherit;
           font-weight: 600; cursor: pointer; }
  footer { margin-top: 1.5rem; color: #687385; font-size: .85rem; }
  a { color: #635bff; }
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

_PAY = Template('<form method="post" action="$action"><button type="submit" id="pay">Pay $amount</button></form>')


def hosted_page(invoice: Object, *, token: str) -> str:
    """The whole page as HTML; everything that a caller named is escaped."""
    currency = invoice["currency"]
    payable = invoice["status"] in {"open", "uncollectible"}
    pay = _PAY.substitute(action=f"/i/{token}/pay", amount=display(invoice["amount_remaining"], currency))
    return _PAGE.substitute(
        number=escape(invoice["number"]),
        status=invoice["status"],
        status_text=_STATUS[invoice["status"]],
        total=display(invoice["total"], currency),
        customer=escape(invoice["customer_name"] or invoice["customer_email"] or invoice["customer"]),
        due=_date(invoice["due_date"]),
        lines=_lines(invoice),
        action=pay if payable else "",
        pdf=f"/i/{token}/pdf",
    )


def _lines(invoice: Object) -> str:
    currency = invoice["currency"]
    rows = [(line["description"] or "Item", line["amount"]) for line in invoice["lines"]["data"]]
    rows += [("Tax", tax["amount"]) for tax in invoice["total_taxes"]]
    return "".join(f"<dt>{escape(name)}</dt><dd>{display(amount, currency)}</dd>" for name, amount in rows)


def _date(moment: int | None) -> str:
    return "on receipt" if moment is None else f"{datetime.fromtimestamp(moment, UTC):%d %B %Y}"
