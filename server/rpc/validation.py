"""Holds requests against the rules of rules.py: compiled at start, so that a good request costs a few microseconds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.message import Message

from server.errors import FieldViolation, InvalidFields
from server.rpc.rules import MOST_REPEATED, REQUIRED, RULES, WHOLE_REQUEST

Validate = Callable[[Message], None]


@dataclass(frozen=True, slots=True)
class _Check:
    """One thing to check about a message: quickly whether it holds, and slowly what is wrong."""

    value: Callable[[Any], Any]
    holds: Callable[[Any], object]
    violations: Callable[[Any], Iterator[FieldViolation]]
    """Of a value that does not hold; paths begin at the message."""


def compile_validation(request: Descriptor) -> Validate:
    """A function that raises InvalidFields with every violation at once. LookupError when a field has no rule."""
    checks = _checks(request)
    quick = tuple((check.value, check.holds) for check in checks)

    def validate(message: Message) -> None:
        for value, holds in quick:
            if not holds(value(message)):
                raise InvalidFields(violations=tuple(_violations(checks, message)))

    return validate


def _violations(checks: tuple[_Check, ...], message: Message) -> Iterator[FieldViolation]:
    for check in checks:
        value = check.value(message)
        if not check.holds(value):
            yield from check.violations(value)


def _checks(message: Descriptor) -> tuple[_Check, ...]:
    lone = [field for field in message.fields if not _choice_of(field)]
    checks = [_field_check(field) for field in lone]
    checks += [_choice_check(oneof) for oneof in message.oneofs if _choice_of(oneof.fields[0])]
    if message.name in WHOLE_REQUEST:
        name, rule = WHOLE_REQUEST[message.name]
        checks.append(_Check(lambda whole: whole, rule.holds, _says(name, rule.description)))
    return tuple(checks)


def _choice_of(field: FieldDescriptor) -> OneofDescriptor | None:
    """The oneof that the field is one of; None for `optional`, which is a oneof of one in disguise."""
    oneof = field.containing_oneof
    return None if oneof is None or oneof.name.startswith("_") else oneof


def _field_check(field: FieldDescriptor) -> _Check:
    name = field.name
    if name in RULES:
        rule = RULES[name]
        says = _says(name, rule.description)
        if _may_be_unset(field):
            return _Check(_set_or_none(name), lambda value: value is None or rule.holds(value), says)
        return _Check(attrgetter(name), rule.holds, says)
    if field.message_type is None:
        raise LookupError(f"rules.py has no rule for {field.full_name}")
    checks = _checks(field.message_type)
    if field.is_repeated:
        return _repeated_check(name, checks)
    if field.full_name in REQUIRED:
        return _Check(attrgetter(name), _all_hold(checks), _inside(name, checks))
    holds = _all_hold(checks)
    return _Check(_set_or_none(name), lambda value: value is None or holds(value), _inside(name, checks))


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


def _repeated_check(name: str, checks: tuple[_Check, ...]) -> _Check:
    most, each_holds = MOST_REPEATED[name], _all_hold(checks)

    def holds(messages: Any) -> bool:
        return not messages or (len(messages) <= most and all(map(each_holds, messages)))

    def violations(messages: Any) -> Iterator[FieldViolation]:
        if len(messages) > most:
            yield FieldViolation(name, f"at most {most}")
            return
        for index, message in enumerate(messages):
            yield from _inside(f"{name}[{index}]", checks)(message)

    return _Check(attrgetter(name), holds, violations)


def _all_hold(checks: tuple[_Check, ...]) -> Callable[[Any], bool]:
    quick = tuple((check.value, check.holds) for check in checks)

    def hold(message: Message) -> bool:
        for value, holds in quick:  # noqa: SIM110 - all() of a generator costs three times as much
            if not holds(value(message)):
                return False
        return True

    return hold


def _inside(path: str, checks: tuple[_Check, ...]) -> Callable[[Any], Iterator[FieldViolation]]:
    def violations(message: Message) -> Iterator[FieldViolation]:
        for found in _violations(checks, message):
            yield FieldViolation(f"{path}.{found.field}" if found.field else path, found.description)

    return violations


def _says(name: str, description: str) -> Callable[[Any], Iterator[FieldViolation]]:
    violation = FieldViolation(name, description)
    return lambda _: iter((violation,))


def _may_be_unset(field: FieldDescriptor) -> bool:
    return field.has_presence and not field.is_repeated


def _set_or_none(name: str) -> Callable[[Any], Any]:
    return lambda message: getattr(message, name) if message.HasField(name) else None
