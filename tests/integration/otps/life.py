"""A whole organization's life, played through the rooms of two replicas and through a simple model at once."""

import asyncio
from collections.abc import Awaitable
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from server.channels.channel import ChannelName, Outcome, OutcomeKind
from server.credits.adjustments import adjust_credits
from server.database.pool import Pool, connection
from server.errors import DomainError, InsufficientCredits, RetryLater
from server.ids import new_id
from server.otps.admission import Send
from server.otps.errands import Errand
from server.otps.guessing import GuessLimits
from server.otps.limits import SendLimits
from server.otps.orders import Accepted
from server.otps.otp import DeliveryStatus, Otp
from server.otps.outbox import claim_due
from server.otps.reading import cancel_otp
from server.otps.reports import report_delivery
from server.otps.settlement import Report
from tests.integration.otps.life_model import LifeModel, ModelDelivery
from tests.integration.otps.replica import LEASE, PRICES, VAULT, HandClock, Replica, ledger, stored, wrong
from tests.unit.otps.books import a_send, an_otp
from tests.unit.otps.guesses import a_guess, verdict

SEND_LIMITS = SendLimits(timedelta(seconds=30), 3, 6, 7)
GUESS_LIMITS = GuessLimits(6, timedelta(hours=1), 2, timedelta(seconds=1), timedelta(seconds=30))
LOW = 5


@dataclass(frozen=True)
class Order:
    """What a caller sends, and may send again."""

    request_id: UUID
    channel: ChannelName
    destination: str


