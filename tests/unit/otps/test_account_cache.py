"""The account cache: it gives out an account only while no other replica changes it, as the last send left it."""

from dataclasses import replace
from datetime import UTC, datetime

from server.credits.accounts import Account
from server.otps.account_cache import AccountCache
from server.otps.admission import Send, State, UnverifiedCredits
from server.providers.provider import Channel
from tests.unit.otps.sends import a_send, an_otp

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def account(sequence: int, organization_id: str = "acme") -> Account:
    return Account(organization_id, 100 - sequence, sequence, 0, None, NOW, sequence)


def send(organization_id: str = "acme", *, areas: str = "", resend: bool = False) -> Send:
    sent = a_send(an_otp(organization_id=organization_id), resend=resend)
    channel = Channel.SMS if areas else Channel.EMAIL
    return sent._replace(recipient=sent.recipient._replace(channel=channel, areas=areas))


def read(sequence: int, *areas: str, organization_id: str = "acme") -> State:
    """The state after a send that read the account and added one ledger entry, `sequence`."""
    unverified = {(organization_id, area): UnverifiedCredits(NOW, 3) for area in areas}
    return State({organization_id: account(sequence, organization_id)}, unverified=unverified)


def filled_cache(*areas: str) -> AccountCache:
    cache = AccountCache()
    cache.update(read(4, *areas), entries=1)
    cache.update(read(5, *areas), entries=1)
    return cache


def test_an_account_is_cached_after_two_sends_without_another_change_in_between() -> None:
    cache = AccountCache()
    assert cache.checkout(send()) is None
    cache.update(read(4), entries=1)
    assert cache.checkout(send()) is None
    cache.update(read(5), entries=1)
    assert cache.checkout(send()) == State({"acme": account(5)})


def test_a_refused_send_also_shows_that_the_account_is_unchanged() -> None:
    cache = AccountCache()
    cache.update(read(4), entries=1)
    cache.update(read(4), entries=0)
    assert cache.checkout(send()) == State({"acme": account(4)})


def test_an_account_that_other_replicas_change_is_not_given_out() -> None:
    cache = AccountCache()
    for sequence in (4, 6, 8):
        cache.update(read(sequence), entries=1)
        assert cache.checkout(send()) is None


def test_a_checked_out_account_is_given_out_again_once_it_is_confirmed() -> None:
    cache = filled_cache()
    state = cache.checkout(send())
    assert state is not None
    assert cache.checkout(send()) is None
    state.accounts["acme"].apply(-1, now=NOW)
    cache.confirm(state)
    assert cache.checkout(send()) == State({"acme": replace(account(6), window_send_count=5)})


def test_an_account_that_proved_unchanged_is_given_out_again_after_a_send_on_it_failed() -> None:
    cache = filled_cache("ID")
    state = cache.checkout(send(areas="ID"))
    assert state is not None
    state.accounts["acme"].apply(-1, now=NOW)
    cache.update(read(5, "ID"), entries=0)
    assert cache.checkout(send(areas="ID")) == read(5, "ID")


def test_an_account_that_proved_stale_is_not_given_out() -> None:
    cache = filled_cache()
    state = cache.checkout(send())
    assert state is not None
    state.accounts["acme"].apply(-1, now=NOW)
    cache.update(read(7), entries=1)
    assert cache.checkout(send()) is None


def test_a_resend_gets_no_cached_account() -> None:
    cache = filled_cache()
    assert cache.checkout(send(resend=True)) is None
    assert cache.checkout(send()) is not None


def test_unverified_credits_of_an_area_are_cached_once_they_were_read() -> None:
    cache = filled_cache("ID")
    assert cache.checkout(send(areas="SG")) is None
    cache.update(read(6, "SG"), entries=1)
    state = cache.checkout(send(areas="ID"))
    assert state is not None
    assert set(state.unverified) == {("acme", "ID"), ("acme", "SG")}


def test_unverified_credits_are_dropped_when_another_replica_changes_the_account() -> None:
    cache = filled_cache("ID")
    cache.update(read(7), entries=1)
    cache.update(read(8), entries=1)
    assert cache.checkout(send(areas="ID")) is None
    assert cache.checkout(send()) is not None


def test_the_cached_areas_of_one_account_are_bounded() -> None:
    cache = filled_cache()
    for sequence in range(6, 1000):
        cache.update(read(sequence, f"area-{sequence}"), entries=1)
    state = cache.checkout(send())
    assert state is not None
    assert len(state.unverified) <= 256


def test_the_cached_areas_of_all_accounts_are_bounded() -> None:
    cache = AccountCache(maximum_size=1000)
    for number in range(50):
        for sequence in range(1, 101):
            cache.update(read(sequence, f"area-{sequence}", organization_id=f"org-{number}"), entries=1)
    kept = [number for number in range(50) if cache.checkout(send(f"org-{number}")) is not None]
    assert kept == list(range(41, 50))  # 101 places each


def test_the_accounts_of_the_oldest_sends_are_dropped() -> None:
    cache = AccountCache(maximum_size=2)
    for organization_id in ("acme", "bolt", "acme", "core"):
        for sequence in (4, 5):
            cache.update(read(sequence, organization_id=organization_id), entries=1)
    assert [cache.checkout(send(name)) is not None for name in ("acme", "bolt", "core")] == [True, False, True]
