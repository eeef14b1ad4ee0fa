"""The use cases of OTPs as one replica runs them, without a dispatcher: what was accepted is kept for the test."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import UUID, uuid4

from psycopg import sql

from server.clock import Clock, DatabaseClock, utc_now
from server.credits.ledger import LedgerEntry, adjust_credits, list_entries
from server.events.log import EventSwitches
from server.otps.admission import Admitted, SendLimits, SendOptions
from server.otps.crypto import KEY_BYTES, Crypto
from server.otps.delivery.outbox import DeliveryJob, job_for
from server.otps.delivery.outcome_policy import DeliveryResult
from server.otps.delivery.outcomes import Outcomes
from server.otps.guess_policy import Guess, GuessLimits
from server.otps.otp import Otp, OtpRecord, read_otp
from server.otps.otp_events import LimitsReached
from server.otps.recipients import RawDestination, RecipientResolver, ResendRequest, SendRequest
from server.otps.send import Accepted, Sender
from server.otps.sms_pumping import ALL_AREAS, AreaPolicy
from server.otps.verify import Verifier
from server.postgres.batcher import Batcher, Batching, Shards
from server.postgres.pool import Pool, acquire
from server.providers.provider import Channel, Outcome, OutcomeKind
from tests.integration.otps.batched_sender import BatchedSender

LEASE = timedelta(seconds=60)
NO_LIMITS = SendLimits(timedelta(), 0, 0, 0)
PRICES = {Channel.EMAIL: 1, Channel.WHATSAPP: 2, Channel.SMS: 3}
CRYPTO = Crypto({"k1": b"1" * KEY_BYTES}, digest_secrets={"d1": b"2" * KEY_BYTES})
_names = count()


class ManualClock(DatabaseClock):
    """A clock that only a test moves, also that of the database."""

    def __init__(self, now: datetime = datetime(2026, 11, 22, 12, tzinfo=UTC)) -> None:
        super().__init__()
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    async def measure(self, read: Callable[[], Awaitable[datetime]]) -> datetime:
        await read()
        return self.now

    def advance(self, **time: float) -> None:
        self.now += timedelta(**time)


@dataclass
class Replica:
    """One server's use cases of OTPs, over its own pool."""

    pool: Pool
    limits: SendLimits = NO_LIMITS
    guess_limits: GuessLimits = field(default_factory=GuessLimits)
    areas: AreaPolicy = ALL_AREAS
    clock: Clock = utc_now
    crypto: Crypto = CRYPTO
    shards: Shards | None = None
    """None: those of the pool."""
    busy_seconds: float = 2.0
    switches: EventSwitches | None = None
    accepted: list[Admitted] = field(default_factory=list)
    """What a dispatcher would have received."""

    def __post_init__(self) -> None:
        batching = Batching(
            size=500,
            linger_seconds=0.0,
            shards=self.shards or self.pool.shards,
            busy_seconds=self.busy_seconds,
        )
        sender = Sender(
            self.pool,
            self.crypto,
            RecipientResolver(self.crypto, PRICES, self.areas),
            limits=self.limits,
            lease=LEASE,
            dispatch=self.accepted.extend,
            clock=self.clock,
            limits_reached=LimitsReached(self.switches),
        )
        self.sender = BatchedSender(sender, batching)
        verifier = Verifier(self.pool, self.crypto, limits=self.guess_limits, clock=self.clock, switches=self.switches)
        self.guesses: Batcher[Guess, Otp] = Batcher(verifier.verify, batching)
        self.outcomes = Outcomes(self.pool, batching=batching, lease=LEASE, clock=self.clock, switches=self.switches)

    async def send(
        self,
        to: str = "",
        *,
        organization_id: str = "acme",
        request_id: UUID | None = None,
        purpose: str = "login",
        web_otp_domain: str = "",
        channel: Channel = Channel.EMAIL,
        ttl: timedelta = timedelta(minutes=5),
        max_attempts: int = 5,
        context: str = "",
        deadline: datetime | None = None,
    ) -> Accepted:
        """Send a new OTP, to a new address unless `to` is given; returns once it is dispatched."""
        sent = await self.sender.send(
            SendRequest(
                organization_id=organization_id,
                request_id=request_id or uuid4(),
                destination=RawDestination(channel, to or f"person-{next(_names)}@example.com", "destination"),
                options=SendOptions(purpose, "en", 6, ttl, max_attempts, web_otp_domain),
                context=context,
                metadata={"order": "7"},
                deadline=deadline,
            )
        )
        await asyncio.sleep(0)
        return sent

    async def resend(
        self, otp: Otp, *, request_id: UUID | None = None, destination: RawDestination | None = None
    ) -> Accepted:
        sent = await self.sender.resend(
            ResendRequest(otp.organization_id, request_id or uuid4(), otp.otp_id, destination)
        )
        await asyncio.sleep(0)
        return sent

    async def verify(
        self, otp: Otp, code: str | None = None, *, request_id: UUID | None = None, context: str = ""
    ) -> Otp:
        """Guess `code`, by default the right one."""
        guess = Guess(
            otp.organization_id,
            otp.otp_id,
            request_id or uuid4(),
            self.crypto.code_of(otp) if code is None else code,
            context,
        )
        return await self.guesses.submit(otp.organization_id, guess)

    def job(self, send: Accepted) -> DeliveryJob:
        """The delivery job that a dispatcher would have received for a send."""
        (admitted,) = [one for one in self.accepted if one.delivery.delivery_id == send.delivery.delivery_id]
        return job_for(admitted, lease=LEASE)

    async def record_outcome(self, send: Accepted, kind: OutcomeKind, *, failure_reason: str = "") -> None:
        """Record what a provider call for a send came to."""
        outcome = Outcome(kind, "console", provider_message_id="m1", failure_reason=failure_reason)
        await self.outcomes.record([DeliveryResult(self.job(send), outcome)])


def wrong(otp: Otp) -> str:
    """A code that is not the OTP's."""
    return "000000" if CRYPTO.code_of(otp) != "000000" else "000001"


async def fund(pool: Pool, credits: int, *, organization_id: str = "acme", low_balance_threshold: int = 0) -> None:
    await adjust_credits(
        pool,
        organization_id,
        request_id=uuid4(),
        credits=credits,
        reason="test",
        created_by="test",
        low_balance_threshold=low_balance_threshold,
        now=utc_now(),
    )


async def ledger(pool: Pool, organization_id: str = "acme") -> Sequence[LedgerEntry]:
    """All entries, oldest first."""
    async with acquire(pool) as connection:
        return (await list_entries(connection, organization_id, before_sequence=1 << 62, limit=1000))[::-1]


async def spent(pool: Pool, organization_id: str = "acme") -> list[int]:
    """What sends took, oldest first."""
    return [-entry.credits for entry in await ledger(pool, organization_id) if entry.kind == "SEND"]


async def stored(pool: Pool, otp: Otp) -> OtpRecord:
    async with acquire(pool) as connection:
        return await read_otp(connection, otp.organization_id, otp.otp_id)


async def count_rows(pool: Pool, table: str) -> int:
    async with acquire(pool) as connection:
        row = await (
            await connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table)))
        ).fetchone()
    assert row is not None
    return int(row[0])
