"""The limits of unverified credits, and the areas that may be sent to."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import TooManySends
from server.otps.admission import Admitted, Decision, Refused, Send, SendLimits, State, UnverifiedCredits, admit
from server.otps.crypto import KEY_BYTES, Crypto
from server.otps.destinations import parse_email, parse_phone
from server.otps.recipients import RawDestination, RecipientResolver
from server.otps.sms_pumping import AreaPolicy
from server.providers.provider import Channel
from tests.unit.otps.sends import NO_LIMITS, START, a_send, an_account, an_otp

MOST = 10
WINDOW = timedelta(hours=1)
LIMITS = replace(NO_LIMITS, unverified_credits_per_country=MOST, unverified_window=WINDOW)
PREFIX_MOST = 6
WITH_PREFIXES = replace(LIMITS, unverified_credits_per_prefix=PREFIX_MOST)
CRYPTO = Crypto({"k1": b"1" * KEY_BYTES}, digest_secrets={"d1": b"2" * KEY_BYTES})


def send_to(areas: str, *, credits: int = 3, organization_id: str = "acme") -> Send:
    send = a_send(an_otp(organization_id=organization_id), credits=credits)
    return send._replace(request_id=send.delivery_id, recipient=send.recipient._replace(areas=areas))


def new_state() -> State:
    return State({name: an_account(name, credits=1_000_000) for name in ("acme", "other")})


def decide(state: State, *sends: Send, now: datetime = START, limits: SendLimits = LIMITS) -> list[Decision]:
    return admit(sends, state, now=now, limits=limits)


def accepted(decisions: list[Decision]) -> list[bool]:
    return [isinstance(decision, Admitted) for decision in decisions]


def test_a_countrys_sends_are_refused_before_they_exceed_the_limit() -> None:
    decisions = decide(new_state(), *(send_to("ID") for _ in range(5)))

    assert accepted(decisions) == [True, True, True, False, False]
    refused = decisions[-1]
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, TooManySends)
    assert refused.error.limit == "country"


def test_other_countries_other_organizations_and_email_are_not_limited() -> None:
    state = new_state()
    decide(state, *(send_to("ID") for _ in range(4)))

    assert accepted(
        decide(state, send_to("SG"), send_to("ID", organization_id="other"), send_to(""), send_to("ID"))
    ) == [
        True,
        True,
        True,
        False,
    ]


def test_a_cheaper_send_is_accepted_where_a_dearer_one_exceeds_the_limit() -> None:
    state = new_state()
    decide(state, *(send_to("ID") for _ in range(3)))

    assert accepted(decide(state, send_to("ID", credits=2), send_to("ID", credits=1), send_to("ID", credits=1))) == [
        False,
        True,
        False,
    ]


def test_a_send_is_accepted_after_exactly_its_retry_after_and_not_a_microsecond_before() -> None:
    state = new_state()
    decide(state, *(send_to("ID") for _ in range(3)))
    (refused,) = decide(state, send_to("ID"), now=START + timedelta(minutes=20))
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, TooManySends)
    then = START + timedelta(minutes=20, seconds=refused.error.retry_after_seconds)

    early, late = (
        decide(state, send_to("ID"), now=then - timedelta(microseconds=1)),
        decide(state, send_to("ID"), now=then),
    )

    assert (accepted(early), accepted(late)) == ([False], [True])
    assert state.unverified["acme", "ID"] == UnverifiedCredits(then, 3)


def test_a_send_that_alone_costs_more_than_the_limit_is_never_accepted() -> None:
    state = new_state()
    decide(state, send_to("ID"))

    assert accepted(decide(state, send_to("ID", credits=MOST + 1), now=START + 2 * WINDOW)) == [False]
    assert accepted(decide(state, send_to("SG", credits=MOST + 1))) == [False]


def test_a_refused_send_counts_nothing() -> None:
    state = new_state()
    state.accounts["acme"].available_credits = 2
    decide(state, send_to("ID"))

    assert state.unverified["acme", "ID"].credits == 0


def test_a_prefix_and_its_country_each_have_a_limit() -> None:
    sends = [send_to(f"ID {prefix}") for prefix in ("81", "81", "81", "82", "83")]
    decisions = decide(new_state(), *sends, limits=WITH_PREFIXES)

    refusals = [decision.error for decision in decisions if isinstance(decision, Refused)]
    assert accepted(decisions) == [True, True, False, True, False]
    assert [error.limit for error in refusals if isinstance(error, TooManySends)] == [
        "prefix",
        "country",
    ]


def test_of_two_areas_at_their_limits_the_longer_wait_is_returned() -> None:
    state = new_state()
    decide(state, send_to("ID 81"), limits=WITH_PREFIXES)
    half = START + WINDOW / 2
    decide(state, send_to("ID 82"), send_to("ID 82"), now=half, limits=WITH_PREFIXES)
    (refused,) = decide(state, send_to("ID 82"), now=half, limits=WITH_PREFIXES)

    assert isinstance(refused, Refused)
    assert isinstance(refused.error, TooManySends)
    assert refused.error.retry_after_seconds == WINDOW.total_seconds()
    then = half + WINDOW
    early, late = then - timedelta(microseconds=1), then
    assert [accepted(decide(state, send_to("ID 82"), now=now, limits=WITH_PREFIXES)) for now in (early, late)] == [
        [False],
        [True],
    ]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ID", "ID 81", "ID 82", "SG 65"]),
            st.sampled_from(["acme", "other"]),
            st.integers(1, 4),
            st.integers(0, 40),
        ),
        max_size=40,
    )
)
def test_no_window_has_more_unverified_credits_than_the_limit(sends: list[tuple[str, str, int, int]]) -> None:
    state, now = new_state(), START
    windows: dict[tuple[str, str], tuple[datetime, int]] = {}
    for areas, organization_id, credits, minutes in sends:
        now += timedelta(minutes=minutes)
        keys = [(organization_id, area) for area in areas.split()]
        current = {key: windows[key] for key in keys if key in windows and now < windows[key][0] + WINDOW}
        after = {key: (begin, spent + credits) for key in keys for begin, spent in [current.get(key, (now, 0))]}
        expected = all(after[key][1] <= most for key, most in zip(keys, (MOST, PREFIX_MOST), strict=False))
        send = send_to(areas, credits=credits, organization_id=organization_id)
        assert accepted(decide(state, send, now=now, limits=WITH_PREFIXES)) == [expected]
        if expected:
            windows |= after


UNUSUAL = (
    *("+979123456789", "+881612345678", "+870773111632", "+19002345678", "+628091234567", "+447012345678"),
    *("+447640123456", "+80012345678", "+442070313000"),
)


def areas_of(destination: str, *, prefix_digits: int = 7) -> list[str]:
    channel = Channel.SMS if destination.startswith("+") else Channel.EMAIL
    policy = AreaPolicy(prefix_digits=prefix_digits, number_types=frozenset({"mobile", "satellite"}))
    recipients = RecipientResolver(CRYPTO, {channel: 1}, policy)
    return recipients.resolve("acme", RawDestination(channel, destination, "destination")).areas.split()


def test_numbers_with_one_prefix_share_an_area_that_does_not_reveal_their_digits() -> None:
    first, alike, other = map(areas_of, ("+6281234567890", "+6281234000111", "+6281235567890"))

    assert first == alike
    assert (first[0], other[0]) == ("ID", "ID")
    assert first[1] != other[1]
    assert "81234" not in first[1]
    assert areas_of("+6281234567890", prefix_digits=0) == ["ID"]
    assert areas_of("bob@example.com") == []


def test_numbers_of_no_country_are_counted_by_their_calling_code() -> None:
    assert areas_of("+881612345678", prefix_digits=0) == ["+881"]
    assert areas_of("+870773111632", prefix_digits=0) == ["+870"]


@pytest.mark.parametrize(
    ("policy", "number", "expected"),
    [
        (AreaPolicy(), "+6281234567890", True),
        (AreaPolicy(allowed=("ID",)), "+6281234567890", True),
        (AreaPolicy(allowed=("SG",)), "+6281234567890", False),
        (AreaPolicy(allowed=("SG", "+62812")), "+6281234567890", True),
        (AreaPolicy(allowed=("+62813",)), "+6281234567890", False),
        (AreaPolicy(blocked=("ID",)), "+6281234567890", False),
        (AreaPolicy(blocked=("+628123",)), "+6281234567890", False),
        (AreaPolicy(allowed=("ID",), blocked=("+62812",)), "+6281234567890", False),
        (AreaPolicy(blocked=("001",), number_types=frozenset({"toll_free"})), "+80012345678", False),
        (AreaPolicy(allowed=("ID",), number_types=frozenset({"toll_free"})), "+80012345678", False),
        (AreaPolicy(allowed=("001",), number_types=frozenset({"toll_free"})), "+80012345678", True),
        (AreaPolicy(), "+12025550123", True),
        *((AreaPolicy(), number, False) for number in UNUSUAL),
        (AreaPolicy(number_types=frozenset({"satellite"})), "+870773111632", True),
    ],
)
def test_a_number_is_allowed_by_its_country_and_prefix(policy: AreaPolicy, number: str, expected: bool) -> None:  # noqa: FBT001
    assert policy.allows(parse_phone(number)) is expected


def test_email_addresses_are_always_allowed() -> None:
    assert AreaPolicy(allowed=("ID",), blocked=("SG",)).allows(parse_email("bob@example.sg"))
