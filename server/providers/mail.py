"""E-mails: the bytes of a message in RFC 5322 and MIME."""

from binascii import b2a_qp
from dataclasses import dataclass
from email.header import Header
from email.utils import formatdate
from functools import lru_cache

from server.providers.templates import Rendered


@dataclass(frozen=True, slots=True)
class Mail:
    """The variable headers of an e-mail, and its two bodies."""

    sender: str
    """An ASCII address."""
    sender_name: str
    recipient: str
    """Normalized, so it cannot contain a connection break."""
    message_id: str
    rendered: Rendered
    token: str = ""
    """By which a report finds the delivery; empty: the mail is none."""
    headers: tuple[str, ...] = ()
    """Further lines of the header, the same for every mail."""


def compose(mail: Mail) -> bytes:
    """The e-mail in RFC 5322 and MIME, with CRLF line ends, before its dots are doubled.

    Bodies are quoted-printable, which every relay accepts. Headers are ASCII, except a recipient of RFC 6532.
    """
    # Quoted-printable writes every "=" as "=3D", so no body can contain the boundary.
    boundary = "=_alternative"
    sender = f"{_encoded(mail.sender_name)} <{mail.sender}>" if mail.sender_name else mail.sender
    lines = (
        f"From: {sender}",
        f"To: {mail.recipient}",
        f"Subject: {_encoded(mail.rendered.subject)}",
        f"Date: {formatdate()}",
        f"Message-ID: <{mail.message_id}>",
        # RFC 3834: asks for no automatic replies.
        "Auto-Submitted: auto-generated",
        *([f"Pulsa-Delivery: {mail.token}"] if mail.token else ()),
        *mail.headers,
        "MIME-Version: 1.0",
        f'Content-Type: multipart/alternative; boundary="{boundary}"',
        "",
        *_part("plain", mail.rendered.text, boundary),
        *_part("html", mail.rendered.html, boundary),
        f"--{boundary}--",
        "",
    )
    return "\r\n".join(lines).encode()


def _part(subtype: str, text: str, boundary: str) -> tuple[str, ...]:
    return (
        f"--{boundary}",
        f"Content-Type: text/{subtype}; charset=utf-8",
        "Content-Transfer-Encoding: quoted-printable",
        "",
        b2a_qp(text.replace("\n", "\r\n").encode()).decode("ascii"),
    )


@lru_cache(maxsize=256)
def _encoded(words: str) -> str:
    """A header value in ASCII (RFC 2047). Cached: subjects and sender names are few."""
    # Always encoded: a plain name with a comma or a dot would need quotes.
    return Header(words, "utf-8", header_name="Subject").encode(linesep="\r\n")
