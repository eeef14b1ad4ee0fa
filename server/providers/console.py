"""The console provider: prints messages to the terminal. For development only, as it shows codes."""

from collections import deque
from datetime import datetime
from typing import TextIO
from uuid import UUID

from server.clock import utc_now
from server.providers.provider import Message, Outcome, OutcomeKind
from server.providers.templates import Rendered


class Console:
    """Prints every message and accepts it; keeps the latest messages for tests and the demo.

    Shows codes and destinations in clear text: open_providers refuses it unless the caller passes one.
    """

    name = "console"

    def __init__(self, stream: TextIO | None, *, keep: int = 1000) -> None:
        """Print to `stream`, None for nowhere; keep the latest `keep` messages."""
        self._stream = stream
        self.messages: deque[Message] = deque(maxlen=keep)
        self.times: deque[datetime] = deque(maxlen=keep)
        """When each of the messages was delivered."""
        self.mails: deque[tuple[datetime, str, Rendered]] = deque(maxlen=keep)
        """The e-mails that are not OTPs, each with its time and address."""

    async def deliver(self, message: Message) -> Outcome:
        """Print the message and accept it."""
        self.messages.append(message)
        self.times.append(utc_now())
        if self._stream is not None:
            self._stream.write(_readable(message))
            self._stream.flush()
        return Outcome(OutcomeKind.ACCEPTED, self.name, provider_message_id=str(message.delivery_id))

    async def mail(self, address: str, rendered: Rendered) -> Outcome:
        """Print an e-mail that is not an OTP, and accept it."""
        self.mails.append((utc_now(), address, rendered))
        if self._stream is not None:
            self._stream.write(f"\n--- mail to {address}: {rendered.subject}\n{rendered.text}\n")
            self._stream.flush()
        return Outcome(OutcomeKind.ACCEPTED, self.name)

    async def close(self) -> None:
        """Do nothing: there are no connections."""

    def last(self, destination: str) -> Message | None:
        """The latest kept message to a normalized destination, or None."""
        return next((message for message in reversed(self.messages) if message.destination == destination), None)

    def delivered(self, delivery_id: UUID) -> list[Message]:
        """The kept messages of a delivery: more than one only if it was sent more than once."""
        return [message for message in self.messages if message.delivery_id == delivery_id]


def _readable(message: Message) -> str:
    """The message as one line."""
    return (
        f"  >> {message.channel:<8} to {message.destination}: code {message.code} for {message.purpose or 'default'},"
        f" until {message.expire_time:%H:%M:%S} UTC\n"
    )
