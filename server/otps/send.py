"""Sends OTPs: prepares a send from a request, admits it under the account's lock, and writes what was admitted."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from server.clock import Clock
from server.credits.accounts import (
    Request,
    balance_event,
    fetch_accounts,
    fetch_requests,
    find_accounts,
    insert_low_balance_notices,
    queue_find_requests,
    queue_lock_accounts,
    queue_lock_free_accounts,
    queue_read_accounts,
    read_accounts,
    write_balances,
)
from server.errors import DestinationUnreadable, DomainError, OtpNotFound
from server.events.log import Event, append_events
from server.ids import first_otp_id, new_id, new_ids
from server.otps.account_cache import AccountCache
from server.otps.admission import (
    DAY,
    NO_METADATA,
    Admitted,
    Decision,
    RecentSend,
    Refused,
    Replayed,
    Send,
    SendLimits,
    State,
    admit,
    repeat,
    send_again,
)
from server.otps.crypto import Crypto
from server.otps.delivery.outbox import open_destination
from server.otps.destinations import PHONE_CHANNELS
from server.otps.effective_settings import EffectiveSettings, OperatorSettings
from server.otps.otp import (
    Delivery,
    OtpRecord,
    Recipient,
    fetch_statuses,
    queue_lock_statuses,
    read_answers,
    read_otp,
)
from server.otps.otp_events import LimitsReached
from server.otps.previews import Preview, decided, render
from server.otps.recipients import RawDestination, RecipientResolver, ResendRequest, SendRequest
from server.otps.send_rows import DELIVERY, OTP, REQUEST, SENDS
from server.otps.settings_cache import SettingsCache
from server.otps.sms_pumping import add_unverified, fetch_unverified, queue_read_unverified
from server.otps.spending_caps import SpendingCaps, tell_contacts
from server.postgres.batcher import attempt
from server.postgres.columns import byteas, texts, times
from server.postgres.lanes import LOCKED, Locked
from server.postgres.pipeline import Executor, Pipeline, Rows
from server.postgres.pool import (
    Pool,
    acquire,
    execute_alone,
    pipelined_transaction,
    retry_transient,
    run_idempotent,
    transaction,
)
from server.postgres.queries import load_queries
from server.providers.provider import Channel
from server.providers.sms_segments import segments
from server.providers.templates import Templates, load_templates

SQL = load_queries(
    __file__,
    new_entry=SENDS.only("organization_id", "ledger_sequence", "credits", "balance_after", "delivery_id"),
    new_otp=SENDS.only(*OTP),
    maybe_new_otp=SENDS.only(*OTP, "is_new"),
    new_delivery=SENDS.only(*DELIVERY),
    new_request=SENDS.only(*REQUEST),
    requested=SENDS.only(*REQUEST, "delivery_id"),
    new_outbox=SENDS.only("organization_id", "delivery_id", "otp_id", "fallbacks_sealed"),
)


_EXPECTED: Final = (
    *("available_credits", "last_sequence", "low_balance_threshold", "low_balance_since", "window_start_time"),
    *("window_send_count", "alert_email", "settings_version"),
)
"""The columns of an account on which a send may depend."""
_ADMITTED_AT_ONCE: Final = 100
ReadAccounts = Callable[[Executor, Iterable[str]], Awaitable[Rows]]
"""Queues the query of the accounts of some organizations."""


class Accepted(NamedTuple):
    """The answer to an accepted send, or to a repeat of its request_id."""

    record: OtpRecord
    delivery: Delivery
    low_balance: bool
    replayed: bool


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
        limits_reached: LimitsReached | None = None,
        settings: SettingsCache | None = None,
    ) -> None:
        """`dispatch` gets the accepted sends right after the commit, and must send them before `lease` has passed.

        `templates` are the message texts, for the segment count of a preview; None: the built-in texts. Without
        `limits_reached` no event tells of a limit. `settings` are those of the organizations, within `limits`; None:
        they have chosen nothing.
        """
        self._pool = pool
        self._crypto = crypto
        self._recipients = recipients
        self._limits = limits
        self._lease = lease
        self._dispatch = dispatch
        self._templates = templates or load_templates(None)
        self._clock = clock
        self._settings = settings or SettingsCache(OperatorSettings(areas=recipients.areas, limits=limits))
        self._caps = SpendingCaps(self._settings)
        self._accounts = AccountCache()
        self._limits_reached = limits_reached or LimitsReached()

    def prepare(self, requests: Sequence[SendRequest]) -> list[Send | Exception]:
        """Build the send of a new OTP for each request, in order; or its error, which is of this request alone.

        A refused destination is ChannelNotConfigured, InvalidDestination or DestinationBlocked.
        """
        ids = iter(new_ids(2 * len(requests), self._clock()))
        return [attempt(self._prepare, request, next(ids), next(ids)) for request in requests]

    def _prepare(self, request: SendRequest, delivery_id: UUID, otp_id: UUID) -> Send:
        organization_id, request_id, destination, options, context, metadata, fallbacks, deadline, span = request
        settings = self._settings.of(organization_id)
        recipient = self._recipients.resolve(organization_id, destination, settings)
        if fallbacks:
            also = self._recipients.validate_fallbacks(organization_id, fallbacks, settings)
        else:
            also = self._recipients.default_fallbacks(organization_id, destination, settings)
        content = request.content
        code_key_id = self._crypto.current_key_id
        return Send(
            organization_id,
            request_id,
            self._crypto.fingerprint(content),
            delivery_id,
            otp_id,
            options,
            recipient,
            code_key_id,
            self._crypto.context_digest(context, code_key_id) if context else b"",
            json.dumps(metadata, sort_keys=True) if metadata else NO_METADATA,
            self._recipients.seal_fallbacks(organization_id, also),
            bool(recipient.areas) or any(fallback.channel in PHONE_CHANNELS for fallback in also),
            deadline,
            content,
            None,
            settings.identity,
            span,
        )

    async def prepare_resend(self, request: ResendRequest) -> Send:
        """Build a further send of an OTP: the same code, and its wrong attempts stay counted.

        Raises OtpNotFound, DestinationUnreadable, and what `prepare` raises.
        """
        organization_id, otp_id = request.organization_id, request.otp_id
        otp_record = await run_idempotent(self._pool, lambda connection: read_otp(connection, organization_id, otp_id))
        settings = self._settings.of(request.organization_id)
        if request.destination is None:
            recipient = self._last_recipient(otp_record, settings)
        else:
            recipient = self._recipients.resolve(request.organization_id, request.destination, settings)
        content = request.content
        return send_again(
            otp_record,
            recipient,
            request_id=request.request_id,
            request_fingerprint=self._crypto.fingerprint(content),
            delivery_id=new_id(self._clock()),
            deadline=request.deadline,
            content=content,
            identity=settings.identity,
            span=request.span,
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
        organization_id, otp_id = delivery.organization_id, delivery.otp_id
        otp_record = await run_idempotent(self._pool, lambda connection: read_otp(connection, organization_id, otp_id))
        return Accepted(otp_record, delivery, replayed.low_balance, replayed=True)

    async def find_repeat(self, request: SendRequest | ResendRequest) -> Accepted | None:
        """The answer to a request that was accepted before and cannot be prepared any more; None for a new request.

        Raises RequestIdReused and RequestIdExpired.
        """
        key = (request.organization_id, request.request_id)
        async with acquire(self._pool) as connection:
            requests = await fetch_requests(await queue_find_requests(connection, [key]))
            answers = await read_answers(connection, requests)
            accounts = await read_accounts(connection, [request.organization_id])
        if not requests:
            return None
        new = requests[key]._replace(rpc=request.rpc, fingerprint=self._crypto.fingerprint(request.content))
        earlier = self._recognized(requests[key], new, request.content)
        decision = repeat(new, earlier, answers.get(earlier.answer_id), accounts[request.organization_id])
        if isinstance(decision, Refused):
            raise decision.error
        return await self.replay(decision)

    async def preview(self, requests: Sequence[SendRequest]) -> list[Preview]:
        """What the requests would do now, one after another. Writes and reserves nothing."""
        priced = [self._price(request) for request in requests]
        sends = [send for _, send in priced if send is not None]
        decisions = iter(await self._decide_read_only(sends) if sends else ())
        return [
            await self._preview_repeat(request, preview) if send is None else decided(preview, next(decisions))
            for request, (preview, send) in zip(requests, priced, strict=True)
        ]

    def _price(self, request: SendRequest) -> tuple[Preview, Send | None]:
        """The preview of a request as far as the account does not matter, and its send unless it is refused already."""
        preview = Preview(request.destination.channel)
        try:
            settings = self._settings.of(request.organization_id)
            recipient = self._recipients.resolve(request.organization_id, request.destination, settings)
            preview = replace(preview, credits=recipient.credits, masked_destination=recipient.masked_destination)
            (send,) = self.prepare([request])
            if isinstance(send, Exception):
                raise send
            if recipient.channel is Channel.SMS:
                rendered = render(send, self._templates, now=self._clock())
                preview = replace(preview, segments=segments(rendered.text).count, autofill=rendered.autofill)
        except DomainError as error:
            return replace(preview, refusal=error), None
        return preview, send

    async def _transact(self, sends: Sequence[Send], *, wait: bool) -> list[Decision | Locked]:
        alone = len(sends) == 1 and not self._pool.shards.is_distributed  # Citus makes several of it
        if alone and (cached := self._accounts.checkout(sends[0])) and self._settings.add_known(cached):
            accepted = await self._accept_cached(sends[0], cached)
            if accepted is not None:
                return [accepted]
        async with pipelined_transaction(self._pool, near=sends[0].organization_id) as pipeline:
            lock = queue_lock_accounts if wait else queue_lock_free_accounts
            state = await self._read(pipeline, sends, accounts=lock)
            locked = set() if wait else await _find_locked(pipeline, sends, state)
            free = [send for send in sends if send.organization_id not in locked] if locked else sends
            # After the locks, as waiting for them takes time: a deadline may have passed.
            now = self._clock()
            decisions = await self._admit(free, state, now=now)
            if state.capped:
                await tell_contacts(pipeline, state, now=now)
            admitted = [decision for decision in decisions if isinstance(decision, Admitted)]
            if admitted:
                await record(pipeline, admitted, state, now=now, lease_expire_time=now + self._lease)
            events: list[Event] = []
            if state.newly_low or len(admitted) < len(decisions):
                events += [balance_event(account, is_low=True) for account in state.newly_low]
                events += self._limits_reached.events(free, decisions, now=now)
                await append_events(pipeline, events, now=now)
        if events:
            self._limits_reached.note(events)
        if alone:
            self._accounts.update(state, entries=len(admitted))
        if not locked:
            return [*decisions]
        decided = iter(decisions)
        return [LOCKED if send.organization_id in locked else next(decided) for send in sends]

    async def _admit(self, sends: Sequence[Send], state: State, *, now: datetime) -> list[Decision]:
        """As `admit`; lets the event loop turn between portions of many sends, as other calls wait for it."""
        decisions = admit(sends[:_ADMITTED_AT_ONCE], state, now=now, limits=self._limits)
        for start in range(_ADMITTED_AT_ONCE, len(sends), _ADMITTED_AT_ONCE):
            await asyncio.sleep(0)
            decisions += admit(sends[start : start + _ADMITTED_AT_ONCE], state, now=now, limits=self._limits)
        return decisions

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
                **SENDS.values(admitted),
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
                "first_otp_id": first_otp_id(now - DAY),
                "lease_expire_time": now + self._lease,
            },
        )
        if not written:
            return None
        self._accounts.confirm(state)
        return admitted

    async def _read(self, connection: Executor, sends: Sequence[Send], *, accounts: ReadAccounts) -> State:
        """`read_state`, with today's fingerprint for the request of a repeat, whichever key made its own."""
        state = await read_state(connection, sends, since=self._clock() - DAY, accounts=accounts)
        await self._caps.read(connection, state, now=self._clock())
        for send in sends if state.requests else ():
            key = (send.organization_id, send.request_id)
            if key in state.requests:
                state.requests[key] = self._recognized(state.requests[key], send.request, send.content)
        return state

    def _recognized(self, earlier: Request, new: Request, content: str) -> Request:
        """An accepted request, with the new one's fingerprint if it said the same, whichever key made its own."""
        # Another rpc may make its fingerprints without a key.
        same = earlier.rpc == new.rpc and self._crypto.is_fingerprint_of(earlier.fingerprint, content)
        return earlier._replace(fingerprint=new.fingerprint) if same else earlier

    async def _preview_repeat(self, request: SendRequest, preview: Preview) -> Preview:
        """The preview of a request that cannot be prepared: accepted without a charge if it was accepted before."""
        try:
            accepted = await self.find_repeat(request)
        except DomainError as refusal:
            return replace(preview, refusal=refusal)
        return replace(preview, credits=0, refusal=None) if accepted else preview

    async def _decide_read_only(self, sends: Sequence[Send]) -> list[Decision]:
        async with transaction(self._pool) as connection:
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            state = await self._read(connection, sends, accounts=queue_read_accounts)
            return admit(sends, state, now=self._clock(), limits=self._limits)

    def _last_recipient(self, otp_record: OtpRecord, settings: EffectiveSettings) -> Recipient:
        last = otp_record.deliveries[-1]
        if last.destination_sealed is None:
            # Retention erased the destination: the code expired long before.
            raise OtpNotFound
        destination = open_destination(last, self._crypto)
        if not destination:
            raise DestinationUnreadable
        raw = RawDestination(last.channel, destination, "destination")
        return self._recipients.resolve(last.organization_id, raw, settings)


