"""The credit service: turns requests into calls of the credits room, and what it says into responses."""

# ruff: noqa: N802 - a method is named as its rpc

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from pulsa.credit.v1 import credit_service_pb2 as pb

from server.credits.adjustments import adjust_credits
from server.credits.alerts import update_alerts
from server.credits.audit import audit_organization
from server.credits.balance_watch import BalanceWatch
from server.credits.balances import Balances
from server.credits.ledger import list_entries
from server.credits.pricing import Pricing
from server.credits.stripe_events import StripeInbox
from server.credits.top_ups import Purchase, TopUps
from server.database.pool import Pool, connection
from server.rpc.credit_messages import (
    BalanceMessages,
    entry_message,
    pricing_message,
    top_up_message,
    top_up_status,
)
from server.rpc.door import Call
from server.rpc.messages import money, timestamp
from server.rpc.pages import DEFAULT_PAGE_SIZE, PageTokens

_LAST_SEQUENCE: Final = 2**63 - 1
_LAST_ID: Final = 2**128 - 1
_ANSWER_SECONDS = 0.5
"""Kept back from the caller's deadline, so that it hears how far a top-up has come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditRoom:
    """What the servicer works with."""

    pool: Pool
    pricing: Pricing
    balances: Balances
    balance_watch: BalanceWatch
    top_ups: TopUps
    stripe_inbox: StripeInbox
    stripe_wait_seconds: float
    """The longest that CreateTopUp and CancelTopUp wait for Stripe; the work goes on without them."""
    deliveries_kept: timedelta | None
    """How long retention keeps deliveries; None for ever."""


class CreditService:
    """pulsa.credit.v1.CreditService; each rpc is documented there."""

    def __init__(self, room: CreditRoom) -> None:
        self._room = room
        self._get_balance = room.balances.get
        self._balance_message = BalanceMessages(room.pricing).write
        self._pricing = pb.GetPricingResponse(pricing=pricing_message(room.pricing))

    async def GetBalance(self, request: pb.GetBalanceRequest, _: Call) -> pb.GetBalanceResponse:
        """The balance of now."""
        balance = await self._get_balance(request.organization_id)
        return pb.GetBalanceResponse(balance=self._balance_message(balance))

    async def WatchBalance(
        self, request: pb.WatchBalanceRequest, _: Call
    ) -> AsyncGenerator[pb.WatchBalanceResponse, None]:
        """The balance now and on each change; the door ends it."""
        async with aclosing(self._room.balance_watch.follow(request.organization_id)) as balances:
            async for balance in balances:
                yield pb.WatchBalanceResponse(balance=self._balance_message(balance))

    async def GetPricing(self, _: pb.GetPricingRequest, __: Call) -> pb.GetPricingResponse:
        """The prices in force."""
        return self._pricing

    async def QuoteTopUp(self, request: pb.QuoteTopUpRequest, _: Call) -> pb.QuoteTopUpResponse:
        """What CreateTopUp would charge."""
        quote = self._room.pricing.quote(credits=request.credits, currency_code=request.currency_code)
        return pb.QuoteTopUpResponse(unit_price=money(quote.unit_price), total=money(quote.total))

    async def CreateTopUp(self, request: pb.CreateTopUpRequest, call: Call) -> pb.CreateTopUpResponse:
        """The top-up, with its invoice when Stripe answered in time."""
        purchase = Purchase(
            organization_id=request.organization_id,
            request_id=UUID(request.request_id),
            credits=request.credits,
            currency_code=request.currency_code,
            billing_email=request.billing_email,
            billing_name=request.billing_name,
        )
        top_up = await self._room.top_ups.create(
            purchase, created_by=call.caller.subject, wait_seconds=self._wait_seconds(call)
        )
        return pb.CreateTopUpResponse(top_up=top_up_message(top_up))

    async def GetTopUp(self, request: pb.GetTopUpRequest, _: Call) -> pb.GetTopUpResponse:
        """One top-up with fresh links."""
        top_up = await self._room.top_ups.get(request.organization_id, UUID(request.top_up_id))
        return pb.GetTopUpResponse(top_up=top_up_message(top_up))

    async def ListTopUps(self, request: pb.ListTopUpsRequest, _: Call) -> pb.ListTopUpsResponse:
        """One page of the history."""
        statuses = sorted({top_up_status(number) for number in request.statuses})
        tokens = PageTokens("ListTopUps", request.organization_id, *statuses, newest=_LAST_ID)
        size = request.page_size or DEFAULT_PAGE_SIZE
        top_ups = await self._room.top_ups.list(
            request.organization_id,
            statuses=statuses,
            before=UUID(int=tokens.read(request.page_token)),
            limit=size + 1,
        )
        page = top_ups[:size]
        return pb.ListTopUpsResponse(
            top_ups=map(top_up_message, page),
            next_page_token=tokens.write(page[-1].top_up_id.int) if len(top_ups) > size else "",
        )

    async def CancelTopUp(self, request: pb.CancelTopUpRequest, call: Call) -> pb.CancelTopUpResponse:
        """The top-up as it ended, or CANCELING."""
        top_up = await self._room.top_ups.cancel(
            request.organization_id, UUID(request.top_up_id), wait_seconds=self._wait_seconds(call)
        )
        return pb.CancelTopUpResponse(top_up=top_up_message(top_up))

    async def ListLedgerEntries(self, request: pb.ListLedgerEntriesRequest, _: Call) -> pb.ListLedgerEntriesResponse:
        """One page of the ledger."""
        tokens = PageTokens("ListLedgerEntries", request.organization_id, newest=_LAST_SEQUENCE)
        size = request.page_size or DEFAULT_PAGE_SIZE
        before = tokens.read(request.page_token)
        async with connection(self._room.pool) as lent:
            entries = await list_entries(lent, request.organization_id, before_sequence=before, limit=size + 1)
        page = entries[:size]
        return pb.ListLedgerEntriesResponse(
            ledger_entries=map(entry_message, page),
            next_page_token=tokens.write(page[-1].sequence) if len(entries) > size else "",
        )

    async def UpdateAlerts(self, request: pb.UpdateAlertsRequest, _: Call) -> pb.UpdateAlertsResponse:
        """The alerts as they then stand."""
        alerts = await update_alerts(
            self._room.pool,
            request.organization_id,
            low_balance_threshold=request.low_balance_threshold if request.HasField("low_balance_threshold") else None,
            alert_email=request.alert_email if request.HasField("alert_email") else None,
            default_threshold=self._room.pricing.low_balance_threshold,
            now=datetime.now(UTC),
        )
        return pb.UpdateAlertsResponse(balance=self._balance_message(alerts.balance), alert_email=alerts.alert_email)

    async def AdjustCredits(self, request: pb.AdjustCreditsRequest, call: Call) -> pb.AdjustCreditsResponse:
        """The correction's ledger entry and the balance of now."""
        entry, balance = await adjust_credits(
            self._room.pool,
            request.organization_id,
            request_id=UUID(request.request_id),
            credits=request.adjust_credits,
            reason=request.reason,
            created_by=call.caller.subject,
            low_balance_threshold=self._room.pricing.low_balance_threshold,
            now=datetime.now(UTC),
        )
        return pb.AdjustCreditsResponse(ledger_entry=entry_message(entry), balance=self._balance_message(balance))

    async def VerifyLedger(self, request: pb.VerifyLedgerRequest, _: Call) -> pb.VerifyLedgerResponse:
        """What the audit of one organization found."""
        report = await audit_organization(
            self._room.pool, request.organization_id, deliveries_kept=self._room.deliveries_kept
        )
        return pb.VerifyLedgerResponse(
            holds=report.holds,
            entry_count=report.entry_count,
            findings=[f"{finding.rule}: {finding.description}" for finding in report.findings],
            verify_time=timestamp(report.verify_time),
        )

    async def RecordStripeEvent(self, request: pb.RecordStripeEventRequest, _: Call) -> pb.RecordStripeEventResponse:
        """OK once the event is stored."""
        event = await self._room.stripe_inbox.record(request.payload, request.signature)
        return pb.RecordStripeEventResponse(event_id=event.event_id, duplicate=event.duplicate)

    def _wait_seconds(self, call: Call) -> float:
        remaining = call.deadline - time.time() - _ANSWER_SECONDS
        return max(0.0, min(self._room.stripe_wait_seconds, remaining))
