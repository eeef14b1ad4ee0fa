"""Many sends under providers that answer anything, crashes, closings and reports: all of it from one seed."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from uuid import UUID

from server.channels.breaker import BreakerSettings
from server.channels.channel import Channel, ChannelName, Message, Outcome, OutcomeKind
from server.channels.guard import Guard, GuardSettings
from server.channels.templates import load_templates
from server.channels.twilio import Twilio, TwilioSettings
from server.channels.whatsapp import WhatsApp, WhatsAppSettings
from server.otps.orders import Accepted
from server.otps.otp import DeliveryStatus
from server.otps.reports import report_delivery
from server.sandbox.providers import Answer, Conduct, json_answer, twilio_error, whatsapp_error
from server.watch.deliveries import watch_deliveries
from tests.integration.deliveries.post import LEASE, SMS, WHATSAPP, OpenPost, Post, Windows

ORGANIZATIONS = ("acme", "bolt", "cora")
CREDITS = 1_000_000
TOOK = "took it"
ANSWERS = {
    "twilio": {
        TOOK: json_answer({"sid": "SM1", "status": "queued"}, status=201),
        "gone": Answer(503),
        "reset": Answer(conduct=Conduct.RESET),
        "destination": twilio_error(21211),
        "configuration": twilio_error(21606),
        "busy": twilio_error(20429, status=429),
    },
    "whatsapp": {
        TOOK: json_answer({"messages": [{"id": "wamid.1"}]}),
        "gone": whatsapp_error(131000, status=500),
        "reset": Answer(conduct=Conduct.RESET),
        "destination": whatsapp_error(131026),
        "configuration": whatsapp_error(132000),
        "busy": whatsapp_error(131016),
    },
}
WEIGHTS = (50, 5, 3, 12, 5, 25)
MAY_BE_OUT = frozenset({TOOK, "gone", "reset"})


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call of a provider; its outcome stays None when a crash cut it off."""

    time: datetime
    message: Message
    outcome: list[Outcome] = field(default_factory=list)

    @property
    def kind(self) -> OutcomeKind | None:
        return self.outcome[0].kind if self.outcome else None


@dataclass(slots=True)
class Notebook:
    """What went to the providers, by delivery."""

    post: Post | None = None
    attempts: defaultdict[UUID, list[Attempt]] = field(default_factory=lambda: defaultdict(list))


@dataclass(slots=True)
class Noted:
    """A provider whose calls are written down."""

    channel: Channel
    notebook: Notebook
    provider: str = field(init=False)

    def __post_init__(self) -> None:
        self.provider = self.channel.provider

    async def deliver(self, message: Message) -> Outcome:
        assert self.notebook.post is not None
        attempt = Attempt(self.notebook.post.clock(), message)
        self.notebook.attempts[message.delivery_id].append(attempt)
        attempt.outcome.append(await self.channel.deliver(message))
        return attempt.outcome[0]

    async def close(self) -> None:
        await self.channel.close()