async def read_state(
    connection: Executor, sends: Sequence[Send], *, since: datetime, accounts: ReadAccounts = queue_lock_accounts
) -> State:
    """Read what decisions on these sends depend on, in one round trip (more with a repeat or a resend).

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
    earlier = await queue_find_requests(connection, requests)
    recent = await connection.execute(
        SQL.find_recent_sends,
        {
            "organization_ids": texts(key[0] for key in destinations),
            "digests": byteas(key[1] for key in destinations),
            "since": since,
            "first_otp_id": first_otp_id(since),
        },
    )
    unverified = await queue_read_unverified(connection, sends)
    state = State(await fetch_accounts(account_rows))
    state.unverified = await fetch_unverified(unverified)
    state.requests = await fetch_requests(earlier)
    state.answers = await read_answers(connection, state.requests)
    for organization_id, digest, create_time, purpose in await recent.fetchall():
        key = (organization_id, destinations[organization_id, digest])
        state.recent_sends.setdefault(key, []).append(RecentSend(create_time, purpose))
    if resent:
        state.otp_statuses = await fetch_statuses(await queue_lock_statuses(connection, resent))
    return state


async def record(
    pipeline: Pipeline, admitted: Sequence[Admitted], state: State, *, now: datetime, lease_expire_time: datetime
) -> None:
    """Write admitted sends: balances, entries, OTPs, deliveries, requests, outbox, unverified credits, notices.

    No other replica sends them before lease_expire_time. The statements and the COMMIT share one round trip.
    """
    changed = {each.send.organization_id for each in admitted}
    await write_balances(pipeline, [state.accounts[organization_id] for organization_id in changed])
    pipeline.flush()
    statements = (SQL.insert_entries, SQL.insert_otps, SQL.insert_deliveries, SQL.insert_requests, SQL.insert_outbox)
    await SENDS.write(pipeline, *statements, rows=admitted, now=now, lease_expire_time=lease_expire_time)
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
