from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest

from server.clock import utc_now
from server.providers.provider import Message, OutcomeKind
from server.providers.templates import Templates
from server.providers.vonage import Vonage, VonageSettings
from server.sandbox.providers import Answer, ProvidersSandbox, json_answer, vonage_status

MakeMessage = Callable[..., Message]
ECHO = "Invalid number 6281234567890 in 918273"


@pytest.fixture
async def vonage(sandbox_url: str, templates: Templates) -> AsyncIterator[Vonage]:
    settings = VonageSettings("key", "secret", "Pulsa", base_url=sandbox_url + "/", timeout_seconds=5)
    provider = Vonage(settings, templates, clock=utc_now)
    yield provider
    await provider.close()


async def test_a_message_is_sent_as_vonage_documents_it(
    vonage: Vonage, sandbox: ProvidersSandbox, make_message: MakeMessage
) -> None:
    now = utc_now()
    vonage._clock = lambda: now
    message = make_message(ttl=timedelta(minutes=5), now=now)

    outcome = await vonage.deliver(message)

    fields = dict(sandbox.received[0].fields)
    assert (outcome.kind, outcome.provider_message_id) == (OutcomeKind.ACCEPTED, "v-1")
    assert 290_000 < int(fields.pop("ttl")) <= 300_000
    assert fields == {
        "api_key": "key",
        "api_secret": "secret",
        "from": "Pulsa",
        "to": "6281234567890",
        "text": "918273 is your sign-in code. It works for 5 min. Never share it with anyone.",
        "client-ref": message.reference,
    }


async def test_text_beyond_the_gsm_alphabet_is_sent_as_unicode_and_a_short_ttl_is_raised_to_the_minimum(
    vonage: Vonage, sandbox: ProvidersSandbox, make_message: MakeMessage
) -> None:
    await vonage.deliver(make_message(locale="ar", ttl=timedelta(seconds=3)))

    fields = sandbox.received[0].fields
    assert (fields["type"], fields["ttl"]) == ("unicode", "20000")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, OutcomeKind.NOT_SENT) for status in ("1", "10")),
        ("5", OutcomeKind.UNKNOWN),
        *((status, OutcomeKind.REJECTED_DESTINATION) for status in ("6", "7")),
        *((status, OutcomeKind.REJECTED_CONFIGURATION) for status in ("2", "3", "4", "8", "9", "15", "29", "99")),
    ],
)
async def test_the_status_in_the_body_decides_the_outcome(
    vonage: Vonage, sandbox: ProvidersSandbox, make_message: MakeMessage, status: str, kind: OutcomeKind
) -> None:
    sandbox.play("vonage", vonage_status(status, text=ECHO))

    outcome = await vonage.deliver(make_message())

    assert (outcome.kind, outcome.failure_reason) == (kind, f"vonage_{status}")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(200, "<html>6281234567890</html>"), OutcomeKind.UNKNOWN),
        (json_answer({}), OutcomeKind.UNKNOWN),
        (json_answer({"messages": []}), OutcomeKind.UNKNOWN),
        (json_answer({"messages": "918273"}), OutcomeKind.UNKNOWN),
        (json_answer({"messages": [{"status": 0}]}), OutcomeKind.UNKNOWN),
        (json_answer({"messages": [{"status": "918273"}]}), OutcomeKind.UNKNOWN),
        (Answer(401, "<html>no</html>"), OutcomeKind.REJECTED_CONFIGURATION),
        (Answer(302, headers={"Location": "/elsewhere"}), OutcomeKind.REJECTED_CONFIGURATION),
        (Answer(429), OutcomeKind.NOT_SENT),
        (Answer(503, "busy"), OutcomeKind.UNKNOWN),
    ],
)
async def test_without_a_status_in_the_body_the_http_status_decides(
    vonage: Vonage, sandbox: ProvidersSandbox, make_message: MakeMessage, answer: Answer, kind: OutcomeKind
) -> None:
    sandbox.play("vonage", answer)

    outcome = await vonage.deliver(make_message())

    assert (outcome.kind, outcome.failure_reason) == (kind, f"vonage_http_{answer.status}")
