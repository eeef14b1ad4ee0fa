"""Errors as callers see them."""

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
from server.errors import DomainError, FieldViolation, InsufficientCredits, InvalidFields, RetryLater, TooManySends
from server.rpc.status import Failure, deadline_failure, failure_of, internal_failure


def status_of(failure: Failure) -> Status:
    ((key, value),) = failure.trailing_metadata
    assert key == "grpc-status-details-bin"
    return Status.FromString(value)


def detail(failure: Failure, kind: Any) -> Any:
    """The one detail of this kind; None when there is none."""
    found = [packed for packed in status_of(failure).details if packed.Is(kind.DESCRIPTOR)]
    assert len(found) <= 1
    if not found:
        return None
    message = kind()
    found[0].Unpack(message)
    return message


def every_error(kind: type[DomainError] = DomainError) -> list[type[DomainError]]:
    below = [error for sub in kind.__subclasses__() for error in every_error(sub)]
    return below if kind in (DomainError, RetryLater) else [kind, *below]


def test_an_error_carries_its_reason_and_facts() -> None:
    failure = failure_of(InsufficientCredits(required_credits=3, available_credits=2))

    status, info = status_of(failure), detail(failure, ErrorInfo)

    assert failure.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (status.code, status.message) == (9, failure.message)
    assert (info.domain, info.reason) == ("pulsa", "INSUFFICIENT_CREDITS")
    assert dict(info.metadata) == {"required_credits": "3", "available_credits": "2"}


def test_a_failed_precondition_is_named_as_one() -> None:
    failure = failure_of(InsufficientCredits(required_credits=3, available_credits=2))

    assert [violation.type for violation in detail(failure, PreconditionFailure).violations] == ["INSUFFICIENT_CREDITS"]
    assert detail(failure_of(errors.TokenInvalid()), PreconditionFailure) is None


def test_every_invalid_field_is_listed() -> None:
    violations = (FieldViolation("destination.email", "one thing"), FieldViolation("purpose", "another"))

    found = detail(failure_of(InvalidFields(violations=violations)), BadRequest).field_violations

    assert [(one.field, one.description) for one in found] == [(one.field, one.description) for one in violations]


@pytest.mark.parametrize(("seconds", "expected"), [(1.5, 1.5), (0, 0), (-3, 0), (3600, 3600), (0.0000004, 4e-7)])
def test_a_caller_learns_how_long_to_wait(seconds: float, expected: float) -> None:
    failure = failure_of(TooManySends(retry_after_seconds=seconds, limit="sends_per_minute"))

    delay = detail(failure, RetryInfo).retry_delay

    assert delay.seconds + delay.nanos / 1e9 == pytest.approx(expected)
    assert dict(detail(failure, ErrorInfo).metadata) == {"limit": "sends_per_minute"}


@pytest.mark.parametrize("error", every_error(), ids=lambda error: error.__name__)
def test_every_reason_is_documented_with_its_code(error: type[DomainError]) -> None:
    assert f"ERROR_REASON_{error.reason}" in ErrorReason.keys()  # noqa: SIM118 - an enum wrapper is no mapping
    assert error.code is not grpc.StatusCode.INTERNAL


def test_an_internal_failure_says_nothing_but_where_to_look() -> None:
    failure = internal_failure("an-id")

    assert (failure.code, failure.message) == (grpc.StatusCode.INTERNAL, "internal error")
    assert detail(failure, ErrorInfo).reason == "INTERNAL"
    assert dict(detail(failure, ErrorInfo).metadata) == {"incident_id": "an-id"}
    assert len(status_of(failure).details) == 1


def test_a_passed_deadline_is_documented_too() -> None:
    assert detail(deadline_failure(), ErrorInfo).reason == "DEADLINE_EXCEEDED"
    assert ErrorReason.Value("ERROR_REASON_DEADLINE_EXCEEDED") == ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED
