"""Sends OTPs: prepares a send from a request, admits it under the account's lock, and writes what was admitted."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Final, NamedTuple

from server.clock import Clock
from server.credits.accounts import (
    fetch_accounts,
    find_accounts,
    insert_low_balance_notices,
    queue_lock_accounts,
    queue_lock_free_accounts,
    queue_read_accounts,
    write_balances,
)
from server.errors import DestinationUnreadable, DomainError, OtpNotFound
from server.ids import new_id
from server.otps.account_cache import AccountCache
from server.otps.admission import (
    DAY,
    Admitted,
    Decision,
    RecentSend,
    Refused,
    Replayed,
    Send,
    SendLimits,
    SendOptions,
    State,
    admit,
    send_again,
)
from server.otps.crypto import Crypto
from server.otps.delivery.outbox import open_destination
from server.otps.destinations import PHONE_CHANNELS
from server.otps.otp import (
    DELIVERY_COLUMNS,
    Delivery,
    OtpRecord,
    Recipient,
    delivery_from_row,
    fetch_statuses,
    queue_lock_statuses,
    read_otp,
)
from server.otps.recipients import RawDestination, RecipientResolver, ResendRequest, SendRequest
from server.otps.sms_pumping import add_unverified, fetch_unverified, queue_read_unverified
from server.postgres.batcher import LOCKED, Locked
from server.postgres.columns import (
    BIGINT,
    BOOLEAN,
    BYTEA,
    JSONB,
    SMALLINT,
    TEXT,
    TIMESTAMPTZ,
    UUIDS,
    RowSource,
    byteas,
    texts,
    times,
    uuids,
)
from server.postgres.pipeline import Executor, Pipeline, Rows
from server.postgres.pool import Pool, acquire, execute_alone, pipelined_transaction, retry_transient, transaction
from server.postgres.queries import load_queries
from server.providers.provider import Channel, Message
from server.providers.sms_segments import segments
from server.providers.templates import Rendered, Templates, load_templates

_SENDS: RowSource[Admitted] = RowSource(
    organization_id=(TEXT, attrgetter("send.organization_id")),
    delivery_id=(UUIDS, attrgetter("send.delivery_id")),
    otp_id=(UUIDS, attrgetter("send.otp_id")),
    request_id=(UUIDS, attrgetter("send.request_id")),
    request_fingerprint=(BYTEA, attrgetter("send.request_fingerprint")),
    purpose=(TEXT, attrgetter("send.options.purpose")),
    channel=(TEXT, attrgetter("send.recipient.channel.value")),
    destination_digest=(BYTEA, attrgetter("send.recipient.destination_digest")),
    destination_sealed=(BYTEA, attrgetter("send.recipient.destination_sealed")),
    masked_destination=(TEXT, attrgetter("send.recipient.masked_destination")),
    areas=(TEXT, attrgetter("send.recipient.areas")),
    credits=(BIGINT, attrgetter("send.recipient.credits")),
    ledger_sequence=BIGINT,
    balance_after=BIGINT,
    fallbacks_sealed=(BYTEA, attrgetter("send.fallbacks_sealed")),
    # Of a new OTP:
    destination_digests=(BYTEA, lambda admitted: admitted.send.recipient.all_digests),
    is_new=(BOOLEAN, lambda admitted: "false" if admitted.send.resent else "true"),
    locale=(TEXT, attrgetter("send.options.locale")),
    code_key_id=(TEXT, attrgetter("send.code_key_id")),
    code_length=(SMALLINT, attrgetter("send.options.code_length")),
    context_digest=(BYTEA, attrgetter("send.context_digest")),
    web_otp_domain=(TEXT, attrgetter("send.options.web_otp_domain")),
    metadata=(JSONB, attrgetter("send.metadata")),
    max_attempts=(SMALLINT, attrgetter("send.options.max_attempts")),
    expire_time=TIMESTAMPTZ,
    to_phone=(BOOLEAN, lambda admitted: "true" if admitted.send.to_phone else "false"),
)
"""What is written of each accepted send."""
_OTP: Final = (
    *("organization_id", "otp_id", "purpose", "locale", "destination_digests", "code_key_id", "code_length"),
    *("context_digest", "web_otp_domain", "metadata", "max_attempts", "expire_time", "to_phone"),
)
_DELIVERY: Final = (
    *("organization_id", "delivery_id", "otp_id", "request_id", "request_fingerprint", "purpose", "channel"),
    *("destination_digest", "destination_sealed", "masked_destination", "areas", "credits", "ledger_sequence"),
    "balance_after",
)
SQL = load_queries(
    __file__,
    delivery=DELIVERY_COLUMNS,
    new_entry=_SENDS.only("organization_id", "ledger_sequence", "credits", "balance_after", "delivery_id"),
    new_otp=_SENDS.only(*_OTP),
    maybe_new_otp=_SENDS.only(*_OTP, "is_new"),
    new_delivery=_SENDS.only(*_DELIVERY),
    new_outbox=_SENDS.only("organization_id", "delivery_id", "otp_id", "fallbacks_sealed"),
)


_EXPECTED: Final = (
    *("available_credits", "last_sequence", "low_balance_threshold", "low_balance_since", "window_start_time"),
    *("window_send_count", "alert_email"),
)
"""The columns of an account on which a send may depend."""
ReadAccounts = Callable[[Executor, Iterable[str]], Awaitable[Rows]]
"""Queues the query of the accounts of some organizations."""


class Accepted(NamedTuple):
    """The answer to an accepted send, or to a repeat of its request_id."""

    record: OtpRecord
    delivery: Delivery
    low_balance: bool
    replayed: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """What a send would do if it came now."""

    channel: Channel
    credits: int = 0
    """The price: 0 when the send is refused before its price is known, or its request_id was accepted before."""
    masked_destination: str = ""
    """Empty for a destination that is not valid."""
    segments: int = 0
    """SMS segments of the message; 0 for other channels."""
    autofill: bool = False
    """Whether the SMS has the line by which phones and browsers fill the code in."""
    refusal: DomainError | None = None


class Sender:
    """Accepts sends: an accepted send is charged, recorded and dispatched; a refused send changes nothing.

    Idempotent: a request_id is accepted once, however often it is repeated and on any replica.
    """

    def __init__(
        self,
        pool: Pool,
        crypto: Crypto,
        recipients: RecipientResolver,
        *,
        limits: SendLimits,
        lease: timedelta,
        dispatch: Callable[[Sequence[Admitted]], None],
        clock: Clock,
        templates: Templates | None = None,
    ) -> None:
        """`dispatch` gets the accepted sends right after the commit, and must send them before `lease` has passed.

        `templates` are the message texts, for the segment count of a preview; None: the built-in texts.
        """
        self._pool = pool
        self._crypto = crypto
        self._recipients = recipients
        self._limits = limits
        self._lease = lease
        self._dispatch = dispatch
        self._templates = templates or load_templates(None)
        self._clock = clock
        self._accounts = AccountCache()

    def prepare(self, request: SendRequest) -> Send:
        """Build the send of a new OTP. Raises ChannelNotConfigured, InvalidDestination or DestinationBlocked."""
        organization_id, request_id, destination, options, context, metadata, fallbacks, deadline = request
        recipient = self._recipients.resolve(organization_id, destination)
        also = self._recipients.validate_fallbacks(organization_id, fallbacks) if fallbacks else ()
        stored = json.dumps(metadata, sort_keys=True) if metadata else "{}"
        # No text has a control character.
        content = "\0".join((_identity(options), recipient.channel, context, stored, *map("\0".join, also)))
        code_key_id = self._crypto.code_key_id
        return Send(
            organization_id,
            request_id,
            self._crypto.fingerprint(content, recipient.destination_digest),
            new_id(),
            new_id(),
            options,
            recipient,
            code_key_id,
            self._crypto.context_digest(context, code_key_id) if context else b"",
            stored,
            self._recipients.seal_fallbacks(organization_id, also),
            bool(recipient.areas) or any(raw.channel in PHONE_CHANNELS for raw in fallbacks),
            deadline,
            content,
        )

    async def prepare_resend(self, request: ResendRequest) -> Send:
        """Build a further send of an OTP: the same code, and its wrong attempts stay counted.

        Raises OtpNotFound, DestinationUnreadable, and what `prepare` raises.
        """
        async with acquire(self._pool) as connection:
            otp_record = await read_otp(connection, request.organization_id, request.otp_id)
        if request.destination is None:
            recipient = self._last_recipient(otp_record)
        else:
            recipient = self._recipients.resolve(request.organization_id, request.destination)
        destination = f"{recipient.channel} {recipient.destination}" if request.destination else ""
        content = f"resend {request.otp_id} {destination}"
        return send_again(
            otp_record,
            recipient,
            request_id=request.request_id,
            request_fingerprint=self._crypto.fingerprint(content, b""),
            delivery_id=new_id(),
            deadline=request.deadline,
            content=content,
        )

    async def accept(
        self, sends: Sequence[Send], *, wait: bool = True
    ) -> list[Admitted | Replayed | DomainError | Locked]:
        """Accept or refuse each send, in order: Admitted, Replayed for a repeated request_id, or the error.

        Without `wait`, LOCKED for a send whose account another transaction has locked. Raises AccountBusy when an
        account was not unlocked in time, and DatabaseUnavailable; the caller may repeat the sends.
        """
        # Safe to run again after a lost connection, as every request_id is accepted once.
        decisions = await retry_transient(lambda: self._transact(sends, wait=wait))
        decisions = list(map(_resolve_lost_commit, sends, decisions))
        # One turn of the event loop after the callers get their answers, so that dispatching delays no answer.
        loop = asyncio.get_running_loop()
        admitted = [decision for decision in decisions if isinstance(decision, Admitted)]
        loop.call_soon(loop.call_soon, self._dispatch, admitted)
        return [decision.error if isinstance(decision, Refused) else decision for decision in decisions]

    async def replay(self, replayed: Replayed) -> Accepted:
        """The answer to a repeated request_id: the first delivery, and the OTP's current record."""
        delivery = replayed.delivery
        async with acquire(self._pool) as connection:
            otp_record = await read_otp(connection, delivery.organization_id, delivery.otp_id)
        return Accepted(otp_record, delivery, replayed.low_balance, replayed=True)

    async def preview(self, request: SendRequest) -> Preview:
        """What the request would do now. Writes and reserves nothing."""
        preview = Preview(request.destination.channel)
        try:
            recipient = self._recipients.resolve(request.organization_id, request.destination)
            preview = replace(preview, credits=recipient.credits, masked_destination=recipient.masked_destination)
            send = self.prepare(request)
            if recipient.channel is Channel.SMS:
                rendered = self._render(send)
                preview = replace(preview, segments=segments(rendered.text).count, autofill=rendered.autofill)
        except DomainError as error:
            return replace(preview, refusal=error)
        decision = await self._decide_read_only(send)
        if isinstance(decision, Refused):
            return replace(preview, refusal=decision.error)
        return replace(preview, credits=0) if isinstance(decision, Replayed) else preview

    async def _transact(self, sends: Sequence[Send], *, wait: bool) -> list[Decision | Locked]:
        if len(sends) == 1 and (cached := self._accounts.checkout(sends[0])):
            accepted = await self._accept_cached(sends[0], cached)
            if accepted is not None:
                return [accepted]
        async with pipelined_transaction(self._pool) as pipeline:
            lock = queue_lock_accounts if wait else queue_lock_free_accounts
            state = await self._read(pipeline, sends, accounts=lock)
            locked = set() if wait else await _find_locked(pipeline, sends, state)
            free = [send for send in sends if send.organization_id not in locked] if locked else sends
            # After the locks, as waiting for them takes time: a deadline may have passed.
            now = self._clock()
            decisions = admit(free, state, now=now, limits=self._limits)
            admitted = [decision for decision in decisions if isinstance(decision, Admitted)]
            if admitted:
                await record(pipeline, admitted, state, now=now, lease_expire_time=now + self._lease)
        if len(sends) == 1:
            self._accounts.update(state, entries=len(admitted))
        if not locked:
            return [*decisions]
        decided = iter(decisions)
        return [LOCKED if send.organization_id in locked else next(decided) for send in sends]

    async def _accept_cached(self, send: Send, state: State) -> Admitted | None:
        """Accept a lone send on the cached account, with one statement; None when it must take the normal path.

        Nothing is written then. The cached account may be stale, so it never refuses a send. The send takes the
        normal path when the account has changed, the destination had recent sends, the request_id was accepted
        before, the balance becomes low, or `admit` refuses it.
        """
        account = state.accounts[send.organization_id]
        expected = {f"expected_{name}": getattr(account, name) for name in _EXPECTED}
        now = self._clock()
        [admitted] = admit([send], state, now=now, limits=self._limits)
        if not isinstance(admitted, Admitted) or state.newly_low:
            return None
        areas = send.recipient.areas.split()
        written = await execute_alone(
            self._pool,
            SQL.accept_unchanged,
            {
                **_SENDS.values(admitted),
                **expected,
                "low_balance_since": account.low_balance_since,
                "window_start_time": account.window_start_time,
                "window_send_count": account.window_send_count,
                "spent_areas": texts(areas),
                "window_start_times": times(
                    state.unverified[send.organization_id, area].window_start_time for area in areas
                ),
                "digests": byteas(filter(None, (send.recipient.destination_digest, send.recipient.other_digest))),
                "now": now,
                "since": now - DAY,
                "lease_expire_time": now + self._lease,
            },
        )
        if not written:
            return None
        self._accounts.confirm(state)
        return admitted

    async def _read(self, connection: Executor, sends: Sequence[Send], *, accounts: ReadAccounts) -> State:
        """`read_state`, with today's fingerprint for the earlier delivery of a repeat, whichever key made its own."""
        state = await read_state(connection, sends, since=self._clock() - DAY, accounts=accounts)
        for send in sends if state.deliveries else ():
            earlier = state.deliveries.get((send.organization_id, send.request_id))
            if earlier is None or earlier.request_fingerprint == send.request_fingerprint:
                continue
            destination = "" if send.resent else send.recipient.destination
            if self._crypto.is_fingerprint_of(earlier.request_fingerprint, send.content, destination):
                earlier.request_fingerprint = send.request_fingerprint
        return state

    async def _decide_read_only(self, send: Send) -> Decision:
        async with transaction(self._pool) as connection:
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            state = await self._read(connection, [send], accounts=queue_read_accounts)
            return admit([send], state, now=self._clock(), limits=self._limits)[0]

    def _last_recipient(self, otp_record: OtpRecord) -> Recipient:
        last = otp_record.deliveries[-1]
        if last.destination_sealed is None:
            # Retention erased the destination: the code expired long before.
            raise OtpNotFound
        destination = open_destination(last, self._crypto)
        if not destination:
            raise DestinationUnreadable
        return self._recipients.resolve(last.organization_id, RawDestination(last.channel, destination, "destination"))

    def _render(self, send: Send) -> Rendered:
        """The message with a code of zeros: every code of this length takes as many segments."""
        options, now = send.options, self._clock()
        message = Message(
            delivery_id=send.delivery_id,
            channel=send.recipient.channel,
            destination=send.recipient.destination,
            code="0" * options.code_length,
            purpose=options.purpose,
            locale=options.locale,
            expire_time=now + options.ttl,
            lease_expire_time=now + options.ttl,
            web_otp_domain=options.web_otp_domain,
            reference="",
        )
        return self._templates.render(message, now=now)


