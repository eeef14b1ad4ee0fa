"""What both services say in protobuf: moments, money, channels."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from pulsa.credit.v1 import channel_pb2, money_pb2

from server.channels.channel import ChannelName
from server.credits.money import Money

CHANNELS: Final[Mapping[ChannelName, channel_pb2.Channel.ValueType]] = {
    name: channel_pb2.Channel.Value(f"CHANNEL_{name}") for name in ChannelName
}

_NANOS_PER_UNIT = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_PER_DAY = 86_400


def timestamp(moment: datetime | None) -> Timestamp | None:
    """The moment; None leaves the field unset."""
    if moment is None:
        return None
    message = Timestamp()
    set_timestamp(message, moment)
    return message


def set_timestamp(message: Timestamp, moment: datetime) -> None:
    """Make it say the moment: as Timestamp.FromDatetime does, in a third of its time."""
    since = moment - _EPOCH
    message.seconds = since.days * _SECONDS_PER_DAY + since.seconds
    message.nanos = since.microseconds * 1000


def money(amount: Money) -> money_pb2.Money:
    """The amount in units and billionths."""
    units, nanos = divmod(int(amount.amount * _NANOS_PER_UNIT), _NANOS_PER_UNIT)
    return money_pb2.Money(currency_code=amount.currency_code, units=units, nanos=nanos)
