"""Many sends under providers that answer anything, crashes, cancellations and reports: all of it from one seed."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from uuid import UUID

from server.clock import utc_now
from server.jobs import send_due_fallbacks, take_over_deliveries
from server.otps.delivery.reports import report_delivery
from server.otps.otp import DeliveryStatus
from server.otps.send import Accepted
from server.providers.guard import BreakerSettings, Guard, GuardSettings
from server.providers.provider import Channel, Message, Outcome, OutcomeKind, Provider
from server.providers.templates import load_templates
from server.providers.twilio import Twilio, TwilioSettings
from server.providers.whatsapp import WhatsApp, WhatsAppSettings
from server.sandbox.providers import Answer, Conduct, json_answer, twilio_error, whatsapp_error
from tests.integration.delivery.harness import LEASE, SMS, WHATSAPP, DeliveryHarness, OpenHarness, ProviderStandIns

ORGANIZATIONS = ("acme", "bolt", "cora")
CREDITS = 1_000_000
ANSWERS = {
    "twilio": {
        "accepted": json_answer({"sid": "SM1", "status": "queued"}, status=201),
        "unavailable": Answer(503),
        "reset": Answer(conduct=Conduct.RESET),
        "destination": twilio_error(21211),
        "configuration": twilio_error(21606),
        "busy": twilio_error(20429, status=429),
    },
    "whatsapp": {
        "accepted": json_answer({"messages": [{"id": "wamid.1"}]}),
        "unavailable": whatsapp_error(131000, status=500),
        "reset": Answer(conduct=Conduct.RESET),
        "destination": whatsapp_error(131026),
        "configuration": whatsapp_error(132000),
        "busy": whatsapp_error(131016),
    },
}
WEIGHTS = (50, 5, 3, 12, 5, 25)
MAY_HAVE_SENT = frozenset({"accepted", "unavailable", "reset"})


@dataclass(frozen=True, slots=True)
class Attempt:
    """One provider call; its outcome stays None when a crash interrupted it."""

    time: datetime
    message: Message
    outcome: list[Outcome] = field(default_factory=list)

    @property
    def kind(self) -> OutcomeKind | None:
        return self.outcome[0].kind if self.outcome else None


@dataclass(slots=True)
class CallRecord:
    """The provider calls, by delivery."""

    harness: DeliveryHarness | None = None
    attempts: defaultdict[UUID, list[Attempt]] = field(default_factory=lambda: defaultdict(list))


@dataclass(slots=True)
class RecordingProvider:
    """A provider whose calls are recorded."""

    inner: Provider
    record: CallRecord
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.inner.name

    async def deliver(self, message: Message) -> Outcome:
        assert self.record.harness is not None
        attempt = Attempt(self.record.harness.clock(), message)
        self.record.attempts[message.delivery_id].append(attempt)
        attempt.outcome.append(await self.inner.deliver(message))
        return attempt.outcome[0]

    async def close(self) -> None:
        await self.inner.close()


@dataclass(slots=True)
class Simulation:
    """Everything that happened, for a test to check afterwards."""

    harness: DeliveryHarness
    stand_ins: ProviderStandIns
    random: Random
    record: CallRecord
    plans: dict[str, list[str]]
    """What each provider answers, call by call."""
    sent: list[Accepted] = field(default_factory=list)
    cancel_times: dict[UUID, datetime] = field(default_factory=dict)
    """By OTP."""
    reported: dict[UUID, DeliveryStatus] = field(default_factory=dict)
    """The final status that the provider reports, by delivery."""
    crashes: int = 0

    async def run(self, sends: int, *, rounds: int) -> None:
        """Send all, with crashes, reports and cancellations in between; then go on until the outbox is empty."""
        for _ in range(rounds):
            await self._send(sends // rounds)
            if self.random.random() < 0.4:
                await self._crash()
            await self._round()
        while await self.harness.outbox_count():
            await self._round()
            await self.harness.idle()

    async def _send(self, count: int) -> None:
        sends = []
        for _ in range(count):
            first, second = self.random.sample([SMS, WHATSAPP], 2)
            sends.append(
                self.harness.send(
                    first,
                    *([second] if self.random.random() < 0.5 else []),
                    organization_id=self.random.choice(ORGANIZATIONS),
                    ttl=timedelta(seconds=self.random.choice([30, 60, 120])),
                )
            )
        self.sent += await asyncio.gather(*sends)

    async def _round(self) -> None:
        await self.harness.idle()
        await self._report()
        await self._cancel_some()
        self.harness.clock.now += timedelta(seconds=self.random.choice([1, 5, 20]))
        await take_over_deliveries(
            self.harness.pool,
            self.harness.crypto,
            self.harness.dispatcher,
            lease=LEASE,
            clock=self.harness.clock,
            limit=10_000,
        )
        now = self.harness.clock()
        await send_due_fallbacks(self.harness.pool, self.harness.outcomes, self.harness.dispatcher, now=now)

    async def _crash(self) -> None:
        """Crash after 1 to 49 more provider calls, or when no job is left."""
        wanted = self._call_count() + self.random.randrange(1, 50)
        while self._call_count() < wanted and self.harness.dispatcher._tasks:  # noqa: ASYNC110 - each turn is a step
            await asyncio.sleep(0)
        await self.harness.crash()
        self.crashes += 1

    def _call_count(self) -> int:
        return sum(map(len, self.record.attempts.values()))

    async def _cancel_some(self) -> None:
        for accepted in self.random.sample(self.sent, min(len(self.sent), 20)):
            otp = accepted.record.otp
            if otp.otp_id not in self.cancel_times and self.harness.clock() < otp.expire_time:
                await self.harness.cancel(accepted)
                self.cancel_times[otp.otp_id] = self.harness.clock()

    async def _report(self) -> None:
        """The providers' callbacks, some twice and in the wrong order, found by the reference that they echo."""
        references = self.possibly_sent()
        for reference in self.random.sample(references, 20) if len(references) > 20 else []:
            organization_id, _, delivery_id = reference.partition("/")
            final = self.random.choice([DeliveryStatus.DELIVERED, DeliveryStatus.FAILED])
            final = self.reported.setdefault(UUID(delivery_id), final)
            for status in self.random.choice([[final], [final, final], [final, DeliveryStatus.SENT]]):
                await report_delivery(
                    self.harness.pool,
                    organization_id,
                    UUID(delivery_id),
                    status=status,
                    failure_reason="reported" if status is DeliveryStatus.FAILED else "",
                    refund_accepted=True,
                    now=self.harness.clock(),
                )

    def possibly_sent(self) -> list[str]:
        """The references of messages that a provider accepted, or answered about in a way that leaves it open."""
        found, positions = [], dict.fromkeys(self.plans, 0)
        for call in self.stand_ins.sandbox.received:
            answer = self.plans[call.provider][positions[call.provider]]
            positions[call.provider] += 1
            if answer in MAY_HAVE_SENT:
                found.append(_reference(call.fields))
        return found


