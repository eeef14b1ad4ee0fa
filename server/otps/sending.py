"""The hot path: decides sends under their accounts' locks, and records what was decided."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta

from server.clock import Clock, utc_now
from server.credits.accounts import (
    accounts_of,
    announce_low_balances,
    expect_unchanged,
    request_lock,
    request_read,
    write_balances,
)
from server.credits.ledger import LedgerEntry, LedgerEntryKind, insert_entries
from server.database.arrays import byteas, texts, uuids
from server.database.batcher import Foresee
from server.database.pipeline import CONTRADICTIONS, Pipeline, Rows, Statements
from server.database.pool import Pool, pipelined_transaction, repeat_transient, transaction
from server.database.queries import load_queries
from server.errors import DomainError
from server.otps.admission import Admitted, Decision, Refused, Replayed, Send, State, admit
from server.otps.known import KnownAccounts
from server.otps.limits import DAY, RecentSend, SendLimits
from server.otps.otp import Delivery, OtpStatus, delivery_of
from server.otps.pumping import add_unverified, request_unverified, unverified_of
from server.otps.recording import insert_deliveries, insert_otps

SQL = load_queries(__file__)

Answer = Admitted | Replayed | DomainError


class Sender:
    """Accepts sends: charged, recorded and handed over, or none of it.

    Safe to repeat: a request_id is accepted once, however often and wherever it arrives.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        limits: SendLimits,
        lease: timedelta,
        hand_over: Callable[[Sequence[Admitted]], None],
        clock: Clock = utc_now,
    ) -> None:
        """`hand_over` gets what was accepted right after the commit and must send it before `lease` has passed."""
        self._pool = pool
        self._limits = limits
        self._lease = lease
        self._hand_over = hand_over
        self._clock = clock
        self._known = KnownAccounts()

    async def accept(self, sends: Sequence[Send], foresee: Foresee) -> Sequence[Answer]:
        """Accept each send, or say why not. `foresee` is told the answers while PostgreSQL commits."""
        # Safe to run again after a lost connection, as every request_id is accepted once.
        decisions = await repeat_transient(lambda: self._transact(sends, foresee))
        decisions = list(map(_accepted_now, sends, decisions))
        # Not before the callers have their answers: they get them in the loop's next turn, and this comes a turn later.
        loop = asyncio.get_running_loop()
        admitted = [decision for decision in decisions if isinstance(decision, Admitted)]
        loop.call_soon(loop.call_soon, self._hand_over, admitted)
        return list(map(_answer, decisions))

    async def preview(self, send: Send) -> Decision:
        """What would be decided about the send now; holds nobody up and writes nothing."""
        async with transaction(self._pool) as connection:
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            state = await read_state(connection, [send], since=self._clock() - DAY, ask=request_read)
            return admit([send], state, now=self._clock(), limits=self._limits)[0]

    async def _transact(self, sends: Sequence[Send], foresee: Foresee) -> list[Decision]:
        if len(sends) == 1 and (known := self._known.take(sends[0])):
            accepted = await self._accept_known(sends[0], known, foresee)
            if accepted is not None:
                return [accepted]
        async with pipelined_transaction(self._pool) as pipeline:
            state = await read_state(pipeline, sends, since=self._clock() - DAY)
            # Only now, as waiting for the locks may have taken a while: a deadline may have passed.
            now = self._clock()
            decisions = admit(sends, state, now=now, limits=self._limits)
            admitted = [decision for decision in decisions if isinstance(decision, Admitted)]
            if admitted:
                await record(pipeline, admitted, state, now=now, lease_expire_time=now + self._lease)
                pipeline.send_commit()
                foresee(list(map(_answer, decisions)))
        if len(sends) == 1:
            self._known.learn(state, entries=len(admitted))
        return decisions

    async def _accept_known(self, send: Send, state: State, foresee: Foresee) -> Admitted | None:
        """Accept a lone send on what is known of its account, in one round trip. None when nothing was written.

        What is known may be out of date, so it refuses nothing: whatever speaks against the send sends it the long way.
        That is when the account has changed, the destination had sends, the request_id was accepted before, or `admit`
        says no.
        """
        otp, target = send.otp, send.target
        try:
            async with pipelined_transaction(self._pool) as pipeline:
                now = self._clock()
                await expect_unchanged(pipeline, state.accounts[otp.organization_id])
                pipeline.hasten()
                await pipeline.execute(
                    SQL.expect_no_sends,
                    {
                        "organization_id": otp.organization_id,
                        "digest": target.destination_digest,
                        "since": now - DAY,
                    },
                )
                [decision] = admit([send], state, now=now, limits=self._limits)
                if not isinstance(decision, Admitted):
                    return None
                await record(pipeline, [decision], state, now=now, lease_expire_time=now + self._lease)
                pipeline.send_commit()
                foresee([decision])
        except CONTRADICTIONS:
            return None
        self._known.keep(state)
        return decision