@lru_cache(maxsize=1024)
def _identity(options: SendOptions) -> str:
    return repr(options)


async def read_state(
    connection: Executor,
    sends: Sequence[Send],
    *,
    since: datetime,
    accounts: ReadAccounts = queue_lock_accounts,
) -> State:
    """Read what decisions on these sends depend on, in one round trip (two with a resend).

    `accounts` reads the accounts, before everything else; by default it locks them. The OTPs of resends are locked.
    """
    requests = {(send.organization_id, send.request_id) for send in sends}
    # Each digest of a destination that earlier sends may have, with its current one.
    destinations = {
        (send.organization_id, digest): send.recipient.destination_digest
        for send in sends
        for digest in (send.recipient.destination_digest, send.recipient.other_digest)
        if digest
    }
    resent = {(send.organization_id, send.otp_id) for send in sends if send.resent}
    account_rows = await accounts(connection, (send.organization_id for send in sends))
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
    unverified = await queue_read_unverified(connection, sends)
    state = State(await fetch_accounts(account_rows))
    state.unverified = await fetch_unverified(unverified)
    for delivery in map(delivery_from_row, await earlier.fetchall()):
        state.deliveries[delivery.organization_id, delivery.request_id] = delivery
    for organization_id, digest, create_time, purpose in await recent.fetchall():
        key = (organization_id, destinations[organization_id, digest])
        state.recent_sends.setdefault(key, []).append(RecentSend(create_time, purpose))
    if resent:
        state.otp_statuses = await fetch_statuses(await queue_lock_statuses(connection, resent))
    return state