def new_simulation(open_harness: OpenHarness, stand_ins: ProviderStandIns, *, sends: int, seed: int) -> Simulation:
    """A simulation that has not begun; every provider stand-in has its answers."""
    random, record = Random(seed), CallRecord()  # noqa: S311 - a test's choices, repeatable from the seed
    plans = {name: random.choices(list(answers), WEIGHTS, k=sends * 10) for name, answers in ANSWERS.items()}
    for name, plan in plans.items():
        stand_ins.sandbox.play(name, *(ANSWERS[name][answer] for answer in plan))
    url, templates = stand_ins.sandbox_url, load_templates(None)
    twilio = TwilioSettings("AC1", "token", "MG1", "", "https://callback.example/", base_url=url)
    whatsapp = WhatsAppSettings("1055", "token", "otp", base_url=url)
    guard = GuardSettings(breaker=BreakerSettings(failures_to_open=1_000_000))
    harness = open_harness(
        {
            Channel.SMS: Guard(
                RecordingProvider(Twilio(twilio, templates, clock=utc_now), record), guard, clock=utc_now
            ),
            Channel.WHATSAPP: Guard(RecordingProvider(WhatsApp(whatsapp), record), guard, clock=utc_now),
        },
        concurrency=32,
        queue=500,
        fresh_for=timedelta(seconds=1),
    )
    record.harness = harness
    return Simulation(harness, stand_ins, random, record, plans)


def _reference(fields: object) -> str:
    assert isinstance(fields, dict)
    if "StatusCallback" in fields:
        return str(fields["StatusCallback"]).partition("reference=")[2].replace("%2F", "/")
    return str(fields["biz_opaque_callback_data"])
