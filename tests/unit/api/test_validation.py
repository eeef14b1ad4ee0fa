"""Validation: what the protos' comments exclude is refused, all of it at once, and without quoting a value."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from pulsa.credit.v1 import credit_service_pb2
from pulsa.otp.v1 import otp_service_pb2
from pulsa.otp.v1.destination_pb2 import Destination, Fallback
from pulsa.otp.v1.otp_service_pb2 import SendOtpRequest, VerifyOtpRequest

from server.api.validation import compile_validation
from server.errors import InvalidFields
from tests.callers import RPCS
from tests.valid_requests import valid_fields, valid_request

REQUESTS: list[Descriptor] = [method.input_type for method in RPCS.values()]


def violations(message: Message) -> dict[str, str]:
    """Description by path; empty for a valid message."""
    validate: Callable[[Message], None] = compile_validation(cast("Descriptor", message.DESCRIPTOR))
    try:
        validate(message)
    except InvalidFields as error:
        return {violation.field: violation.description for violation in error.violations}
    return {}


@pytest.mark.parametrize("request_type", REQUESTS, ids=lambda request: request.name)
def test_a_request_that_keeps_every_rule_passes(request_type: Descriptor) -> None:
    assert violations(valid_request(request_type)) == {}


def test_all_violations_are_listed_with_their_paths() -> None:
    request = SendOtpRequest(
        organization_id="no spaces",
        request_id="1",
        fallbacks=[
            Fallback(destination=Destination(email="a@b.c")),
            Fallback(destination=Destination(sms="x" * 33), after=Duration(seconds=14)),
            Fallback(after=Duration(seconds=15)),
        ],
        purpose="Login",
        code_length=9,
        metadata={"k" * 41: "v"},
    )

    assert list(violations(request)) == [
        "organization_id",
        "request_id",
        "destination",
        "fallbacks[1].destination.sms",
        "fallbacks[1].after",
        "fallbacks[2].destination",
        "purpose",
        "code_length",
        "metadata",
    ]


def test_a_violation_states_the_rule_and_never_the_value() -> None:
    secret = "s3cret\x00" * 60
    request = SendOtpRequest(
        **valid_fields_of(SendOtpRequest.DESCRIPTOR, organization_id=secret, context=secret, metadata={secret: secret})
    )

    found = violations(request)

    assert set(found) == {"organization_id", "context", "metadata"}
    assert "s3cret" not in str(found)


@pytest.mark.parametrize("count", [4, 20_000])
def test_too_many_entries_are_one_violation_so_that_the_answer_stays_small(count: int) -> None:
    request = valid_request(SendOtpRequest.DESCRIPTOR, fallbacks=[{}] * count)

    assert violations(request) == {"fallbacks": "at most 3"}


def test_a_resend_may_leave_its_destination_out_but_not_leave_it_empty() -> None:
    resend = otp_service_pb2.ResendOtpRequest.DESCRIPTOR

    assert violations(valid_request(resend, destination=None)) == {}
    assert list(violations(valid_request(resend, destination={}))) == ["destination"]


def test_an_address_that_is_too_long_is_refused_without_parsing_it() -> None:
    # To parse this one takes a minute, in which no other call is served.
    long = "a" + "\u0301\u0323" * 100_000 + "@example.com"

    request = credit_service_pb2.CreateTopUpRequest.DESCRIPTOR
    assert list(violations(valid_request(request, billing_email=long))) == ["billing_email"]


def test_alerts_may_leave_both_fields_out() -> None:
    request = credit_service_pb2.UpdateAlertsRequest(organization_id="acme")

    assert violations(request) == {}


def test_a_usage_request_covers_at_most_92_days_and_ends_after_it_starts() -> None:
    usage = otp_service_pb2.GetUsageRequest.DESCRIPTOR

    assert violations(valid_request(usage, start_date="2026-01-01", end_date="2026-04-03")) == {}
    assert list(violations(valid_request(usage, start_date="2026-01-01", end_date="2026-04-04"))) == ["end_date"]
    assert list(violations(valid_request(usage, start_date="2026-01-02", end_date="2026-01-01"))) == ["end_date"]
    assert list(violations(valid_request(usage, start_date="2026-02-30"))) == ["start_date"]


@pytest.mark.parametrize("code", ["1", "123 456", "123-456", "١٢٣٤٥٦"])
def test_any_text_that_a_person_types_is_a_valid_code(code: str) -> None:
    assert violations(valid_request(VerifyOtpRequest.DESCRIPTOR, code=code)) == {}


def test_a_field_without_a_rule_stops_the_start() -> None:
    with pytest.raises(LookupError, match=r"no rule for pulsa\.otp\.v1\.Delivery"):
        compile_validation(otp_service_pb2.GetOtpResponse.DESCRIPTOR)


def valid_fields_of(request: Descriptor, **changes: Any) -> dict[str, Any]:
    good = valid_fields()
    return {field.name: good[field.name] for field in request.fields} | changes


@pytest.mark.parametrize("request_type", REQUESTS, ids=lambda request: request.name)
def test_a_request_that_lacks_a_required_field_lists_a_violation(request_type: Descriptor) -> None:
    validate = compile_validation(request_type)
    for field in request_type.fields:
        request = valid_request(request_type)
        request.ClearField(field.name)
        with suppress(InvalidFields):
            validate(request)
            continue
        with pytest.raises(InvalidFields) as refused:
            validate(request)
        assert refused.value.violations, field.name
