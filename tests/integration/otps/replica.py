"""The OTP room as one replica runs it, without a dispatcher: what was accepted waits for the test."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import UUID, uuid4

from psycopg import sql

from server.channels.channel import ChannelName, Outcome, OutcomeKind
from server.clock import Clock, utc_now
from server.credits.adjustments import adjust_credits
from server.credits.ledger import LedgerEntry, list_entries
from server.database.batcher import Batching, as_it_is
from server.database.pool import Pool, connection
from server.otps.admission import Admitted
from server.otps.errands import Errand, errand_of
from server.otps.guessing import Guess, GuessLimits
from server.otps.limits import SendLimits
from server.otps.orders import Accepted, Orders, ResendOrder, SendOrder
from server.otps.otp import Otp
from server.otps.outcomes import Outcomes
from server.otps.pumping import EVERYBODY, Served
from server.otps.reading import OtpRecord, read_otp
from server.otps.sending import Sender
from server.otps.settlement import Report
from server.otps.targets import Address
from server.otps.vault import KEY_BYTES, Vault
from server.otps.verifying import Verifier

LEASE = timedelta(seconds=60)
NO_LIMITS = SendLimits(timedelta(), 0, 0, 0)
PRICES = {ChannelName.EMAIL: 1, ChannelName.WHATSAPP: 2, ChannelName.SMS: 3}
VAULT = Vault({"k1": b"1" * KEY_BYTES}, digest_secret=b"2" * KEY_BYTES)
_names = count()


@dataclass
class HandClock:
    """A clock that stands still until the test moves it."""

    now: datetime = datetime(2026, 11, 22, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **time: float) -> None:
        self.now += timedelta(**time)


@dataclass
class Replica:
    """One server's rooms, over its own pool."""

    pool: Pool
    limits: SendLimits = NO_LIMITS
    guess_limits: GuessLimits = field(default_factory=GuessLimits)
    served: Served = EVERYBODY
    clock: Clock = utc_now
    one_organization_per_transaction: bool = False
    accepted: list[Admitted] = field(default_factory=list)
    """What a dispatcher would have been handed."""

    def __post_init__(self) -> None:
        batching = Batching(size=500, linger_seconds=0.0, by_organization=self.one_organization_per_transaction)
        self.sender = Sender(
            self.pool,
            limits=self.limits,
            lease=LEASE,
            hand_over=self.accepted.extend,
            clock=self.clock,
        )
        self.orders = Orders(
            self.pool,
            VAULT,
            self.sender,
            channel_credits=PRICES,
            batching=batching,
            served=self.served,
            clock=self.clock,
        )
        self.verifier = Verifier(self.pool, VAULT, limits=self.guess_limits, batching=batching, clock=self.clock)
        self.outcomes = Outcomes(self.pool, batching=batching, lease=LEASE, clock=self.clock)

    async def send(
        self,
        to: str = "",
        *,
        organization_id: str = "acme",
        request_id: UUID | None = None,
        request: bytes = b"",
        channel: ChannelName = ChannelName.EMAIL,
        ttl: timedelta = timedelta(minutes=5),
        max_attempts: int = 5,
        context: str = "",
        deadline: datetime | None = None,
    ) -> Accepted:
        """Send a new OTP, to a new address unless told where; returns once it is handed over."""
        sent = await self.orders.send(
            organization_id,
            lambda: SendOrder(
                organization_id=organization_id,
                request_id=request_id or uuid4(),
                request=request,
                address=Address(channel, to or f"person-{next(_names)}@example.com", "destination"),
                fallbacks=[],
                purpose="login",
                locale="en",
                code_length=6,
                ttl=ttl,
                max_attempts=max_attempts,
                context=context,
                web_otp_domain="",
                metadata={"order": "7"},
                deadline=deadline,
            ),
            as_it_is,
        )
        await asyncio.sleep(0)
        return sent

    async def resend(self, otp: Otp, *, request_id: UUID | None = None, address: Address | None = None) -> Accepted:
        sent = await self.orders.resend(
            ResendOrder(otp.organization_id, request_id or uuid4(), b"", otp.otp_id, address), as_it_is
        )
        await asyncio.sleep(0)
        return sent

    async def verify(
        self, otp: Otp, code: str | None = None, *, request_id: UUID | None = None, context: str = ""
    ) -> Otp:
        """Guess the right code, unless told which."""
        return await self.verifier.verify(
            otp.organization_id,
            lambda: Guess(
                otp.organization_id,
                otp.otp_id,
                request_id or uuid4(),
                VAULT.code_of(otp) if code is None else code,
                VAULT.context_digest(context),
            ),
            as_it_is,
        )

    def errand(self, send: Accepted) -> Errand:
        """The errand that a dispatcher would have been handed for a send."""
        (admitted,) = [one for one in self.accepted if one.delivery.delivery_id == send.delivery.delivery_id]
        return errand_of(admitted, lease=LEASE)

    async def report(self, send: Accepted, kind: OutcomeKind, *, failure_reason: str = "") -> None:
        outcome = Outcome(kind, "console", provider_message_id="m1", failure_reason=failure_reason)
        await self.outcomes.record([Report(self.errand(send), outcome)])


def wrong(otp: Otp) -> str:
    """A code that is not the OTP's."""
    return "000000" if VAULT.code_of(otp) != "000000" else "000001"


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
    async with connection(pool) as lent:
        return (await list_entries(lent, organization_id, before_sequence=1 << 62, limit=1000))[::-1]


async def spent(pool: Pool, organization_id: str = "acme") -> list[int]:
    """What sends took, oldest first."""
    return [-entry.credits for entry in await ledger(pool, organization_id) if entry.kind == "SEND"]


async def stored(pool: Pool, otp: Otp) -> OtpRecord:
    async with connection(pool) as lent:
        return await read_otp(lent, otp.organization_id, otp.otp_id)


async def count_rows(pool: Pool, table: str) -> int:
    async with connection(pool) as lent:
        row = await (await lent.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table)))).fetchone()
    assert row is not None
    return int(row[0])
