"""What this server knows of accounts from its own last sends: enough to decide a lone send without asking first."""

from dataclasses import dataclass
from typing import Final

from server.credits.accounts import Account
from server.otps.admission import AreaKey, Send, State
from server.otps.limits import UnverifiedCredits

_MOST_AREAS: Final = 256


@dataclass(slots=True)
class _Known:
    """An account as this server left it, and what was then spent in the areas that its sends went to."""

    account: Account
    unverified: dict[AreaKey, UnverifiedCredits]
    is_ours: bool
    """Whether nobody else changed the account between the last two sends from here. False while it is taken."""
    last_sequence: int
    """The account's, when it was left; a send that is decided on the account changes that."""


class KnownAccounts:
    """The accounts of the last lone sends. Only a guess: what is decided on it must be refused where it is wrong.

    A wrong guess costs a round trip. An account that several servers send from is changed by the others all the time,
    so one is only guessed while it stays as it was left here.
    """

    def __init__(self, most: int = 10_000) -> None:
        """`most` accounts are known, those of the latest sends: 0.6 KB each, and 0.3 KB for each area."""
        self._most = most
        self._known: dict[str, _Known] = {}

    def take(self, send: Send) -> State | None:
        """What a lone send can be decided on if it is the first to its destination; None when it takes more.

        Either `keep` or `learn` says afterwards how the account was left.
        """
        organization_id = send.otp.organization_id
        known = self._known.get(organization_id)
        if known is None or not known.is_ours or send.resend:
            return None
        if any((organization_id, area) not in known.unverified for area in send.target.areas.split()):
            return None
        known.is_ours = False
        return State({organization_id: known.account}, unverified=known.unverified)

    def keep(self, state: State) -> None:
        """What was taken was right, and is now as the state has it."""
        for account in state.accounts.values():
            self._put(account, state.unverified, is_ours=True)

    def learn(self, state: State, *, entries: int) -> None:
        """Know the account of a lone send that was decided on what was read, and wrote so many ledger entries."""
        for account in state.accounts.values():
            known = self._known.get(account.organization_id)
            if known is not None and known.last_sequence == account.last_sequence - entries:
                areas = known.unverified if len(known.unverified) < _MOST_AREAS else {}
                self._put(account, areas | state.unverified, is_ours=True)
            else:
                self._put(account, state.unverified, is_ours=False)

    def _put(self, account: Account, unverified: dict[AreaKey, UnverifiedCredits], *, is_ours: bool) -> None:
        self._known.pop(account.organization_id, None)  # so that it is put at the end, behind those of older sends
        self._known[account.organization_id] = _Known(account, unverified, is_ours, account.last_sequence)
        if len(self._known) > self._most:
            del self._known[next(iter(self._known))]
