"""The room of OTPs between a real PostgreSQL and stand-ins of its providers, each reached over its own protocol."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from server.channels.breaker import BreakerSettings
from server.channels.channel import Channel, ChannelName
from server.channels.guard import Guard, GuardSettings
from server.channels.route import Route
from server.channels.smtp import Smtp, SmtpSettings
from server.channels.templates import load_templates
from server.channels.twilio import Twilio, TwilioSettings
from server.channels.vonage import Vonage, VonageSettings
from server.channels.whatsapp import WhatsApp, WhatsAppSettings
from server.credits.adjustments import adjust_credits
from server.database.batcher import Batching, as_it_is
from server.database.pool import Pool, connection
from server.otps.admission import Admitted
from server.otps.dispatch import Dispatcher
from server.otps.errands import Errand, errand_of
from server.otps.limits import SendLimits
from server.otps.orders import Accepted, Orders, Preview, SendOrder
from server.otps.otp import Delivery, DeliveryStatus
from server.otps.outcomes import Fallbacks, Outcomes
from server.otps.reading import cancel_otp, read_otp
from server.otps.reports import report_delivery
from server.otps.sending import Sender
from server.otps.targets import Address, Targets
from server.otps.vault import Vault
from server.sandbox.providers import ProvidersSandbox
from server.sandbox.relay import Relay
from server.watch.deliveries import watch_deliveries

ACME = "acme"
PRICES = {ChannelName.EMAIL: 1, ChannelName.WHATSAPP: 2, ChannelName.SMS: 3}
LEASE = timedelta(seconds=60)
PATIENCE_SECONDS = 15
EMAIL = Address(ChannelName.EMAIL, "bob@example.com", "destination.email")
WHATSAPP = Address(ChannelName.WHATSAPP, "+6281234567890", "destination.whatsapp")
SMS = Address(ChannelName.SMS, "+6281234567890", "destination.sms")
NO_LIMITS = SendLimits(timedelta(), 0, 0, 0)


@dataclass(slots=True)
class Clock:
    """Stands still, but for what a test moves it ahead."""

    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __call__(self) -> datetime:
        return self.time


@dataclass(frozen=True, slots=True)
class Windows:
    """Where the providers stand."""

    sandbox: ProvidersSandbox
    sandbox_url: str
    relay: Relay

    def channels(self, *, timeout_seconds: float = 5) -> dict[ChannelName, Channel]:
        """A channel of each kind, guarded as in production, with two providers for text messages."""
        templates, url = load_templates(None), self.sandbox_url
        email = SmtpSettings(
            "127.0.0.1", "no-reply@pulsa.example", "", self.relay.port, "none", timeout_seconds=timeout_seconds
        )
        whatsapp = WhatsAppSettings("1055", "token", "otp", base_url=url, timeout_seconds=timeout_seconds)
        twilio = TwilioSettings(
            "AC1", "token", "MG1", "", "https://callback.example/", base_url=url, timeout_seconds=timeout_seconds
        )
        vonage = VonageSettings("key", "secret", "Pulsa", base_url=url, timeout_seconds=timeout_seconds)
        guard = GuardSettings(breaker=BreakerSettings(failures_to_open=1_000_000))
        return {
            ChannelName.EMAIL: Guard(Smtp(email, templates), guard),
            ChannelName.WHATSAPP: Guard(WhatsApp(whatsapp), guard),
            ChannelName.SMS: Route([Guard(Twilio(twilio, templates), guard), Guard(Vonage(vonage, templates), guard)]),
        }


@dataclass(slots=True)
class Post:
    """What a test acts through and looks at. `crash` loses what is in memory; the next round begins anew."""

    pool: Pool
    channels: Mapping[ChannelName, Channel]
    limits: SendLimits = NO_LIMITS
    concurrency: int = 8
    queue: int = 1000
    fresh_for: timedelta = timedelta(seconds=1)
    clock: Clock = field(default_factory=Clock)
    vault: Vault = field(default_factory=lambda: Vault({"first": b"1" * 32}, digest_secret=b"2" * 32))
    closed: bool = False
    """The doors of this process are shut: what it accepts stays in the outbox."""
    outcomes: Outcomes = field(init=False)
    orders: Orders = field(init=False)
    dispatcher: Dispatcher = field(init=False)

    def __post_init__(self) -> None:
        batches: dict[str, Any] = {"batching": Batching(size=100, linger_seconds=0.001), "clock": self.clock}
        prices = {name: PRICES[name] for name in self.channels}
        targets = Targets(self.vault, prices)
        self.outcomes = Outcomes(self.pool, lease=LEASE, fallbacks=Fallbacks(targets, self.limits), **batches)
        sender = Sender(self.pool, limits=self.limits, lease=LEASE, hand_over=self._hand_over, clock=self.clock)
        self.orders = Orders(self.pool, self.vault, sender, channel_credits=prices, **batches)
        self.dispatcher = self._dispatcher()

    def _dispatcher(self) -> Dispatcher:
        return Dispatcher(
            self.channels,
            self.vault,
            self.outcomes,
            concurrency=self.concurrency,
            queue=self.queue,
            fresh_for=self.fresh_for,
            clock=self.clock,
        )

    def _hand_over(self, admitted: Sequence[Admitted]) -> None:
        if not self.closed:
            self.dispatcher.hand_over([errand_of(one, lease=LEASE) for one in admitted])

    async def close(self) -> None:
        await self.dispatcher.drain(0)
        for channel in self.channels.values():
            await channel.close()

    async def crash(self) -> None:
        """Lose every errand in memory, also those whose provider is just being asked."""
        await self.dispatcher.drain(0)
        self.dispatcher = self._dispatcher()

    async def idle(self) -> None:
        """Once everything that was handed over is done with."""
        async with asyncio.timeout(PATIENCE_SECONDS * 4):
            await self.dispatcher.idle()

    async def watch(self, *, ahead: timedelta = timedelta(), limit: int = 10_000) -> int:
        """One round of the night watch, that much later; then wait until its errands are done with."""
        self.clock.time += ahead
        taken = await watch_deliveries(
            self.pool, self.vault, self.dispatcher, lease=LEASE, now=self.clock(), limit=limit
        )
        await self.idle()
        return taken

    async def fund(self, credits: int, organization_id: str = ACME) -> None:
        await adjust_credits(
            self.pool,
            organization_id,
            request_id=uuid4(),
            credits=credits,
            reason="for the test",
            created_by="ann",
            low_balance_threshold=0,
            now=self.clock(),
        )

    async def send(self, address: Address = SMS, *fallbacks: Address, **changes: Any) -> Accepted:
        """Returns once it is handed over."""
        sent = await self.orders.send(ACME, lambda: order(address, *fallbacks, **changes), as_it_is)
        await asyncio.sleep(0)
        return sent

    async def preview(self, address: Address = SMS, *fallbacks: Address, **changes: Any) -> Preview:
        return await self.orders.preview(order(address, *fallbacks, **changes))

    async def deliver(self, address: Address = SMS, *fallbacks: Address, **changes: Any) -> list[Delivery]:
        """Send, wait until the providers have been asked, and give the OTP's deliveries."""
        accepted = await self.send(address, *fallbacks, **changes)
        await self.idle()
        return await self.deliveries(accepted)

    async def deliveries(self, accepted: Accepted) -> list[Delivery]:
        """As GetOtp shows them, oldest first."""
        otp = accepted.record.otp
        async with connection(self.pool) as lent:
            return list((await read_otp(lent, otp.organization_id, otp.otp_id)).deliveries)

    async def cancel(self, accepted: Accepted) -> None:
        otp = accepted.record.otp
        async with connection(self.pool) as lent:
            await cancel_otp(lent, otp.organization_id, otp.otp_id, now=self.clock())

    async def report(
        self, delivery: Delivery, status: DeliveryStatus, *, reason: str = "", refund_accepted: bool = False
    ) -> Delivery:
        return await report_delivery(
            self.pool,
            delivery.organization_id,
            delivery.delivery_id,
            status=status,
            failure_reason=reason,
            refund_accepted=refund_accepted,
            now=self.clock(),
        )

    async def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        async with connection(self.pool) as lent:
            return await (await lent.execute(query.encode(), parameters)).fetchall()

    async def credits(self, organization_id: str = ACME) -> int:
        query = "SELECT available_credits FROM accounts WHERE organization_id = %s"
        return int((await self.rows(query, organization_id))[0][0])

    async def ledger(self, organization_id: str = ACME) -> list[tuple[str, int, UUID]]:
        """Kind, credits and delivery of each entry since the account was funded, oldest first."""
        query = (
            "SELECT kind, credits, reference_id FROM ledger_entries"
            " WHERE organization_id = %s AND kind <> 'ADJUSTMENT' ORDER BY sequence"
        )
        return [(row[0], row[1], row[2]) for row in await self.rows(query, organization_id)]

    async def outbox_count(self) -> int:
        return int((await self.rows("SELECT count(*) FROM outbox"))[0][0])

    def errand(self, accepted: Accepted, **changes: Any) -> Errand:
        """The errand of a send, as its acceptance made it."""
        delivery = accepted.delivery
        opened = self.vault.unseal(delivery.destination_sealed or b"", organization_id=delivery.organization_id)
        otp, accepted_time = accepted.record.otp, delivery.create_time
        return replace(Errand(otp, delivery, opened, accepted_time + LEASE, accepted_time), **changes)


def order(address: Address, *fallbacks: Address, **changes: Any) -> SendOrder:
    """An order with a request_id of its own, for a code that works for five minutes."""
    contents = SendOrder(
        organization_id=ACME,
        request_id=uuid4(),
        request=b"as sent",
        address=address,
        fallbacks=fallbacks,
        purpose="login",
        locale="en",
        code_length=6,
        ttl=timedelta(minutes=5),
        max_attempts=5,
        context="",
        web_otp_domain="",
        metadata={},
    )
    return contents._replace(**changes)


OpenPost = Callable[..., Post]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Return once it holds; fail when it never does."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await holds():  # noqa: ASYNC110 - what is waited for lies in another system
            await asyncio.sleep(0.01)
