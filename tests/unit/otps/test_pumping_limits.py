"""The limit on unverified credits, decided without a database, and whose numbers are sent to."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.channels.channel import ChannelName
from server.channels.destinations import parse_email, parse_phone
from server.errors import TooManySends
from server.otps.admission import Admitted, Decision, Refused, Send, State, admit
from server.otps.limits import SendLimits, UnverifiedCredits
from server.otps.pumping import Served
from server.otps.targets import Address, Targets
from server.otps.vault import KEY_BYTES, Vault
from tests.unit.otps.books import NO_LIMITS, START, a_send, an_account, an_otp

MOST = 10
WINDOW = timedelta(hours=1)
LIMITS = replace(NO_LIMITS, unverified_credits_per_country=MOST, unverified_window=WINDOW)
PREFIX_MOST = 6
WITH_PREFIXES = replace(LIMITS, unverified_credits_per_prefix=PREFIX_MOST)
VAULT = Vault({"k1": b"1" * KEY_BYTES}, digest_secret=b"2" * KEY_BYTES)


def to(areas: str, *, credits: int = 3, organization_id: str = "acme") -> Send:
    send = a_send(an_otp(organization_id=organization_id), credits=credits)
    send.request_id = send.delivery_id
    send.target = send.target._replace(areas=areas)
    return send


def books() -> State:
    return State({name: an_account(name, credits=1_000_000) for name in ("acme", "other")})


def decide(state: State, *sends: Send, now: datetime = START, limits: SendLimits = LIMITS) -> list[Decision]:
    return admit(sends, state, now=now, limits=limits)


def accepted(decisions: list[Decision]) -> list[bool]:
    return [isinstance(decision, Admitted) for decision in decisions]


def test_a_countrys_sends_stop_before_they_cost_more_than_the_limit() -> None:
    decisions = decide(books(), *(to("ID") for _ in range(5)))

    assert accepted(decisions) == [True, True, True, False, False]
    refused = decisions[-1]
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, TooManySends)
    assert refused.error.limit == "unverified_credits_per_country"


def test_another_country_another_organization_and_mail_are_not_held_up() -> None:
    state = books()
    decide(state, *(to("ID") for _ in range(4)))

    assert accepted(decide(state, to("SG"), to("ID", organization_id="other"), to(""), to("ID"))) == [
        True,
        True,
        True,
        False,
    ]


def test_a_cheaper_send_still_fits_where_a_dearer_one_does_not() -> None:
    state = books()
    decide(state, *(to("ID") for _ in range(3)))

    assert accepted(decide(state, to("ID", credits=2), to("ID", credits=1), to("ID", credits=1))) == [
        False,
        True,
        False,
    ]


def test_whoever_waits_as_told_is_accepted_and_not_a_microsecond_before() -> None:
    state = books()
    decide(state, *(to("ID") for _ in range(3)))
    (refused,) = decide(state, to("ID"), now=START + timedelta(minutes=20))
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, TooManySends)
    then = START + timedelta(minutes=20, seconds=refused.error.retry_after_seconds)

    early, late = decide(state, to("ID"), now=then - timedelta(microseconds=1)), decide(state, to("ID"), now=then)

    assert (accepted(early), accepted(late)) == ([False], [True])
    assert state.unverified["acme", "ID"] == UnverifiedCredits(then, 3)


def test_a_send_that_alone_costs_more_than_the_limit_is_never_accepted() -> None:
    state = books()
    decide(state, to("ID"))

    assert accepted(decide(state, to("ID", credits=MOST + 1), now=START + 2 * WINDOW)) == [False]
    assert accepted(decide(state, to("SG", credits=MOST + 1))) == [False]


def test_a_refused_send_counts_nothing() -> None:
    state = books()
    state.accounts["acme"].available_credits = 2
    decide(state, to("ID"))

    assert state.unverified["acme", "ID"].credits == 0


def test_a_prefix_and_its_country_each_have_a_limit() -> None:
    sends = [to(f"ID {prefix}") for prefix in ("81", "81", "81", "82", "83")]
    decisions = decide(books(), *sends, limits=WITH_PREFIXES)

    refusals = [decision.error for decision in decisions if isinstance(decision, Refused)]
    assert accepted(decisions) == [True, True, False, True, False]
    assert [error.limit for error in refusals if isinstance(error, TooManySends)] == [
        "unverified_credits_per_prefix",
        "unverified_credits_per_country",
    ]


def test_of_two_full_areas_the_one_that_opens_last_is_waited_for() -> None:
    state = books()
    decide(state, to("ID 81"), limits=WITH_PREFIXES)
    half = START + WINDOW / 2
    decide(state, to("ID 82"), to("ID 82"), now=half, limits=WITH_PREFIXES)
    (refused,) = decide(state, to("ID 82"), now=half, limits=WITH_PREFIXES)

    assert isinstance(refused, Refused)
    assert isinstance(refused.error, TooManySends)
    assert refused.error.retry_after_seconds == WINDOW.total_seconds()
    then = half + WINDOW
    early, late = then - timedelta(microseconds=1), then
    assert [accepted(decide(state, to("ID 82"), now=now, limits=WITH_PREFIXES)) for now in (early, late)] == [
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
def test_no_window_ever_holds_more_than_the_limit(sends: list[tuple[str, str, int, int]]) -> None:
    state, now = books(), START
    windows: dict[tuple[str, str], tuple[datetime, int]] = {}
    for areas, organization_id, credits, minutes in sends:
        now += timedelta(minutes=minutes)
        keys = [(organization_id, area) for area in areas.split()]
        current = {key: windows[key] for key in keys if key in windows and now < windows[key][0] + WINDOW}
        after = {key: (begin, spent + credits) for key in keys for begin, spent in [current.get(key, (now, 0))]}
        expected = all(after[key][1] <= most for key, most in zip(keys, (MOST, PREFIX_MOST), strict=False))
        send = to(areas, credits=credits, organization_id=organization_id)
        assert accepted(decide(state, send, now=now, limits=WITH_PREFIXES)) == [expected]
        if expected:
            windows |= after


def areas_of(destination: str, *, prefix_digits: int = 7) -> list[str]:
    channel = ChannelName.SMS if destination.startswith("+") else ChannelName.EMAIL
    targets = Targets(VAULT, {channel: 1}, Served(prefix_digits=prefix_digits))
    return targets.target("acme", Address(channel, destination, "destination")).areas.split()


def test_numbers_that_begin_alike_share_an_area_that_does_not_tell_their_digits() -> None:
    first, alike, other = map(areas_of, ("+6281234567890", "+6281234000111", "+6281235567890"))

    assert first == alike
    assert (first[0], other[0]) == ("ID", "ID")
    assert first[1] != other[1]
    assert "81234" not in first[1]
    assert areas_of("+6281234567890", prefix_digits=0) == ["ID"]
    assert areas_of("bob@example.com") == []


@pytest.mark.parametrize(
    ("served", "number", "expected"),
    [
        (Served(), "+6281234567890", True),
        (Served(areas=("ID",)), "+6281234567890", True),
        (Served(areas=("SG",)), "+6281234567890", False),
        (Served(areas=("SG", "+62812")), "+6281234567890", True),
        (Served(areas=("+62813",)), "+6281234567890", False),
        (Served(blocked=("ID",)), "+6281234567890", False),
        (Served(blocked=("+628123",)), "+6281234567890", False),
        (Served(areas=("ID",), blocked=("+62812",)), "+6281234567890", False),
        (Served(blocked=("001",)), "+80012345678", False),
        (Served(areas=("ID",)), "+80012345678", False),
    ],
)
def test_a_number_is_served_where_its_areas_say_so(served: Served, number: str, expected: bool) -> None:  # noqa: FBT001
    assert served.serves(parse_phone(number)) is expected


def test_mail_is_served_wherever_it_goes() -> None:
    assert Served(areas=("ID",), blocked=("SG",)).serves(parse_email("bob@example.sg"))
