"""What providers report later, as requests of ReportDelivery and ReportMail: pure functions for their receiver.

Each checks the signature of a callback, and raises ForgedReport unless it is right. A report that changes nothing, such
as "queued", gives no request. A mail has no signature: its token is signed, and the server checks it.
"""

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Iterator, Mapping
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from pulsa.otp.v1.delivery_pb2 import DELIVERY_STATUS_DELIVERED, DELIVERY_STATUS_FAILED, DELIVERY_STATUS_SENT
from pulsa.otp.v1.otp_service_pb2 import ReportDeliveryRequest, ReportMailRequest
from pulsa.otp.v1.suppression_pb2 import SUPPRESSION_REASON_BOUNCE, SUPPRESSION_REASON_COMPLAINT

LONGEST_AGE_SECONDS: Final = 300
"""Of a Vonage report, by the timestamp that is signed with it."""

_TWILIO: Final = {
    "sent": DELIVERY_STATUS_SENT,
    "delivered": DELIVERY_STATUS_DELIVERED,
    "read": DELIVERY_STATUS_DELIVERED,
    "undelivered": DELIVERY_STATUS_FAILED,
    "failed": DELIVERY_STATUS_FAILED,
}
_VONAGE: Final = {
    "accepted": DELIVERY_STATUS_SENT,
    "delivered": DELIVERY_STATUS_DELIVERED,
    "expired": DELIVERY_STATUS_FAILED,
    "failed": DELIVERY_STATUS_FAILED,
    "rejected": DELIVERY_STATUS_FAILED,
}
_META: Final = {
    "sent": DELIVERY_STATUS_SENT,
    "delivered": DELIVERY_STATUS_DELIVERED,
    "read": DELIVERY_STATUS_DELIVERED,
    "failed": DELIVERY_STATUS_FAILED,
}
_DSN: Final = {
    "delivered": DELIVERY_STATUS_DELIVERED,
    "relayed": DELIVERY_STATUS_SENT,
    "failed": DELIVERY_STATUS_FAILED,
}
_TOKEN: Final = re.compile(r"(?i)(?:^|[^a-z0-9])pulsa-delivery:\s*([a-z2-7]{39})\b")
_BOUNCED: Final = re.compile(r"(?i)\+([a-z2-7]{39})@")
# RFC 3463: no such mailbox or domain, a bad address, moved, a domain without mail, and a mailbox that is switched off.
_NO_MORE_MAIL: Final = frozenset({"5.1.0", "5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10", "5.2.1"})


class ForgedReport(ValueError):
    """The callback was not signed with this secret, or is too old."""


def twilio_report(auth_token: str, url: str, form: Mapping[str, str], signature: str) -> ReportDeliveryRequest | None:
    """The report of a status callback: its whole URL with the query, its form, and X-Twilio-Signature.

    https://www.twilio.com/docs/usage/security#validating-requests
    """
    signed = url + "".join(f"{name}{form[name]}" for name in sorted(form))
    mac = hmac.digest(auth_token.encode(), signed.encode(), "sha1")
    _check(base64.b64encode(mac).decode(), signature)
    references = parse_qs(urlsplit(url).query).get("reference", [""])
    return _request(references[0], _TWILIO.get(form.get("MessageStatus", "")), "twilio", form.get("ErrorCode", ""))


def vonage_report(
    signature_secret: str, fields: Mapping[str, str], *, now: float, method: str = "sha256"
) -> ReportDeliveryRequest | None:
    """The report of a delivery receipt: its query or form, signed by HMAC with `method`; `now` is Unix time.

    https://developer.vonage.com/en/getting-started/concepts/signing-messages
    """
    signed = "".join(
        f"&{name}={fields[name].replace('&', '_').replace('=', '_')}" for name in sorted(fields) if name != "sig"
    )
    mac = hmac.digest(signature_secret.encode(), signed.encode(), method).hex()
    _check(mac, fields.get("sig", "").lower())
    timestamp = fields.get("timestamp", "")
    if not timestamp.isdecimal() or abs(now - int(timestamp)) > LONGEST_AGE_SECONDS:
        raise ForgedReport("too old")
    return _request(
        fields.get("client-ref", ""), _VONAGE.get(fields.get("status", "")), "vonage", fields.get("err-code", "")
    )


