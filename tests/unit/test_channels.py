"""Every channel has all that a channel needs; "A channel" in docs/architecture.md lists it."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
from pulsa.credit.v1 import channel_pb2
from pulsa.otp.v1.destination_pb2 import Destination

from server.api.rules import RULES
from server.credits.pricing import load_pricing
from server.logs import redact
from server.otps.destinations import PARSERS, PHONE_CHANNELS
from server.postgres.migrate import load_migrations
from server.providers.provider import Channel
from server.providers.routing import provider_names
from server.settings import Settings

KNOWN_TO_POSTGRESQL = re.compile(r"CONSTRAINT channel_is_known\s+CHECK \((?:VALUE|channel) IN \(([^)]*)\)\)")
FIELDS = [channel.field for channel in Channel]


def test_every_channel_has_a_field_of_a_destination_and_every_field_a_channel() -> None:
    assert [field.name for field in Destination.DESCRIPTOR.oneofs_by_name["channel"].fields] == FIELDS


def test_every_channel_has_a_value_in_the_protos_and_every_value_a_channel() -> None:
    values = set(channel_pb2.Channel.keys()) - {"CHANNEL_UNSPECIFIED"}

    assert values == {f"CHANNEL_{channel}" for channel in Channel}


def test_postgresql_accepts_every_channel_and_no_other() -> None:
    statements = [found for migration in load_migrations() for found in KNOWN_TO_POSTGRESQL.findall(migration.text)]

    assert set(re.findall(r"'(\w+)'", statements[-1])) == set(Channel)


def test_every_channel_has_a_parser() -> None:
    assert PARSERS.keys() == set(Channel)
    assert {Channel.WHATSAPP, Channel.SMS} <= PHONE_CHANNELS < set(Channel)


@pytest.mark.parametrize("channel", Channel)
def test_a_channel_has_a_rule_a_setting_and_a_price(channel: Channel) -> None:
    assert channel.field in RULES
    assert provider_names(Settings(), channel) == ()
    assert load_pricing(None).channel_credits[channel] > 0


@pytest.mark.parametrize("name", FIELDS)
def test_a_destination_is_hidden_in_the_log_under_its_channels_name(name: str) -> None:
    event: Mapping[str, Any] = redact(None, "", {name: "jane"})

    assert event[name] != "jane"
