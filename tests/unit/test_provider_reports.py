"""pulsa.reports: signatures of callbacks, and what each report says."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from email.message import EmailMessage

import pytest
from pulsa import reports
from pulsa.otp.v1.delivery_pb2 import DELIVERY_STATUS_DELIVERED, DELIVERY_STATUS_FAILED, DELIVERY_STATUS_SENT
from pulsa.otp.v1.suppression_pb2 import (
    SUPPRESSION_REASON_BOUNCE,
    SUPPRESSION_REASON_COMPLAINT,
    SUPPRESSION_REASON_UNSPECIFIED,
)

DELIVERY = "0198f6d2a5f07a43b2a8fa31d1f04b31"
DELIVERY_ID = "0198f6d2-a5f0-7a43-b2a8-fa31d1f04b31"
REFERENCE = f"acme@jakarta/{DELIVERY}"
URL = f"https://hooks.example/twilio?reference=acme%40jakarta%2F{DELIVERY}"
TOKEN = "abcdefghijklmnopqrstuvwxyz234567abcdefg"
NOW = 1_790_000_000


def twilio(form: dict[str, str], *, key: str = "token", url: str = URL) -> str:
    signed = url + "".join(f"{name}{form[name]}" for name in sorted(form))
    return base64.b64encode(hmac.new(key.encode(), signed.encode(), hashlib.sha1).digest()).decode()


def vonage(fields: dict[str, str], *, key: str = "secret") -> dict[str, str]:
    signed = "".join(f"&{name}={fields[name].replace('&', '_').replace('=', '_')}" for name in sorted(fields))
    return fields | {"sig": hmac.new(key.encode(), signed.encode(), hashlib.sha256).hexdigest().upper()}


def meta(*statuses: dict[str, object]) -> bytes:
    return json.dumps({"entry": [{"changes": [{"value": {"statuses": list(statuses)}}]}]}).encode()


def sha256(body: bytes, key: str = "app") -> str:
    return "sha256=" + hmac.new(key.encode(), body, hashlib.sha256).hexdigest()


def notification(action: str, status: str, headers: str = f"Pulsa-Delivery: {TOKEN}") -> bytes:
    """As Postfix writes it (RFC 3464)."""
    return (
        "From: MAILER-DAEMON@relay.example\r\nTo: bounces@pulsa.example\r\nMIME-Version: 1.0\r\n"
        'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\r\n\r\n'
        "--b\r\nContent-Type: text/plain\r\n\r\nSorry.\r\n"
        "--b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; relay.example\r\n\r\n"
        f"Final-Recipient: rfc822; bob@mail.example\r\nAction: {action}\r\nStatus: {status}\r\n\r\n"
        f"--b\r\nContent-Type: text/rfc822-headers\r\n\r\nSubject: Your code\r\n{headers}\r\n\r\n--b--\r\n"
    ).encode()


COMPLAINT = (
    "From: abuse@mail.example\r\nMIME-Version: 1.0\r\n"
    'Content-Type: multipart/report; report-type=feedback-report; boundary="b"\r\n\r\n'
    "--b\r\nContent-Type: text/plain\r\n\r\nA complaint.\r\n"
    "--b\r\nContent-Type: message/feedback-report\r\n\r\nFeedback-Type: abuse\r\nVersion: 1\r\n\r\n"
    f"--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: Your code\r\nPulsa-Delivery: {TOKEN}\r\n\r\nx\r\n--b--\r\n"
).encode()


@pytest.mark.parametrize(
    ("status", "code", "expected", "reason"),
    [
        ("delivered", "", DELIVERY_STATUS_DELIVERED, ""),
        ("sent", "", DELIVERY_STATUS_SENT, ""),
        ("undelivered", "30005", DELIVERY_STATUS_FAILED, "twilio_30005"),
        ("failed", "", DELIVERY_STATUS_FAILED, ""),
        ("queued", "", None, ""),
    ],
)
def test_a_callback_of_twilio(status: str, code: str, expected: int | None, reason: str) -> None:
    form = {"MessageSid": "SM1", "MessageStatus": status} | ({"ErrorCode": code} if code else {})

    request = reports.twilio_report("token", URL, form, twilio(form))

    if expected is None:
        assert request is None
    else:
        assert request is not None
        found = (request.organization_id, request.delivery_id, request.status, request.failure_reason)
        assert found == ("acme@jakarta", DELIVERY_ID, expected, reason)


def test_a_receipt_of_vonage_with_an_ampersand_in_a_value() -> None:
    fields = {"client-ref": REFERENCE, "status": "failed", "err-code": "6", "timestamp": str(NOW), "to": "a&b=c"}

    request = reports.vonage_report("secret", vonage(fields), now=NOW + 300)

    assert request is not None
    assert (request.status, request.failure_reason) == (DELIVERY_STATUS_FAILED, "vonage_6")
    with pytest.raises(reports.ForgedReport, match="too old"):
        reports.vonage_report("secret", vonage(fields), now=NOW + 301)


def test_the_statuses_of_a_webhook_of_meta() -> None:
    failed: dict[str, object] = {
        "status": "failed",
        "biz_opaque_callback_data": REFERENCE,
        "errors": [{"code": 131026}],
    }
    read: dict[str, object] = {"status": "read", "biz_opaque_callback_data": REFERENCE, "timestamp": str(NOW)}
    body = meta(failed, read, {"status": "read", "biz_opaque_callback_data": "of another service"})

    requests = reports.meta_reports("app", body, sha256(body))

    assert [(one.status, one.failure_reason, one.report_time.seconds) for one in requests] == [
        (DELIVERY_STATUS_FAILED, "whatsapp_131026", 0),
        (DELIVERY_STATUS_DELIVERED, "", NOW),
    ]


def test_a_callback_with_another_signature_is_refused() -> None:
    form, body = {"MessageStatus": "delivered"}, meta()
    fields = {"client-ref": REFERENCE, "status": "delivered", "timestamp": str(NOW)}
    forged: list[Callable[[], object]] = [
        lambda: reports.twilio_report("token", URL, form, twilio(form, key="other")),
        lambda: reports.twilio_report("token", URL + "0", form, twilio(form)),
        lambda: reports.twilio_report("token", URL, form, "\u00e9"),
        lambda: reports.vonage_report("secret", vonage(fields, key="other"), now=NOW),
        lambda: reports.vonage_report("secret", vonage(fields) | {"status": "failed"}, now=NOW),
        lambda: reports.vonage_report("secret", fields, now=NOW),
        lambda: reports.meta_reports("app", body, sha256(body, "other")),
    ]

    for check in forged:
        with pytest.raises(reports.ForgedReport):
            check()


@pytest.mark.parametrize(
    ("action", "code", "status", "suppression"),
    [
        ("failed", "5.1.1", DELIVERY_STATUS_FAILED, SUPPRESSION_REASON_BOUNCE),
        ("failed", "5.2.2", DELIVERY_STATUS_FAILED, SUPPRESSION_REASON_UNSPECIFIED),
        ("failed", "4.4.7", DELIVERY_STATUS_FAILED, SUPPRESSION_REASON_UNSPECIFIED),
        ("delivered", "2.0.0", DELIVERY_STATUS_DELIVERED, SUPPRESSION_REASON_UNSPECIFIED),
    ],
)
def test_a_notification_tells_the_status_and_whether_the_address_takes_mail(
    action: str, code: str, status: int, suppression: int
) -> None:
    request = reports.mail_report(notification(action, code))

    assert request is not None
    assert (request.mail_token, request.status, request.suppression_reason) == (TOKEN, status, suppression)
    assert request.failure_reason == ("smtp_" + code.replace(".", "_") if action == "failed" else "")


def test_a_complaint_suppresses_and_tells_that_the_mail_was_delivered() -> None:
    request = reports.mail_report(COMPLAINT)

    assert request is not None
    assert (request.mail_token, request.status) == (TOKEN, DELIVERY_STATUS_DELIVERED)
    assert request.suppression_reason == SUPPRESSION_REASON_COMPLAINT


def test_a_token_comes_from_the_envelope_when_the_original_mail_is_left_out() -> None:
    bounce = notification("failed", "5.1.1", headers="X-Other: 1")

    request = reports.mail_report(bounce, f"Bounces+{TOKEN.upper()}@pulsa.example")

    assert request is not None
    assert request.mail_token == TOKEN
    assert reports.mail_report(bounce) is None


def test_other_mails_give_no_report() -> None:
    mail = EmailMessage()
    mail.set_content(f"Pulsa-Delivery: {TOKEN}")

    assert reports.mail_report(mail.as_bytes()) is None
    assert reports.mail_report(notification("delayed", "4.4.1")) is None
    assert reports.mail_report(b"") is None
