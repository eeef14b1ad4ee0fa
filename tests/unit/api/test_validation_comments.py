"""The validation rules, the fields and the comments in the protos agree."""

import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor
from pulsa.credit.v1.address_pb2 import Address
from pulsa.credit.v1.automatic_top_up_pb2 import AutomaticTopUpSettings
from pulsa.otp.v1.destination_pb2 import Destination, Fallback
from pulsa.otp.v1.settings_pb2 import BillingContact, DefaultFallback, Sender, Settings

from server.api.rules import MOST_REPEATED, REQUIRED, RULES, WHOLE_REQUEST
from tests.callers import RPCS

MESSAGES = (Address, AutomaticTopUpSettings, Destination, Fallback, Settings, Sender, DefaultFallback, BillingContact)
PROTOS = Path(__file__).parents[3] / "protos"
REQUESTS: dict[str, Descriptor] = {method.input_type.full_name: method.input_type for method in RPCS.values()} | {
    message.DESCRIPTOR.full_name: message.DESCRIPTOR for message in MESSAGES
}
_FIELD = re.compile(r"(?P<comment>(?:\s*//[^\n]*\n)+)\s*(?:optional |repeated )?[\w.<>, ]+ (?P<name>\w+) = \d+;")


def comments(message: Descriptor) -> dict[str, str]:
    """The comment above each field in the message's proto file."""
    source = (PROTOS / message.file.name).read_text()
    body = re.search(rf"\nmessage {message.name} {{\n(.*?)\n}}", source, re.DOTALL)
    assert body is not None
    return {match["name"]: match["comment"] for match in _FIELD.finditer(body[1] + "\n")}


def numbers(words: str) -> set[str]:
    return set(re.findall(r"-?\d+", words))


@pytest.mark.parametrize("name", REQUESTS)
def test_every_number_of_a_rule_is_in_the_fields_comment(name: str) -> None:
    message = REQUESTS[name]
    stated = comments(message)

    assert set(stated) == set(message.fields_by_name)
    for field in message.fields:
        if field.name in RULES:
            assert numbers(RULES[field.name].description) <= numbers(stated[field.name]), field.full_name
        if field.name in MOST_REPEATED:
            assert f"at most {MOST_REPEATED[field.name]}" in stated[field.name]


@pytest.mark.parametrize("name", WHOLE_REQUEST)
def test_every_number_of_a_rule_between_fields_is_in_a_comment(name: str) -> None:
    message = next(message for message in REQUESTS.values() if message.name == name)
    field, rule = WHOLE_REQUEST[name]

    assert numbers(rule.description) <= numbers(comments(message)[field])


def test_every_rule_is_for_a_field_that_exists() -> None:
    fields = {field.name for message in REQUESTS.values() for field in message.fields}
    full_names = {field.full_name for message in REQUESTS.values() for field in message.fields}

    assert RULES.keys() <= fields
    assert MOST_REPEATED.keys() <= fields
    assert full_names >= REQUIRED
    assert WHOLE_REQUEST.keys() <= {message.name for message in REQUESTS.values()}
