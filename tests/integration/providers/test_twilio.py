from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest

from server.clock import utc_now
from server.providers.provider import Message, OutcomeKind
from server.providers.templates import Templates
from server.providers.twilio import Twilio, TwilioSettings
from server.sandbox.providers import Answer, ProvidersSandbox, json_answer, twilio_error

MakeMessage = Callable[..., Message]
DESTINATION = (21211, 21265, 21266, 21268, 21610, 21614, 21635, 30005, 30006, 30450)
CONFIGURATION = (20003, 21408, 21606, 21608, 21612, 21659, 21703, 30007)
ECHO = "The 'To' number +6281234567890 is not valid for 918273"


def settings(url: str, sender: str = "+15005550006", callback: str = "") -> TwilioSettings:
    return TwilioSettings("AC1", "token", sender, status_callback_url=callback, base_url=url, timeout_seconds=5)


@pytest.fixture
async def twilio(sandbox_url: str, templates: Templates) -> AsyncIterator[Twilio]:
    provider = Twilio(settings(sandbox_url), templates, clock=utc_now)
    yield provider
    await provider.close()


async def test_a_message_is_sent_as_twilio_documents_it(
    twilio: Twilio, sandbox: ProvidersSandbox, make_message: MakeMessage
) -> None:
    now = utc_now()
    twilio._clock = lambda: now
    outcome = await twilio.deliver(make_message(ttl=timedelta(seconds=90), domain="example.com", now=now))

    call = sandbox.received[0]
    assert (outcome.kind, outcome.provider) == (OutcomeKind.ACCEPTED, "twilio")
    assert outcome.provider_message_id.startswith("SM")
    assert call.fields == {
        "To": "+6281234567890",
        "From": "+15005550006",
        "Body": "918273 is your sign-in code. It works for 1 min. Never share it with anyone.\n@example.com #918273",
        "ValidityPeriod": "90",
    }
    assert b64decode(call.headers["Authorization"].removeprefix("Basic ")) == b"AC1:token"


@pytest.mark.parametrize(
    ("callback", "called"),
    [
        ("https://example.com/reports", "https://example.com/reports?"),
        ("https://example.com/reports?key=1", "https://example.com/reports?key=1&"),
    ],
)
async def test_a_messaging_service_and_a_callback_with_the_reference_are_sent(
    sandbox_url: str,
    sandbox: ProvidersSandbox,
    templates: Templates,
    make_message: MakeMessage,
    callback: str,
    called: str,
) -> None:
    twilio = Twilio(settings(sandbox_url, "MG7", callback), templates, clock=utc_now)
    message = make_message(ttl=timedelta(seconds=-5))

    await twilio.deliver(message)
    await twilio.close()

    fields = sandbox.received[0].fields
    assert (fields["MessagingServiceSid"], "From" in fields) == ("MG7", False)
    assert fields["StatusCallback"] == f"{called}reference=acme%40jakarta%2F{message.delivery_id.hex}"
    assert fields["ValidityPeriod"] == "1"


@pytest.mark.parametrize("status", [400, 404, 429, 500])
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        *((code, OutcomeKind.REJECTED_DESTINATION) for code in DESTINATION),
        *((code, OutcomeKind.REJECTED_CONFIGURATION) for code in CONFIGURATION),
        (20429, OutcomeKind.NOT_SENT),
    ],
)
async def test_a_documented_error_code_decides_whatever_the_http_status(
    twilio: Twilio, sandbox: ProvidersSandbox, make_message: MakeMessage, code: int, kind: OutcomeKind, status: int
) -> None:
    sandbox.play("twilio", twilio_error(code, status=status, text=ECHO))

    outcome = await twilio.deliver(make_message())

    assert (outcome.kind, outcome.failure_reason) == (kind, f"twilio_{code}")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, OutcomeKind.REJECTED_CONFIGURATION) for status in (301, 307, 400, 401, 403, 404, 405, 422)),
        (429, OutcomeKind.NOT_SENT),
        *((status, OutcomeKind.UNKNOWN) for status in (200, 500, 502, 503, 504)),
    ],
)
@pytest.mark.parametrize("body", ["<html>+6281234567890</html>", "", "[1]", '{"code": [1]}', '{"code": 29999}'])
async def test_the_http_status_decides_without_a_documented_error_code(
    twilio: Twilio, sandbox: ProvidersSandbox, make_message: MakeMessage, status: int, kind: OutcomeKind, body: str
) -> None:
    sandbox.play("twilio", Answer(status, body, headers={"Location": "/elsewhere"}))

    outcome = await twilio.deliver(make_message())

    assert outcome.kind is kind
    assert outcome.failure_reason == ("twilio_29999" if "29999" in body else f"twilio_http_{status}")
    assert len(sandbox.received) == 1


async def test_a_rate_limit_has_the_retry_delay_up_to_an_hour(
    twilio: Twilio, sandbox: ProvidersSandbox, make_message: MakeMessage
) -> None:
    sandbox.play(
        "twilio",
        json_answer({"code": 20429}, status=429, headers={"Retry-After": "7"}),
        json_answer({"code": 20429}, status=429, headers={"Retry-After": "99999"}),
        json_answer({"code": 20429}, status=429, headers={"Retry-After": "soon"}),
    )

    delays = [(await twilio.deliver(make_message())).retry_after_seconds for _ in range(3)]

    assert delays == [7, 3600, None]


@pytest.mark.parametrize("body", ["<html>created</html>", "{}", '{"sid": 5}', '{"sid": ""}', "[" * 50_000])
async def test_a_success_without_a_message_id_is_unknown(
    twilio: Twilio, sandbox: ProvidersSandbox, make_message: MakeMessage, body: str
) -> None:
    sandbox.play("twilio", Answer(201, body))

    assert (await twilio.deliver(make_message())).kind is OutcomeKind.UNKNOWN


@pytest.mark.parametrize(
    ("code", "kind"), [(30005, OutcomeKind.REJECTED_DESTINATION), (39999, OutcomeKind.REJECTED_CONFIGURATION)]
)
async def test_a_message_that_is_created_as_failed_is_a_rejection(
    twilio: Twilio, sandbox: ProvidersSandbox, make_message: MakeMessage, code: int, kind: OutcomeKind
) -> None:
    sandbox.play("twilio", json_answer({"sid": "SM1", "status": "failed", "error_code": code}, status=201))

    outcome = await twilio.deliver(make_message())

    assert (outcome.kind, outcome.provider_message_id) == (kind, "SM1")
