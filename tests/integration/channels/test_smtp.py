"""Every reply and every end of the line, at every step, from a relay that speaks SMTP over a socket."""

import asyncio
from collections.abc import AsyncIterator, Callable
from email import message_from_bytes, policy
from email.message import EmailMessage

import pytest

from server.channels.channel import ChannelName, Message, OutcomeKind
from server.channels.smtp import Smtp, SmtpSettings
from server.channels.templates import Templates
from server.sandbox.relay import DROP, HANG, Relay

MakeMessage = Callable[..., Message]

BEFORE_THE_DOT = ("GREETING", "EHLO", "MAIL", "RCPT", "DATA")
ECHO = "<bob.smith@example.com> 918273"

DESTINATION = OutcomeKind.REJECTED_DESTINATION
CONFIGURATION = OutcomeKind.REJECTED_CONFIGURATION


def settings(port: int, timeout_seconds: float = 5) -> SmtpSettings:
    return SmtpSettings(
        "127.0.0.1", "no-reply@pulsa.example", "Pulsa, Inc.", port, "none", timeout_seconds=timeout_seconds
    )


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    async with Relay() as relay:
        yield relay


@pytest.fixture
async def smtp(relay: Relay, templates: Templates) -> AsyncIterator[Smtp]:
    channel = Smtp(settings(relay.port), templates)
    yield channel
    await channel.close()


@pytest.fixture
def message(make_message: MakeMessage) -> Message:
    return make_message(ChannelName.EMAIL)


async def test_a_mail_has_both_bodies_and_the_headers_of_a_machine(smtp: Smtp, relay: Relay, message: Message) -> None:
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
    assert mail["Date"].datetime is not None
    assert mail.get_content_type() == "multipart/alternative"
    assert text is not None
    assert "\n\n918273\n\n" in text.get_content().replace("\r\n", "\n")
    assert html is not None
    assert ">918273</p>" in html.get_content()
    assert max(len(line) for line in relay.mails[0].content.split(b"\r\n")) <= 78
    assert not mail.defects


async def test_right_to_left_mail_arrives_as_it_was_written(
    smtp: Smtp, relay: Relay, make_message: MakeMessage, templates: Templates
) -> None:
    message = make_message(ChannelName.EMAIL, locale="ar")

    await smtp.deliver(message)

    mail = message_from_bytes(relay.mails[0].content, policy=policy.default)
    assert isinstance(mail, EmailMessage)
    text = mail.get_body(("plain",))
    assert mail["Subject"] == "رمز الدخول"
    assert text is not None
    assert text.get_content().replace("\r\n", "\n").rstrip() == templates.render(message).text.rstrip()
    assert relay.mails[0].content.isascii()


async def test_an_address_beyond_ascii_goes_only_where_it_is_understood(
    smtp: Smtp, relay: Relay, make_message: MakeMessage
) -> None:
    message = make_message(ChannelName.EMAIL, destination="jürgen@example.com")
    understood = await smtp.deliver(message)
    relay.play("RSET", "421 4.3.2 bye")
    relay.play("EHLO", "250 relay")
    refused = await smtp.deliver(message)

    assert relay.mails[0].envelope == (
        "MAIL FROM:<no-reply@pulsa.example> SMTPUTF8",
        "RCPT TO:<jürgen@example.com>",
    )
    assert understood.kind is OutcomeKind.ACCEPTED
    assert (refused.kind, refused.failure_reason) == (DESTINATION, "smtp_not_ascii")


@pytest.mark.parametrize("step", BEFORE_THE_DOT)
@pytest.mark.parametrize("end", [DROP, HANG, "gibberish"])
async def test_a_line_that_ends_before_the_final_dot_sent_nothing(
    relay: Relay, templates: Templates, message: Message, step: str, end: str
) -> None:
    smtp = Smtp(settings(relay.port, timeout_seconds=0.3 if end == HANG else 5), templates)
    relay.play(step, end)

    outcome = await smtp.deliver(message)

    assert outcome.kind is OutcomeKind.NOT_SENT
    assert relay.mails == []
    assert (await smtp.deliver(message)).kind is OutcomeKind.ACCEPTED
    await smtp.close()


@pytest.mark.parametrize(
    ("end", "reason"), [(DROP, "connection_lost"), (HANG, "timeout"), ("gibberish", "smtp_0"), ("299 ?", "smtp_299")]
)
async def test_a_line_that_ends_after_the_final_dot_leaves_it_unknown(
    relay: Relay, templates: Templates, message: Message, end: str, reason: str
) -> None:
    smtp = Smtp(settings(relay.port, timeout_seconds=0.3 if end == HANG else 5), templates)
    relay.play("CONTENT", end)

    outcome = await smtp.deliver(message)
    await smtp.close()

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.UNKNOWN, reason)


@pytest.mark.parametrize("step", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "CONTENT"])
@pytest.mark.parametrize("code", [421, 450, 451, 452, 454])
async def test_a_transient_refusal_at_any_step_sent_nothing(
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
        ("550 5.7.1", CONFIGURATION, CONFIGURATION),
        ("554 5.7.26", CONFIGURATION, CONFIGURATION),
        ("550 5.1.8", CONFIGURATION, CONFIGURATION),
        ("553 5.1.7", CONFIGURATION, CONFIGURATION),
    ],
)
async def test_a_permanent_refusal_is_about_the_address_or_about_us(
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


async def test_a_line_is_used_again_also_after_a_refusal(smtp: Smtp, relay: Relay, message: Message) -> None:
    relay.play("RCPT", "550 5.1.1 no such user")

    kinds = [(await smtp.deliver(message)).kind for _ in range(3)]

    assert kinds == [DESTINATION, OutcomeKind.ACCEPTED, OutcomeKind.ACCEPTED]
    assert relay.connections == 1


@pytest.mark.parametrize("end", [DROP, "421 4.3.2 idle for too long"])
async def test_an_idle_line_that_died_is_replaced(smtp: Smtp, relay: Relay, message: Message, end: str) -> None:
    await smtp.deliver(message)
    relay.play("RSET", end)

    outcome = await smtp.deliver(message)

    assert outcome.kind is OutcomeKind.ACCEPTED
    assert (relay.connections, len(relay.mails)) == (2, 2)


async def test_mails_go_out_side_by_side_over_lines_of_their_own(
    smtp: Smtp, relay: Relay, make_message: MakeMessage
) -> None:
    outcomes = await asyncio.gather(*(smtp.deliver(make_message(ChannelName.EMAIL)) for _ in range(10)))

    assert {outcome.kind for outcome in outcomes} == {OutcomeKind.ACCEPTED}
    assert (relay.connections, len(relay.mails)) == (10, 10)


async def test_a_canceled_delivery_leaves_no_line_behind(smtp: Smtp, relay: Relay, message: Message) -> None:
    relay.play("CONTENT", HANG)
    delivery = asyncio.create_task(smtp.deliver(message))
    await relay.reached("CONTENT")
    delivery.cancel()
    await asyncio.wait([delivery])

    assert delivery.cancelled()
    assert (await smtp.deliver(message)).kind is OutcomeKind.ACCEPTED
    assert relay.connections == 2


async def test_nothing_listens(templates: Templates, message: Message) -> None:
    async with Relay() as relay:
        port = relay.port

    outcome = await Smtp(settings(port), templates).deliver(message)

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.NOT_SENT, "unreachable")
