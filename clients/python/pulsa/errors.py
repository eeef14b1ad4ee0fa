"""Refusals as a program can decide on them."""

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
    """One field that breaks its rule."""

    field: str
    description: str


@dataclass(eq=False)
class PulsaError(Exception):
    """Why a call was refused; see pulsa.error.v1.ErrorReason for each reason and its metadata."""

    code: grpc.StatusCode
    message: str
    """For people; programs use the reason."""
    reason: str
    """Such as INSUFFICIENT_CREDITS; empty when the server was not reached or did not say."""
    metadata: Mapping[str, str]
    retry_after_seconds: float | None
    """When to try again; None when the server did not say."""
    violations: tuple[FieldViolation, ...]
    """With INVALID_FIELDS: every field that breaks its rule."""

    def __str__(self) -> str:
        return f"{self.reason or self.code.name}: {self.message}"


def explain(error: grpc.RpcError) -> PulsaError:
    """What an error of gRPC says; for streams, whose errors come while they are read."""
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
