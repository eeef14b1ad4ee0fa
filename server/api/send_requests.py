"""Requests to send: validated, with what they leave out, and as server.otps takes them."""

from collections.abc import Iterator
from datetime import datetime
from operator import attrgetter
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from pulsa.otp.v1 import otp_service_pb2 as pb

from server.api.otp_records import raw_destination
from server.api.rules import MOST_REPEATED, RULES
from server.api.validation import compile_check, compile_validation
from server.errors import DomainError, FieldViolation, InvalidFields, OrganizationMismatch
from server.ids import parse_id
from server.otps.admission import SendOptions
from server.otps.effective_settings import DEFAULT_CODE_LENGTH, DEFAULT_MAX_ATTEMPTS, DEFAULT_TTL, EffectiveSettings
from server.otps.recipients import RawDestination, SendRequest
from server.otps.settings_cache import SettingsCache
from server.providers.provider import Channel
from server.traces import Span

_KNOWN_OPTIONS: Final = 1000

_options_of = attrgetter(*("purpose", "locale", "code_length", "max_attempts", "web_otp_domain", "sms_app_hash"))
_others_of = attrgetter("organization_id", "request_id", "destination", "context", "metadata", "fallbacks")
_IS_ORGANIZATION: Final = RULES["organization_id"].holds
_IS_REQUEST_ID: Final = RULES["request_id"].holds
_IS_DESTINATION: Final = {channel.field: RULES[channel.field].holds for channel in Channel}
_CHANNELS: Final = {channel.field: (channel, f"destination.{channel.field}") for channel in Channel}
_extras_are_valid: Final = compile_check(pb.SendOtpRequest.DESCRIPTOR, ("context", "metadata", "fallbacks"))
_NO_METADATA: Final[dict[str, str]] = {}
_validate: Final = compile_validation(pb.SendOtpRequest.DESCRIPTOR)


class SendReader:
    """Validates and converts requests, and remembers the options of earlier ones."""

    def __init__(self, settings: SettingsCache) -> None:
        """`settings` are those of the organizations."""
        self._settings = settings
        self._known_options: dict[tuple[object, bytes | None], SendOptions] = {}

    def read(self, request: pb.SendOtpRequest, deadline: datetime | None, span: Span | None) -> SendRequest:
        """Validate and convert a request of a call with this deadline and span. Raises InvalidFields.

        The options are validated once for all requests that are alike, and each field is read once.
        """
        key = (_options_of(request), request.ttl.SerializeToString() if request.HasField("ttl") else None)
        organization_id, request_id, destination, context, metadata, fallbacks = _others_of(request)
        field = destination.WhichOneof("channel")
        text = getattr(destination, field) if field else ""
        options = self._known_options.get(key)
        if (
            options is None
            or not (field and _IS_DESTINATION[field](text))
            or not (_IS_REQUEST_ID(request_id) and _IS_ORGANIZATION(organization_id))
            or ((context or metadata or fallbacks) and not _extras_are_valid(request))
        ):
            _validate(request)
            options = self._remember(key)
        settings = self._settings.of(organization_id)
        if settings.has_defaults:
            options = _with_defaults(options, request, settings)
        channel, path = _CHANNELS[field]
        return SendRequest(
            organization_id,
            parse_id(request_id),
            RawDestination(channel, text, path),
            options,
            context,
            dict(metadata) if metadata else _NO_METADATA,
            _fallbacks(request) if fallbacks else (),
            deadline,
            span,
        )

    def _remember(self, key: tuple[Any, bytes | None]) -> SendOptions:
        """The options of a valid request."""
        (purpose, locale, code_length, max_attempts, web_otp_domain, sms_app_hash), ttl = key
        options = SendOptions(
            purpose,
            locale,
            code_length or DEFAULT_CODE_LENGTH,
            DEFAULT_TTL if ttl is None else Duration.FromString(ttl).ToTimedelta(),
            max_attempts or DEFAULT_MAX_ATTEMPTS,
            web_otp_domain or (f"#{sms_app_hash}" if sms_app_hash else ""),
        )
        if len(self._known_options) == _KNOWN_OPTIONS:
            self._known_options.clear()
        self._known_options[key] = options
        return options


def sends_of(request: pb.BatchSendOtpsRequest | pb.PreviewOtpsRequest) -> Iterator[pb.SendOtpRequest | DomainError]:
    """Each request of a batch, with its organization, or the error of one that no batch takes.

    Raises InvalidFields for a batch without or with too many requests.
    """
    rule, most = RULES["organization_id"], MOST_REPEATED["requests"]
    violations = [] if rule.holds(request.organization_id) else [FieldViolation("organization_id", rule.description)]
    if not 1 <= len(request.requests) <= most:
        violations.append(FieldViolation("requests", f"1 to {most}"))
    if violations:
        raise InvalidFields(violations=tuple(violations))
    for send in request.requests:
        if send.organization_id not in ("", request.organization_id):
            yield OrganizationMismatch()
        elif send.validate_only:
            yield InvalidFields(violations=(FieldViolation("validate_only", "false in a batch"),))
        else:
            send.organization_id = request.organization_id
            yield send


def _with_defaults(options: SendOptions, request: pb.SendOtpRequest, settings: EffectiveSettings) -> SendOptions:
    """The options with the organization's defaults where the request says nothing."""
    return options._replace(
        locale=request.locale or settings.locale,
        code_length=request.code_length or settings.code_length,
        ttl=options.ttl if request.HasField("ttl") else settings.ttl,
        max_attempts=request.max_attempts or settings.max_attempts,
        said=options,
    )


def _fallbacks(request: pb.SendOtpRequest) -> list[RawDestination]:
    return [
        raw_destination(fallback.destination, f"fallbacks[{position}].destination")._replace(
            after_seconds=fallback.after.ToTimedelta().total_seconds() if fallback.HasField("after") else None
        )
        for position, fallback in enumerate(request.fallbacks)
    ]
