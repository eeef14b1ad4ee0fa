"""Performs the actions of one organization on two replicas and on a simple model, and compares the answers."""

import asyncio
from collections.abc import Awaitable
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from server.credits.ledger import adjust_credits
from server.errors import DomainError, InsufficientCredits, RetryLater
from server.ids import new_id
from server.otps.admission import Send, SendLimits
from server.otps.delivery.outbox import DeliveryJob, claim_due, find_due
from server.otps.delivery.outcome_policy import DeliveryResult
from server.otps.delivery.reports import report_delivery
from server.otps.guess_policy import GuessLimits
from server.otps.otp import DeliveryStatus, Otp, cancel_otp
from server.otps.send import Accepted
from server.postgres.pool import Pool, acquire
from server.providers.provider import Channel, Outcome, OutcomeKind
from tests.integration.otps.organization_model import ModelDelivery, OrganizationModel
from tests.integration.otps.replica import CRYPTO, LEASE, PRICES, ManualClock, Replica, ledger, stored, wrong
from tests.unit.otps.guesses import a_guess, verdict
from tests.unit.otps.sends import a_send, an_otp

SEND_LIMITS = SendLimits(timedelta(seconds=30), 3, 6, 7, unverified_window=timedelta(days=365))
"""Unverified credits are counted without a limit, in one window that is longer than every history."""
GUESS_LIMITS = GuessLimits(6, timedelta(hours=1), 2, timedelta(seconds=1), timedelta(seconds=30))
LOW = 5


@dataclass(frozen=True)
class SentRequest:
    """A request that was sent, and may be sent again."""

    request_id: UUID
    channel: Channel
    destination: str