@dataclass
class Life:
    """Each method does one thing to both, and asserts that both say the same."""

    organization_id: str
    pools: tuple[Pool, Pool]
    clock: HandClock = field(default_factory=HandClock)
    orders: list[Order] = field(default_factory=list)
    otps: list[Otp] = field(default_factory=list)
    errands: dict[UUID, Errand] = field(default_factory=dict)
    """The latest of each delivery."""

    def __post_init__(self) -> None:
        self.model = LifeModel(SEND_LIMITS, GUESS_LIMITS, LOW)
        self.replicas = [
            Replica(pool, limits=SEND_LIMITS, guess_limits=GUESS_LIMITS, clock=self.clock) for pool in self.pools
        ]
        self.replica = self.replicas[0]

    async def wait(self, seconds: int) -> None:
        self.clock.advance(seconds=seconds)
        # Whichever replica a caller meets next.
        self.replicas.reverse()
        self.replica = self.replicas[0]

    async def adjust(self, credits: int) -> None:
        adjusting = adjust_credits(
            self.replica.pool,
            self.organization_id,
            request_id=new_id(),
            credits=credits,
            reason="life",
            created_by="test",
            low_balance_threshold=LOW,
            now=self.clock(),
        )
        answer = await answer_of(adjusting)
        assert isinstance(answer, InsufficientCredits) is not self.model.adjust(credits)

    async def send(self, person: int, channel: ChannelName) -> None:
        to = f"person-{person}@example.com" if channel is ChannelName.EMAIL else f"+628123456789{person}"
        self.orders.append(Order(UUID(int=len(self.orders) + 1), channel, to))
        await self.send_again(len(self.orders) - 1)

    async def send_again(self, number: int, request: bytes = b"") -> None:
        order = self.orders[number]
        sending = self._sending(order, self.replica, request)
        self._compare_sends([await answer_of(sending)], [self._expected(order, request)])

    async def send_at_once(self, count: int) -> None:
        first = len(self.orders) + 1
        orders = [
            Order(UUID(int=number), ChannelName.EMAIL, f"guest-{number}@example.com")
            for number in range(first, first + count)
        ]
        self.orders += orders
        answers = await asyncio.gather(
            *(answer_of(self._sending(order, self.replicas[number % 2])) for number, order in enumerate(orders))
        )
        # Whose call came first is nobody's to say: in the order of the balances they left.
        answers.sort(key=lambda answer: -answer.delivery.balance_after if isinstance(answer, Accepted) else 1)
        accepted = [answer for answer in answers if isinstance(answer, Accepted)]
        by_request = {order.request_id: order for order in orders}
        won = [by_request.pop(answer.delivery.request_id) for answer in accepted]
        self._compare_sends(answers, [self._expected(order) for order in [*won, *by_request.values()]])

    async def resend(self, number: int) -> None:
        otp = self.otps[number]
        request_id = UUID(int=len(self.orders) + 1)
        last = self.model.deliveries_of(otp.otp_id)[-1]
        # Only takes the number: a resend is not sent again by `send_again`.
        self.orders.append(Order(request_id, last.channel, self.errands[last.delivery_id].destination))
        model_send = a_send(deepcopy(otp), request_id=request_id.int, credits=last.credits, resend=True)
        answer = await answer_of(self.replica.resend(otp, request_id=request_id))
        self._compare_sends([answer], [model_send])

    async def guess(self, number: int, *, right: bool, request_id: int) -> None:
        otp = self.otps[number]
        code = VAULT.code_of(otp) if right else wrong(otp)
        answer = await answer_of(self.replica.verify(otp, code, request_id=UUID(int=request_id)))
        guess = a_guess(otp.otp_id, right=right, request_id=request_id)
        assert verdict(answer) == self.model.guesses.decide(guess, self.clock())

    async def cancel(self, number: int) -> None:
        otp = self.otps[number]
        async with connection(self.replica.pool) as lent:
            answer = await answer_of(cancel_otp(lent, self.organization_id, otp.otp_id, now=self.clock()))
        assert isinstance(answer, DomainError) is not self.model.cancel(otp.otp_id, self.clock())

    async def outcome(self, number: int, kind: OutcomeKind) -> None:
        delivery = self.model.deliveries[number]
        errand = self.errands[delivery.delivery_id]
        await self.replica.outcomes.record([Report(errand, Outcome(kind, "console"))])
        self.model.outcome(delivery, kind, self.clock(), held_until=errand.lease_expire_time, attempts=errand.attempts)

    async def report(self, number: int, status: DeliveryStatus, *, refund_accepted: bool) -> None:
        delivery = self.model.deliveries[number]
        reported = await report_delivery(
            self.replica.pool,
            self.organization_id,
            delivery.delivery_id,
            status=status,
            failure_reason="",
            refund_accepted=refund_accepted,
            now=self.clock(),
        )
        self.model.report(delivery, status, refund_accepted=refund_accepted)
        assert (reported.status, reported.refunded) == (delivery.status, delivery.refunded)

    async def take_over(self) -> None:
        now = self.clock()
        errands = await claim_due(self.replica.pool, VAULT, self.organization_id, lease=LEASE, now=now, limit=1000)
        assert {one.delivery.delivery_id for one in errands} == self.model.take_over(now, now + LEASE)
        for errand in errands:
            assert errand.destination == self.errands[errand.delivery.delivery_id].destination
            self.errands[errand.delivery.delivery_id] = errand

    async def compare(self) -> None:
        """Everything that is stored is what the model has."""
        entries = await ledger(self.replica.pool, self.organization_id)
        assert [entry.credits for entry in entries] == self.model.ledger
        assert entries[-1].balance_after == self.model.sends.credits
        for otp in self.otps:
            record = await stored(self.replica.pool, otp)
            status, attempts = self.model.otp(otp.otp_id, self.clock())
            assert (record.otp.status_at(self.clock()), record.otp.attempts) == (status, attempts)
            assert [(one.delivery_id, one.status, one.refunded, one.credits) for one in record.deliveries] == [
                (one.delivery_id, one.status, one.refunded, one.credits)
                for one in sorted(self.model.deliveries_of(otp.otp_id), key=lambda one: one.delivery_id)
            ]

    async def _sending(self, order: Order, replica: Replica, request: bytes = b"") -> Accepted:
        return await replica.send(
            order.destination,
            organization_id=self.organization_id,
            request_id=order.request_id,
            request=request,
            channel=order.channel,
            max_attempts=3,
        )

    def _expected(self, order: Order, request: bytes = b"") -> Send:
        otp = an_otp(organization_id=self.organization_id, destination=VAULT.digest(order.destination))
        return a_send(otp, request_id=order.request_id.int, fingerprint=request, credits=PRICES[order.channel])

    def _compare_sends(self, answers: list[Any], sends: list[Send]) -> None:
        for answer, send in zip(answers, sends, strict=True):
            expected = self.model.send(send, self.clock())
            assert _summary(answer) == expected
            if expected[0] == "Admitted":
                self._remember(answer, resend=send.resend)

    def _remember(self, accepted: Accepted, *, resend: bool) -> None:
        delivery, now = accepted.delivery, self.clock()
        replica = next(one for one in self.replicas if any(sent.delivery is delivery for sent in one.accepted))
        self.errands[delivery.delivery_id] = replica.errand(accepted)
        self.model.remember(
            ModelDelivery(delivery.delivery_id, delivery.otp_id, delivery.channel, delivery.credits, now + LEASE),
            deepcopy(accepted.record.otp),
        )
        if not resend:
            self.otps.append(accepted.record.otp)


async def answer_of(call: Awaitable[Any]) -> Any:
    """What a call returns, or the error that a caller would meet."""
    try:
        return await call
    except DomainError as error:
        return error


def _summary(answer: Accepted | DomainError) -> tuple[object, ...]:
    match answer:
        case Accepted():
            kind = "Replayed" if answer.replayed else "Admitted"
            return (kind, answer.delivery.balance_after, answer.low_balance)
        case RetryLater():
            return ("wait", timedelta(seconds=answer.retry_after_seconds))
        case _:
            return (type(answer).__name__,)
