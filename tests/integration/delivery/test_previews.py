"""Previews: what a send would do, decided by the rules of the send itself, without writing anything."""

import math
from datetime import timedelta
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pulsa.credit.v1 import channel_pb2
from pulsa.error.v1 import error_reason_pb2
from pulsa.otp.v1 import otp_service_pb2 as pb
from pulsa.otp.v1.destination_pb2 import Destination

from server.api.auth import Caller
from server.api.interceptor import Call
from server.api.jwks import VerificationKey
from server.api.otp_records import OtpDependencies
from server.api.otp_service import OtpService
from server.api.otp_settings import SettingsDependencies
from server.api.validation import compile_validation
from server.errors import DomainError, InvalidDestination
from server.otps.admission import SendLimits
from server.otps.delivery.suppressions import Suppressions
from server.otps.effective_settings import OperatorSettings
from server.otps.guess_policy import GuessLimits
from server.otps.previews import Preview
from server.otps.recipients import RawDestination
from server.otps.settings_cache import SettingsCache
from server.otps.sms_pumping import ALL_AREAS
from server.otps.verify import Verifier
from server.postgres.batcher import Batching
from server.providers.provider import Channel
from tests.integration.delivery.harness import EMAIL, SMS, WHATSAPP, DeliveryHarness, OpenHarness

KEY = VerificationKey(Ed25519PrivateKey.generate().public_key(), "EdDSA", None)
ANN = Caller("ann", "acme", frozenset(), math.inf, KEY)
IMPOSSIBLE = RawDestination(Channel.SMS, "+620", "destination.sms")


@pytest.mark.parametrize(
    ("destination", "preview"),
    [
        (SMS, Preview(Channel.SMS, 3, "+62*********90", 1)),
        (WHATSAPP, Preview(Channel.WHATSAPP, 2, "+62*********90", 0)),
        (EMAIL, Preview(Channel.EMAIL, 1, "b***@example.com", 0)),
    ],
)
async def test_a_preview_has_channel_price_destination_and_segments(
    harness: DeliveryHarness, destination: RawDestination, preview: Preview
) -> None:
    assert await harness.preview(destination) == preview


@pytest.mark.parametrize(("locale", "autofill"), [("en", True), ("ar", False)])
async def test_a_preview_tells_whether_the_code_is_filled_in(
    harness: DeliveryHarness,
    locale: str,
    autofill: bool,  # noqa: FBT001
) -> None:
    domain = "sign-in.accounts.shop.example.com"

    preview = await harness.preview(SMS, locale=locale, web_otp_domain=domain)

    assert (preview.autofill, preview.segments) == (autofill, 1)


async def test_a_preview_writes_nothing_and_charges_nothing(harness: DeliveryHarness) -> None:
    request_id = uuid4()
    written = (
        "SELECT 1 FROM otps UNION ALL SELECT 1 FROM deliveries"
        " UNION ALL SELECT 1 FROM ledger_entries WHERE kind <> 'ADJUSTMENT'"
    )

    await harness.preview(SMS, request_id=request_id)
    rows = await harness.rows(written)
    accepted = await harness.send(SMS, request_id=request_id)

    assert (rows, accepted.replayed) == ([], False)
    assert await harness.ledger() == [("SEND", -3, accepted.delivery.delivery_id)]


async def test_the_preview_of_a_repeat_costs_nothing(harness: DeliveryHarness) -> None:
    same = {"request_id": uuid4()}
    await harness.send(SMS, **same)

    repeat, other = await harness.preview(SMS, **same), await harness.preview(SMS, **same, purpose="payment")

    assert (repeat.credits, repeat.refusal) == (0, None)
    assert reason(other) == "REQUEST_ID_REUSED"