@dataclass(slots=True)
class Storm:
    """Everything that happened, to be judged afterwards."""

    post: Post
    windows: Windows
    random: Random
    notebook: Notebook
    plans: dict[str, list[str]]
    """What each provider answers, call by call."""
    sent: list[Accepted] = field(default_factory=list)
    closings: dict[UUID, datetime] = field(default_factory=dict)
    reported: dict[UUID, DeliveryStatus] = field(default_factory=dict)
    crashes: int = 0

    async def rage(self, sends: int, *, rounds: int) -> None:
        """All sends, with everything else in between; then until nothing is left to do."""
        for _ in range(rounds):
            await self._send(sends // rounds)
            await self._round(calm=False)
        while await self.post.outbox_count():
            await self._round(calm=True)

    async def _send(self, count: int) -> None:
        orders = []
        for _ in range(count):
            first, second = self.random.sample([SMS, WHATSAPP], 2)
            orders.append(
                self.post.send(
                    first,
                    *([second] if self.random.random() < 0.5 else []),
                    organization_id=self.random.choice(ORGANIZATIONS),
                    ttl=timedelta(seconds=self.random.choice([30, 60, 120])),
                )
            )
        self.sent += await asyncio.gather(*orders)

    async def _round(self, *, calm: bool) -> None:
        if not calm and self.random.random() < 0.4:
            await self._crash()
        await self.post.idle()
        await self._report()
        await self._close_some()
        self.post.clock.time += timedelta(seconds=self.random.choice([1, 5, 20]))
        await watch_deliveries(
            self.post.pool, self.post.vault, self.post.dispatcher, lease=LEASE, now=self.post.clock(), limit=10_000
        )
        if calm:
            await self.post.idle()

    async def _crash(self) -> None:
        before = self._calls()
        wanted = before + self.random.randrange(1, 50)
        while before < wanted and self.post.dispatcher._tasks:
            await asyncio.sleep(0)
            before = self._calls()
        await self.post.crash()
        self.crashes += 1

    def _calls(self) -> int:
        return sum(map(len, self.notebook.attempts.values()))

    async def _close_some(self) -> None:
        for accepted in self.random.sample(self.sent, min(len(self.sent), 20)):
            otp = accepted.record.otp
            if otp.otp_id not in self.closings and self.post.clock() < otp.expire_time:
                await self.post.cancel(accepted)
                self.closings[otp.otp_id] = self.post.clock()

    async def _report(self) -> None:
        """The providers' callbacks, some twice and in the wrong order, found by the reference that they echo."""
        calls = self.random.sample(list(self.took_or_may_have()), 20) if len(self.took_or_may_have()) > 20 else []
        for reference in calls:
            organization_id, _, delivery_id = reference.partition("/")
            final = self.random.choice([DeliveryStatus.DELIVERED, DeliveryStatus.FAILED])
            final = self.reported.setdefault(UUID(delivery_id), final)
            for status in self.random.choice([[final], [final, final], [final, DeliveryStatus.SENT]]):
                await report_delivery(
                    self.post.pool,
                    organization_id,
                    UUID(delivery_id),
                    status=status,
                    failure_reason="reported" if status is DeliveryStatus.FAILED else "",
                    refund_accepted=True,
                    now=self.post.clock(),
                )

    def took_or_may_have(self) -> list[str]:
        """The references of messages that a provider took, or answered about in a way that leaves it open."""
        found, positions = [], dict.fromkeys(self.plans, 0)
        for call in self.windows.sandbox.received:
            answer = self.plans[call.provider][positions[call.provider]]
            positions[call.provider] += 1
            if answer in MAY_BE_OUT:
                found.append(_reference(call.fields))
        return found


def gather_clouds(open_post: OpenPost, windows: Windows, *, sends: int, seed: int) -> Storm:
    """A storm that has not begun: every provider knows what it will answer."""
    random, notebook = Random(seed), Notebook()  # noqa: S311 - a test's dice
    plans = {name: random.choices(list(answers), WEIGHTS, k=sends * 10) for name, answers in ANSWERS.items()}
    for name, plan in plans.items():
        windows.sandbox.play(name, *(ANSWERS[name][word] for word in plan))
    url, templates = windows.sandbox_url, load_templates(None)
    twilio = TwilioSettings("AC1", "token", "MG1", "", "https://callback.example/", base_url=url)
    whatsapp = WhatsAppSettings("1055", "token", "otp", base_url=url)
    guard = GuardSettings(breaker=BreakerSettings(failures_to_open=1_000_000))
    post = open_post(
        {
            ChannelName.SMS: Guard(Noted(Twilio(twilio, templates), notebook), guard),
            ChannelName.WHATSAPP: Guard(Noted(WhatsApp(whatsapp), notebook), guard),
        },
        concurrency=32,
        queue=500,
        fresh_for=timedelta(seconds=1),
    )
    notebook.post = post
    return Storm(post, windows, random, notebook, plans)


def _reference(fields: object) -> str:
    assert isinstance(fields, dict)
    if "StatusCallback" in fields:
        return str(fields["StatusCallback"]).partition("reference=")[2].replace("%2F", "/")
    return str(fields["biz_opaque_callback_data"])
