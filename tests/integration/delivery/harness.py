"""Sends and their deliveries between a real PostgreSQL and stand-ins of the providers, each over its own protocol."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from server.clock import utc_now
from server.credits.ledger import adjust_credits
from server.jobs import send_due_fallbacks, take_over_deliveries
from server.otps.admission import Admitted, SendLimits, SendOptions
from server.otps.crypto import Crypto
from server.otps.delivery.dispatcher import Dispatcher
from server.otps.delivery.outbox import DeliveryJob, job_for, stored_job
from server.otps.delivery.outcomes import Fallbacks, Outcomes
from server.otps.delivery.reports import report_delivery
from server.otps.guess_policy import Guess, GuessLimits
from server.otps.otp import Delivery, DeliveryStatus, Otp, cancel_otp, read_otp
from server.otps.previews import Preview
from server.otps.recipients import RawDestination, RecipientResolver, SendRequest
from server.otps.send import Accepted, Sender
from server.otps.verify import Verifier
from server.postgres.batcher import Batching
from server.postgres.pool import Pool, acquire
from server.providers.guard import BreakerSettings, Guard, GuardSettings
from server.providers.provider import Channel, Provider
from server.providers.routing import Route
from server.providers.smtp import Smtp, SmtpSettings
from server.providers.templates import load_templates
from server.providers.twilio import Twilio, TwilioSettings
from server.providers.vonage import Vonage, VonageSettings
from server.providers.whatsapp import WhatsApp, WhatsAppSettings
from server.sandbox.providers import ProvidersSandbox
from server.sandbox.relay import Relay
from tests.integration.otps.batched_sender import BatchedSender
from tests.integration.otps.replica import ManualClock

ACME = "acme"
PRICES = {Channel.EMAIL: 1, Channel.WHATSAPP: 2, Channel.SMS: 3}
LEASE = timedelta(seconds=60)
TIMEOUT_SECONDS = 15
EMAIL = RawDestination(Channel.EMAIL, "bob@example.com", "destination.email")
WHATSAPP = RawDestination(Channel.WHATSAPP, "+6281234567890", "destination.whatsapp")
SMS = RawDestination(Channel.SMS, "+6281234567890", "destination.sms")
NO_LIMITS = SendLimits(timedelta(), 0, 0, 0)


@dataclass(frozen=True, slots=True)
class ProviderStandIns:
    """The stand-ins of Twilio, Vonage and WhatsApp, and a mail relay."""

    sandbox: ProvidersSandbox
    sandbox_url: str
    relay: Relay

    def providers(self, *, timeout_seconds: float = 5) -> dict[Channel, Provider]:
        """A provider for each channel, guarded as in production; text messages have a route of two."""
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
            Channel.EMAIL: Guard(Smtp(email, templates, clock=utc_now), guard, clock=utc_now),
            Channel.WHATSAPP: Guard(WhatsApp(whatsapp), guard, clock=utc_now),
            Channel.SMS: Route(
                [
                    Guard(Twilio(twilio, templates, clock=utc_now), guard, clock=utc_now),
                    Guard(Vonage(vonage, templates, clock=utc_now), guard, clock=utc_now),
                ]
            ),
        }


@dataclass(slots=True)
class DeliveryHarness:
    """What a test acts through and looks at: one replica with its providers."""

    pool: Pool
    providers: Mapping[Channel, Provider]
    limits: SendLimits = NO_LIMITS
    concurrency: int = 8
    queue: int = 1000
    fresh_for: timedelta = timedelta(seconds=1)
    clock: ManualClock = field(default_factory=lambda: ManualClock(datetime.now(UTC)))
    crypto: Crypto = field(default_factory=lambda: Crypto({"first": b"1" * 32}, digest_secrets={"d1": b"2" * 32}))
    long_calls: Collection[Channel] = ()
    dispatches: bool = True
    """False: nothing that is accepted reaches the dispatcher, and all of it stays in the outbox."""
    recipients: RecipientResolver = field(init=False)
    outcomes: Outcomes = field(init=False)
    sender: Sender = field(init=False)
    batched_sender: BatchedSender = field(init=False)
    dispatcher: Dispatcher = field(init=False)

    def __post_init__(self) -> None:
        batching = Batching(size=100, linger_seconds=0.001, shards=self.pool.shards)
        self.recipients = RecipientResolver(self.crypto, {channel: PRICES[channel] for channel in self.providers})
        fallbacks = Fallbacks(self.recipients, self.limits)
        self.outcomes = Outcomes(self.pool, batching=batching, lease=LEASE, fallbacks=fallbacks, clock=self.clock)
        self.sender = Sender(
            self.pool,
            self.crypto,
            self.recipients,
            limits=self.limits,
            lease=LEASE,
            dispatch=self._dispatch,
            clock=self.clock,
        )
        self.batched_sender = BatchedSender(self.sender, batching)
        self.dispatcher = self._new_dispatcher()

    def _new_dispatcher(self) -> Dispatcher:
        return Dispatcher(
            self.providers,
            self.crypto,
            self.outcomes,
            concurrency=self.concurrency,
            queue=self.queue,
            fresh_for=self.fresh_for,
            long_calls=self.long_calls,
            clock=self.clock,
        )

    def _dispatch(self, admitted: Sequence[Admitted]) -> None:
        if self.dispatches:
            self.dispatcher.enqueue([job_for(one, lease=LEASE) for one in admitted])

    async def close(self) -> None:
        await self.dispatcher.drain(0)
        for provider in self.providers.values():
            await provider.close()

    async def crash(self) -> None:
        """Lose every job in memory, also those whose provider is being called."""
        await self.dispatcher.drain(0)
        self.dispatcher = self._new_dispatcher()

    async def idle(self) -> None:
        """Return once every job that was enqueued has ended."""
        async with asyncio.timeout(TIMEOUT_SECONDS * 4):
            await self.dispatcher.idle()

    async def take_over(self, *, after: timedelta = timedelta(), limit: int = 10_000) -> int:
        """Move the clock by `after`, run the take-over job once and wait for its deliveries; returns how many."""
        self.clock.now += after
        taken = await take_over_deliveries(
            self.pool, self.crypto, self.dispatcher, lease=LEASE, clock=self.clock, limit=limit
        )
        await self.idle()
        return taken

    async def fall_back(self, *, after: timedelta = timedelta()) -> int:
        """Move the clock by `after`, run the job of due fallbacks once and wait for them; returns how many."""
        self.clock.now += after
        sent = await send_due_fallbacks(self.pool, self.outcomes, self.dispatcher, now=self.clock())
        await self.idle()
        return sent

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

    async def send(self, destination: RawDestination = SMS, *fallbacks: RawDestination, **changes: Any) -> Accepted:
        """Send a new OTP; returns once it is dispatched."""
        sent = await self.batched_sender.send(send_request(destination, *fallbacks, **changes))
        await asyncio.sleep(0)
        return sent

    async def preview(self, destination: RawDestination = SMS, *fallbacks: RawDestination, **changes: Any) -> Preview:
        (preview,) = await self.sender.preview([send_request(destination, *fallbacks, **changes)])
        return preview

    async def verify(self, accepted: Accepted) -> None:
        """Guess the right code of a send's OTP."""
        otp = accepted.record.otp
        verifier = Verifier(self.pool, self.crypto, limits=GuessLimits(), clock=self.clock)
        guess = Guess(ACME, otp.otp_id, uuid4(), self.crypto.code_of(otp), "")
        assert [type(answer) for answer in await verifier.verify([guess])] == [Otp]

    async def deliver(
        self, destination: RawDestination = SMS, *fallbacks: RawDestination, **changes: Any
    ) -> list[Delivery]:
        """Send a new OTP, wait until its providers have answered, and return its deliveries."""
        accepted = await self.send(destination, *fallbacks, **changes)
        await self.idle()
        return await self.deliveries(accepted)

    async def deliveries(self, accepted: Accepted) -> list[Delivery]:
        """As GetOtp shows them, oldest first."""
        otp = accepted.record.otp
        async with acquire(self.pool) as connection:
            return list((await read_otp(connection, otp.organization_id, otp.otp_id)).deliveries)

    async def cancel(self, accepted: Accepted) -> None:
        otp = accepted.record.otp
        async with acquire(self.pool) as connection:
            await cancel_otp(connection, otp.organization_id, otp.otp_id, now=self.clock())

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
        async with acquire(self.pool) as connection:
            return await (await connection.execute(query.encode(), parameters)).fetchall()

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

    def job(self, accepted: Accepted, **changes: Any) -> DeliveryJob:
        """The delivery job that accepting a send made."""
        delivery = accepted.delivery
        sealed = delivery.destination_sealed or b""
        destination = self.crypto.unseal(sealed, organization_id=delivery.organization_id)
        otp, accepted_time = accepted.record.otp, delivery.create_time
        times = {"lease_expire_time": accepted_time + LEASE, "read_time": accepted_time}
        return stored_job(otp, delivery, destination, **(times | changes))


def send_request(destination: RawDestination, *fallbacks: RawDestination, **changes: Any) -> SendRequest:
    """A request with a request_id of its own, for a code that works for five minutes."""
    request = SendRequest(
        organization_id=ACME,
        request_id=uuid4(),
        destination=destination,
        options=SendOptions("login", "en", 6, timedelta(minutes=5), 5, ""),
        fallbacks=fallbacks,
    )
    options = {name: changes.pop(name) for name in SendOptions._fields if name in changes}
    return request._replace(options=request.options._replace(**options), **changes)


OpenHarness = Callable[..., DeliveryHarness]
