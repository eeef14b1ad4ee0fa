"""The batches of the OTP service: calls are prepared, decided together and answered, and a failed call fails alone."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pulsa.otp.v1 import otp_service_pb2 as pb

from server.api.auth import Caller
from server.api.interceptor import Call
from server.api.jwks import VerificationKey
from server.api.otp_records import OtpDependencies
from server.api.otp_service import OtpService
from server.api.otp_settings import SettingsDependencies
from server.api.validation import compile_validation
from server.clock import utc_now
from server.errors import DomainError, InvalidFields, WrongCode
from server.otps.guess_policy import Guess
from server.otps.otp import Otp
from server.postgres.batcher import Batching
from tests.unit.otps.sends import an_otp
from tests.valid_requests import valid_request

REQUEST = pb.VerifyOtpRequest.DESCRIPTOR
KEY = VerificationKey(Ed25519PrivateKey.generate().public_key(), "EdDSA", None)
ANN = Caller("ann", "*", frozenset(), math.inf, KEY)
WRONG_CODE, UNREADABLE = "111111", "222222"


@dataclass
class FakeVerifier:
    """Records each batch of codes. Answers WRONG_CODE with an error, and UNREADABLE with an OTP that has no times."""

    batches: list[list[str]] = field(default_factory=list)
    error: Exception | None = None

    async def verify(self, guesses: Sequence[Guess], *, wait: bool) -> list[Otp | DomainError]:  # noqa: ARG002
        self.batches.append([guess.code for guess in guesses])
        if self.error:
            raise self.error
        return [self._answer(guess) for guess in guesses]

    def _answer(self, guess: Guess) -> Otp | DomainError:
        if guess.code == WRONG_CODE:
            return WrongCode(attempts_remaining=2)
        otp = an_otp(organization_id=guess.organization_id, otp_id=guess.otp_id)
        if guess.code == UNREADABLE:
            otp.create_time = cast("Any", None)
        return otp


@pytest.fixture
def verifier() -> FakeVerifier:
    return FakeVerifier()


async def answers(verifier: FakeVerifier, *codes: str) -> list[Any]:
    """What concurrent calls with these codes get: the id of the OTP in the response, or the error."""
    return [
        UUID(one.otp.otp_id).int if isinstance(one, pb.VerifyOtpResponse) else type(one)
        for one in await responses(verifier, *codes)
    ]


async def responses(verifier: FakeVerifier, *codes: str, **fields: Any) -> list[pb.VerifyOtpResponse | BaseException]:
    service = OtpService(
        OtpDependencies(
            pool=cast("Any", None),
            crypto=cast("Any", None),
            recipients=cast("Any", None),
            sender=cast("Any", None),
            verifier=cast("Any", verifier),
            clock=utc_now,
            batching=Batching(),
            cooldown=timedelta(),
            free_places=lambda: 1000,
            suppressions=cast("Any", None),
            settings=SettingsDependencies(cast("Any", None), cast("Any", None), low_balance_threshold=0),
        )
    )
    call = Call(ANN, math.inf, compile_validation(REQUEST))
    requests = [
        valid_request(REQUEST, code=code, otp_id=str(UUID(int=number)), **fields)
        for number, code in enumerate(codes, start=1)
    ]
    answered = await asyncio.gather(
        *(service.VerifyOtp(cast("pb.VerifyOtpRequest", request), call) for request in requests),
        return_exceptions=True,
    )
    return [pb.VerifyOtpResponse.FromString(one) if isinstance(one, bytes) else one for one in answered]


async def test_a_wrong_code_is_a_result_where_the_request_asks_for_it(verifier: FakeVerifier) -> None:
    right, wrong, invalid = await responses(verifier, "123456", WRONG_CODE, "", wrong_code_as_result=True)

    assert isinstance(right, pb.VerifyOtpResponse)
    assert (right.result, right.otp.otp_id) == (pb.VERIFY_RESULT_VERIFIED, str(UUID(int=1)))
    assert wrong == pb.VerifyOtpResponse(result=pb.VERIFY_RESULT_WRONG_CODE, attempts_remaining=2)
    assert isinstance(invalid, InvalidFields)


async def test_each_call_of_a_batch_gets_its_own_answer(verifier: FakeVerifier) -> None:
    assert await answers(verifier, "123456", "123-456", WRONG_CODE, "654321") == [1, 2, WrongCode, 4]
    assert verifier.batches == [["123456", "123456", WRONG_CODE, "654321"]]


@pytest.mark.parametrize(
    "typed",
    [
        *(
            "676216",
            "676 216",
            "676-216",
            "\u2066676216\u2069",
            "٦٧٦٢١٦",
            "۶۷۶۲۱۶",
            "६७६२१६",
            "676\u00a0216",
            "676\u2013216",
        ),
        *("\ufeff676\u200b216\r\n", "\uff16\uff17\uff16\uff12\uff11\uff16", "\u202a6 7 6 2 1 6\u202c", "676\u2212216"),
        "".join(f"{digit}\ufe0f\u20e3" for digit in "676216"),
    ],
)
async def test_a_code_is_read_as_people_type_and_copy_it(verifier: FakeVerifier, typed: str) -> None:
    assert await answers(verifier, typed) == [1]
    assert verifier.batches == [["676216"]]


@pytest.mark.parametrize("typed", ["G676216", "676.216", "67621²", "six"])
async def test_what_is_no_digit_stays_in_the_code(verifier: FakeVerifier, typed: str) -> None:
    await answers(verifier, typed)

    assert verifier.batches == [[typed]]


async def test_a_call_that_cannot_be_prepared_or_answered_fails_alone(verifier: FakeVerifier) -> None:
    first, unprepared, unanswered, last = await answers(verifier, "123456", "", UNREADABLE, "654321")

    assert (first, unprepared, last) == (1, InvalidFields, 4)
    assert issubclass(unanswered, Exception)
    assert verifier.batches == [["123456", UNREADABLE, "654321"]]


async def test_a_batch_of_which_nothing_can_be_prepared_is_not_decided(verifier: FakeVerifier) -> None:
    assert await answers(verifier, "", "") == [InvalidFields] * 2
    assert verifier.batches == []


async def test_when_the_decision_fails_only_the_prepared_calls_get_its_error(verifier: FakeVerifier) -> None:
    verifier.error = ConnectionError()

    assert await answers(verifier, "123456", "", "654321") == [ConnectionError, InvalidFields, ConnectionError]
