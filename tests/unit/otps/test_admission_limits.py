"""Limits on sends: after exactly its retry_after a send is accepted, and not a microsecond earlier."""

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.credits.accounts import Account
from server.errors import ResendTooSoon, RetryLater, TooManySends
from server.otps.admission import RecentSend, SendLimits, check_limits, count_send
from tests.unit.otps.sends import NO_LIMITS, START, an_account

INSTANT = timedelta(microseconds=1)
ONE_EACH = SendLimits(timedelta(seconds=30), 2, 3, 1)


def sent(*seconds_ago: float, purpose: str = "login") -> list[RecentSend]:
    return [RecentSend(START - timedelta(seconds=seconds), purpose) for seconds in seconds_ago]


def refusal(
    recent: list[RecentSend],
    *,
    after: timedelta = timedelta(),
    limits: SendLimits = ONE_EACH,
    account: Account | None = None,
) -> RetryLater | None:
    try:
        check_limits(account or an_account(credits=9), recent, "login", now=START + after, limits=limits)
    except RetryLater as error:
        return error
    return None


@pytest.mark.parametrize(
    ("recent", "seconds", "limit"),
    [
        (sent(10), 20.0, None),
        (sent(3000, 2000), 600.0, "destination_hour"),
        (sent(80_000, 50_000, 40_000), 6_400.0, "destination_day"),
        # The longest wait of all that refuse.
        (sent(3000, 10), 600.0, "destination_hour"),
        (sent(80_000, 10, 5), 6_400.0, "destination_day"),
        (sent(86_390, 3_590, 0), 30.0, None),
    ],
)
def test_the_retry_after_is_that_of_the_limit_that_takes_longest(
    recent: list[RecentSend], seconds: float, limit: str | None
) -> None:
    error = refusal(recent)
    assert isinstance(error, TooManySends if limit else ResendTooSoon)
    assert error.retry_after_seconds == seconds
    assert getattr(error, "limit", None) == limit


def test_each_purpose_has_its_own_cooldown_and_all_share_the_hourly_limit() -> None:
    assert refusal(sent(10, purpose="sign_up")) is None
    assert isinstance(refusal(sent(20, 10, purpose="sign_up")), TooManySends)


def test_an_organizations_minute_ends_60_seconds_after_it_began() -> None:
    account = an_account(credits=9)
    count_send(account, now=START + timedelta(seconds=59))
    error = refusal([], after=timedelta(seconds=59, milliseconds=500), account=account)
    assert isinstance(error, TooManySends)
    assert (error.retry_after_seconds, error.limit) == (0.5, "organization_minute")
    assert refusal([], after=timedelta(minutes=1), account=account) is None


def test_a_new_minute_begins_with_the_first_send_after_the_last_one() -> None:
    account = an_account(credits=9)
    begin = START + timedelta(seconds=90)
    count_send(account, now=begin)
    assert (account.window_start_time, account.window_send_count) == (begin, 1)


def test_limits_of_zero_are_switched_off() -> None:
    account = an_account(credits=9)
    for _ in range(100):
        count_send(account, now=START)
    assert refusal(sent(*[0.0] * 100), limits=NO_LIMITS, account=account) is None


@settings(max_examples=150)
@given(
    ages=st.lists(st.floats(0, 90_000).map(lambda seconds: round(seconds, 6)), max_size=8),
    other_purpose=st.sets(st.integers(0, 7)),
    in_minute=st.tuples(st.integers(0, 59), st.integers(0, 3)),
    limits=st.builds(
        SendLimits,
        cooldown=st.sampled_from([timedelta(), timedelta(seconds=30), timedelta(hours=2)]),
        sends_per_destination_per_hour=st.integers(0, 3),
        sends_per_destination_per_day=st.integers(0, 4),
        sends_per_organization_per_minute=st.integers(0, 3),
    ),
)
def test_a_send_passes_after_exactly_its_retry_after_and_not_before(
    ages: list[float], other_purpose: set[int], in_minute: tuple[int, int], limits: SendLimits
) -> None:
    recent = [
        RecentSend(START - timedelta(seconds=age), "sign_up" if number in other_purpose else "login")
        for number, age in enumerate(sorted(ages, reverse=True))
    ]
    seconds_ago, count = in_minute
    account = Account("acme", 9, 0, 0, None, START - timedelta(seconds=seconds_ago), count)
    error = refusal(recent, limits=limits, account=account)
    if error is None:
        return
    wait = timedelta(seconds=error.retry_after_seconds)
    assert wait > timedelta()
    assert refusal(recent, after=wait, limits=limits, account=account) is None
    assert refusal(recent, after=wait - INSTANT, limits=limits, account=account) is not None
