"""What `admit` decides, case by case."""

from copy import deepcopy
from datetime import datetime, timedelta

import pytest

from server.errors import InsufficientCredits
from server.otps.admission import Admitted, RecentSend, Refused, Send, SendLimits, State, admit
from server.otps.otp import OtpStatus
from tests.unit.otps.sends import NO_LIMITS, START, SendStore, a_send, an_account, an_otp, summary


def decide(store: SendStore, *sends: Send, limits: SendLimits = NO_LIMITS) -> list[tuple[object, ...]]:
    return [summary(decision) for decision in store.admit(sends, now=START, limits=limits)]


def test_each_send_takes_its_price_and_the_next_sequence() -> None:
    store = SendStore({"acme": an_account(credits=10)})
    sends = [a_send(request_id=number, credits=credits) for number, credits in enumerate((1, 2, 3))]
    assert decide(store, *sends) == [("Admitted", 1, 9, False), ("Admitted", 2, 7, False), ("Admitted", 3, 4, False)]
    assert store.accounts["acme"].available_credits == 4


def test_the_same_request_twice_in_one_batch_is_one_send() -> None:
    store = SendStore({"acme": an_account(credits=10)})
    assert decide(store, a_send(), a_send()) == [("Admitted", 1, 9, False), ("Replayed", 1, 9, False)]
    assert len(store.deliveries) == 1


def test_a_repeat_gets_the_same_answer_although_a_new_send_would_be_refused() -> None:
    store = SendStore({"acme": an_account(credits=1)})
    decide(store, a_send())
    again = a_send(deadline=START)
    assert decide(store, again, limits=SendLimits(cooldown=timedelta(days=1))) == [("Replayed", 1, 0, False)]


def test_a_request_id_with_other_arguments_is_refused() -> None:
    store = SendStore({"acme": an_account(credits=10)})
    assert decide(store, a_send(), a_send(fingerprint=b"other"))[1] == ("RequestIdReused",)
    assert store.accounts["acme"].available_credits == 9


def test_organizations_do_not_share_request_ids_credits_or_sequences() -> None:
    store = SendStore({"acme": an_account(credits=1), "other": an_account("other", credits=5)})
    theirs = a_send(an_otp(organization_id="other"), fingerprint=b"theirs")
    assert decide(store, a_send(), theirs) == [("Admitted", 1, 0, False), ("Admitted", 1, 4, False)]


def test_a_send_that_the_balance_cannot_pay_says_what_it_needs() -> None:
    (decision,) = SendStore({"acme": an_account(credits=2)}).admit([a_send(credits=3)], now=START, limits=NO_LIMITS)
    assert isinstance(decision, Refused)
    assert isinstance(decision.error, InsufficientCredits)
    assert (decision.error.required_credits, decision.error.available_credits) == (3, 2)


def test_an_organization_without_an_account_has_no_credits() -> None:
    assert decide(SendStore({}), a_send()) == [("InsufficientCredits",)]


def test_a_smaller_send_fits_after_a_larger_one_was_refused() -> None:
    store = SendStore({"acme": an_account(credits=2)})
    decisions = decide(store, a_send(request_id=1, credits=3), a_send(request_id=2, credits=2))
    assert decisions == [("InsufficientCredits",), ("Admitted", 1, 0, False)]


@pytest.mark.parametrize(
    ("deadline", "decision"),
    [(START, ("DeadlineExceeded",)), (START + timedelta(microseconds=1), ("Admitted", 1, 9, False))],
)
def test_nothing_is_charged_from_the_deadline_on(deadline: datetime, decision: tuple[object, ...]) -> None:
    store = SendStore({"acme": an_account(credits=10)})
    assert decide(store, a_send(deadline=deadline)) == [decision]


@pytest.mark.parametrize(
    ("status", "refusal"),
    [
        (OtpStatus.VERIFIED, "OtpAlreadyVerified"),
        (OtpStatus.CANCELED, "OtpCanceled"),
        (OtpStatus.ATTEMPTS_EXHAUSTED, "OtpAttemptsExhausted"),
        (None, "OtpNotFound"),
    ],
)
def test_a_closed_or_removed_otp_is_not_resent(status: OtpStatus | None, refusal: str) -> None:
    otp = an_otp()
    store = SendStore({"acme": an_account(credits=10)}, {("acme", otp.otp_id): status} if status else {})
    assert decide(store, a_send(otp, resend=True)) == [(refusal,)]


def test_an_otp_can_be_resent_until_it_expires() -> None:
    otp = an_otp()
    store = SendStore({"acme": an_account(credits=10)}, {("acme", otp.otp_id): OtpStatus.PENDING})
    late = store.admit([a_send(otp, resend=True)], now=otp.expire_time, limits=NO_LIMITS)
    last = store.admit([a_send(otp, resend=True)], now=otp.expire_time - timedelta(microseconds=1), limits=NO_LIMITS)
    assert [summary(late[0]), summary(last[0])] == [("OtpExpired",), ("Admitted", 1, 9, False)]


def test_a_refused_send_changes_nothing() -> None:
    limits = SendLimits(cooldown=timedelta(seconds=30), sends_per_organization_per_minute=1)
    account = an_account(credits=1)
    account.window_send_count = 1
    sent = RecentSend(START - timedelta(seconds=10), "login")
    state = State({"acme": account}, recent_sends={("acme", b"bob"): [sent]})
    before = deepcopy(state)
    refused = [a_send(request_id=1), a_send(request_id=2, credits=2), a_send(request_id=3, deadline=START)]
    decisions = admit(refused, state, now=START, limits=limits)
    assert all(isinstance(decision, Refused) for decision in decisions)
    assert state == before


def test_a_balance_that_becomes_low_in_a_batch_is_listed_once() -> None:
    account = an_account(credits=4, low_balance_threshold=3)
    state = State({"acme": account})
    sends = [a_send(request_id=number) for number in range(4)]
    decisions = admit(sends, state, now=START, limits=NO_LIMITS)
    assert [decision.low_balance for decision in decisions if isinstance(decision, Admitted)] == [
        False,
        True,
        True,
        True,
    ]
    assert state.newly_low == [account]
    assert account.low_balance_since == START


def test_the_delivery_has_the_ids_credits_and_time_of_its_send() -> None:
    send = a_send(credits=2)
    (decision,) = admit([send], State({"acme": an_account(credits=5)}), now=START, limits=NO_LIMITS)
    assert isinstance(decision, Admitted)
    delivery = decision.delivery
    assert (delivery.organization_id, delivery.delivery_id, delivery.otp_id) == (
        "acme",
        send.delivery_id,
        send.otp_id,
    )
    assert (delivery.credits, delivery.balance_after, delivery.create_time) == (2, 3, START)
