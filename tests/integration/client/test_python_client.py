"""The Python client against a scripted server: tokens, deadlines, retries, errors."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import grpc
import pytest
from pulsa.client import connect
from pulsa.credit.v1.credit_service_pb2 import (
    GetBalanceRequest,
    GetBalanceResponse,
    GetPricingRequest,
    WatchBalanceRequest,
    WatchBalanceResponse,
)
from pulsa.errors import FieldViolation, PulsaError, explain
from pulsa.otp.v1.otp_service_pb2 import VerifyOtpRequest
from pulsa.tokens import token_from_file

from server import errors
from server.api.status import internal_error_status
from tests.integration.client.scripted_server import ScriptedError, ScriptedServer, refusing_server
from tests.waiting import SECONDS

REQUEST = GetBalanceRequest(organization_id="acme")


@pytest.fixture
def server() -> ScriptedServer:
    return ScriptedServer()


@pytest.fixture
def address(server: ScriptedServer) -> Iterator[str]:
    grpc_server, address = server.start()
    yield address
    grpc_server.stop(None).wait()


def test_a_call_has_the_token_and_a_deadline(server: ScriptedServer, address: str) -> None:
    with connect(address, token="secret", timeout_seconds=30) as pulsa:
        pulsa.credits.GetBalance(REQUEST)
        pulsa.credits.GetBalance(REQUEST, timeout=60)
    assert server.requests == [REQUEST, REQUEST]
    assert server.tokens == ["Bearer secret", "Bearer secret"]
    short, long = server.seconds_left
    assert short is not None
    assert long is not None
    assert short < 45 < long < 75  # gRPC rounds them up


def test_a_token_from_a_file_is_read_again_for_each_call(server: ScriptedServer, address: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    with connect(address, token=token_from_file(file)) as pulsa:
        for token in ("first", "second"):
            file.write_text(f"{token}\n")
            pulsa.credits.GetBalance(REQUEST)
    assert server.tokens == ["Bearer first", "Bearer second"]


def test_calls_go_to_all_addresses_of_a_name(server: ScriptedServer, address: str) -> None:
    other = ScriptedServer()
    grpc_server, other_address = other.start()
    with connect(f"ipv4:{address},{other_address}", token="secret") as pulsa:
        while not (server.requests and other.requests):  # gRPC connects to both, one after the other
            pulsa.credits.GetBalance(REQUEST)
        before = len(server.requests)
        for _ in range(10):
            pulsa.credits.GetBalance(REQUEST)
    grpc_server.stop(None).wait()
    assert 4 <= len(server.requests) - before <= 6


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
def test_a_refusal_has_everything_that_the_server_sent(
    server: ScriptedServer,
    address: str,
    refusal: errors.DomainError,
    metadata: dict[str, str],
    retry_after_seconds: float | None,
    violations: tuple[FieldViolation, ...],
) -> None:
    server.errors.append(refusal)
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


def test_a_future_does_not_wait_and_its_result_is_the_response_or_a_pulsa_error(
    server: ScriptedServer, address: str
) -> None:
    server.answers.clear()
    done = Queue[object]()
    with connect(address, token="secret", timeout_seconds=SECONDS) as pulsa:
        future = pulsa.credits.GetBalance.future(REQUEST)
        future.add_done_callback(done.put)
        assert not future.done()
        with pytest.raises(grpc.FutureTimeoutError):
            future.result(timeout=0.01)
        server.answers.set()
        assert future.result() == GetBalanceResponse()
        assert future.code() is grpc.StatusCode.OK
        assert done.get(timeout=SECONDS) is future

        server.errors.append(errors.ResendTooSoon(retry_after_seconds=12.5))
        refused = pulsa.credits.GetBalance.future(REQUEST)
        with pytest.raises(PulsaError) as raised:
            refused.result()
        error = refused.exception()
    assert (raised.value.reason, raised.value.retry_after_seconds) == ("RESEND_TOO_SOON", 12.5)
    assert isinstance(raised.value.__cause__, grpc.RpcError)
    assert isinstance(error, PulsaError)
    assert server.tokens == ["Bearer secret"] * 2


def test_a_future_can_be_cancelled(server: ScriptedServer, address: str) -> None:
    server.answers.clear()
    with connect(address, token="secret") as pulsa:
        future = pulsa.credits.GetBalance.future(REQUEST)
        assert future.cancel()
        with pytest.raises(grpc.FutureCancelledError):
            future.result()
    server.answers.set()


def test_a_call_returns_its_trailing_metadata_on_request(server: ScriptedServer, address: str) -> None:
    with connect(address, token="secret") as pulsa:
        response, call = pulsa.credits.GetBalance.with_call(REQUEST)
        assert (response, call.code()) == (GetBalanceResponse(), grpc.StatusCode.OK)
        server.errors.append(grpc.StatusCode.INTERNAL)
        with pytest.raises(PulsaError, match="INTERNAL"):
            pulsa.credits.GetBalance.with_call(REQUEST)


def test_a_stream_has_the_token_and_no_deadline_and_its_error_can_be_explained(
    server: ScriptedServer, address: str
) -> None:
    server.errors.append(errors.Overloaded(retry_after_seconds=1))
    with connect(address, token="secret", timeout_seconds=30) as pulsa:
        stream = pulsa.credits.WatchBalance(WatchBalanceRequest(organization_id="acme"))
        assert next(stream) == WatchBalanceResponse()
        with pytest.raises(grpc.RpcError) as refused:
            next(stream)
    assert explain(refused.value).reason == "OVERLOADED"
    assert server.tokens == ["Bearer secret"]
    assert server.seconds_left[0] is None or server.seconds_left[0] > 3600


@pytest.mark.parametrize(
    "unavailable", [grpc.StatusCode.UNAVAILABLE, errors.DatabaseUnavailable(retry_after_seconds=1)]
)
def test_an_unavailable_server_is_retried_with_the_same_request(
    server: ScriptedServer, address: str, unavailable: ScriptedError
) -> None:
    server.errors.extend([unavailable, unavailable])
    with connect(address, token="secret") as pulsa:
        pulsa.credits.GetBalance(REQUEST)
    assert server.requests == [REQUEST] * 3


@pytest.mark.parametrize(
    ("code", "calls"),
    [
        (grpc.StatusCode.UNAVAILABLE, 4),
        (grpc.StatusCode.CANCELLED, 4),
        (grpc.StatusCode.FAILED_PRECONDITION, 1),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 1),
        (grpc.StatusCode.INTERNAL, 1),
        (grpc.StatusCode.UNKNOWN, 1),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 1),
    ],
)
def test_retries_are_limited_and_other_errors_are_not_retried(
    server: ScriptedServer, address: str, code: grpc.StatusCode, calls: int
) -> None:
    server.errors.extend([code] * 10)
    with connect(address, token="secret") as pulsa, pytest.raises(PulsaError) as refused:
        pulsa.credits.GetBalance(REQUEST)
    assert (refused.value.code, len(server.requests)) == (code, calls)


def test_an_overloaded_server_is_tried_again(server: ScriptedServer, address: str) -> None:
    server.errors.extend([errors.Overloaded(retry_after_seconds=0.01)] * 3)
    with connect(address, token="secret") as pulsa:
        pulsa.credits.GetBalance(REQUEST)
        assert server.requests == [REQUEST] * 4
        server.errors.extend([errors.Overloaded(retry_after_seconds=0.01)] * 4)
        with pytest.raises(PulsaError, match="OVERLOADED"):
            pulsa.credits.GetBalance(REQUEST)
        server.errors.append(errors.Overloaded(retry_after_seconds=60))
        with pytest.raises(PulsaError, match="OVERLOADED"):
            pulsa.credits.GetBalance(REQUEST)
    assert len(server.requests) == 9


@pytest.mark.parametrize(
    "limit",
    [
        errors.ResendTooSoon(retry_after_seconds=0.01),
        errors.TooManySends(limit="country", retry_after_seconds=0.01),
        errors.TooManyGuesses(retry_after_seconds=0.01),
    ],
)
def test_a_limit_is_not_tried_again(server: ScriptedServer, address: str, limit: errors.DomainError) -> None:
    server.errors.append(limit)
    with connect(address, token="secret") as pulsa, pytest.raises(PulsaError, match=limit.reason):
        pulsa.credits.GetBalance(REQUEST)
    assert len(server.requests) == 1


@pytest.mark.parametrize("unknown", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
def test_a_guess_is_tried_again_only_when_the_server_had_no_room_for_it(
    server: ScriptedServer, address: str, unknown: grpc.StatusCode
) -> None:
    server.errors.extend([errors.Overloaded(retry_after_seconds=0.01), unknown])
    with connect(address, token="secret") as pulsa, pytest.raises(PulsaError, match=unknown.name):
        pulsa.otps.VerifyOtp(VerifyOtpRequest())
    assert len(server.requests) == 2


@pytest.mark.parametrize("timeout", [math.inf, math.nan, 1e10, 0, -1])
def test_a_deadline_that_grpc_takes_for_another_is_refused(
    server: ScriptedServer, address: str, timeout: float
) -> None:
    with pytest.raises(ValueError, match="timeout"):
        connect(address, token="secret", timeout_seconds=timeout)
    with connect(address, token="secret") as pulsa:
        for call in (pulsa.credits.GetBalance, pulsa.credits.GetBalance.future, pulsa.credits.GetBalance.with_call):
            with pytest.raises(ValueError, match="timeout"):
                call(REQUEST, timeout=timeout)
        with pytest.raises(ValueError, match="timeout"):
            pulsa.credits.WatchBalance(WatchBalanceRequest(organization_id="acme"), timeout=timeout)
    assert server.requests == []


def test_a_repeat_has_the_time_that_is_left(server: ScriptedServer, address: str) -> None:
    server.errors.append(errors.Overloaded(retry_after_seconds=0.5))
    with connect(address, token="secret", timeout_seconds=30) as pulsa:
        pulsa.credits.GetBalance(REQUEST, timeout=5)
    first, second = server.seconds_left
    assert first is not None
    assert second is not None
    assert second < first - 0.4


def test_a_guess_that_the_server_did_not_look_at_is_repeated() -> None:
    refused: list[int] = []
    with (
        refusing_server(refused) as address,
        connect(address, token="secret") as pulsa,
        pytest.raises(PulsaError, match="UNAVAILABLE"),
    ):
        pulsa.otps.VerifyOtp(VerifyOtpRequest())
    assert len(refused) >= 4


@pytest.mark.parametrize("request_", [None, {"organization_id": "acme"}, GetPricingRequest(organization_id="acme")])
def test_a_request_that_is_not_the_rpcs_message_is_refused(server: ScriptedServer, address: str, request_: Any) -> None:
    with connect(address, token="secret") as pulsa:
        for call in (pulsa.credits.GetBalance, pulsa.credits.GetBalance.future, pulsa.credits.WatchBalance):
            with pytest.raises(TypeError, match="is not pulsa"):
                call(request_)
    assert server.requests == []


def test_a_large_request_is_retried_too(server: ScriptedServer, address: str) -> None:
    server.errors.append(grpc.StatusCode.UNAVAILABLE)
    with connect(address, token="secret") as pulsa:
        pulsa.credits.GetBalance(GetBalanceRequest(organization_id="x" * 1_000_000))
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "cut",
    [
        None,  # by a server that drains
        grpc.StatusCode.INTERNAL,  # by nginx
        grpc.StatusCode.UNKNOWN,  # by HAProxy 2
        grpc.StatusCode.CANCELLED,  # by HAProxy 3
        errors.DatabaseUnavailable(retry_after_seconds=1),
        errors.Overloaded(retry_after_seconds=1),
        errors.TokenInvalid(),  # expired under the stream
    ],
)
def test_a_watched_balance_goes_on_when_its_stream_is_cut(
    server: ScriptedServer, address: str, cut: ScriptedError | None
) -> None:
    server.errors.extend([cut] if cut else [])
    with connect(address, token="secret") as pulsa:
        balances = pulsa.watch_balance("acme")
        assert [next(balances), next(balances)] == [WatchBalanceResponse()] * 2
    assert server.requests == [WatchBalanceRequest(organization_id="acme")] * 2


@pytest.mark.parametrize(
    "refusal",
    [
        errors.PermissionMissing(permission="balance.read"),
        internal_error_status("1"),  # unlike a proxy's, it has a reason
        grpc.StatusCode.DEADLINE_EXCEEDED,
    ],
)
def test_a_watched_balance_ends_when_the_server_refuses(
    server: ScriptedServer, address: str, refusal: ScriptedError
) -> None:
    server.errors.append(refusal)
    with connect(address, token="secret") as pulsa:
        balances = pulsa.watch_balance("acme")
        next(balances)
        with pytest.raises(PulsaError):
            next(balances)
    assert len(server.requests) == 1


def test_a_watched_balance_ends_with_a_token_that_is_refused_from_the_beginning(
    server: ScriptedServer, address: str
) -> None:
    server.errors.extend([errors.TokenInvalid()] * 2)
    with connect(address, token="secret") as pulsa:
        balances = pulsa.watch_balance("acme")
        next(balances)
        server.messages = 0
        with pytest.raises(PulsaError, match="TOKEN_INVALID"):
            next(balances)
    assert len(server.requests) == 2


def test_watched_events_go_on_after_the_last_cursor(server: ScriptedServer, address: str) -> None:
    server.errors.append(grpc.StatusCode.UNAVAILABLE)
    with connect(address, token="secret") as pulsa:
        events = pulsa.watch_events("acme", cursor="begin")
        assert [next(events).cursor for _ in range(3)] == ["begin+", "begin++", "begin+++"]


def test_a_stream_is_opened_again_after_a_growing_pause(server: ScriptedServer, address: str) -> None:
    server.messages = 0
    server.errors.extend([grpc.StatusCode.UNAVAILABLE] * 3 + [errors.PermissionMissing(permission="balance.read")])
    began = time.monotonic()
    with connect(address, token="secret") as pulsa, pytest.raises(PulsaError, match="PERMISSION_MISSING"):
        next(pulsa.watch_balance("acme"))
    assert time.monotonic() - began >= 0.1 + 0.2 + 0.4


def test_grpc_repeats_no_stream(server: ScriptedServer, address: str) -> None:
    server.messages = 0
    server.errors.extend([grpc.StatusCode.UNAVAILABLE] * 2)
    with connect(address, token="secret") as pulsa:
        stream = pulsa.credits.WatchBalance(WatchBalanceRequest(organization_id="acme"))
        with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            next(stream)
    assert len(server.requests) == 1


def test_a_watched_balance_ends_with_its_client(address: str) -> None:
    with connect(address, token="secret") as pulsa:
        balances = pulsa.watch_balance("acme")
        next(balances)
    with pytest.raises(ValueError, match="Channel closed"):
        list(balances)


def test_an_unreachable_server_fails_within_the_deadline() -> None:
    with connect("127.0.0.1:1", token="secret", timeout_seconds=0.5) as pulsa, pytest.raises(PulsaError) as refused:
        pulsa.credits.GetBalance(REQUEST)
    assert refused.value.code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
