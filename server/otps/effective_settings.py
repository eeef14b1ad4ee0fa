"""What applies to an organization's sends: the operator's defaults, overlaid by its own settings within his limits."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from server.errors import FieldViolation, InvalidFields
from server.otps.admission import SendLimits
from server.otps.destinations import check_areas
from server.otps.organization_settings import NOTHING_CHOSEN, DefaultFallback, OrganizationSettings, RefundPolicy
from server.otps.sms_pumping import AreaPolicy
from server.providers.provider import OPERATOR, Channel, Identity
from server.providers.templates import check_name

DEFAULT_CODE_LENGTH: Final = 6
DEFAULT_TTL: Final = timedelta(minutes=5)
DEFAULT_MAX_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class EffectiveSettings:
    """The settings that sends of an organization are prepared, limited and sent with."""

    identity: Identity
    areas: AreaPolicy
    limits: SendLimits
    refund_reported_failures: bool
    locale: str = ""
    code_length: int = DEFAULT_CODE_LENGTH
    ttl: timedelta = DEFAULT_TTL
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    fallbacks: tuple[DefaultFallback, ...] = ()

    has_defaults: bool = False
    """Whether the organization has defaults of its own for what a request does not say."""

    @property
    def version(self) -> int:
        """The version of the organization's settings; 0 without any."""
        return self.identity.settings_version


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """The operator's defaults, and his limits of what organizations choose."""

    areas: AreaPolicy
    limits: SendLimits
    refund_reported_failures: bool = False
    refund_choice: bool = False
    """Whether organizations may choose that reported failures are refunded."""
    sender_ids: Collection[str] = ()
    """Those that organizations may choose; empty: any."""
    test_organizations: Collection[str] = ()
    check_brand: Callable[[str], None] | None = None
    """Raises ValueError, with the rule, for a brand name with which a message would not be one SMS."""

    def apply(self, organization_id: str, version: int, chosen: OrganizationSettings) -> EffectiveSettings:
        """What applies to an organization that has chosen this. A choice beyond a limit counts as the limit."""
        is_test = organization_id in self.test_organizations
        if chosen is NOTHING_CHOSEN:
            identity = Identity(is_test=True) if is_test else OPERATOR
            return EffectiveSettings(identity, self.areas, self.limits, self.refund_reported_failures)
        senders = {
            (sender.channel, sender.country_code): sender.sender_id
            for sender in chosen.senders
            if self._allows_sender(sender.sender_id)
        }
        return EffectiveSettings(
            Identity(
                version,
                chosen.brand_name,
                chosen.email_sender_name or chosen.brand_name,
                chosen.email_reply_to,
                senders,
                is_test,
            ),
            self._areas(chosen),
            self._limits(chosen),
            self._refunds(chosen),
            locale=chosen.locale,
            code_length=chosen.code_length or DEFAULT_CODE_LENGTH,
            ttl=chosen.ttl or DEFAULT_TTL,
            max_attempts=chosen.max_attempts or DEFAULT_MAX_ATTEMPTS,
            fallbacks=chosen.default_fallbacks,
            has_defaults=bool(chosen.locale or chosen.code_length or chosen.ttl or chosen.max_attempts),
        )

    def check(self, chosen: OrganizationSettings, fields: Collection[str]) -> None:
        """Raise InvalidFields for those of these fields whose choice is beyond the operator's limits."""
        broken = [each for each in self._violations(chosen) if each.field in fields]
        if broken:
            raise InvalidFields(
                violations=tuple(FieldViolation(f"settings.{each.field}", each.description) for each in broken)
            )

    def _violations(self, chosen: OrganizationSettings) -> Iterator[FieldViolation]:
        yield from self._violations_of_identity(chosen)
        limits = self.limits
        for field, areas in (("allowed_areas", chosen.allowed_areas), ("blocked_areas", chosen.blocked_areas)):
            try:
                check_areas(areas)
            except ValueError:
                yield FieldViolation(field, "countries (ISO 3166) and prefixes that numbers which may be sent to have")
        if not self.areas.number_types.issuperset(chosen.number_types):
            allowed = ", ".join(sorted(self.areas.number_types))
            yield FieldViolation("number_types", f"types that the operator allows: {allowed}")
        if chosen.cooldown is not None and chosen.cooldown < limits.cooldown:
            yield FieldViolation("cooldown", f"at least the operator's {limits.cooldown.total_seconds():g} s")
        for field, most in (
            ("sends_per_destination_per_hour", limits.sends_per_destination_per_hour),
            ("sends_per_destination_per_day", limits.sends_per_destination_per_day),
        ):
            if most and getattr(chosen, field) > most:
                yield FieldViolation(field, f"at most the operator's {most}")
        if chosen.refund_policy is RefundPolicy.REPORTED_FAILURES and not self._refunds(chosen):
            yield FieldViolation("refund_policy", "one that the operator allows")

    def _violations_of_identity(self, chosen: OrganizationSettings) -> Iterator[FieldViolation]:
        if self.check_brand and chosen.brand_name:
            try:
                self.check_brand(chosen.brand_name)
            except ValueError as error:
                yield FieldViolation("brand_name", str(error))
        try:
            check_name(chosen.email_sender_name)
        except ValueError as error:
            yield FieldViolation("email_sender_name", str(error))
        if not all(self._allows_sender(sender.sender_id) for sender in chosen.senders):
            yield FieldViolation("senders", "senders that the operator allows")
        yield from _senders_of_channels(chosen)

    def _allows_sender(self, sender_id: str) -> bool:
        return not self.sender_ids or sender_id in self.sender_ids

    def _areas(self, chosen: OrganizationSettings) -> AreaPolicy:
        if not (chosen.allowed_areas or chosen.blocked_areas or chosen.number_types):
            return self.areas
        types = self.areas.number_types
        return replace(
            self.areas,
            allowed=chosen.allowed_areas,
            blocked=chosen.blocked_areas,
            number_types=types.intersection(chosen.number_types) if chosen.number_types else types,
            within=self.areas,
        )

    def _limits(self, chosen: OrganizationSettings) -> SendLimits:
        limits = self.limits
        return replace(
            limits,
            cooldown=max(limits.cooldown, chosen.cooldown or timedelta()),
            sends_per_destination_per_hour=_lower(
                limits.sends_per_destination_per_hour, chosen.sends_per_destination_per_hour
            ),
            sends_per_destination_per_day=_lower(
                limits.sends_per_destination_per_day, chosen.sends_per_destination_per_day
            ),
            daily_credit_cap=chosen.daily_credit_cap,
        )

    def _refunds(self, chosen: OrganizationSettings) -> bool:
        if chosen.refund_policy is RefundPolicy.REPORTED_FAILURES:
            return self.refund_choice or self.refund_reported_failures
        return self.refund_reported_failures and chosen.refund_policy is None


def _lower(limit: int, chosen: int) -> int:
    """The lower of two limits, of which 0 is none."""
    return min(limit, chosen) if limit and chosen else limit or chosen


def _senders_of_channels(chosen: OrganizationSettings) -> Iterator[FieldViolation]:
    keys = [(sender.channel, sender.country_code) for sender in chosen.senders]
    if len(set(keys)) < len(keys):
        yield FieldViolation("senders", "one for each channel and country")
    for sender in chosen.senders:
        is_phone_number_id = sender.sender_id.isdecimal()
        if is_phone_number_id is not (sender.channel is Channel.WHATSAPP):
            yield FieldViolation(
                "senders", "of WHATSAPP a phone_number_id, of SMS a name or a number with its plus sign"
            )
            return
