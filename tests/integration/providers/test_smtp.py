"""The outcome of every reply and every lost connection, at every step of an SMTP session."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from pydantic import ValidationError

from server.clock import utc_now
from server.provider_settings import Smtp as SmtpGroup
from server.providers.provider import Channel, Message, OutcomeKind, Subject
from server.providers.smtp import Smtp, SmtpSettings
from server.providers.templates import Templates
from server.sandbox.relay import DROP, HANG, Relay
from tests.waiting import until

MakeMessage = Callable[..., Message]

STEPS_BEFORE_THE_FINAL_DOT = ("GREETING", "EHLO", "MAIL", "RCPT", "DATA")
ECHO = "<bob.smith@example.com> 918273"

DESTINATION = OutcomeKind.REJECTED_DESTINATION
CONFIGURATION = OutcomeKind.REJECTED_CONFIGURATION


def settings(port: int, timeout_seconds: float = 5, **changes: Any) -> SmtpSettings:
    defaults = {"timeout_seconds": timeout_seconds, "dot_timeout_seconds": timeout_seconds}
    return SmtpSettings("127.0.0.1", "no-reply@pulsa.example", "Pulsa, Inc.", port, "none", **(defaults | changes))


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    async with Relay() as relay:
        yield relay


@pytest.fixture
async def smtp(relay: Relay, templates: Templates) -> AsyncIterator[Smtp]:
    provider = Smtp(settings(relay.port), templates, clock=utc_now)
    yield provider
    await provider.close()


@pytest.fixture
def message(make_message: MakeMessage) -> Message:
    return make_message(Channel.EMAIL)


async def test_a_mail_has_text_and_html_and_the_headers_of_automatic_mail(
    smtp: Smtp, relay: Relay, message: Message
) -> None:
    outcome = await smtp.deliver(message)

    mail = message_from_bytes(relay.mails[0].content, policy=policy.default)
    assert isinstance(mail, EmailMessage)
    text, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert (outcome.kind, outcome.provider_message_id) == (
        OutcomeKind.ACCEPTED,
        f"{message.delivery_id}@pulsa.example",
    )
    assert relay.mails[0].envelope == ("MAIL FROM:<no-reply@pulsa.example>", "RCPT TO:<bob.smith@example.com>")
    assert mail["Message-ID"] == f"<{message.delivery_id}@pulsa.example>"
    assert (mail["From"], mail["To"]) == ('"Pulsa, Inc." <no-reply@pulsa.example>', "bob.smith@example.com")
    assert (mail["Subject"], mail["Auto-Submitted"]) == ("Your sign-in code", "auto-generated")
    assert {"Reply-To", "Feedback-ID", "X-Auto-Response-Suppress"}.isdisjoint(mail.keys())
    assert mail["Date"].datetime is not None
    assert mail.get_content_type() == "multipart/alternative"
    assert text is not None
    assert "\n\n918273\n\n" in text.get_content().replace("\r\n", "\n")
    assert html is not None
    assert ">918273</bdi></p>" in html.get_content()
    assert max(len(line) for line in relay.mails[0].content.split(b"\r\n")) <= 78
    assert not mail.defects


async def test_a_mail_has_the_headers_of_the_settings(relay: Relay, templates: Templates, message: Message) -> None:
    configured = replace(
        settings(relay.port), reply_to="help@pulsa.example", feedback_id="otp:pulsa", auto_response_suppress="All"
    )
    smtp = Smtp(configured, templates, clock=utc_now)

    await smtp.deliver(message)
    await smtp.close()

    mail = message_from_bytes(relay.mails[0].content, policy=policy.default)
    assert (mail["Reply-To"], mail["Feedback-ID"]) == ("help@pulsa.example", "otp:pulsa")
    assert mail["X-Auto-Response-Suppress"] == "All"
    with pytest.raises(ValidationError):
        SmtpGroup(feedback_id="otp\r\nBcc: eve@example.com")


async def test_right_to_left_text_arrives_unchanged(
    smtp: Smtp, relay: Relay, make_message: MakeMessage, templates: Templates
) -> None:
    message = make_message(Channel.EMAIL, locale="ar")

    await smtp.deliver(message)

    mail = message_from_bytes(relay.mails[0].content, policy=policy.default)
    assert isinstance(mail, EmailMessage)
    text = mail.get_body(("plain",))
    assert mail["Subject"] == "رمز الدخول"
    assert text is not None
    assert text.get_content().replace("\r\n", "\n").rstrip() == templates.render(message, now=utc_now()).text.rstrip()
    assert relay.mails[0].content.isascii()


async def test_an_address_beyond_ascii_is_sent_only_to_a_relay_with_smtputf8(
    smtp: Smtp, relay: Relay, make_message: MakeMessage
) -> None:
    message = make_message(Channel.EMAIL, destination="jürgen@example.com")
    accepted = await smtp.deliver(message)
    relay.play("RSET", "421 4.3.2 bye")
    relay.play("EHLO", "250 relay")
    refused = await smtp.deliver(message)

    assert relay.mails[0].envelope == (
        "MAIL FROM:<no-reply@pulsa.example> SMTPUTF8",
        "RCPT TO:<jürgen@example.com>",
    )
    assert accepted.kind is OutcomeKind.ACCEPTED
    assert (refused.kind, refused.failure_reason) == (DESTINATION, "smtp_not_ascii")


@pytest.mark.parametrize("step", STEPS_BEFORE_THE_FINAL_DOT)
@pytest.mark.parametrize("end", [DROP, HANG, "gibberish"])
async def test_a_session_that_ends_before_the_final_dot_is_not_sent(
    relay: Relay, templates: Templates, message: Message, step: str, end: str
) -> None:
    smtp = Smtp(settings(relay.port, timeout_seconds=0.3 if end == HANG else 5), templates, clock=utc_now)
    relay.play(step, end)

    outcome = await smtp.deliver(message)

    assert outcome.kind is OutcomeKind.NOT_SENT
    assert relay.mails == []
    if end == HANG:
        await until(lambda: relay.open == 0)
    assert (await smtp.deliver(message)).kind is OutcomeKind.ACCEPTED
    await smtp.close()


@pytest.mark.parametrize(
    ("end", "reason"), [(DROP, "connection_lost"), (HANG, "timeout"), ("gibberish", "smtp_0"), ("299 ?", "smtp_299")]
)
async def test_a_session_that_ends_after_the_final_dot_is_unknown(
    relay: Relay, templates: Templates, message: Message, end: str, reason: str
) -> None:
    smtp = Smtp(settings(relay.port, timeout_seconds=0.3 if end == HANG else 5), templates, clock=utc_now)
    relay.play("CONTENT", end)

    outcome = await smtp.deliver(message)
    await smtp.close()

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.UNKNOWN, reason)


@pytest.mark.parametrize("step", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "CONTENT"])
@pytest.mark.parametrize("code", [421, 450, 451, 452, 454])
async def test_a_transient_refusal_at_any_step_is_not_sent(
    smtp: Smtp, relay: Relay, message: Message, step: str, code: int
) -> None:
    relay.play(step, f"{code} 4.3.0 {ECHO}")

    outcome = await smtp.deliver(message)

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.NOT_SENT, f"smtp_{code}")
    assert (await smtp.deliver(message)).kind is OutcomeKind.ACCEPTED


@pytest.mark.parametrize(
    ("reply", "at_recipient", "at_content"),
    [
        ("550 5.1.1", DESTINATION, DESTINATION),
        ("550", DESTINATION, DESTINATION),
        ("551", DESTINATION, DESTINATION),
        ("552 5.2.2", DESTINATION, DESTINATION),
        ("552", DESTINATION, DESTINATION),
        ("553 5.1.3", DESTINATION, DESTINATION),
        ("554 5.2.1", DESTINATION, DESTINATION),
        ("501 5.1.3", DESTINATION, DESTINATION),
        ("501", DESTINATION, CONFIGURATION),
        ("554", DESTINATION, CONFIGURATION),
        ("530 5.7.0", CONFIGURATION, CONFIGURATION),
        ("535", CONFIGURATION, CONFIGURATION),
        ("550 5.7.1", DESTINATION, CONFIGURATION),
        ("554 5.7.26", DESTINATION, CONFIGURATION),
        ("550 5.1.8", CONFIGURATION, CONFIGURATION),
        ("553 5.1.7", CONFIGURATION, CONFIGURATION),
    ],
)
async def test_a_permanent_refusal_is_of_the_destination_or_of_the_configuration(
    smtp: Smtp, relay: Relay, message: Message, reply: str, at_recipient: OutcomeKind, at_content: OutcomeKind
) -> None:
    found = {}
    for step in ("GREETING", "EHLO", "MAIL", "RCPT", "DATA", "CONTENT"):
        relay.play(step, f"{reply} {ECHO}")
        outcome = await smtp.deliver(message)
        found[step] = outcome.kind
        assert outcome.failure_reason == f"smtp_{reply[:3]}"

    assert found == {
        "GREETING": CONFIGURATION,
        "EHLO": CONFIGURATION,
        "MAIL": CONFIGURATION,
        "RCPT": at_recipient,
        "DATA": at_content,
        "CONTENT": at_content,
    }
    assert relay.mails == []


async def test_a_connection_is_reused_even_after_a_refusal(smtp: Smtp, relay: Relay, message: Message) -> None:
    relay.play("RCPT", "550 5.1.1 no such user")

    kinds = [(await smtp.deliver(message)).kind for _ in range(3)]

    assert kinds == [DESTINATION, OutcomeKind.ACCEPTED, OutcomeKind.ACCEPTED]
    assert relay.connections == 1


@pytest.mark.parametrize("end", [DROP, "421 4.3.2 idle for too long"])
async def test_an_idle_connection_that_was_closed_is_replaced(
    smtp: Smtp, relay: Relay, message: Message, end: str
) -> None:
    await smtp.deliver(message)
    relay.play("RSET", end)

    outcome = await smtp.deliver(message)

    assert outcome.kind is OutcomeKind.ACCEPTED
    assert (relay.connections, len(relay.mails)) == (2, 2)


async def test_concurrent_mails_use_connections_of_their_own(
    smtp: Smtp, relay: Relay, make_message: MakeMessage
) -> None:
    outcomes = await asyncio.gather(*(smtp.deliver(make_message(Channel.EMAIL)) for _ in range(10)))

    assert {outcome.kind for outcome in outcomes} == {OutcomeKind.ACCEPTED}
    assert (relay.connections, len(relay.mails)) == (10, 10)


@pytest.mark.parametrize("step", ["DATA", "CONTENT"])
async def test_a_canceled_delivery_closes_its_connection_and_is_unknown_after_the_final_dot(
    smtp: Smtp, relay: Relay, message: Message, step: str
) -> None:
    relay.play(step, HANG)
    delivery = asyncio.create_task(smtp.deliver(message))
    await relay.reached(step)
    await asyncio.sleep(0)
    delivery.cancel()
    await asyncio.wait([delivery])

    if step == "DATA":
        assert delivery.cancelled()
    else:
        assert (delivery.result().kind, delivery.result().failure_reason) == (OutcomeKind.UNKNOWN, "shutdown")
    assert (await smtp.deliver(message)).kind is OutcomeKind.ACCEPTED
    assert relay.connections == 2


async def test_a_relay_may_take_longer_for_the_final_dot_than_for_all_before(
    relay: Relay, templates: Templates, message: Message
) -> None:
    smtp = Smtp(settings(relay.port, 1.0, dot_timeout_seconds=30), templates, clock=utc_now)
    relay.delay_seconds = 1.2

    outcome = await smtp.deliver(message)
    await smtp.close()

    assert outcome.kind is OutcomeKind.ACCEPTED


async def test_mails_wait_for_one_of_the_connections_that_the_relay_allows(
    smtp: Smtp, relay: Relay, make_message: MakeMessage
) -> None:
    relay.maximum_connections = 10

    outcomes = await asyncio.gather(*(smtp.deliver(make_message(Channel.EMAIL)) for _ in range(200)))

    assert {outcome.kind for outcome in outcomes} == {OutcomeKind.ACCEPTED}
    assert relay.refused <= 40  # of the first 50; none is asked for again so soon
    assert len(relay.mails) == 200


async def test_the_bound_of_connections_is_kept(relay: Relay, templates: Templates, make_message: MakeMessage) -> None:
    smtp = Smtp(settings(relay.port, connections=3), templates, clock=utc_now)

    outcomes = await asyncio.gather(*(smtp.deliver(make_message(Channel.EMAIL)) for _ in range(30)))
    await smtp.close()

    assert {outcome.kind for outcome in outcomes} == {OutcomeKind.ACCEPTED}
    assert relay.most_open == 3


async def test_a_mail_that_gets_no_connection_in_time_says_nothing_of_the_relay(
    relay: Relay, templates: Templates, make_message: MakeMessage
) -> None:
    smtp = Smtp(settings(relay.port, 0.5, connections=1, dot_timeout_seconds=30), templates, clock=utc_now)
    relay.play("CONTENT", HANG)
    first = asyncio.create_task(smtp.deliver(make_message(Channel.EMAIL)))
    await relay.reached("CONTENT")

    outcome = await smtp.deliver(make_message(Channel.EMAIL))
    first.cancel()
    await asyncio.wait([first])

    assert (outcome.kind, outcome.failure_reason, outcome.about) == (OutcomeKind.NOT_SENT, "busy", Subject.SESSION)
    assert (await smtp.deliver(make_message(Channel.EMAIL))).kind is OutcomeKind.ACCEPTED
    await smtp.close()


async def test_a_relay_with_a_limit_of_mails_in_a_session_gets_a_new_session(
    smtp: Smtp, relay: Relay, message: Message
) -> None:
    relay.mails_per_session = 10

    kinds = {(await smtp.deliver(message)).kind for _ in range(35)}

    assert kinds == {OutcomeKind.ACCEPTED}
    assert (relay.connections, len(relay.mails)) == (4, 35)


@pytest.mark.parametrize(
    ("greeting", "changes", "connections"),
    [
        ("220 relay.example ESMTP Exim 4.96 Mon, 30 Nov 2026 08:00:00 +0000", {}, 3),
        ("220 relay.example ESMTP Exim 4.96", {"mails_per_connection": 1000}, 1),
        ("220 relay.example ESMTP Postfix", {}, 1),
        ("220 relay.example ESMTP Postfix", {"mails_per_connection": 5}, 5),
    ],
)
async def test_a_connection_has_no_more_mails_than_the_relay_delivers_at_once(
    relay: Relay, templates: Templates, message: Message, greeting: str, changes: dict[str, int], connections: int
) -> None:
    relay.play("GREETING", *[greeting] * connections)
    smtp = Smtp(settings(relay.port, **changes), templates, clock=utc_now)

    kinds = {(await smtp.deliver(message)).kind for _ in range(25)}
    await smtp.close()

    assert kinds == {OutcomeKind.ACCEPTED}
    assert (relay.connections, relay.quits, len(relay.mails)) == (connections, connections, 25)


async def test_a_refusal_on_the_only_connection_is_about_the_provider(
    smtp: Smtp, relay: Relay, message: Message
) -> None:
    relay.play("GREETING", "421 4.7.0 too many connections")

    outcome = await smtp.deliver(message)

    assert (outcome.failure_reason, outcome.about) == ("smtp_421", Subject.PROVIDER)


async def test_connections_end_with_quit_when_they_are_idle_and_at_the_end(
    relay: Relay, templates: Templates, message: Message
) -> None:
    smtp = Smtp(settings(relay.port, idle_seconds=0.05), templates, clock=utc_now)
    await smtp.deliver(message)
    await until(lambda: relay.quits == 1)
    await smtp.deliver(message)
    await smtp.close()

    assert (relay.quits, relay.connections) == (2, 2)


async def test_an_error_before_the_mail_has_left_means_not_sent(
    relay: Relay, templates: Templates, message: Message
) -> None:
    smtp = Smtp(replace(settings(relay.port), sender="no-reply@pulsa.exämple"), templates, clock=utc_now)

    outcome = await smtp.deliver(message)
    await smtp.close()

    assert (outcome.kind, outcome.failure_reason, outcome.about) == (CONFIGURATION, "crashed", Subject.ROUTE)


async def test_a_closed_port_means_not_sent(templates: Templates, message: Message) -> None:
    async with Relay() as relay:
        port = relay.port

    outcome = await Smtp(settings(port), templates, clock=utc_now).deliver(message)

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.NOT_SENT, "unreachable")
