"""Properties of every rpc. The rpcs are read from the contract, so that a new one cannot be forgotten."""

import asyncio
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from pulsa.error.v1.error_reason_pb2 import ErrorReason
from pulsa.errors import PulsaError

from server.api.permissions import ALL_PERMISSIONS, PERMISSIONS
from server.credits.audit import make_daily_macs
from server.credits.ledger import AuditKeys
from server.credits.receipts import SigningKeys, sign_days
from server.otps.crypto import Crypto
from server.postgres.pool import Pool
from server.sandbox.stripe.webhooks import sign
from tests.acceptance.deployment import WEBHOOK_SECRET, Deployment
from tests.callers import RPCS, reason_of, refusal_of
from tests.unit.api.test_validation_rules import requests
from tests.valid_requests import valid_fields, valid_request

PERMISSION_OF = {rpc: permission for rpcs in PERMISSIONS.values() for rpc, permission in rpcs.items()}
FOR_NO_ORGANIZATION = {"RecordStripeEvent", "ReportMail"}
NOT_FOUND = {"top_up_id": "TOP_UP_NOT_FOUND", "otp_id": "OTP_NOT_FOUND", "delivery_id": "DELIVERY_NOT_FOUND"}
# Every value of these fields is well-formed.
NEVER_MALFORMED = {
    "credits",
    "validate_only",
    "compact",
    "wrong_code_as_result",
    "with_runway",
    "with_conversions",
    "from_oldest",
}
# Every reason that a caller may see: all but INTERNAL.
EXPECTED_REASONS = {name.removeprefix("ERROR_REASON_") for name, _ in ErrorReason.items()} - {"INTERNAL"}


async def test_every_rpc_answers_a_good_request(pulsa: Deployment, pool: Pool) -> None:
    answers = {
        **await buy(pulsa),
        **await send_and_verify(pulsa),
        "GetPricing": await pulsa.call("GetPricing"),
        "QuoteTopUp": await pulsa.call("QuoteTopUp", credits=1000, currency_code="IDR"),
        "AdjustCredits": await pulsa.call("AdjustCredits", adjust_credits=5, reason="sorry"),
        "UpdateAlerts": await pulsa.call("UpdateAlerts", low_balance_threshold=7, alert_email="ann@mail.example"),
        "GetAlerts": await pulsa.call("GetAlerts"),
        "StartCardSetup": await pulsa.call(
            "StartCardSetup", billing_email="billing@example.com", return_url="https://app.example.com/"
        ),
        "UpdateAutomaticTopUp": await pulsa.call(
            "UpdateAutomaticTopUp", automatic_settings=valid_fields()["automatic_settings"]
        ),
        "GetAutomaticTopUp": await pulsa.call("GetAutomaticTopUp"),
        "RemoveCard": await pulsa.call("RemoveCard"),
        "SuspendOrganization": await pulsa.call("SuspendOrganization", reason="abuse"),
        "ResumeOrganization": await pulsa.call("ResumeOrganization"),
        "UpdateSettings": await pulsa.call("UpdateSettings", settings=valid_fields()["settings"]),
        "GetSettings": await pulsa.call("GetSettings"),
        "ListSettingsVersions": await pulsa.call("ListSettingsVersions"),
        "GetBalance": await pulsa.call("GetBalance"),
        "WatchBalance": await pulsa.call("WatchBalance"),
        "ListLedgerEntries": await pulsa.call("ListLedgerEntries"),
        "ExportLedger": await pulsa.call("ExportLedger"),
        "VerifyLedger": await pulsa.call("VerifyLedger"),
        "RecordStripeEvent": await record_event(pulsa),
        "GetReceipt": await a_receipt(pulsa, pool),
        "EnableEvents": await pulsa.call("EnableEvents"),
        "WatchEvents": await pulsa.call("WatchEvents"),
        "DisableEvents": await pulsa.call("DisableEvents"),
    }
    assert answers.keys() == RPCS.keys()
    assert {rpc for rpc, answer in answers.items() if not answer.ByteSize()} == set()


async def a_receipt(pulsa: Deployment, pool: Pool) -> Message:
    """Of the first entry, after its day."""
    keys = AuditKeys({"test": b"k" * 32})
    await make_daily_macs(pool, keys, now=pool.now() + timedelta(days=1))
    await sign_days(pool, keys, SigningKeys({"test": b"k" * 32}))
    answer: Message = await pulsa.call("GetReceipt", sequence=1)
    return answer


