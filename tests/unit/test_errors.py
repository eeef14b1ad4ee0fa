"""Errors and the contract that documents them agree."""

import re
from dataclasses import fields
from pathlib import Path

from pulsa.error.v1.error_reason_pb2 import ErrorReason

from server import errors
from server.errors import DomainError, RetryLater

PROTOS = Path(__file__).parents[2] / "protos" / "pulsa"
PROTO = PROTOS / "error" / "v1" / "error_reason.proto"
# Not raised as a class: UNSPECIFIED is never sent, and INTERNAL answers an unhandled exception.
WITHOUT_CLASS = {"UNSPECIFIED", "INTERNAL"}
VALUE = re.compile(r"((?:  // [^\n]*\n)+)  ERROR_REASON_(\w+) = \d+;")
REASON = re.compile(r"\b[A-Z]{2}[A-Z_]+\b")
METADATA = re.compile(r"`(\w+)`")
COMMENT = re.compile(r"((?: *//[^\n]*\n)+) *(?:service|rpc) \w+")
ERRORS = re.compile(r"(?:Errors:|every rpc can return)([^.;]*)")


def documented() -> dict[str, str]:
    """The comment of each reason, as one line."""
    return {name: re.sub(r"\s*// ", " ", comment).strip() for comment, name in VALUE.findall(PROTO.read_text())}


def classes(kind: type[DomainError] = DomainError) -> list[type[DomainError]]:
    """Every error that can be raised."""
    below = [error for sub in kind.__subclasses__() for error in classes(sub) if sub.__module__ == errors.__name__]
    return below if kind in (DomainError, RetryLater) else [kind, *below]


def test_every_reason_is_documented() -> None:
    assert documented().keys() == {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()}  # noqa: SIM118
    assert all(documented().values())


def test_every_reason_is_listed_with_an_rpc_or_a_service_and_no_other_reason_is() -> None:
    comments = [
        re.sub(r"\s*//", "", comment)
        for path in PROTOS.rglob("*_service.proto")
        for comment in COMMENT.findall(path.read_text())
    ]
    listed = {reason for comment in comments for found in ERRORS.findall(comment) for reason in REASON.findall(found)}

    assert listed == documented().keys() - {"UNSPECIFIED"}


def test_every_error_has_its_own_reason_and_every_reason_an_error() -> None:
    reasons = [error.reason for error in classes()]

    assert len(set(reasons)) == len(reasons)
    assert set(reasons) == documented().keys() - WITHOUT_CLASS


def test_every_error_has_the_code_that_its_reason_is_documented_with() -> None:
    codes = {error.reason: error.code.name for error in classes()}

    assert codes == {reason: documented()[reason].partition(" ")[0].rstrip(".") for reason in codes}


def test_an_error_that_can_be_retried_says_so_in_the_contract() -> None:
    later = {error.reason for error in classes() if issubclass(error, RetryLater)}

    assert later == {reason for reason, comment in documented().items() if "with RetryInfo" in comment}


def test_the_metadata_of_an_error_is_documented() -> None:
    sent = {error.reason: {field.name for field in fields(error)} for error in classes()}
    sent["INVALID_FIELDS"] = set()  # sent as BadRequest
    for reason, names in sent.items():
        said = set(METADATA.findall(documented()[reason].partition("Metadata: ")[2]))
        assert names - {"retry_after_seconds"} == said, reason


def test_the_class_tree_in_the_docstring_names_every_error() -> None:
    assert errors.__doc__ is not None
    named = set(re.findall(r"[A-Z][A-Za-z]+", errors.__doc__.partition("The first line")[0].partition("\n")[2]))

    assert named >= {error.__name__ for error in classes()}
