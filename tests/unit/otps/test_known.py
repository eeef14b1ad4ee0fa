"""Known accounts: only those that nobody else has changed, as the last send left them."""

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from server.channels.channel import ChannelName
from server.credits.accounts import Account
from server.otps.admission import Send, State
from server.otps.known import KnownAccounts
from server.otps.limits import UnverifiedCredits
from server.otps.otp import Otp, OtpStatus, Target

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
ID = UUID(int=7)


def account(sequence: int, organization_id: str = "acme") -> Account:
    return Account(organization_id, 100 - sequence, sequence, 0, None, NOW, sequence)


def send(organization_id: str = "acme", *, areas: str = "", resend: bool = False) -> Send:
    otp = Otp(organization_id, ID, "login", "", b"d", "k1", 6, b"", "", {}, OtpStatus.PENDING, 0, 5, NOW, NOW)
    target = Target(ChannelName.SMS if areas else ChannelName.EMAIL, 1, "", b"d", b"", "", areas)
    return Send(ID, b"", ID, otp, target, resend)


def read(sequence: int, *areas: str, organization_id: str = "acme") -> State:
    """What a send has read, and left with one more entry."""
    unverified = {(organization_id, area): UnverifiedCredits(NOW, 3) for area in areas}
    return State({organization_id: account(sequence, organization_id)}, unverified=unverified)


def known(*areas: str) -> KnownAccounts:
    accounts = KnownAccounts()
    accounts.learn(read(4, *areas), entries=1)
    accounts.learn(read(5, *areas), entries=1)
    return accounts


def test_an_account_is_known_after_two_sends_between_which_nobody_changed_it() -> None:
    accounts = KnownAccounts()
    assert accounts.take(send()) is None
    accounts.learn(read(4), entries=1)
    assert accounts.take(send()) is None
    accounts.learn(read(5), entries=1)
    assert accounts.take(send()) == State({"acme": account(5)})


def test_a_send_that_was_refused_also_shows_that_nobody_changed_it() -> None:
    accounts = KnownAccounts()
    accounts.learn(read(4), entries=1)
    accounts.learn(read(4), entries=0)
    assert accounts.take(send()) == State({"acme": account(4)})


def test_an_account_that_others_change_is_not_known() -> None:
    accounts = KnownAccounts()
    for sequence in (4, 6, 8):
        accounts.learn(read(sequence), entries=1)
        assert accounts.take(send()) is None


def test_what_was_taken_is_known_again_when_it_is_kept() -> None:
    accounts = known()
    state = accounts.take(send())
    assert state is not None
    assert accounts.take(send()) is None
    state.accounts["acme"].apply(-1, now=NOW)
    accounts.keep(state)
    assert accounts.take(send()) == State({"acme": replace(account(6), window_send_count=5)})


def test_a_guess_that_was_refused_for_its_destination_leaves_the_account_known() -> None:
    accounts = known("ID")
    state = accounts.take(send(areas="ID"))
    assert state is not None
    state.accounts["acme"].apply(-1, now=NOW)
    accounts.learn(read(5, "ID"), entries=0)
    assert accounts.take(send(areas="ID")) == read(5, "ID")


def test_a_guess_that_was_refused_for_its_account_leaves_it_unknown() -> None:
    accounts = known()
    state = accounts.take(send())
    assert state is not None
    state.accounts["acme"].apply(-1, now=NOW)
    accounts.learn(read(7), entries=1)
    assert accounts.take(send()) is None


def test_a_resend_is_decided_on_more_than_the_account() -> None:
    accounts = known()
    assert accounts.take(send(resend=True)) is None
    assert accounts.take(send()) is not None


def test_what_was_spent_in_an_area_is_known_once_it_was_read() -> None:
    accounts = known("ID")
    assert accounts.take(send(areas="SG")) is None
    accounts.learn(read(6, "SG"), entries=1)
    state = accounts.take(send(areas="ID"))
    assert state is not None
    assert set(state.unverified) == {("acme", "ID"), ("acme", "SG")}


def test_what_was_spent_in_areas_is_forgotten_when_others_send() -> None:
    accounts = known("ID")
    accounts.learn(read(7), entries=1)
    accounts.learn(read(8), entries=1)
    assert accounts.take(send(areas="ID")) is None
    assert accounts.take(send()) is not None


def test_the_areas_of_one_account_are_bounded() -> None:
    accounts = known()
    for sequence in range(6, 1000):
        accounts.learn(read(sequence, f"area-{sequence}"), entries=1)
    state = accounts.take(send())
    assert state is not None
    assert len(state.unverified) <= 256


def test_the_accounts_of_the_oldest_sends_are_forgotten() -> None:
    accounts = KnownAccounts(most=2)
    for organization_id in ("acme", "bolt", "acme", "core"):
        for sequence in (4, 5):
            accounts.learn(read(sequence, organization_id=organization_id), entries=1)
    assert [accounts.take(send(name)) is not None for name in ("acme", "bolt", "core")] == [True, False, True]