def _answer(decision: Decision) -> Answer:
    return decision.error if isinstance(decision, Refused) else decision


def _accepted_now(send: Send, decision: Decision) -> Decision:
    """The decision; a send that finds its own delivery was accepted by a COMMIT whose answer got lost."""
    if isinstance(decision, Replayed) and decision.delivery.delivery_id == send.delivery_id:
        return Admitted(send, decision.delivery, decision.low_balance)
    return decision


async def read_state(
    connection: Statements,
    sends: Sequence[Send],
    *,
    since: datetime,
    ask: Callable[[Statements, Iterable[str]], Awaitable[Rows]] = request_lock,
) -> State:
    """What the decisions depend on, in one round trip; the accounts come first, and are locked unless `ask` reads."""
    requests = {(send.otp.organization_id, send.request_id) for send in sends}
    destinations = {(send.otp.organization_id, send.target.destination_digest) for send in sends}
    resent = {(send.otp.organization_id, send.otp.otp_id) for send in sends if send.resend}
    accounts = await ask(connection, (send.otp.organization_id for send in sends))
    earlier = await connection.execute(
        SQL.find_requests,
        {"organization_ids": texts(key[0] for key in requests), "request_ids": uuids(key[1] for key in requests)},
    )
    recent = await connection.execute(
        SQL.find_recent_sends,
        {
            "organization_ids": texts(key[0] for key in destinations),
            "digests": byteas(key[1] for key in destinations),
            "since": since,
        },
    )
    unverified = await request_unverified(connection, sends)
    state = State(await accounts_of(accounts))
    state.unverified = await unverified_of(unverified)
    for delivery in map(delivery_of, await earlier.fetchall()):
        state.deliveries[delivery.organization_id, delivery.request_id] = delivery
    for organization_id, digest, create_time, purpose in await recent.fetchall():
        state.recent_sends.setdefault((organization_id, digest), []).append(RecentSend(create_time, purpose))
    if resent:
        statuses = await connection.execute(
            SQL.find_otp_statuses,
            {"organization_ids": texts(key[0] for key in resent), "otp_ids": uuids(key[1] for key in resent)},
        )
        state.otp_statuses = {(row[0], row[1]): OtpStatus(row[2]) for row in await statuses.fetchall()}
    return state


async def record(
    pipeline: Pipeline,
    admitted: Sequence[Admitted],
    state: State,
    *,
    now: datetime,
    lease_expire_time: datetime,
) -> None:
    """Write what was decided, to leave with the COMMIT in one round trip."""
    deliveries = [one.delivery for one in admitted]
    touched = {delivery.organization_id for delivery in deliveries}
    await write_balances(pipeline, [state.accounts[organization_id] for organization_id in touched])
    await insert_entries(pipeline, [_entry(delivery) for delivery in deliveries], now=now)
    pipeline.hasten()
    if otps := [one.send.otp for one in admitted if not one.send.resend]:
        await insert_otps(pipeline, otps)
    await insert_deliveries(pipeline, admitted, now=now, lease_expire_time=lease_expire_time)
    await add_unverified(pipeline, admitted, state.unverified)
    await announce_low_balances(pipeline, state.newly_low, now=now)


def _entry(delivery: Delivery) -> LedgerEntry:
    return LedgerEntry(
        organization_id=delivery.organization_id,
        sequence=delivery.ledger_sequence,
        kind=LedgerEntryKind.SEND,
        credits=-delivery.credits,
        balance_after=delivery.balance_after,
        reference_id=delivery.delivery_id,
        reason="",
        created_by="",
        create_time=delivery.create_time,
    )
