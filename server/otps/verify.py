"""Verifies codes in batches: what a guess changes is committed before it is answered."""

import hmac
from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter

from server.clock import Clock
from server.errors import DomainError
from server.events.log import Event, EventSwitches, append_events
from server.otps.admission import DestinationKey
from server.otps.crypto import Crypto
from server.otps.guess_policy import Guess, GuessBudget, GuessLimits, GuessState, judge
from server.otps.otp import OTP_COLUMNS, Otp, OtpKey, OtpStatus, otp_from_row
from server.otps.otp_events import otp_ended
from server.otps.sms_pumping import subtract_verified
from server.postgres.columns import SMALLINT, TEXT, TIMESTAMPTZ, UUIDS, RowSource, byteas, texts, times, uuids
from server.postgres.lanes import LOCKED, Locked
from server.postgres.pipeline import Executor, Rows
from server.postgres.pool import Pool, pipelined_transaction, retry_transient
from server.postgres.queries import load_queries

_GUESSED: RowSource[Otp] = RowSource(
    organization_id=TEXT,
    otp_id=UUIDS,
    status=(TEXT, attrgetter("status.value")),
    attempts=SMALLINT,
    verify_time=TIMESTAMPTZ,
    verify_request_id=UUIDS,
)
SQL = load_queries(__file__, otp=OTP_COLUMNS, guessed_otp=_GUESSED)


class Verifier:
    """Verifies guesses. An OTP is verified once, by the right code; a repeat of that request_id gets the OTP again."""

    def __init__(
        self, pool: Pool, crypto: Crypto, *, limits: GuessLimits, clock: Clock, switches: EventSwitches | None = None
    ) -> None:
        """Without `switches` no organization has events."""
        self._pool = pool
        self._switches = switches
        self._crypto = crypto
        self._limits = limits
        self._clock = clock

    async def verify(self, guesses: Sequence[Guess], *, wait: bool = True) -> list[Otp | DomainError | Locked]:
        """For each guess, in order, the verified OTP or an error.

        The errors are WrongCode, TooManyGuesses, OtpNotFound, DeadlineExceeded, and that of an OTP that is no longer
        pending. Raises DatabaseUnavailable.
        """
        return await retry_transient(lambda: self._transact(guesses, wait=wait))

    async def _transact(self, guesses: Sequence[Guess], *, wait: bool) -> list[Otp | DomainError | Locked]:
        async with pipelined_transaction(self._pool, near=guesses[0].organization_id) as pipeline:
            state, now = await self._lock(pipeline, guesses, wait=wait)
            locked = set() if wait else await _find_locked(pipeline, guesses, state)
            free = [guess for guess in guesses if guess.key not in locked] if locked else guesses
            decisions = judge(free, state, now=now, limits=self._limits)
            if changed := list(state.changed_otps.values()):
                first = min(otp.otp_id for otp in changed)
                await _GUESSED.write(pipeline, SQL.write_otps, rows=changed, first_otp_id=first)
                if to_phones := [otp for otp in changed if otp.to_phone and otp.status is OtpStatus.VERIFIED]:
                    await subtract_verified(pipeline, to_phones)
            if state.changed_budgets:
                await _write_budgets(pipeline, state.changed_budgets)
            if self._switches and (events := _events(changed, self._switches)):
                await append_events(pipeline, events, now=now)
        if not locked:
            return [*decisions]
        decided = iter(decisions)
        return [LOCKED if guess.key in locked else next(decided) for guess in guesses]

    async def _lock(self, connection: Executor, guesses: Sequence[Guess], *, wait: bool) -> tuple[GuessState, datetime]:
        """Lock the OTPs and budgets of the guesses and set `right` on each guess; the time is that after locking."""
        keys = {
            "organization_ids": texts(guess.organization_id for guess in guesses),
            "otp_ids": uuids(guess.otp_id for guess in guesses),
            "first_otp_id": min(guess.otp_id for guess in guesses),
        }
        otps = await connection.execute(SQL.lock_otps if wait else SQL.lock_free_otps, keys)
        budgets = await connection.execute(SQL.lock_guess_budgets, keys)
        state = GuessState(
            {(row[0], row[1]): otp_from_row(row) for row in await otps.fetchall()}, await _fetch_budgets(budgets)
        )
        # After the locks, as waiting for them takes time.
        now = self._clock()
        wrong: set[DestinationKey] = set()
        for guess in guesses:
            otp = state.otps.get((guess.organization_id, guess.otp_id))
            guess.right = otp is not None and self._is_right(guess, otp)
            if otp is not None and not guess.right and otp.status_at(now) is OtpStatus.PENDING:
                wrong.update(otp.guess_budget_keys)
        if missing := sorted(wrong - state.budgets.keys()):
            await connection.execute(
                SQL.create_guess_budgets,
                {
                    "organization_ids": texts(key[0] for key in missing),
                    "destination_digests": byteas(key[1] for key in missing),
                    "now": now,
                },
            )
            state.budgets = await _fetch_budgets(await connection.execute(SQL.lock_guess_budgets, keys))
        return state, now

    def _is_right(self, guess: Guess, otp: Otp) -> bool:
        try:
            code = self._crypto.code_of(otp)
            context_digest = self._crypto.context_digest(guess.context, otp.code_key_id)
        except KeyError:
            # Its key was removed from the key ring: no code is right. The batch's other guesses are not affected.
            return False
        same_context = hmac.compare_digest(otp.context_digest, context_digest)
        return hmac.compare_digest(code.encode(), guess.code.encode()) and same_context


def _events(changed: Sequence[Otp], switches: EventSwitches) -> list[Event]:
    """The events of OTPs that guesses have ended."""
    return [
        otp_ended(otp.organization_id, otp.otp_id, otp.status, otp.purpose)
        for otp in changed
        if otp.status is not OtpStatus.PENDING and switches.may_be_on(otp.organization_id)
    ]


async def _find_locked(connection: Executor, guesses: Sequence[Guess], state: GuessState) -> set[OtpKey]:
    """The OTPs that exist and were not locked, as another transaction has them."""
    missing = {guess.key for guess in guesses} - state.otps.keys()
    if not missing:
        return set()
    keys = {
        "organization_ids": texts(key[0] for key in missing),
        "otp_ids": uuids(key[1] for key in missing),
        "first_otp_id": min(key[1] for key in missing),
    }
    rows = await connection.execute(SQL.find_otps, keys)
    return {(row[0], row[1]) for row in await rows.fetchall()}


async def _fetch_budgets(rows: Rows) -> dict[DestinationKey, GuessBudget]:
    return {(row[0], row[1]): GuessBudget(*row[2:]) for row in await rows.fetchall()}


async def _write_budgets(connection: Executor, budgets: dict[DestinationKey, GuessBudget]) -> None:
    guesses = [(key, guess_time) for key, budget in budgets.items() for guess_time in budget.wrong_guess_times]
    await connection.execute(
        SQL.write_guess_budgets,
        {
            "organization_ids": texts(key[0] for key, _ in guesses),
            "destination_digests": byteas(key[1] for key, _ in guesses),
            "guess_times": times(guess_time for _, guess_time in guesses),
        },
    )
