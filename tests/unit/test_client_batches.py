"""What the Python clients do with the answers of a batch."""

from collections.abc import Iterator

import grpc
import pytest
from pulsa.calls import Batch
from pulsa.error.v1.error_reason_pb2 import ErrorReason
from pulsa.errors import PulsaError
from pulsa.otp.v1.otp_service_pb2 import BatchSendOtpsResult, CompactSend, SendError, SendOtpRequest

ACCEPTED = BatchSendOtpsResult(compact=CompactSend(otp_id="1"))
BUSY = BatchSendOtpsResult(error=SendError(reason=ErrorReason.ERROR_REASON_ACCOUNT_BUSY))
REFUSED = BatchSendOtpsResult(error=SendError(reason=ErrorReason.ERROR_REASON_INSUFFICIENT_CREDITS))


def batch_of(count: int, *, largest: int = 2, context: str = "", patience_seconds: float = 60) -> Batch:
    requests = [SendOtpRequest(request_id=str(number), context=context) for number in range(count)]
    return Batch("acme", requests, compact=True, largest=largest, patience_seconds=patience_seconds)


def calls_of(batch: Batch, *answers: list[BatchSendOtpsResult]) -> Iterator[list[str]]:
    """The request_ids of each call of the batch, which gets these answers."""
    for answer in answers:
        request = batch.next()
        assert request
        yield [each.request_id for each in request.requests]
        batch.answered(answer)
    assert batch.next() is None


def error(code: grpc.StatusCode, reason: str = "") -> PulsaError:
    return PulsaError(code, "", reason, {}, None, ())


def test_a_batch_is_split_by_number() -> None:
    batch = batch_of(3)
    assert list(calls_of(batch, [ACCEPTED, REFUSED], [ACCEPTED])) == [["0", "1"], ["2"]]
    assert batch.results == [ACCEPTED, REFUSED, ACCEPTED]
    assert (batch.decided, batch.pause_seconds) == (3, 0)


def test_a_batch_is_split_by_size() -> None:
    batch = batch_of(4, largest=1000, context="x" * 400_000)
    assert list(calls_of(batch, [ACCEPTED] * 2, [ACCEPTED] * 2)) == [["0", "1"], ["2", "3"]]


@pytest.mark.parametrize("reason", ["ACCOUNT_BUSY", "DATABASE_UNAVAILABLE", "SERVER_DRAINING"])
def test_a_request_that_could_not_be_decided_is_sent_again_before_the_others(reason: str) -> None:
    batch = batch_of(4)
    undecided = BatchSendOtpsResult(error=SendError(reason=ErrorReason.Value(f"ERROR_REASON_{reason}")))
    answers = ([ACCEPTED, undecided], [ACCEPTED, ACCEPTED], [ACCEPTED])
    assert list(calls_of(batch, *answers)) == [["0", "1"], ["1", "2"], ["3"]]
    assert batch.results == [ACCEPTED] * 4


def test_when_nothing_is_decided_for_long_the_errors_are_the_results_and_each_request_was_tried() -> None:
    batch = batch_of(4, patience_seconds=0)
    assert list(calls_of(batch, [BUSY, BUSY], [ACCEPTED, BUSY], [ACCEPTED])) == [["0", "1"], ["2", "3"], ["3"]]
    assert batch.results == [BUSY, BUSY, ACCEPTED, ACCEPTED]


@pytest.mark.parametrize(
    "unanswered",
    [
        error(grpc.StatusCode.UNAVAILABLE),
        error(grpc.StatusCode.DEADLINE_EXCEEDED),
        error(grpc.StatusCode.CANCELLED),
        error(grpc.StatusCode.UNKNOWN),
        error(grpc.StatusCode.INTERNAL),
        error(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
        error(grpc.StatusCode.UNAVAILABLE, "ACCOUNT_BUSY"),
        error(grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE"),
        error(grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING"),
    ],
)
def test_a_call_without_an_answer_is_made_again_after_a_growing_pause(unanswered: PulsaError) -> None:
    batch = batch_of(2)
    pauses = []
    for _ in range(3):
        request = batch.next()
        batch.failed(unanswered)
        pauses.append(batch.pause_seconds)
        assert batch.next() == request
    assert pauses == [0.1, 0.2, 0.4]


@pytest.mark.parametrize(
    "final",
    [
        error(grpc.StatusCode.UNIMPLEMENTED),
        error(grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING"),
        error(grpc.StatusCode.INTERNAL, "INTERNAL"),
    ],
)
def test_an_error_that_a_repeat_would_have_too_is_raised(final: PulsaError) -> None:
    batch = batch_of(2)
    batch.next()
    with pytest.raises(PulsaError):
        batch.failed(final)


def test_a_call_without_an_answer_for_too_long_is_raised() -> None:
    batch = batch_of(2, patience_seconds=0)
    batch.next()
    with pytest.raises(PulsaError):
        batch.failed(error(grpc.StatusCode.UNAVAILABLE))
