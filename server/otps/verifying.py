"""Verifies codes in batches: every guess is counted and committed before it is answered."""

import hmac
from collections.abc import Callable, Sequence
from datetime import datetime
from operator import attrgetter
from typing import TypeVar

from server.clock import Clock, utc_now
from server.database.arrays import bigints, byteas, texts, times, uuids
from server.database.batcher import Batcher, Batching, Foresee
from server.database.pipeline import Rows, Statements
from server.database.pool import Pool, pipelined_transaction, repeat_transient
from server.database.queries import load_queries
from server.database.rows import Columns, write_rows
from server.errors import DomainError
from server.otps.admission import DestinationKey
from server.otps.guessing import Guess, GuessBudget, GuessLimits, GuessState, judge
from server.otps.otp import Otp, OtpStatus, otp_of
from server.otps.pumping import lower_verified
from server.otps.vault import Vault

SQL = load_queries(__file__)

Answer = TypeVar("Answer")

_GUESSED: Columns[Otp] = {
    "organization_ids": (texts, attrgetter("organization_id")),
    "otp_ids": (uuids, attrgetter("otp_id")),
    "statuses": (texts, attrgetter("status.value")),
    "attempts": (bigints, attrgetter("attempts")),
    "verify_times": (times, attrgetter("verify_time")),
    "verify_request_ids": (uuids, attrgetter("verify_request_id")),
}


class Verifier:
    """Says OK only for the right code, once. A repeat with the request_id that got the OK gets it again."""

    def __init__(
        self,
        pool: Pool,
        vault: Vault,
        *,
        limits: GuessLimits,
        batching: Batching,
        clock: Clock = utc_now,
    ) -> None:
        self._pool = pool
        self._vault = vault
        self._limits = limits
        self._clock = clock
        self._batcher: Batcher[Guess, Otp] = Batcher(self._flush, batching)

    async def verify(self, organization_id: str, guess: Callable[[], Guess], answer: Callable[[Otp], Answer]) -> Answer:
        """What `answer` makes of the verified OTP. Raises WrongCode, TooManyGuesses, OtpNotFound, or why it is closed.

        `guess` makes the guess when it is its batch's turn.
        """
        return await self._batcher.submit(organization_id, guess, answer)

    async def drain(self) -> None:
        """Wait until every guess that was submitted is decided."""
        await self._batcher.drain()

    async def _flush(self, guesses: Sequence[Guess], foresee: Foresee) -> Sequence[Otp | Exception]:
        return await repeat_transient(lambda: self._transact(guesses, foresee))

    async def _transact(self, guesses: Sequence[Guess], foresee: Foresee) -> list[Otp | DomainError]:
        async with pipelined_transaction(self._pool) as pipeline:
            state, now = await self._lock(pipeline, guesses)
            decisions = judge(guesses, state, now=now, limits=self._limits)
            if state.changed_otps:
                await _write_otps(pipeline, list(state.changed_otps.values()))
                verified = [otp for otp in state.changed_otps.values() if otp.status is OtpStatus.VERIFIED]
                await lower_verified(pipeline, verified)
            if state.changed_budgets:
                await _write_budgets(pipeline, state.changed_budgets)
            pipeline.send_commit()
            foresee(decisions)
        return decisions

    async def _lock(self, connection: Statements, guesses: Sequence[Guess]) -> tuple[GuessState, datetime]:
        """The OTPs and budgets that these guesses are about, with the guesses looked at, and when they were locked."""
        keys = {
            "organization_ids": texts(guess.organization_id for guess in guesses),
            "otp_ids": uuids(guess.otp_id for guess in guesses),
        }
        otps = await connection.execute(SQL.lock_otps, keys)
        budgets = await connection.execute(SQL.lock_guess_budgets, keys)
        state = GuessState({(row[0], row[1]): otp_of(row) for row in await otps.fetchall()}, await _budgets_of(budgets))
        # Only now, as waiting for the locks may have taken a while.
        now = self._clock()
        wrong = set()
        for guess in guesses:
            otp = state.otps.get((guess.organization_id, guess.otp_id))
            guess.right = otp is not None and self._is_right(guess, otp)
            if otp is not None and not guess.right and otp.status_at(now) is OtpStatus.PENDING:
                wrong.add((guess.organization_id, otp.destination_digest))
        if missing := sorted(wrong - state.budgets.keys()):
            await connection.execute(
                SQL.create_guess_budgets,
                {
                    "organization_ids": texts(key[0] for key in missing),
                    "destination_digests": byteas(key[1] for key in missing),
                    "now": now,
                },
            )
            state.budgets = await _budgets_of(await connection.execute(SQL.lock_guess_budgets, keys))
        return state, now

    def _is_right(self, guess: Guess, otp: Otp) -> bool:
        try:
            code = self._vault.code_of(otp)
        except KeyError:
            # Its key left the ring: nobody can know the code any more. The other guesses of the batch go on.
            return False
        same_context = hmac.compare_digest(otp.context_digest, guess.context_digest)
        return hmac.compare_digest(code.encode(), guess.code.encode()) and same_context


async def _budgets_of(rows: Rows) -> dict[DestinationKey, GuessBudget]:
    return {(row[0], row[1]): GuessBudget(*row[2:]) for row in await rows.fetchall()}


async def _write_otps(connection: Statements, otps: Sequence[Otp]) -> None:
    await write_rows(connection, SQL.write_otps, _GUESSED, otps)


async def _write_budgets(connection: Statements, budgets: dict[DestinationKey, GuessBudget]) -> None:
    await connection.execute(
        SQL.write_guess_budgets,
        {
            "organization_ids": texts(key[0] for key in budgets),
            "destination_digests": byteas(key[1] for key in budgets),
            # As text, since PostgreSQL has no arrays of arrays of different lengths.
            "wrong_guess_times": texts(_array_text(budget.wrong_guess_times) for budget in budgets.values()),
            "last_guess_times": times(budget.wrong_guess_times[-1] for budget in budgets.values()),
        },
    )


def _array_text(moments: Sequence[datetime]) -> str:
    return f"{{{','.join(moment.isoformat() for moment in moments)}}}"