async def test_a_preview_refuses_as_the_send_itself_would(open_harness: OpenHarness) -> None:
    harness = open_harness(limits=SendLimits(cooldown=timedelta(minutes=1)))
    await harness.fund(4)
    await harness.send(EMAIL)

    assert reason(await harness.preview(EMAIL)) == await refusal_of_send(harness, EMAIL) == "RESEND_TOO_SOON"
    await harness.send(WHATSAPP)
    assert reason(await harness.preview(SMS)) == await refusal_of_send(harness, SMS) == "INSUFFICIENT_CREDITS"


async def test_the_preview_of_an_organization_without_an_account_is_insufficient_credits(
    harness: DeliveryHarness,
) -> None:
    preview = await harness.preview(SMS, organization_id="newcomer")

    assert (preview.credits, reason(preview)) == (3, "INSUFFICIENT_CREDITS")


async def test_a_destination_that_no_send_could_use_is_refused_in_the_preview(
    open_harness: OpenHarness, harness: DeliveryHarness
) -> None:
    without_providers = open_harness({})

    impossible, fallback = await harness.preview(IMPOSSIBLE), await harness.preview(EMAIL, IMPOSSIBLE)
    not_configured = await without_providers.preview(SMS)

    assert [reason(one) for one in (impossible, fallback)] == ["INVALID_DESTINATION"] * 2
    assert impossible.masked_destination == ""
    assert (not_configured.credits, reason(not_configured)) == (0, "CHANNEL_NOT_CONFIGURED")


async def test_the_rpc_answers_with_the_preview_and_nothing_else(harness: DeliveryHarness) -> None:
    request = pb.SendOtpRequest(
        organization_id="acme", request_id=str(uuid4()), destination=Destination(sms=SMS.text), purpose="login"
    )
    service, call = (
        OtpService(dependencies_of(harness)),
        Call(ANN, math.inf, compile_validation(pb.SendOtpRequest.DESCRIPTOR)),
    )

    async def answer(payload: bytes) -> pb.SendOtpResponse:
        return pb.SendOtpResponse.FromString(await service.SendOtp(pb.SendOtpRequest.FromString(payload), call))

    free = await answer(_with_preview(request))
    sent = await answer(request.SerializeToString())
    repeat = await answer(_with_preview(request))
    request.request_id, request.destination.sms = str(uuid4()), "+620"
    wrong = await answer(_with_preview(request))

    assert free == pb.SendOtpResponse(
        preview=pb.SendPreview(
            channel=channel_pb2.CHANNEL_SMS, credits=3, masked_destination="+62*********90", segments=1
        )
    )
    assert (sent.credits_charged, sent.HasField("preview")) == (3, False)
    assert repeat.preview.credits == 0
    assert wrong.preview.refusal == error_reason_pb2.ERROR_REASON_INVALID_DESTINATION
    assert wrong.preview.refusal_message == InvalidDestination(field="").message


def _with_preview(request: pb.SendOtpRequest) -> bytes:
    preview = pb.SendOtpRequest()
    preview.CopyFrom(request)
    preview.validate_only = True
    return preview.SerializeToString()


def dependencies_of(harness: DeliveryHarness) -> OtpDependencies:
    return OtpDependencies(
        pool=harness.pool,
        crypto=harness.crypto,
        recipients=harness.recipients,
        sender=harness.sender,
        verifier=Verifier(harness.pool, harness.crypto, limits=GuessLimits(), clock=harness.clock),
        clock=harness.clock,
        batching=Batching(size=1, linger_seconds=0),
        cooldown=timedelta(),
        free_places=lambda: 1000,
        suppressions=Suppressions(harness.pool, harness.crypto, period=timedelta(days=30), clock=harness.clock),
        settings=SettingsDependencies(
            harness.pool,
            SettingsCache(OperatorSettings(areas=ALL_AREAS, limits=harness.limits)),
            low_balance_threshold=0,
        ),
    )


def reason(preview: Preview) -> str:
    return preview.refusal.reason if preview.refusal else ""


async def refusal_of_send(harness: DeliveryHarness, destination: RawDestination) -> str:
    with pytest.raises(DomainError) as refused:
        await harness.send(destination)
    return refused.value.reason
