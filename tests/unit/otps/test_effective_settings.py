"""What applies to an organization's sends: its choice, the operator's defaults, and his limits."""

from datetime import timedelta
from typing import Any

import pytest

from server.errors import InvalidFields
from server.otps.admission import SendLimits
from server.otps.destinations import parse_phone
from server.otps.effective_settings import DEFAULT_TTL, OperatorSettings
from server.otps.organization_settings import NOTHING_CHOSEN, OrganizationSettings, RefundPolicy, Sender
from server.otps.sms_pumping import AreaPolicy
from server.providers.provider import OPERATOR, Channel

LIMITS = SendLimits(timedelta(seconds=30), sends_per_destination_per_hour=10, sends_per_destination_per_day=0)
DEFAULT = OperatorSettings(areas=AreaPolicy(blocked=("GB",)), limits=LIMITS, test_organizations=frozenset({"trial"}))


def chosen(**fields: Any) -> OrganizationSettings:
    return OrganizationSettings(**fields)


def test_who_has_chosen_nothing_has_the_operators_own_objects() -> None:
    settings = DEFAULT.apply("acme", 0, NOTHING_CHOSEN)

    assert settings.identity is OPERATOR
    assert settings.areas is DEFAULT.areas
    assert settings.limits is DEFAULT.limits
    assert not settings.has_defaults
    assert DEFAULT.apply("trial", 0, NOTHING_CHOSEN).identity.is_test
    assert DEFAULT.apply("trial", 1, chosen(locale="id")).identity.is_test


@pytest.mark.parametrize(
    ("operator", "choice", "effective"),
    [(10, 0, 10), (10, 3, 3), (10, 11, 10), (0, 0, 0), (0, 3, 3)],
)
def test_of_two_limits_the_lower_one_applies_and_0_is_none(operator: int, choice: int, effective: int) -> None:
    limits = SendLimits(sends_per_destination_per_hour=operator, sends_per_destination_per_day=operator)
    both = {"sends_per_destination_per_hour": choice, "sends_per_destination_per_day": choice}

    settings = OperatorSettings(areas=AreaPolicy(), limits=limits).apply("acme", 1, chosen(**both))

    assert settings.limits.sends_per_destination_per_hour == effective
    assert settings.limits.sends_per_destination_per_day == effective


@pytest.mark.parametrize(("seconds", "effective"), [(None, 30), (0, 30), (29, 30), (31, 31)])
def test_a_cooldown_is_never_shorter_than_the_operators(seconds: int | None, effective: int) -> None:
    cooldown = None if seconds is None else timedelta(seconds=seconds)

    settings = DEFAULT.apply("acme", 1, chosen(cooldown=cooldown, brand_name="Acme"))

    assert settings.limits.cooldown == timedelta(seconds=effective)
    assert settings.ttl == DEFAULT_TTL


@pytest.mark.parametrize(
    ("number", "fields", "allowed"),
    [
        ("+6281234567890", {}, True),
        ("+6281234567890", {"allowed_areas": ("ID",)}, True),
        ("+6281234567890", {"allowed_areas": ("SG",)}, False),
        ("+6281234567890", {"blocked_areas": ("+62812",)}, False),
        ("+6281234567890", {"number_types": ("fixed_line_or_mobile",)}, False),
        ("+447400123456", {"allowed_areas": ("GB",)}, False),
        ("+19002345678", {"number_types": ("premium_rate",)}, False),
    ],
)
def test_a_number_must_be_allowed_by_both(number: str, fields: dict[str, Any], allowed: bool) -> None:  # noqa: FBT001
    settings = DEFAULT.apply("acme", 1, chosen(brand_name="Acme", **fields))

    assert settings.areas.allows(parse_phone(number)) is allowed


@pytest.mark.parametrize(
    ("refunds", "choice", "policy", "effective"),
    [
        (False, False, None, False),
        (True, False, None, True),
        (True, False, RefundPolicy.NOT_ACCEPTED, False),
        (False, True, None, False),
        (False, True, RefundPolicy.REPORTED_FAILURES, True),
        (False, False, RefundPolicy.REPORTED_FAILURES, False),
        (True, False, RefundPolicy.REPORTED_FAILURES, True),
    ],
)
def test_refunds_are_chosen_where_the_operator_lets(
    *, refunds: bool, choice: bool, policy: RefundPolicy | None, effective: bool
) -> None:
    operator = OperatorSettings(
        areas=AreaPolicy(), limits=LIMITS, refund_reported_failures=refunds, refund_choice=choice
    )

    settings = operator.apply("acme", 1, chosen(refund_policy=policy, brand_name="Acme"))

    assert settings.refund_reported_failures is effective


def test_a_sender_is_found_by_country_then_for_all_and_only_if_the_operator_still_allows_it() -> None:
    senders = (
        Sender(channel=Channel.SMS, sender_id="Acme"),
        Sender(channel=Channel.SMS, country_code="US", sender_id="+12025550199"),
        Sender(channel=Channel.SMS, country_code="ID", sender_id="Gone"),
    )
    operator = OperatorSettings(areas=AreaPolicy(), limits=LIMITS, sender_ids={"Acme", "+12025550199"})

    identity = operator.apply("acme", 1, chosen(senders=senders)).identity

    found = [identity.sender_id(Channel.SMS, country) for country in ("US", "ID", "SG", "")]
    assert found == ["+12025550199", "Acme", "Acme", "Acme"]
    assert identity.sender_id(Channel.WHATSAPP, "US") == ""
    with pytest.raises(InvalidFields) as refused:
        operator.check(chosen(senders=senders), {"senders"})
    assert [violation.field for violation in refused.value.violations] == ["settings.senders"]
    operator.check(chosen(senders=senders), {"locale"})
