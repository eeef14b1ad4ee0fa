"""Converts errors to gRPC statuses with `google.rpc` details (AIP-193)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import Message
from google.rpc.error_details_pb2 import (  # type: ignore[import-untyped] # no py.typed beside its stubs
    BadRequest,
    ErrorInfo,
    PreconditionFailure,
    RetryInfo,
)
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # no py.typed either
from grpc import StatusCode

from server.errors import DomainError, FieldViolation, InvalidFields, RetryLater

DOMAIN: Final = "pulsa"
LARGEST_DETAILS_BYTES: Final = 6000
"""Of a status with its details: gRPC loses some above 7.5 kB, and all above 16 kB."""
_LONGEST_VALUE_BYTES: Final = 2000
"""Of a metadata value; a longer one is sent empty, as half a link is worse than none."""
_LONGEST_VIOLATIONS_BYTES: Final = 4000
"""Of all field violations, whose paths are also in the metadata."""
_VIOLATION_BYTES: Final = 16
"""Of a violation besides its texts."""
_DETAILS_KEY: Final = "grpc-status-details-bin"
_NANOS_PER_SECOND: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ErrorStatus:
    """The status of a failed call."""

    code: StatusCode
    reason: str
    message: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


def error_status(error: DomainError) -> ErrorStatus:
    """Return the status of an error: with ErrorInfo and, if it applies, BadRequest, RetryInfo, PreconditionFailure."""
    details: list[Message] = []
    if isinstance(error, InvalidFields):
        listed = tuple(_with_room(error.violations))
        violations = [BadRequest.FieldViolation(field=v.field, description=v.description) for v in listed]
        if others := len(error.violations) - len(listed):
            violations.append(BadRequest.FieldViolation(description=f"and {others} more"))
        details.append(BadRequest(field_violations=violations))
        error = InvalidFields(violations=listed)
    if isinstance(error, RetryLater):
        details.append(_retry_info(error.retry_after_seconds))
    if error.code is StatusCode.FAILED_PRECONDITION:
        violation = PreconditionFailure.Violation(type=error.reason, description=error.message)
        details.append(PreconditionFailure(violations=[violation]))
    return _status(error.code, error.reason, error.message, error.metadata, details)


def internal_error_status(incident_id: str) -> ErrorStatus:
    """Return the status of an unexpected error, which has only the id of its log line."""
    return _status(StatusCode.INTERNAL, "INTERNAL", "internal error", {"incident_id": incident_id}, [])


def _with_room(violations: Iterable[FieldViolation]) -> Iterator[FieldViolation]:
    """The first violations: as many as LARGEST_DETAILS_BYTES leaves room for."""
    room = _LONGEST_VIOLATIONS_BYTES
    for violation in violations:
        room -= 2 * len(violation.field.encode()) + len(violation.description.encode()) + _VIOLATION_BYTES
        if room < 0:
            return
        yield violation


def _status(
    code: StatusCode, reason: str, message: str, metadata: dict[str, str], details: list[Message]
) -> ErrorStatus:
    number, _ = code.value
    status = Status(code=number, message=message)
    metadata = {name: _short(value) for name, value in metadata.items()}
    for detail in (ErrorInfo(domain=DOMAIN, reason=reason, metadata=metadata), *details):
        status.details.add().Pack(detail)
    return ErrorStatus(code, reason, message, ((_DETAILS_KEY, status.SerializeToString()),))


def _short(value: str) -> str:
    return value if len(value.encode()) <= _LONGEST_VALUE_BYTES else ""


def _retry_info(seconds: float) -> RetryInfo:
    info = RetryInfo()
    info.retry_delay.FromNanoseconds(max(0, round(seconds * _NANOS_PER_SECOND)))
    return info