async def buy(pulsa: Deployment) -> dict[str, Message]:
    fields: dict[str, Any] = {"credits": 1000, "currency_code": "USD", "billing_email": "billing@example.com"}
    canceled = await pulsa.call("CreateTopUp", **fields)
    answers = {
        "CreateTopUp": canceled,
        "CancelTopUp": await pulsa.call("CancelTopUp", top_up_id=canceled.top_up.top_up_id),
    }
    await pulsa.pay((await pulsa.call("CreateTopUp", **fields)).top_up)
    await pulsa.wait_for_balance(1000)
    partly = (await pulsa.call("CreateTopUp", **fields)).top_up
    [invoice_id] = [
        each["id"] for each in (await pulsa.control("GET", "invoices"))["invoices"] if each["status"] == "open"
    ]
    await pulsa.control("POST", f"invoices/{invoice_id}/pay", amount=500)
    assert await reason_of(pulsa.call("CancelTopUp", top_up_id=partly.top_up_id)) == "TOP_UP_PARTLY_PAID"
    resolved = await pulsa.call("ResolveTopUp", top_up_id=partly.top_up_id, resolve_credits=500, reason="half is paid")
    answers["ResolveTopUp"] = resolved
    answers["ListTopUps"] = await pulsa.call("ListTopUps")
    newest = answers["ListTopUps"].top_ups[0]
    return answers | {"GetTopUp": await pulsa.call("GetTopUp", top_up_id=newest.top_up_id)}


async def send_and_verify(pulsa: Deployment) -> dict[str, Message]:
    sent = await pulsa.send(email="jane@mail.example")
    code = await pulsa.code_sent_to("jane@mail.example")
    other = await pulsa.send(sms="+6281234567890")
    delivery_id, otp_id = sent.otp.deliveries[0].delivery_id, sent.otp.otp_id
    today = time.strftime("%Y-%m-%d", time.gmtime())
    return {
        "SendOtp": sent,
        "BatchSendOtps": await pulsa.call("BatchSendOtps", requests=valid_fields()["requests"]),
        "PreviewOtps": await pulsa.call("PreviewOtps", requests=valid_fields()["requests"]),
        # To another destination, as the first one is in its cooldown.
        "ResendOtp": await pulsa.call("ResendOtp", otp_id=otp_id, destination={"whatsapp": "+6281298765432"}),
        "VerifyOtp": await pulsa.call("VerifyOtp", otp_id=otp_id, code=code),
        "CancelOtp": await pulsa.call("CancelOtp", otp_id=other.otp.otp_id),
        "GetOtp": await pulsa.call("GetOtp", otp_id=otp_id),
        "ListOtps": await pulsa.call("ListOtps"),
        "ReportDelivery": await pulsa.call("ReportDelivery", delivery_id=delivery_id, status=3),
        "ReportMail": await pulsa.call(
            "ReportMail",
            mail_token=Crypto({"test": b"k" * 32}, digest_secrets={"test": b"k" * 32}).mail_token(UUID(delivery_id)),
            status=3,
            suppression_reason=2,
        ),
        "ListSuppressions": await pulsa.call("ListSuppressions"),
        "LiftSuppression": await pulsa.call("LiftSuppression", destination={"email": "jane@mail.example"}),
        "GetUsage": await pulsa.call("GetUsage", start_date=today, end_date=today),
        "EraseDestination": await pulsa.call("EraseDestination", destination={"sms": "+6281234567890"}),
    }


async def record_event(pulsa: Deployment) -> Message:
    event = '{"id": "evt_1", "object": "event", "type": "invoice.sent", "created": 1790000000, "livemode": false,'
    event += ' "data": {"object": {"id": "in_1", "object": "invoice"}}}'
    signature = sign(event, secrets=[WEBHOOK_SECRET], timestamp=int(time.time()))
    answer: Message = await pulsa.call("RecordStripeEvent", payload=event.encode(), signature=signature)
    return answer


async def refusals(pulsa: Deployment, tokens: Mapping[str, str | None]) -> dict[str, str]:
    """The reason with which each rpc refuses a good request with this token; empty if it does not."""
    return {
        rpc: await reason_of(pulsa.ask(rpc, valid_request(RPCS[rpc].input_type), token))
        for rpc, token in tokens.items()
    }


