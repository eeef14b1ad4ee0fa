"""The provider of a machine with no accounts anywhere: messages go to the terminal. Development only."""

from collections import deque
from typing import TextIO
from uuid import UUID

from server.channels.channel import Message, Outcome, OutcomeKind


class Console:
    """Prints every message and accepts it; remembers the last ones for tests and the demo.

    It shows codes and destinations in the clear, so whoever builds it makes sure that this is a development machine.
    """

    provider = "console"

    def __init__(self, stream: TextIO | None, *, keep: int = 1000) -> None:
        """Print to `stream`, or nowhere with None; remember the last `keep` messages."""
        self._stream = stream
        self.messages: deque[Message] = deque(maxlen=keep)

    async def deliver(self, message: Message) -> Outcome:
        """Print the message and accept it."""
        self.messages.append(message)
        if self._stream is not None:
            self._stream.write(_readable(message))
            self._stream.flush()
        return Outcome(OutcomeKind.ACCEPTED, self.provider, provider_message_id=str(message.delivery_id))

    async def mail(self, address: str, subject: str, text: str) -> Outcome:
        """Print a mail that is no OTP, and accept it."""
        if self._stream is not None:
            self._stream.write(f"\n--- mail to {address}: {subject}\n{text}\n")
            self._stream.flush()
        return Outcome(OutcomeKind.ACCEPTED, self.provider)

    async def close(self) -> None:
        """Nothing is held."""

    def last(self, destination: str) -> Message | None:
        """The newest message to this normalised destination, or None."""
        return next((message for message in reversed(self.messages) if message.destination == destination), None)

    def delivered(self, delivery_id: UUID) -> list[Message]:
        """Every remembered message of this delivery: more than one only when it was sent again."""
        return [message for message in self.messages if message.delivery_id == delivery_id]


def _readable(message: Message) -> str:
    """One line that a person can read the code from."""
    return (
        f"  >> {message.channel:<8} to {message.destination}: code {message.code} for {message.purpose or 'default'},"
        f" until {message.expire_time:%H:%M:%S} UTC\n"
    )