@dataclass
class OrganizationDriver:
    """Each method performs one action on a replica and on the model, and asserts that both answer the same."""

    organization_id: str
    pools: tuple[Pool, Pool]
    clock: ManualClock = field(default_factory=ManualClock)
    requests: list[SentRequest] = field(default_factory=list)
    otps: list[Otp] = field(default_factory=list)
    jobs: dict[UUID, DeliveryJob] = field(default_factory=dict)
    """The latest delivery job of each delivery."""

    def __post_init__(self) -> None:
        self.model = OrganizationModel(SEND_LIMITS, GUESS_LIMITS, LOW)
        self.replicas = [
            Replica(pool, limits=SEND_LIMITS, guess_limits=GUESS_LIMITS, clock=self.clock) for pool in self.pools
        ]
        self.replica = self.replicas[0]

    async def wait(self, seconds: int) -> None:
        self.clock.advance(seconds=seconds)
        # The next calls go to the other replica.
        self.replicas.reverse()
        self.replica = self.replicas[0]

    async def adjust(self, credits: int) -> None:
        adjusting = adjust_credits(
            self.replica.pool,
            self.organization_id,
            request_id=new_id(),
            credits=credits,
            reason="test",
            created_by="test",
            low_balance_threshold=LOW,
            now=self.clock(),
        )
        answer = await answer_of(adjusting)
        assert isinstance(answer, InsufficientCredits) is not self.model.adjust(credits)

    async def send(self, person: int, channel: Channel) -> None:
        to = f"person-{person}@example.com" if channel is Channel.EMAIL else f"+628123456789{person}"
        self.requests.append(SentRequest(UUID(int=len(self.requests) + 1), channel, to))
        await self.send_again(len(self.requests) - 1)

    async def send_again(self, number: int, contents: str = "") -> None:
        request = self.requests[number]
        sending = self._send(request, self.replica, contents)
        self._compare_sends([await answer_of(sending)], [self._expected(request, contents)])

    async def send_concurrently(self, count: int) -> None:
        first = len(self.requests) + 1
        requests = [
            SentRequest(UUID(int=number), Channel.EMAIL, f"guest-{number}@example.com")
            for number in range(first, first + count)
        ]
        self.requests += requests
        answers = await asyncio.gather(
            *(answer_of(self._send(request, self.replicas[number % 2])) for number, request in enumerate(requests))
        )
        # The order of concurrent calls is unknown; the balances after them show it.
        decided = sorted(
            zip(answers, requests, strict=True),
            key=lambda pair: -pair[0].delivery.balance_after if isinstance(pair[0], Accepted) else 1,
        )
        self._compare_sends([answer for answer, _ in decided], [self._expected(request) for _, request in decided])

    async def resend(self, number: int) -> None:
        otp = self.otps[number]
        request_id = UUID(int=len(self.requests) + 1)
        last = self.model.deliveries_of(otp.otp_id)[-1]
        # Only so that the number is used: `send_again` does not repeat a resend.
        self.requests.append(
            SentRequest(request_id, last.channel, self.jobs[last.delivery_id].send.recipient.destination)
        )
        model_send = a_send(deepcopy(otp), request_id=request_id.int, credits=last.credits, resend=True)
        answer = await answer_of(self.replica.resend(otp, request_id=request_id))
        self._compare_sends([answer], [model_send])

    async def guess(self, number: int, *, right: bool, request_id: int) -> None:
        otp = self.otps[number]
        code = CRYPTO.code_of(otp) if right else wrong(otp)
        answer = await answer_of(self.replica.verify(otp, code, request_id=UUID(int=request_id)))
        guess = a_guess(otp.otp_id, right=right, request_id=request_id)
        assert verdict(answer) == self.model.guesses.decide(guess, self.clock())

    async def cancel(self, number: int) -> None:
        otp = self.otps[number]
        async with acquire(self.replica.pool) as connection:
            answer = await answer_of(cancel_otp(connection, self.organization_id, otp.otp_id, now=self.clock()))
        assert isinstance(answer, DomainError) is not self.model.cancel(otp.otp_id, self.clock())

    async def record_outcome(self, number: int, kind: OutcomeKind) -> None:
        delivery = self.model.deliveries[number]
        job = self.jobs[delivery.delivery_id]
        await self.replica.outcomes.record([DeliveryResult(job, Outcome(kind, "console"))])
        self.model.record_outcome(delivery, kind, self.clock(), held_until=job.lease_expire_time, attempts=job.attempts)

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
        pool, due = self.replica.pool, await find_due(self.replica.pool, now=now)
        keys = [(self.organization_id, delivery_id) for delivery_id in due.get(self.organization_id, [])]
        jobs = await claim_due(pool, CRYPTO, keys, lease=LEASE, clock=self.clock) if keys else []
        assert {one.send.delivery_id for one in jobs} == self.model.take_over(now, now + LEASE)
        for job in jobs:
            assert job.send.recipient.destination == self.jobs[job.send.delivery_id].send.recipient.destination
            self.jobs[job.send.delivery_id] = job

    async def compare(self) -> None:
        """Assert that the database holds what the model has."""
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

        assert await self._counted_credits() == self.model.unverified_credits(self.clock())

    async def _counted_credits(self) -> int:
        async with acquire(self.replica.pool) as connection:
            rows = await connection.execute(
                "SELECT credits FROM unverified_credits WHERE organization_id = %s", [self.organization_id]
            )
            return sum([int(row[0]) for row in await rows.fetchall()])

    async def _send(self, request: SentRequest, replica: Replica, contents: str = "") -> Accepted:
        return await replica.send(
            request.destination,
            organization_id=self.organization_id,
            request_id=request.request_id,
            web_otp_domain=contents,
            channel=request.channel,
            max_attempts=3,
        )

    def _expected(self, request: SentRequest, contents: str = "") -> Send:
        otp = an_otp(organization_id=self.organization_id, destination=CRYPTO.digest(request.destination))
        return a_send(
            otp, request_id=request.request_id.int, fingerprint=contents.encode(), credits=PRICES[request.channel]
        )

    def _compare_sends(self, answers: list[Any], sends: list[Send]) -> None:
        for answer, send in zip(answers, sends, strict=True):
            expected = self.model.send(send, self.clock())
            assert _summary(answer) == expected
            if expected[0] == "Admitted":
                self._remember(answer, resend=send.resent is not None)

    def _remember(self, accepted: Accepted, *, resend: bool) -> None:
        delivery, now = accepted.delivery, self.clock()
        replica = next(one for one in self.replicas if any(sent.delivery == delivery for sent in one.accepted))
        self.jobs[delivery.delivery_id] = replica.job(accepted)
        self.model.remember(
            ModelDelivery(delivery.delivery_id, delivery.otp_id, delivery.channel, delivery.credits, now + LEASE),
            deepcopy(accepted.record.otp),
        )
        if not resend:
            self.otps.append(accepted.record.otp)


async def answer_of(call: Awaitable[Any]) -> Any:
    """What a call returns, or the error that it raises."""
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
