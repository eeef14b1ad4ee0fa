"""The Python client against a server that plays along: tokens, deadlines, repeats, errors."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from pulsa.client import connect
from pulsa.credit.v1.credit_service_pb2 import (
    GetBalanceRequest,
    GetPricingRequest,
    WatchBalanceRequest,
    WatchBalanceResponse,
)
from pulsa.errors import FieldViolation, PulsaError, explain
from pulsa.tokens import token_from_file

from server import errors
from tests.integration.client.played_server import Ending, PlayedServer

REQUEST = GetBalanceRequest(organization_id="acme")


@pytest.fixture
def played() -> PlayedServer:
    return PlayedServer()


@pytest.fixture
def address(played: PlayedServer) -> Iterator[str]:
    server, address = played.start()
    yield address
    server.stop(None).wait()


def test_a_call_carries_the_token_and_a_deadline(played: PlayedServer, address: str) -> None:
    with connect(address, token="secret", timeout_seconds=30) as pulsa:
        pulsa.credits.GetBalance(REQUEST)
        pulsa.credits.GetBalance(REQUEST, timeout=60)
    assert played.requests == [REQUEST, REQUEST]
    assert played.tokens == ["Bearer secret", "Bearer secret"]
    short, long = played.seconds_left
    assert short is not None
    assert long is not None
    assert short < 45 < long < 75  # gRPC rounds them up a little


def test_a_token_from_a_file_is_the_one_of_now(played: PlayedServer, address: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    with connect(address, token=token_from_file(file)) as pulsa:
        for token in ("first", "second"):
            file.write_text(f"{token}\n")
            pulsa.credits.GetBalance(REQUEST)
    assert played.tokens == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize(
    ("refusal", "metadata", "retry_after_seconds", "violations"),
    [
        (
            errors.InsufficientCredits(required_credits=3, available_credits=1),
            {"required_credits": "3", "available_credits": "1"},
            None,
            (),
        ),
        (errors.ResendTooSoon(retry_after_seconds=12.5), {}, 12.5, ()),
        (
            errors.InvalidFields(violations=(errors.FieldViolation("page_size", "0 to 500"),)),
            {"fields": "page_size"},
            None,
            (FieldViolation("page_size", "0 to 500"),),
        ),
    ],
)
def test_a_refusal_says_all_that_the_server_said(
    played: PlayedServer,
    address: str,
    refusal: errors.DomainError,
    metadata: dict[str, str],
    retry_after_seconds: float | None,
    violations: tuple[FieldViolation, ...],
) -> None:
    played.endings.append(refusal)
    with connect(address, token="secret") as pulsa, pytest.raises(PulsaError) as refused:
        pulsa.credits.GetBalance(REQUEST)
    error = refused.value
    assert (error.code, error.reason, error.message) == (refusal.code, refusal.reason, refusal.message)
    assert (error.metadata, error.retry_after_seconds, error.violations) == (metadata, retry_after_seconds, violations)
    assert str(error) == f"{refusal.reason}: {refusal.message}"
    assert isinstance(error.__cause__, grpc.RpcError)


def test_an_error_without_details_is_a_pulsa_error_too(address: str) -> None:
    with connect(address, token="secret") as pulsa, pytest.raises(PulsaError, match="UNIMPLEMENTED") as refused:
        pulsa.credits.GetPricing(GetPricingRequest())
    assert (refused.value.reason, refused.value.metadata) == ("", {})


def test_a_stream_carries_the_token_and_no_deadline_and_its_error_can_be_explained(
    played: PlayedServer, address: str
) -> None:
    played.endings.append(errors.Overloaded(retry_after_seconds=1))
    with connect(address, token="secret", timeout_seconds=30) as pulsa:
        stream = pulsa.credits.WatchBalance(WatchBalanceRequest(organization_id="acme"))
        assert next(stream) == WatchBalanceResponse()
        with pytest.raises(grpc.RpcError) as refused:
            next(stream)
    assert explain(refused.value).reason == "OVERLOADED"
    assert played.tokens == ["Bearer secret"]
    assert played.seconds_left[0] is None or played.seconds_left[0] > 3600


@pytest.mark.parametrize("away", [grpc.StatusCode.UNAVAILABLE, errors.DatabaseUnavailable(retry_after_seconds=1)])
def test_what_is_unavailable_is_asked_again_unchanged(played: PlayedServer, address: str, away: Ending) -> None:
    played.endings.extend([away, away])
    with connect(address, token="secret") as pulsa:
        pulsa.credits.GetBalance(REQUEST)
    assert played.requests == [REQUEST] * 3


@pytest.mark.parametrize(
    ("code", "calls"),
    [
        (grpc.StatusCode.UNAVAILABLE, 4),
        (grpc.StatusCode.FAILED_PRECONDITION, 1),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 1),
        (grpc.StatusCode.INTERNAL, 1),
    ],
)
def test_repeats_end_and_other_refusals_are_not_repeated(
    played: PlayedServer, address: str, code: grpc.StatusCode, calls: int
) -> None:
    played.endings.extend([code] * 10)
    with connect(address, token="secret") as pulsa, pytest.raises(PulsaError) as refused:
        pulsa.credits.GetBalance(REQUEST)
    assert (refused.value.code, len(played.requests)) == (code, calls)


def test_a_server_that_is_not_there_costs_no_longer_than_the_deadline() -> None:
    with connect("127.0.0.1:1", token="secret", timeout_seconds=0.5) as pulsa, pytest.raises(PulsaError) as refused:
        pulsa.credits.GetBalance(REQUEST)
    assert refused.value.code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
