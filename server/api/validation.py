"""The validation of requests, compiled from the rules at start.

A valid request costs a few microseconds: a fast check visits only the fields that are set, as most requests leave most
fields unset. When it fails, a slower check collects the violations of every field.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.message import Message

from server.api.rules import MOST_REPEATED, REQUIRED, RULES, WHOLE_REQUEST
from server.errors import FieldViolation, InvalidFields

Validate = Callable[[Message], None]
_Holds = Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class _Check:
    """A check of one field, of a oneof, or of the whole message."""

    value: Callable[[Any], Any]
    holds: _Holds
    violations: Callable[[Any], Iterator[FieldViolation]]
    """The violations of an invalid value; their paths start at the message."""


def compile_validation(request: Descriptor) -> Validate:
    """Return a function that raises InvalidFields with all violations. Raises LookupError when a field has no rule."""
    checks, holds = _checks(request), _all_hold(request)

    def validate(message: Message) -> None:
        if not holds(message):
            raise InvalidFields(violations=tuple(_violations(checks, message)))

    return validate


def compile_check(request: Descriptor, fields: Collection[str]) -> Callable[[Message], bool]:
    """Return a function that is true when these fields of a request keep their rules.

    A field is a value whose default is valid, or one that must be set, or a message that is a choice of one field.
    """
    values: list[tuple[Callable[[Any], Any], _Holds, bool]] = []
    choices: list[tuple[Callable[[Any], Any], str, Mapping[str, _Holds]]] = []
    for name in fields:
        field, value = request.fields_by_name[name], attrgetter(name)
        if field.message_type is not None and not field.is_repeated:
            (oneof,) = field.message_type.oneofs
            choices.append((value, oneof.name, {each.name: RULES[each.name].holds for each in oneof.fields}))
        else:
            values.append((value, _field_holds(field), _must_be_set(field)))

    def holds(message: Message) -> bool:
        for value, is_valid, must_be_set in values:
            given = value(message)
            if (given or must_be_set) and not is_valid(given):
                return False
        for value, oneof_name, rules in choices:
            choice = value(message)
            chosen = choice.WhichOneof(oneof_name)
            if chosen is None or not rules[chosen](getattr(choice, chosen)):
                return False
        return True

    return holds


def _all_hold(message: Descriptor) -> Callable[[Message], bool]:
    """Return a function that is true when a message keeps all rules."""
    rules: dict[int, tuple[_Holds, bool]] = {}
    must_be_set = sum(map(_is_choice, message.oneofs))
    for field in message.fields:
        holds, of_choice = _field_holds(field), _choice_of(field) is not None
        needed = not of_choice and _must_be_set(field)
        must_be_set += needed
        rules[field.number] = holds, needed or of_choice
    whole = WHOLE_REQUEST[message.name][1].holds if message.name in WHOLE_REQUEST else None

    def hold(message: Message) -> bool:
        missing = must_be_set
        for field, value in message.ListFields():
            holds, needed = rules[field.number]
            if not holds(value):
                return False
            missing -= needed
        return not missing and (whole is None or bool(whole(message)))

    return hold


def _field_holds(field: FieldDescriptor) -> _Holds:
    """Return the check of a value of the field, for when the field is set."""
    if field.name in RULES:
        return RULES[field.name].holds
    if field.message_type is None:
        raise LookupError(f"RULES has no rule for {field.full_name}")
    holds = _all_hold(field.message_type)
    if not field.is_repeated:
        return holds
    most = MOST_REPEATED[field.name]
    return lambda messages: len(messages) <= most and all(map(holds, messages))


def _must_be_set(field: FieldDescriptor) -> bool:
    """Whether a message without the field is invalid."""
    if field.has_presence or field.is_repeated:
        return field.full_name in REQUIRED
    return not RULES[field.name].holds(field.default_value)


def _violations(checks: tuple[_Check, ...], message: Message) -> Iterator[FieldViolation]:
    for check in checks:
        value = check.value(message)
        if not check.holds(value):
            yield from check.violations(value)


def _checks(message: Descriptor) -> tuple[_Check, ...]:
    single = [field for field in message.fields if not _choice_of(field)]
    checks = [_field_check(field) for field in single]
    checks += [_choice_check(oneof) for oneof in message.oneofs if _is_choice(oneof)]
    if message.name in WHOLE_REQUEST:
        name, rule = WHOLE_REQUEST[message.name]
        checks.append(_Check(lambda whole: whole, rule.holds, _always(name, rule.description)))
    return tuple(checks)


def _choice_of(field: FieldDescriptor) -> OneofDescriptor | None:
    """Return the oneof that the field belongs to, if any."""
    oneof = field.containing_oneof
    return oneof if oneof is not None and _is_choice(oneof) else None


def _is_choice(oneof: OneofDescriptor) -> bool:
    """False for an `optional` field, which protobuf represents as a oneof with a single field."""
    return not oneof.name.startswith("_")


def _field_check(field: FieldDescriptor) -> _Check:
    name, holds = field.name, _field_holds(field)
    value: Callable[[Any], Any] = attrgetter(name)
    if field.has_presence and field.full_name not in REQUIRED:
        value, holds = _set_or_none(name), _holds_or_none(holds)
    if name in RULES or field.message_type is None:
        return _Check(value, holds, _always(name, RULES[name].description))
    checks = _checks(field.message_type)
    return _Check(value, holds, _nested_in_each(name, checks) if field.is_repeated else _nested(name, checks))


def _choice_check(oneof: OneofDescriptor) -> _Check:
    rules = {field.name: RULES[field.name] for field in oneof.fields}
    description = f"exactly one of {', '.join(rules)}"

    def holds(message: Message) -> object:
        chosen = message.WhichOneof(oneof.name)
        return chosen is not None and rules[chosen].holds(getattr(message, chosen))

    def violations(message: Message) -> Iterator[FieldViolation]:
        chosen = message.WhichOneof(oneof.name)
        yield FieldViolation(chosen, rules[chosen].description) if chosen else FieldViolation("", description)

    return _Check(lambda message: message, holds, violations)


def _nested_in_each(name: str, checks: tuple[_Check, ...]) -> Callable[[Any], Iterator[FieldViolation]]:
    most = MOST_REPEATED[name]

    def violations(messages: Any) -> Iterator[FieldViolation]:
        if len(messages) > most:
            yield FieldViolation(name, f"at most {most}")
            return
        for index, message in enumerate(messages):
            yield from _nested(f"{name}[{index}]", checks)(message)

    return violations


def _nested(path: str, checks: tuple[_Check, ...]) -> Callable[[Any], Iterator[FieldViolation]]:
    def violations(message: Message) -> Iterator[FieldViolation]:
        for found in _violations(checks, message):
            yield FieldViolation(f"{path}.{found.field}" if found.field else path, found.description)

    return violations


def _always(name: str, description: str) -> Callable[[Any], Iterator[FieldViolation]]:
    violation = FieldViolation(name, description)
    return lambda _: iter((violation,))


def _set_or_none(name: str) -> Callable[[Any], Any]:
    return lambda message: getattr(message, name) if message.HasField(name) else None


def _holds_or_none(holds: _Holds) -> _Holds:
    return lambda value: value is None or holds(value)