async def test_every_rpc_refuses_a_missing_and_an_expired_token(pulsa: Deployment) -> None:
    refused = dict.fromkeys(RPCS, "TOKEN_INVALID")

    assert await refusals(pulsa, dict.fromkeys(RPCS)) == refused
    assert await refusals(pulsa, dict.fromkeys(RPCS, pulsa.token(lifetime_seconds=-1))) == refused


async def test_every_rpc_refuses_a_token_with_every_permission_but_its_own(pulsa: Deployment) -> None:
    others = {rpc: pulsa.token(permissions=[*ALL_PERMISSIONS - {PERMISSION_OF[rpc]}]) for rpc in RPCS}

    assert await refusals(pulsa, others) == dict.fromkeys(RPCS, "PERMISSION_MISSING")


async def test_every_rpc_refuses_another_organizations_token(pulsa: Deployment) -> None:
    tenants = RPCS.keys() - FOR_NO_ORGANIZATION

    found = await refusals(pulsa, dict.fromkeys(tenants, pulsa.token(organization_id="other")))

    assert found == dict.fromkeys(tenants, "ORGANIZATION_MISMATCH")
    assert {rpc for rpc in RPCS if "organization_id" not in RPCS[rpc].input_type.fields_by_name} == FOR_NO_ORGANIZATION


async def test_every_rpc_hides_what_another_organization_owns(pulsa: Deployment) -> None:
    await pulsa.grant(10)
    sent = await pulsa.send(email="jane@mail.example")
    owned = {
        "top_up_id": (await pulsa.order()).top_up_id,
        "otp_id": sent.otp.otp_id,
        "delivery_id": sent.otp.deliveries[0].delivery_id,
    }
    await pulsa.grant(10, "other")
    found, expected = {}, {}
    for rpc, method in RPCS.items():
        for name in owned.keys() & method.input_type.fields_by_name.keys():
            request = valid_request(method.input_type, organization_id="other", **{name: owned[name]})
            found[rpc] = await reason_of(pulsa.ask(rpc, request, pulsa.token(organization_id="other")))
            expected[rpc] = NOT_FOUND[name]
    assert found == expected
    assert len(found) >= 7
    assert await pulsa.balance("other") == 10


async def test_every_rpc_names_every_malformed_field(pulsa: Deployment) -> None:
    token = pulsa.token(organization_id="*")
    for rpc, method in RPCS.items():
        bad = {field.name: malformed(field) for field in method.input_type.fields if field.name not in NEVER_MALFORMED}

        refused = await refusal_of(pulsa.ask(rpc, GetMessageClass(method.input_type)(**bad), token))

        named = {violation.field.partition(".")[0].partition("[")[0] for violation in refused.violations}
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS"), rpc
        assert named == bad.keys(), rpc


def malformed(field: FieldDescriptor) -> Any:
    """A value that breaks the rule of any field of this type."""
    by_name: dict[str, Any] = {
        "billing_address": {"country": "x"},
        "destination": {},
        "fallbacks": [{}],
        "requests": [{}] * 1001,
        "metadata": {"": ""},
        "statuses": [99],
        "ttl": {"seconds": -1},
        **{name: {"nanos": -1} for name in ("report_time", "start_time", "end_time", "time")},
        **{name: [99] for name in ("otp_statuses", "kinds", "channels")},
        "purposes": [""],
        "sequence": -1,
        "payload": bytes(262_145),
        "settings": {"locale": "x"},
        "automatic_settings": {"threshold_credits": -1},
        "update_mask": {"paths": ["nothing"]},
    }
    if field.name in by_name:
        return by_name[field.name]
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return "\x00" * 5000
    return 99 if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM else 2**31 - 1


async def test_no_request_is_answered_internal(pulsa: Deployment) -> None:
    token = pulsa.token(organization_id="*")
    await pulsa.grant(1000)
    for rpc, method in RPCS.items():
        asked = [pulsa.ask(rpc, request, token) for request in some_requests(method.input_type)]

        answers = await asyncio.gather(*asked, return_exceptions=True)

        refused = [answer for answer in answers if isinstance(answer, BaseException)]
        assert {
            error.reason if isinstance(error, PulsaError) else repr(error) for error in refused
        } <= EXPECTED_REASONS, rpc


def some_requests(request: Descriptor) -> list[Message]:
    """Valid and invalid requests, generated before any is sent: the server uses the same random generator."""
    made = [valid_request(request)]

    @settings(max_examples=30, database=None, derandomize=True)
    @given(requests(request))
    def generate(message: Message) -> None:
        made.append(message)

    generate()
    return made
