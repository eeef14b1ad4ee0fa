"""A cache of the accounts that this process sent from last, so that a lone send is decided without reading them."""

from dataclasses import dataclass
from typing import Final

from server.credits.accounts import Account
from server.otps.admission import AreaKey, Send, State, UnverifiedCredits

_MAXIMUM_AREAS: Final = 256


@dataclass(slots=True)
class _Entry:
    """An account as of its last send from this process, and the unverified credits in its sends' areas."""

    account: Account
    unverified: dict[AreaKey, UnverifiedCredits]
    usable: bool
    """Whether no other process changed the account between its last two sends from here. False while checked out."""
    last_sequence: int
    """The account's last_sequence when it was stored here; a send decided on the account changes the account's."""
    size: int
    """How many of the cache's places the account and its areas take."""


class AccountCache:
    """The accounts of the latest lone sends. May be stale: the transaction that uses one must verify it.

    A stale account costs a round trip. An account is therefore used only while no other process changes it: one that
    several replicas send from would be stale most of the time.
    """

    def __init__(self, maximum_size: int = 50_000) -> None:
        """Keeps the accounts with the latest sends: at most `maximum_size` accounts and areas in all.

        An account takes at most 1 KB and an area 0.3 KB: 50 MB, whatever callers send.
        """
        self._maximum_size = maximum_size
        self._size = 0
        self._entries: dict[str, _Entry] = {}

    def checkout(self, send: Send) -> State | None:
        """The state to decide a lone send on, if it is the first to its destination; None when it is not cached.

        The account is not given out again until `confirm` or `update` stores it.
        """
        organization_id = send.organization_id
        entry = self._entries.get(organization_id)
        # The statement of a lone send writes a ledger entry, which a send that costs nothing has not.
        if entry is None or not entry.usable or send.resent or not send.recipient.credits:
            return None
        if any((organization_id, area) not in entry.unverified for area in send.recipient.areas.split()):
            return None
        entry.usable = False
        return State({organization_id: entry.account}, unverified=entry.unverified)

    def confirm(self, state: State) -> None:
        """Store an account that was checked out, was not stale, and is now as in `state`."""
        for account in state.accounts.values():
            self._put(account, state.unverified, usable=True)

    def update(self, state: State, *, entries: int) -> None:
        """Store the account of a lone send that was decided on a read `state` and wrote `entries` ledger entries."""
        for account in state.accounts.values():
            entry = self._entries.get(account.organization_id)
            if entry is not None and entry.last_sequence == account.last_sequence - entries:
                areas = entry.unverified if len(entry.unverified) < _MAXIMUM_AREAS else {}
                self._put(account, areas | state.unverified, usable=True)
            else:
                self._put(account, state.unverified, usable=False)

    def _put(self, account: Account, unverified: dict[AreaKey, UnverifiedCredits], *, usable: bool) -> None:
        self._remove(account.organization_id)  # to insert it at the end: dicts are ordered by insertion
        entry = _Entry(account, unverified, usable, account.last_sequence, 1 + len(unverified))
        self._entries[account.organization_id] = entry
        self._size += entry.size
        while self._size > self._maximum_size:  # removes the one whose last send is the oldest
            self._remove(next(iter(self._entries)))

    def _remove(self, organization_id: str) -> None:
        if (entry := self._entries.pop(organization_id, None)) is not None:
            self._size -= entry.size