def meta_reports(app_secret: str, body: bytes, signature: str) -> list[ReportDeliveryRequest]:
    """The reports of a webhook of the WhatsApp Cloud API: its raw body, and X-Hub-Signature-256.

    https://developers.facebook.com/docs/graph-api/webhooks/getting-started#validate-payloads
    """
    _check("sha256=" + hmac.new(app_secret.encode(), body, hashlib.sha256).hexdigest(), signature)
    requests = []
    for status in _statuses(json.loads(body)):
        errors = status.get("errors") or [{}]
        request = _request(
            str(status.get("biz_opaque_callback_data", "")),
            _META.get(str(status.get("status"))),
            "whatsapp",
            str(errors[0].get("code", "")),
        )
        if request:
            if str(status.get("timestamp", "")).isdecimal():
                request.report_time.CopyFrom(Timestamp(seconds=int(status["timestamp"])))
            requests.append(request)
    return requests


def mail_report(content: bytes, recipient: str = "") -> ReportMailRequest | None:
    """The report in a mail: a delivery status notification (RFC 3464) or a complaint (ARF, RFC 5965).

    `recipient` is the envelope's, which has the token where PULSA_SMTP_BOUNCE_ADDRESS is set; otherwise the token is in
    the headers of the original mail, which most reports quote. None for any other mail, and without a token.
    """
    mail = message_from_bytes(content, policy=policy.default)
    if mail.get_content_type() != "multipart/report":
        return None
    token = _BOUNCED.search(recipient) or _TOKEN.search(content.decode("ascii", "replace"))
    if token is None:
        return None
    request = ReportMailRequest(mail_token=token[1].lower())
    for part in mail.walk():
        if part.get_content_type() == "message/feedback-report":
            request.status = DELIVERY_STATUS_DELIVERED
            request.suppression_reason = SUPPRESSION_REASON_COMPLAINT
            return request
        if part.get_content_type() == "message/delivery-status":
            return _notified(part, request)
    return None


def _notified(part: EmailMessage, request: ReportMailRequest) -> ReportMailRequest | None:
    """The request for the only recipient of a notification; None for one that only tells of a delay."""
    for fields in part.iter_parts():
        status = _DSN.get(str(fields.get("Action", "")).strip().lower())
        if status is None:
            continue
        request.status = status
        if status == DELIVERY_STATUS_FAILED:
            code = str(fields.get("Status", "")).split()[:1]
            if code and re.fullmatch(r"[245](\.\d{1,3}){2}", code[0]):
                request.failure_reason = "smtp_" + code[0].replace(".", "_")
            if code and code[0] in _NO_MORE_MAIL:
                request.suppression_reason = SUPPRESSION_REASON_BOUNCE
        return request
    return None


def _statuses(document: Any) -> Iterator[Mapping[str, Any]]:
    for entry in document.get("entry", ()):
        for change in entry.get("changes", ()):
            yield from change.get("value", {}).get("statuses", ())


def _request(reference: str, status: Any, provider: str, code: str) -> ReportDeliveryRequest | None:
    """The request for a reference `<organization_id>/<delivery_id>`; None for another one, or a status of no use."""
    organization_id, _, delivery_id = reference.partition("/")
    if status is None or not organization_id or not re.fullmatch("[0-9a-f]{32}", delivery_id):
        return None
    request = ReportDeliveryRequest(
        organization_id=organization_id, delivery_id=str(UUID(hex=delivery_id)), status=status
    )
    if status == DELIVERY_STATUS_FAILED and code.isalnum():
        request.failure_reason = f"{provider}_{code}"[:64]
    return request


def _check(expected: str, given: str) -> None:
    if not hmac.compare_digest(expected.encode(), given.encode()):
        raise ForgedReport("wrong signature")
