"""The invoice as a PDF: one page of text, written by hand so that no library is needed (ISO 32000-1, 7.5)."""

from server.sandbox.stripe.books import Object
from server.sandbox.stripe.money import display


def invoice_pdf(invoice: Object) -> bytes:
    """A one-page PDF with number, amount, status and lines."""
    currency = invoice["currency"]
    lines = [
        f"{line['description'] or 'Item'}: {display(line['amount'], currency)}" for line in invoice["lines"]["data"]
    ]
    return document(
        [
            f"Invoice {invoice['number']}",
            f"Total: {display(invoice['total'], currency)}",
            f"Paid: {display(invoice['amount_paid'], currency)}",
            f"Status: {invoice['status']}",
            "",
            *lines,
        ]
    )


def document(lines: list[str]) -> bytes:
    """One A4 page with these lines of text. What Latin-1 cannot show becomes a question mark."""
    shown = " T* ".join(f"({_escaped(line)}) Tj" for line in lines)
    content = f"BT /F1 14 Tf 24 TL 72 760 Td {shown} ET".encode("latin-1", "replace")
    return _file(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Resources 6 0 R >>",
            b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
            b"<< /Font << /F1 5 0 R >> >>",
        ]
    )


def _file(objects: list[bytes]) -> bytes:
    written = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(written))
        written += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    entries = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    table = b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, entries)
    return written + table + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(written))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
