"""`judge` in batches, compared with a model that judges one guess at a time."""

from copy import deepcopy
from datetime import datetime, timedelta
from itertools import pairwise
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from server.otps.guess_policy import Guess, GuessLimits
from server.otps.otp import Otp, OtpStatus
from tests.unit.otps.guess_model import GuessModel
from tests.unit.otps.guesses import ACME, GuessStore, a_guess, verdict
from tests.unit.otps.sends import START, an_otp

# otp_id, right, request_id, seconds until the deadline (0 for none). The OTPs are 1 to 6; 7 does not exist.
Spec = tuple[int, bool, int, int]
specs = st.tuples(st.integers(1, 7), st.booleans(), st.integers(1, 3), st.sampled_from([0, 0, 0, 0, -1, 30]))
limits_in_play = st.builds(
    GuessLimits,
    wrong_guesses=st.integers(2, 8),
    window=st.sampled_from([timedelta(seconds=50), timedelta(hours=1)]),
    free_guesses=st.integers(0, 6),
    first_pause=st.just(timedelta(seconds=1)),
    longest_pause=st.sampled_from([timedelta(seconds=4), timedelta(seconds=90)]),
)
waits = st.sampled_from([0, 0, 0.000_001, 1, 2, 3.999_999, 4, 8, 49.999_999, 50, 200, 3_600])


def the_otps() -> list[Otp]:
    """Two destinations, one to three attempts each, two canceled or exhausted before."""
    otps = [
        an_otp(otp_id=UUID(int=number), destination=b"bob" if number < 4 else b"eve", max_attempts=number % 3 + 1)
        for number in range(1, 7)
    ]
    otps[4].status = OtpStatus.CANCELED
    otps[2].expire_time = START + timedelta(hours=2)
    return otps


def guess_of(spec: Spec, now: datetime) -> Guess:
    number, right, request_id, seconds = spec
    deadline = now + timedelta(seconds=seconds) if seconds else None
    return a_guess(UUID(int=number), right=right, request_id=request_id, deadline=deadline)


def new_store() -> GuessStore:
    return GuessStore({(ACME, otp.otp_id): otp for otp in the_otps()})


@settings(max_examples=150)
@given(
    limits=limits_in_play,
    batches=st.lists(st.tuples(waits, st.lists(specs, min_size=1, max_size=6)), max_size=10),
)
def test_batches_are_judged_as_if_the_guesses_had_come_one_after_another(
    limits: GuessLimits, batches: list[tuple[float, list[Spec]]]
) -> None:
    store, model = new_store(), GuessModel({otp.otp_id.int: otp for otp in the_otps()}, limits)
    accepted = []
    now = START
    for seconds, batch in batches:
        now += timedelta(seconds=seconds)
        guesses = [guess_of(spec, now) for spec in batch]
        verdicts = [verdict(answer) for answer in store.judge(guesses, now=now, limits=limits)]
        assert verdicts == [model.decide(guess, now) for guess in guesses]
        accepted += [guess for guess, one in zip(guesses, verdicts, strict=True) if one[0] == "OK"]
    assert all(guess.right for guess in accepted)
    # An OTP is verified by one request only, whatever its repeats are answered.
    assert len({guess.otp_id for guess in accepted}) == len({(guess.otp_id, guess.request_id) for guess in accepted})
    assert_budget_was_kept(model)


@settings(max_examples=80)
@given(limits=limits_in_play, batch=st.lists(specs, min_size=1, max_size=12), cuts=st.sets(st.integers(1, 11)))
def test_answers_do_not_depend_on_how_guesses_are_batched(
    limits: GuessLimits, batch: list[Spec], cuts: set[int]
) -> None:
    whole, parts = new_store(), new_store()
    guesses = [guess_of(spec, START) for spec in batch]
    at_once = whole.judge(deepcopy(guesses), now=START, limits=limits)
    edges = [0, *sorted(cut for cut in cuts if cut < len(guesses)), len(guesses)]
    in_parts = [
        answer for begin, end in pairwise(edges) for answer in parts.judge(guesses[begin:end], now=START, limits=limits)
    ]
    assert list(map(verdict, in_parts)) == list(map(verdict, at_once))
    assert parts == whole


def assert_budget_was_kept(model: GuessModel) -> None:
    """No window has more wrong guesses than the limit, wherever it begins."""
    for destination in (b"bob", b"eve"):
        times = [time for time, otp in model.wrong if otp.destination_digest == destination]
        for first in times:
            within = [time for time in times if timedelta() <= time - first < model.limits.window]
            assert len(within) <= model.limits.wrong_guesses
