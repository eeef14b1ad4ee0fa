"""Messages for the tests of providers."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from server.providers.provider import Channel, Message

NOW = datetime(2030, 1, 1, tzinfo=UTC)

MakeMessage = Callable[..., Message]


@pytest.fixture
def make_message() -> MakeMessage:
    """Messages whose code works for five minutes from 2030 on, unless said otherwise."""

    def make(
        *,
        channel: Channel = Channel.SMS,
        purpose: str = "login",
        locale: str = "",
        ttl: timedelta = timedelta(minutes=5),
        domain: str = "",
        code: str = "123456",
    ) -> Message:
        expire_time = NOW + ttl
        return Message(
            uuid4(), channel, "+6281234567890", code, purpose, locale, expire_time, expire_time, domain, "acme/0"
        )

    return make
