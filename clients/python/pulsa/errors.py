"""Errors of Pulsa as typed exceptions."""

from collections.abc import Mapping
from dataclasses import dataclass

import grpc
from google.rpc.error_details_pb2 import (  # type: ignore[import-untyped] # no py.typed beside its stubs
    BadRequest,
    ErrorInfo,
    RetryInfo,
)
from grpc_status import rpc_status  # type: ignore[import-untyped] # has no types


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One invalid field of a request."""

    field: str
    description: str


@dataclass(eq=False)
class PulsaError(Exception):
    """A call failed; pulsa.error.v1.ErrorReason documents each reason and its metadata."""

    code: grpc.StatusCode
    message: str
    """For people; programs use the reason."""
    reason: str
    """Such as INSUFFICIENT_CREDITS; empty when the server was not reached or gave none."""
    metadata: Mapping[str, str]
    retry_after_seconds: float | None
    """Time to wait before a retry; None when the server gave none."""
    violations: tuple[FieldViolation, ...]
    """With INVALID_FIELDS: every invalid field."""

    def __str__(self) -> str:
        return f"{self.reason or self.code.name}: {self.message}"


def explain(error: grpc.RpcError) -> PulsaError:
    """Convert an error of gRPC. Needed for streams only: their errors are raised while they are read."""
    info, retry, bad_request = ErrorInfo(), RetryInfo(), BadRequest()
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        for message in (info, retry, bad_request):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    return PulsaError(
        code=error.code(),
        message=error.details() or "",
        reason=info.reason,
        metadata=dict(info.metadata),
        retry_after_seconds=retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None,
        violations=tuple(FieldViolation(each.field, each.description) for each in bad_request.field_violations),
    )
