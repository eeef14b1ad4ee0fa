"""What `judge` decides, case by case."""

from datetime import datetime, timedelta

import pytest

from server.errors import DomainError
from server.otps.guess_policy import Guess, GuessBudget, GuessLimits
from server.otps.otp import DIGEST_BYTES, Otp, OtpStatus
from tests.unit.otps.guesses import ACME, GuessStore, a_guess, verdict
from tests.unit.otps.sends import START, an_otp

LIMITS = GuessLimits()
OLD, NEW = b"o" * DIGEST_BYTES, b"n" * DIGEST_BYTES
INSTANT = timedelta(microseconds=1)


def store_of(*otps: Otp) -> GuessStore:
    return GuessStore({(otp.organization_id, otp.otp_id): otp for otp in otps})


def judge(store: GuessStore, *guesses: Guess, now: datetime = START) -> list[tuple[object, ...]]:
    return [verdict(answer) for answer in store.judge(guesses, now=now, limits=LIMITS)]


def test_the_right_code_is_accepted_once() -> None:
    otp = an_otp()
    first, second = a_guess(otp.otp_id, right=True), a_guess(otp.otp_id, right=True, request_id=2)
    assert judge(store_of(otp), first, second) == [("OK", OtpStatus.VERIFIED, START), ("OtpAlreadyVerified",)]


def test_a_repeat_of_the_request_that_verified_gets_the_same_answer() -> None:
    otp = an_otp()
    store = store_of(otp)
    judge(store, a_guess(otp.otp_id, right=True))
    late = otp.expire_time + timedelta(hours=1)
    assert judge(store, a_guess(otp.otp_id, right=True), now=late) == [("OK", OtpStatus.VERIFIED, START)]


def test_a_repeat_with_a_wrong_code_is_refused() -> None:
    otp = an_otp()
    store = store_of(otp)
    judge(store, a_guess(otp.otp_id, right=True))
    assert judge(store, a_guess(otp.otp_id, right=False)) == [("OtpAlreadyVerified",)]


def test_a_wrong_guess_is_counted_and_answered_with_the_remaining_attempts() -> None:
    otp = an_otp(max_attempts=3)
    store = store_of(otp)
    wrong = a_guess(otp.otp_id, right=False)
    assert judge(store, wrong, wrong) == [("WrongCode", 2), ("WrongCode", 1)]
    assert store.otps[ACME, otp.otp_id].attempts == 2
    assert store.budgets[ACME, otp.destination_digest].wrong_guess_times == [START] * 2


def test_otps_whose_digests_have_one_key_in_common_share_their_wrong_guesses() -> None:
    old, both, new = (an_otp(destination=digests, max_attempts=50) for digests in (OLD, NEW + OLD, NEW))
    store = store_of(old, both, new)
    judge(store, *[a_guess(old.otp_id, right=False)] * 5, *[a_guess(both.otp_id, right=False)] * 5)
    assert [judge(store, a_guess(otp.otp_id, right=True)) for otp in (old, both)] == [
        [("wait", LIMITS.first_pause)],
        [("wait", LIMITS.first_pause)],
    ]
    judge(store, *[a_guess(new.otp_id, right=False)] * 5)
    assert judge(store, a_guess(both.otp_id, right=True)) == [("wait", LIMITS.first_pause)]
    assert judge(store, a_guess(new.otp_id, right=True)) == [("wait", LIMITS.first_pause)]


def test_the_last_attempt_is_accepted_when_it_is_right() -> None:
    otp = an_otp(max_attempts=2)
    guesses = [a_guess(otp.otp_id, right=right) for right in (False, True)]
    assert judge(store_of(otp), *guesses) == [("WrongCode", 1), ("OK", OtpStatus.VERIFIED, START)]


def test_after_the_last_attempt_the_right_code_is_refused() -> None:
    otp = an_otp(max_attempts=1)
    guesses = [a_guess(otp.otp_id, right=right) for right in (False, True)]
    assert judge(store_of(otp), *guesses) == [("WrongCode", 0), ("OtpAttemptsExhausted",)]


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize(
    ("status", "refusal"),
    [
        (OtpStatus.VERIFIED, "OtpAlreadyVerified"),
        (OtpStatus.CANCELED, "OtpCanceled"),
        (OtpStatus.ATTEMPTS_EXHAUSTED, "OtpAttemptsExhausted"),
        (OtpStatus.EXPIRED, "OtpExpired"),
    ],
)
def test_a_closed_otp_takes_no_guess_and_counts_none(status: OtpStatus, refusal: str, *, right: bool) -> None:
    otp = an_otp()
    otp.status = status
    store = store_of(otp)
    assert judge(store, a_guess(otp.otp_id, right=right)) == [(refusal,)]
    assert store == store_of(otp)


