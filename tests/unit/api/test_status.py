"""Error statuses: what a caller gets for each error."""

from dataclasses import fields
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import (  # type: ignore[import-untyped] # no py.typed beside its stubs
    BadRequest,
    ErrorInfo,
    PreconditionFailure,
    RetryInfo,
)
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # the same
from pulsa.error.v1.error_reason_pb2 import ErrorReason

from server import errors
from server.api.status import LARGEST_DETAILS_BYTES, ErrorStatus, error_status, internal_error_status
from server.errors import DomainError, FieldViolation, InsufficientCredits, InvalidFields, RetryLater, TooManySends


def status_of(status: ErrorStatus) -> Status:
    ((key, value),) = status.trailing_metadata
    assert key == "grpc-status-details-bin"
    return Status.FromString(value)


def detail(status: ErrorStatus, kind: Any) -> Any:
    """The only detail of this kind; None when there is none."""
    found = [packed for packed in status_of(status).details if packed.Is(kind.DESCRIPTOR)]
    assert len(found) <= 1
    if not found:
        return None
    message = kind()
    found[0].Unpack(message)
    return message


def every_error(kind: type[DomainError] = DomainError) -> list[type[DomainError]]:
    below = [error for sub in kind.__subclasses__() for error in every_error(sub)]
    return below if kind in (DomainError, RetryLater) else [kind, *below]


def test_an_error_carries_its_reason_and_metadata() -> None:
    status = error_status(InsufficientCredits(required_credits=3, available_credits=2))

    packed, info = status_of(status), detail(status, ErrorInfo)

    assert status.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (packed.code, packed.message) == (9, status.message)
    assert (info.domain, info.reason) == ("pulsa", "INSUFFICIENT_CREDITS")
    assert dict(info.metadata) == {"required_credits": "3", "available_credits": "2"}


def test_a_failed_precondition_has_a_precondition_failure() -> None:
    status = error_status(InsufficientCredits(required_credits=3, available_credits=2))

    assert [violation.type for violation in detail(status, PreconditionFailure).violations] == ["INSUFFICIENT_CREDITS"]
    assert detail(error_status(errors.TokenInvalid()), PreconditionFailure) is None


def test_every_invalid_field_is_listed() -> None:
    violations = (FieldViolation("destination.email", "one thing"), FieldViolation("purpose", "another"))

    found = detail(error_status(InvalidFields(violations=violations)), BadRequest).field_violations

    assert [(one.field, one.description) for one in found] == [(one.field, one.description) for one in violations]


def test_violations_beyond_what_fits_are_counted() -> None:
    violations = [FieldViolation(f"items[{number}].destination.sms", "an é " * 20) for number in range(1000)]

    status = error_status(InvalidFields(violations=tuple(violations)))

    *listed, last = detail(status, BadRequest).field_violations
    assert 10 < len(listed) < 60
    assert (last.field, last.description) == ("", f"and {1000 - len(listed)} more")
    assert detail(status, ErrorInfo).metadata["fields"] == ",".join(one.field for one in listed)
    assert LARGEST_DETAILS_BYTES / 2 < len(status.trailing_metadata[0][1]) <= LARGEST_DETAILS_BYTES


@pytest.mark.parametrize("kind", every_error(), ids=lambda error: error.__name__)
def test_no_error_is_too_large_for_grpc_and_its_message_is_ascii(kind: type[DomainError]) -> None:
    values: dict[str, Any] = dict.fromkeys((field.name for field in fields(kind)), "é" * 1000)
    values |= {"violations": (FieldViolation("é" * 900, "é" * 900),)} if "violations" in values else {}
    values |= {"retry_after_seconds": 1.0} if issubclass(kind, RetryLater) else {}

    status = error_status(kind(**values))

    assert len(status.trailing_metadata[0][1]) <= LARGEST_DETAILS_BYTES
    assert status.message.isascii()


def test_a_metadata_value_that_is_too_long_is_left_empty() -> None:
    error = errors.TopUpAlreadyOpen(top_up_id="an-id", hosted_invoice_url="https://" + "x" * 3000)

    metadata = detail(error_status(error), ErrorInfo).metadata

    assert dict(metadata) == {"top_up_id": "an-id", "hosted_invoice_url": ""}


@pytest.mark.parametrize(("seconds", "expected"), [(1.5, 1.5), (0, 0), (-3, 0), (3600, 3600), (0.0000004, 4e-7)])
def test_retry_info_has_the_seconds_to_wait(seconds: float, expected: float) -> None:
    status = error_status(TooManySends(retry_after_seconds=seconds, limit="prefix"))

    delay = detail(status, RetryInfo).retry_delay

    assert delay.seconds + delay.nanos / 1e9 == pytest.approx(expected)
    assert dict(detail(status, ErrorInfo).metadata) == {"limit": "prefix"}


@pytest.mark.parametrize("error", every_error(), ids=lambda error: error.__name__)
def test_every_reason_is_documented_with_its_code(error: type[DomainError]) -> None:
    assert f"ERROR_REASON_{error.reason}" in ErrorReason.keys()  # noqa: SIM118 - an enum wrapper is no mapping
    assert error.code is not grpc.StatusCode.INTERNAL


def test_an_internal_error_has_only_its_incident_id() -> None:
    status = internal_error_status("an-id")

    assert (status.code, status.message) == (grpc.StatusCode.INTERNAL, "internal error")
    assert detail(status, ErrorInfo).reason == "INTERNAL"
    assert dict(detail(status, ErrorInfo).metadata) == {"incident_id": "an-id"}
    assert len(status_of(status).details) == 1


def test_a_passed_deadline_has_a_documented_reason() -> None:
    assert detail(error_status(errors.DeadlineExceeded()), ErrorInfo).reason == "DEADLINE_EXCEEDED"
    assert ErrorReason.Value("ERROR_REASON_DEADLINE_EXCEEDED") == ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED
