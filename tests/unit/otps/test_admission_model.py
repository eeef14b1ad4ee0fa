"""`admit` in batches, compared with a model that decides one send at a time."""

from datetime import datetime, timedelta
from itertools import pairwise
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from server.otps.admission import Send, SendLimits
from server.otps.otp import OtpStatus
from tests.unit.otps.send_model import SendModel
from tests.unit.otps.sends import START, SendStore, a_send, an_account, an_otp, summary

# The status that a resend finds; None: its OTP was removed.
STATUSES = [OtpStatus.PENDING, OtpStatus.VERIFIED, OtpStatus.CANCELED, OtpStatus.ATTEMPTS_EXHAUSTED, None]
ORGANIZATIONS = ["acme", "other"]
THRESHOLD = 4

Spec = tuple[str, int, bytes, bytes, str, int, int, int]
specs = st.tuples(
    st.sampled_from([*ORGANIZATIONS, "without-account"]),
    st.integers(1, 8),  # request_id
    st.sampled_from([b"a", b"a", b"a", b"b"]),  # fingerprint
    st.sampled_from([b"bob", b"eve"]),
    st.sampled_from(["login", "sign_up"]),
    st.integers(1, 3),  # credits
    st.sampled_from([0, 0, 0, 1, 2, 3, 4, 5]),  # which OTP to send again; 0 for a new one
    st.sampled_from([0, 0, 0, -1, 1, 30]),  # seconds until the deadline; 0 for none
)
limits_in_play = st.builds(
    SendLimits,
    cooldown=st.sampled_from([timedelta(), timedelta(seconds=30)]),
    sends_per_destination_per_hour=st.sampled_from([0, 2, 3]),
    sends_per_destination_per_day=st.sampled_from([0, 3, 4]),
    sends_per_organization_per_minute=st.sampled_from([0, 2, 3]),
    daily_credit_cap=st.sampled_from([0, 0, 3, 5]),
)
waits = st.sampled_from([0, 0, 0.000_001, 1, 29.999_999, 30, 59, 60, 299, 3_600, 86_400])


def send_of(spec: Spec, now: datetime) -> Send:
    organization_id, request_id, fingerprint, destination, purpose, credits, again, seconds = spec
    otp = an_otp(organization_id=organization_id, otp_id=UUID(int=again) if again else None, destination=destination)
    otp.purpose = purpose
    deadline = now + timedelta(seconds=seconds) if seconds else None
    return a_send(
        otp,
        request_id=request_id,
        fingerprint=fingerprint,
        credits=credits,
        resend=again > 0,
        deadline=deadline,
    )


def new_store(credits: int) -> SendStore:
    accounts = {
        organization_id: an_account(organization_id, credits=credits, low_balance_threshold=THRESHOLD)
        for organization_id in ORGANIZATIONS
    }
    statuses = {
        (organization_id, UUID(int=number)): status
        for organization_id in ORGANIZATIONS
        for number, status in enumerate(STATUSES, start=1)
        if status
    }
    return SendStore(accounts, statuses)


@settings(max_examples=150)
@given(
    credits=st.integers(0, 20),
    limits=limits_in_play,
    batches=st.lists(st.tuples(waits, st.lists(specs, min_size=1, max_size=6)), max_size=8),
)
def test_batches_are_decided_as_if_the_sends_had_come_one_after_another(
    credits: int, limits: SendLimits, batches: list[tuple[float, list[Spec]]]
) -> None:
    store = new_store(credits)
    statuses = {number: status for number, status in enumerate(STATUSES, start=1) if status}
    models = {name: SendModel(credits, THRESHOLD, limits, statuses) for name in ORGANIZATIONS}
    models["without-account"] = SendModel(0, THRESHOLD, limits, statuses)
    now = START
    for seconds, batch in batches:
        now += timedelta(seconds=seconds)
        sends = [send_of(spec, now) for spec in batch]
        decisions = [summary(decision) for decision in store.admit(sends, now=now, limits=limits)]
        expected = [
            models[send.organization_id].decide(send, now)
            if send.organization_id != "without-account"
            else ("InsufficientCredits",)
            for send in sends
        ]
        assert decisions == expected
    assert_ledger_is_consistent(store, credits)


@settings(max_examples=80)
@given(
    credits=st.integers(0, 20),
    limits=limits_in_play,
    batch=st.lists(specs, min_size=1, max_size=12),
    cuts=st.sets(st.integers(1, 11)),
)
def test_decisions_do_not_depend_on_how_sends_are_batched(
    credits: int, limits: SendLimits, batch: list[Spec], cuts: set[int]
) -> None:
    whole, parts = new_store(credits), new_store(credits)
    sends = [send_of(spec, START) for spec in batch]
    at_once = whole.admit(sends, now=START, limits=limits)
    edges = [0, *sorted(cut for cut in cuts if cut < len(sends)), len(sends)]
    in_parts = [
        decision
        for begin, end in pairwise(edges)
        for decision in parts.admit(sends[begin:end], now=START, limits=limits)
    ]
    assert list(map(summary, in_parts)) == list(map(summary, at_once))
    assert parts == whole


def assert_ledger_is_consistent(store: SendStore, credits: int) -> None:
    """Every balance follows from the one before, none is negative, and the sequence has no gap."""
    for organization_id, account in store.accounts.items():
        balance = credits
        deliveries = [one for one in store.deliveries if one.organization_id == organization_id]
        for sequence, delivery in enumerate(deliveries, start=1):
            balance -= delivery.credits
            assert (delivery.ledger_sequence, delivery.balance_after) == (sequence, balance)
            assert balance >= 0
        assert (account.available_credits, account.last_sequence) == (balance, len(deliveries))