def test_a_code_is_accepted_until_the_instant_it_expires() -> None:
    otp = an_otp()
    right = a_guess(otp.otp_id, right=True)
    assert judge(store_of(otp), right, now=otp.expire_time) == [("OtpExpired",)]
    assert judge(store_of(otp), right, now=otp.expire_time - INSTANT)[0][0] == "OK"


def test_the_otp_of_another_organization_is_not_found() -> None:
    otp = an_otp()
    assert judge(store_of(otp), a_guess(otp.otp_id, right=True, organization_id="other")) == [("OtpNotFound",)]


def test_from_the_deadline_on_nothing_is_counted() -> None:
    otp = an_otp()
    store = store_of(otp)
    late = [a_guess(otp.otp_id, right=right, deadline=START) for right in (False, True)]
    assert judge(store, *late) == [("DeadlineExceeded",)] * 2
    assert store == store_of(otp)


def guess_wrongly(destination_guesses: int, store: GuessStore, now: datetime) -> tuple[list[timedelta], datetime]:
    """Guess wrongly at new OTPs of one destination, as soon as each pause allows; the pauses, and the time then."""
    pauses = []
    for _ in range(destination_guesses):
        otp = an_otp()
        otp.expire_time = now + timedelta(days=2)
        store.otps[ACME, otp.otp_id] = otp
        (answer,) = store.judge([a_guess(otp.otp_id, right=False)], now=now, limits=LIMITS)
        assert isinstance(answer, DomainError)
        (refusal,) = judge(store, a_guess(otp.otp_id, right=True), now=now)
        pause = refusal[1] if refusal[0] == "wait" else timedelta()
        if refusal[0] != "wait":
            store.otps[ACME, otp.otp_id].status = OtpStatus.VERIFIED
        assert isinstance(pause, timedelta)
        pauses.append(pause)
        now += pause
    return pauses, now


def test_pauses_double_after_the_free_guesses_up_to_the_longest() -> None:
    pauses, _ = guess_wrongly(22, GuessStore({}), START)
    assert [pause.total_seconds() for pause in pauses] == [0] * 9 + [
        1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900,
    ]  # fmt: skip


def test_the_budget_is_exact_and_new_otps_do_not_renew_it() -> None:
    store = GuessStore({})
    pauses, now = guess_wrongly(LIMITS.wrong_guesses, store, START)
    assert len(store.budgets[ACME, b"bob"].wrong_guess_times) == LIMITS.wrong_guesses
    # The last wait is for the first guesses to leave the window: ten came at once, before there was a pause.
    assert now == START + LIMITS.window
    assert pauses[-1] > LIMITS.longest_pause
    guess_wrongly(1, store, now)
    assert len(store.budgets[ACME, b"bob"].wrong_guess_times) == LIMITS.wrong_guesses - 10 + 1


def test_no_window_has_more_wrong_guesses_than_the_budget_wherever_it_begins() -> None:
    store, times, now = GuessStore({}), [], START
    while now < START + 4 * LIMITS.window:
        times.append(now)
        _, now = guess_wrongly(1, store, now)
    assert max(sum(first <= time < first + LIMITS.window for time in times) for first in times) == LIMITS.wrong_guesses


def test_a_pause_gets_shorter_when_the_oldest_guesses_leave_the_window() -> None:
    limits = GuessLimits(free_guesses=1, window=timedelta(seconds=10))
    budget = GuessBudget([START, START + timedelta(seconds=1), START + timedelta(seconds=9)])
    # Of three the pause is 4 s; the first leaves after 10 s, and of two it is 2 s.
    assert budget.wait(now=START + timedelta(seconds=9), limits=limits) == timedelta(seconds=2)


def test_other_organizations_and_destinations_do_not_wait() -> None:
    store = GuessStore({})
    guess_wrongly(LIMITS.wrong_guesses - 1, store, START)
    same_person_elsewhere, other_person = an_otp(organization_id="other"), an_otp(destination=b"eve")
    store.otps |= store_of(same_person_elsewhere, other_person).otps
    answers = judge(
        store,
        a_guess(same_person_elsewhere.otp_id, right=True, organization_id="other"),
        a_guess(other_person.otp_id, right=True),
    )
    assert [answer[0] for answer in answers] == ["OK", "OK"]
