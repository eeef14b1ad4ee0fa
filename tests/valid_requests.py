"""A valid request of any type, filled field by field: a field's name means the same in every request."""

from typing import Any
from uuid import uuid4

from google.protobuf.descriptor import Descriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from pulsa.credit.v1.channel_pb2 import Channel
from pulsa.credit.v1.ledger_entry_pb2 import LedgerEntryKind
from pulsa.credit.v1.top_up_pb2 import TopUpStatus
from pulsa.otp.v1.delivery_pb2 import DeliveryStatus
from pulsa.otp.v1.otp_pb2 import OtpStatus
from pulsa.otp.v1.settings_pb2 import NumberType


def valid_fields() -> dict[str, Any]:
    """A valid value for every field name, with new ids."""
    return {
        "organization_id": "acme",
        **{name: str(uuid4()) for name in ("request_id", "otp_id", "top_up_id", "delivery_id")},
        "page_size": 10,
        "page_token": "token",
        "statuses": [TopUpStatus.TOP_UP_STATUS_OPEN],
        "otp_statuses": [OtpStatus.OTP_STATUS_EXPIRED],
        "channels": [Channel.CHANNEL_SMS],
        "kinds": [LedgerEntryKind.LEDGER_ENTRY_KIND_SEND],
        "purposes": ["login"],
        "reference_id": str(uuid4()),
        "start_time": Timestamp(seconds=1_700_000_000),
        "end_time": Timestamp(seconds=1_790_000_000),
        "time": Timestamp(seconds=1_790_000_000),
        "with_runway": False,
        "with_conversions": True,
        "start_month": "2026-01",
        "end_month": "2026-02",
        "resume_token": "",
        "cursor": "",
        "sequence": 1,
        "from_oldest": False,
        "start_date": "2026-01-31",
        "end_date": "2026-02-28",
        "credits": 1000,
        "currency_code": "IDR",
        "billing_email": "billing@example.com",
        "billing_name": "Acme",
        "billing_address": {"country": "ID", "line1": "Jalan Merdeka 1", "city": "Jakarta", "postal_code": "10110"},
        "tax_id_type": "id_npwp",
        "tax_id": "12.345.678.9-012.345",
        "resolve_credits": 5,
        "low_balance_threshold": 100,
        "alert_email": "alerts@example.com",
        "time_zone": "Asia/Jakarta",
        "automatic_settings": valid_automatic_settings(),
        "consent_text": "",
        "return_url": "https://app.example.com/billing?saved=1",
        "adjust_credits": -5,
        "reason": "A goodwill gesture.",
        "payload": b"{}",
        "signature": "t=1,v1=00",
        "destination": {"email": "someone@example.com"},
        "fallbacks": [{"destination": {"sms": "+6281234567890"}, "after": Duration(seconds=60)}],
        "purpose": "login",
        "locale": "id-ID",
        "code_length": 6,
        "ttl": Duration(seconds=300),
        "max_attempts": 5,
        "context": "payment-1",
        "web_otp_domain": "example.com",
        "sms_app_hash": "",
        "metadata": {"page": "checkout"},
        "validate_only": False,
        "compact": True,
        "requests": [valid_send()],
        "code": "123456",
        "wrong_code_as_result": False,
        "status": DeliveryStatus.DELIVERY_STATUS_DELIVERED,
        "failure_reason": "",
        "mail_token": "a" * 39,
        "suppression_reason": 1,
        "report_time": Timestamp(seconds=1_790_000_000),
        "settings": valid_settings(),
        "update_mask": {"paths": ["*"]},
        "expected_version": 0,
    }


def valid_send() -> dict[str, Any]:
    """A request of a batch, with a new id."""
    return {
        "organization_id": "acme",
        "request_id": str(uuid4()),
        "destination": {"email": "someone@example.com"},
        "purpose": "login",
    }


def valid_settings() -> dict[str, Any]:
    """Some settings that are within the operator's limits."""
    return {
        "brand_name": "Acme",
        "senders": [{"channel": Channel.CHANNEL_SMS, "country_code": "ID", "sender_id": "Acme"}],
        "email_reply_to": "help@example.com",
        "allowed_areas": ["ID", "+12025"],
        "number_types": [NumberType.NUMBER_TYPE_MOBILE],
        "default_fallbacks": [{"fallback_channel": Channel.CHANNEL_SMS, "after": Duration(seconds=30)}],
        "billing_contacts": [{"contact_email": "ann@example.com", "locale": "id", "time_zone": "Asia/Jakarta"}],
    }


def valid_automatic_settings() -> dict[str, Any]:
    """Settings of automatic top-ups, which stay off: nobody has saved a card."""
    return {
        "enabled": False,
        "threshold_credits": 100,
        "credits": 1000,
        "currency_code": "USD",
        "monthly_credit_cap": 5000,
        "billing_email": "billing@example.com",
        "billing_name": "Acme",
        "billing_address": {"country": "ID", "line1": "Jalan Merdeka 1", "city": "Jakarta", "postal_code": "10110"},
        "tax_id_type": "id_npwp",
        "tax_id": "12.345.678.9-012.345",
    }


def valid_request(request: Descriptor, **changes: Any) -> Message:
    """A request with a valid value in every field, except for the changes."""
    valid = valid_fields()
    fields = {field.name: valid[field.name] for field in request.fields}
    return GetMessageClass(request)(**(fields | changes))
