from collections.abc import AsyncIterator, Callable

import pytest

from server.providers.provider import Channel, Message, OutcomeKind
from server.providers.whatsapp import WhatsApp, WhatsAppSettings
from server.sandbox.providers import Answer, ProvidersSandbox, json_answer, whatsapp_error

MakeMessage = Callable[..., Message]
DESTINATION = (470, 130472, 130497, 131021, 131026, 131030, 131047, 131049, 131050, 131051, 131053)
CONFIGURATION = (0, 3, 10, 33, 100, 190, 200, 242, 299, 368, 131005, 131008, 131009, 131031, 131037, 131042, 131045)
CONFIGURATION_OF_TEMPLATES = (132000, 132001, 132005, 132007, 132008, 132012, 132015, 132016, 133010)
TRANSIENT = (2, 4, 80007, 130429, 131016, 131048, 131056, 131057)
UNKNOWN = (1, 131000, 135000)
ECHO = "Message to 6281234567890 with 918273 failed"


@pytest.fixture
async def whatsapp(sandbox_url: str) -> AsyncIterator[WhatsApp]:
    settings = WhatsAppSettings(
        "1055", "token", "one_time_code", ("en", "id", "pt_BR"), base_url=sandbox_url, timeout_seconds=5
    )
    provider = WhatsApp(settings)
    yield provider
    await provider.close()


async def test_a_template_is_sent_as_meta_documents_it(
    whatsapp: WhatsApp, sandbox: ProvidersSandbox, make_message: MakeMessage
) -> None:
    message = make_message(Channel.WHATSAPP, locale="id-ID")

    outcome = await whatsapp.deliver(message)

    call = sandbox.received[0]
    code = [{"type": "text", "text": "918273"}]
    assert (outcome.kind, len(outcome.provider_message_id)) == (OutcomeKind.ACCEPTED, 64)
    assert call.headers["Authorization"] == "Bearer token"
    assert call.fields == {
        "messaging_product": "whatsapp",
        "recipient_type": "individual",
        "to": "6281234567890",
        "type": "template",
        "biz_opaque_callback_data": message.reference,
        "template": {
            "name": "one_time_code",
            "language": {"code": "id"},
            "components": [
                {"type": "body", "parameters": code},
                {"type": "button", "sub_type": "url", "index": "0", "parameters": code},
            ],
        },
    }


@pytest.mark.parametrize(
    ("locale", "language"),
    [("pt-br", "pt_BR"), ("pt", "en"), ("id_ID", "id"), ("in-ID", "id"), ("", "en"), ("ar", "en")],
)
async def test_only_an_approved_language_is_used(
    whatsapp: WhatsApp, sandbox: ProvidersSandbox, make_message: MakeMessage, locale: str, language: str
) -> None:
    await whatsapp.deliver(make_message(Channel.WHATSAPP, locale=locale))

    assert sandbox.received[0].fields["template"]["language"] == {"code": language}


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        *((code, OutcomeKind.REJECTED_DESTINATION) for code in DESTINATION),
        *((code, OutcomeKind.REJECTED_CONFIGURATION) for code in CONFIGURATION + CONFIGURATION_OF_TEMPLATES),
        *((code, OutcomeKind.NOT_SENT) for code in TRANSIENT),
        *((code, OutcomeKind.UNKNOWN) for code in UNKNOWN),
    ],
)
async def test_the_error_code_decides_whatever_the_http_status(
    whatsapp: WhatsApp, sandbox: ProvidersSandbox, make_message: MakeMessage, code: int, kind: OutcomeKind, status: int
) -> None:
    sandbox.play("whatsapp", whatsapp_error(code, status=status, text=ECHO))

    outcome = await whatsapp.deliver(make_message(Channel.WHATSAPP))

    assert (outcome.kind, outcome.failure_reason) == (kind, f"whatsapp_{code}")
    assert outcome.retry_after_seconds == (6 if code == 131056 else None)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, OutcomeKind.REJECTED_CONFIGURATION),
        (403, OutcomeKind.REJECTED_CONFIGURATION),
        (500, OutcomeKind.UNKNOWN),
        (200, OutcomeKind.UNKNOWN),
    ],
)
async def test_an_error_code_that_is_not_listed_was_not_sent_if_the_http_status_is_of_4xx(
    whatsapp: WhatsApp, sandbox: ProvidersSandbox, make_message: MakeMessage, status: int, kind: OutcomeKind
) -> None:
    sandbox.play("whatsapp", whatsapp_error(999999, status=status, text=ECHO))

    outcome = await whatsapp.deliver(make_message(Channel.WHATSAPP))

    assert (outcome.kind, outcome.failure_reason) == (kind, "whatsapp_999999")


@pytest.mark.parametrize("message_status", ["accepted", "held_for_quality_assessment", "paused"])
async def test_a_message_that_meta_accepted_is_accepted_even_if_it_is_held(
    whatsapp: WhatsApp, sandbox: ProvidersSandbox, make_message: MakeMessage, message_status: str
) -> None:
    sandbox.play("whatsapp", json_answer({"messages": [{"id": "wamid.x", "message_status": message_status}]}))

    assert (await whatsapp.deliver(make_message(Channel.WHATSAPP))).kind is OutcomeKind.ACCEPTED


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(200, "<html>6281234567890</html>"), OutcomeKind.UNKNOWN),
        (Answer(500, ""), OutcomeKind.UNKNOWN),
        (json_answer({"messages": []}), OutcomeKind.UNKNOWN),
        (json_answer({"messages": [{"id": 918273}]}), OutcomeKind.UNKNOWN),
        (json_answer({"messages": [{"id": "x" * 300}]}), OutcomeKind.UNKNOWN),
        (Answer(401, "<html>no</html>"), OutcomeKind.REJECTED_CONFIGURATION),
        (Answer(302, headers={"Location": "/elsewhere"}), OutcomeKind.REJECTED_CONFIGURATION),
        (Answer(429, "slower"), OutcomeKind.NOT_SENT),
        (json_answer({"error": "918273"}, status=400), OutcomeKind.REJECTED_CONFIGURATION),
        (json_answer({"error": {"code": "190"}}, status=400), OutcomeKind.REJECTED_CONFIGURATION),
    ],
)
async def test_without_an_error_code_the_http_status_decides(
    whatsapp: WhatsApp, sandbox: ProvidersSandbox, make_message: MakeMessage, answer: Answer, kind: OutcomeKind
) -> None:
    sandbox.play("whatsapp", answer)

    outcome = await whatsapp.deliver(make_message(Channel.WHATSAPP))

    assert (outcome.kind, outcome.failure_reason) == (kind, f"whatsapp_http_{answer.status}")
    assert len(sandbox.received) == 1
