"""The console provider: it prints and remembers messages."""

from collections.abc import Callable
from io import StringIO

from server.providers.console import Console
from server.providers.provider import Message, OutcomeKind

MakeMessage = Callable[..., Message]


async def test_the_console_prints_a_message_and_accepts_it(make_message: MakeMessage) -> None:
    stream, message = StringIO(), make_message(code="918273")

    outcome = await Console(stream).deliver(message)

    assert outcome.kind is OutcomeKind.ACCEPTED
    assert "SMS      to +6281234567890: code 918273 for login" in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


async def test_a_console_without_a_stream_remembers_the_last_messages(make_message: MakeMessage) -> None:
    console = Console(None, keep=2)
    messages = [make_message(code=code) for code in ("111111", "222222", "333333")]
    for message in messages:
        await console.deliver(message)

    assert list(console.messages) == messages[1:]
    assert console.last("+6281234567890") == messages[2]
    assert console.last("+6289999999999") is None
    assert console.delivered(messages[1].delivery_id) == [messages[1]]