async def record(
    pipeline: Pipeline,
    admitted: Sequence[Admitted],
    state: State,
    *,
    now: datetime,
    lease_expire_time: datetime,
) -> None:
    """Write admitted sends: balances, ledger entries, OTPs, deliveries, outbox rows, unverified credits, notices.

    No other replica sends them before lease_expire_time. The statements and the COMMIT share one round trip.
    """
    changed = {each.send.organization_id for each in admitted}
    await write_balances(pipeline, [state.accounts[organization_id] for organization_id in changed])
    pipeline.flush()
    statements = (SQL.insert_entries, SQL.insert_otps, SQL.insert_deliveries, SQL.insert_outbox)
    await _SENDS.write(pipeline, *statements, rows=admitted, now=now, lease_expire_time=lease_expire_time)
    await add_unverified(pipeline, admitted, state.unverified)
    await insert_low_balance_notices(pipeline, state.newly_low, now=now)


async def _find_locked(connection: Executor, sends: Sequence[Send], state: State) -> set[str]:
    """The organizations whose account exists and was not locked, as another transaction has it."""
    missing = {send.organization_id for send in sends} - state.accounts.keys()
    return await find_accounts(connection, missing) if missing else set()


def _resolve_lost_commit(send: Send, decision: Decision | Locked) -> Decision | Locked:
    """Admitted instead of Replayed for a send whose own delivery is stored: the answer to its COMMIT was lost."""
    if isinstance(decision, Replayed) and decision.delivery.delivery_id == send.delivery_id:
        stored = decision.delivery
        return Admitted(send, stored.ledger_sequence, stored.balance_after, decision.low_balance, stored.create_time)
    return decision
