"""Request messages, generated from their descriptors: valid ones, and ones with a few or only arbitrary fields."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.stripe_events import signature_of
from tests.valid_requests import valid_fields

MARKER = "zqmark7x"
"""Part of every text that a caller sends. Valid in a purpose, a part of a locale and a host name too."""
NUMBERS = [f"+62812{number}" for number in range(34567011, 34567023)]
"""Destinations that, like the marker, may not occur in a log."""

Case = Mapping[str, Any]
"""Valid values by field name: an organization and the ids of objects that it owns."""

_TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(lambda text: MARKER + text),
    st.text(st.sampled_from("aZ0._-:@+,/ é\u0301\u202e\u0000\x7f\x85\n٣\U0001d7d9"), max_size=40),
    st.builds(
        lambda text, times: text * times,
        st.sampled_from(["a", "é", "e\u0301", "@", "a.", "(", '"', "0"]),
        st.sampled_from([40, 300, 9000]),
    ),
    st.sampled_from(
        ["", "0001-01-01", "1969-12-31", "9999-12-31", "2026-02-30", "id-ID", "IDR", "+62", "+6281234567890"]
    ),
    st.sampled_from(
        [f"{MARKER}@a.{MARKER}", f'"{MARKER}"@mail.example', f"{MARKER}@[127.0.0.1]", f"{MARKER}@xn--a.example"]
    ),
    st.sampled_from(["0" * 8 + "-0000-0000-0000-" + "0" * 12, "f" * 8 + "-ffff-ffff-ffff-" + "f" * 12]),
)
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}
_EDGES = [0, 1, 2, 3, 6, 10, 30, 500, 600, 10**9 - 1, 10**9, 253_402_300_799, -1, -62_135_596_800]
"""Limits of validation rules: of a page size, a duration, a Timestamp."""
_MEGABYTE = 1 << 20
_OTHER: Mapping[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
}


def anything(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Any value that the field can hold; for a repeated field, at times 3000 values, or a megabyte."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (_single(field.message_type.fields_by_name[name]) for name in ("key", "value"))
        return st.dictionaries(key, value, max_size=12)
    if not field.is_repeated:
        return _single(field)
    return st.lists(_single(field), max_size=12) | _single(field).map(_many)


def _many(value: Any) -> list[Any]:
    size = value.ByteSize() if isinstance(value, Message) else len(value) if isinstance(value, str | bytes) else 1
    return [value] * min(3000, _MEGABYTE // max(1, size))


def _single(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return _message(field.message_type)
    if field.cpp_type in _INTEGERS:
        least, most = _INTEGERS[field.cpp_type]
        edges = [number for number in _EDGES if least <= number <= most]
        return st.sampled_from([*edges, least, most]) | st.integers(least, most)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return st.binary(max_size=40) if field.type == FieldDescriptor.TYPE_BYTES else _TEXTS
    return _OTHER[field.cpp_type]


def _message(descriptor: Descriptor) -> st.SearchStrategy[Message]:
    def build(fields: dict[str, Any]) -> Message:
        return GetMessageClass(descriptor)(**fields)

    optional = {field.name: anything(field) for field in descriptor.fields}
    return st.fixed_dictionaries({}, optional=optional).map(build)


@st.composite
def requests(draw: st.DrawFn, request: Descriptor, cases: Sequence[Case]) -> bytes:
    """A serialized request about one of the cases. Most are valid except for up to two fields."""
    case = draw(st.sampled_from(cases))
    # A request without an organization is refused before its other fields are read.
    names = [field.name for field in request.fields if field.name != "organization_id"]
    arbitrary = draw(st.sets(st.sampled_from(names), max_size=2)) if names else set()
    if draw(st.integers(0, 5)) == 0:
        arbitrary = set(request.fields_by_name)
    fields = {field.name: case[field.name] for field in request.fields if field.name not in arbitrary}
    if "request_id" in fields:
        fields["request_id"] = draw(st.just(case["request_id"]) | st.uuids().map(str))
    for name in sorted(arbitrary):
        if draw(st.booleans()):
            fields[name] = draw(anything(request.fields_by_name[name]))
    if "signature" in fields and draw(st.booleans()):
        fields["signature"] = signature_of(fields.get("payload", b""))
    message: Message = GetMessageClass(request)(**fields)
    return message.SerializeToString()


def good_request(request: Descriptor, case: Case) -> bytes:
    """A serialized valid request, with a new request_id."""
    good = {**case, "request_id": str(uuid4())}
    message: Message = GetMessageClass(request)(**{field.name: good[field.name] for field in request.fields})
    return message.SerializeToString()


def some_requests(request: Descriptor, cases: Sequence[Case], *, count: int, number: int) -> list[bytes]:
    """`count` requests, the same for the same `number`.

    They are generated before any is sent, so that nothing else uses the random generator meanwhile.
    """
    made: list[bytes] = []

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(requests(request, cases))
    def generate(message: bytes) -> None:
        made.append(message)

    generate()
    return made


def good_fields(**known: Any) -> Case:
    """A valid value for every field name, with the marker in every text that a caller chooses."""
    texts: dict[str, Any] = {
        "purpose": f"login_{MARKER}",
        "locale": f"id-{MARKER}",
        "context": MARKER,
        "web_otp_domain": f"{MARKER}.example",
        "metadata": {MARKER: MARKER},
        "code": MARKER,
        "reason": MARKER,
        "billing_name": MARKER,
        "billing_email": f"{MARKER}@example.com",
        "alert_email": f"{MARKER}@example.com",
        "failure_reason": MARKER,
        "page_token": "",
    }
    return valid_fields() | texts | known
