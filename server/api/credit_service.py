"""The credit service: converts requests into calls of server.credits, and their results into responses."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final
from uuid import UUID

from pulsa.credit.v1 import credit_service_pb2 as pb
from pulsa.credit.v1 import ledger_entry_pb2, receipt_pb2, top_up_pb2

from server.api.automatic_top_ups import AutomaticTopUpRpcs
from server.api.converters import (
    KINDS_BY_NUMBER,
    BalanceConverter,
    alerts_message,
    entry_message,
    moment,
    moment_or_none,
    money,
    past_balance_message,
    pricing_message,
    suspension_message,
    timestamp,
    top_up_message,
    top_up_status,
)
from server.api.interceptor import Call
from server.api.pagination import DEFAULT_PAGE_SIZE, PageTokens, filters_of, write_page
from server.credits.accounts import RequestMemory, resume, suspend
from server.credits.alerts import read_alerts, update_alerts
from server.credits.audit import audit_organization
from server.credits.balances import Balances, BalanceStreams
from server.credits.ledger import AuditKeys, LedgerEntry, adjust_credits, list_entries
from server.credits.pricing import Pricing
from server.credits.receipts import make_receipt
from server.credits.statement import (
    EntrySearch,
    Position,
    export_ledger,
    read_balance_at,
    read_runway,
    search_entries,
)
from server.credits.stripe.inbox import StripeInbox
from server.credits.top_ups.automatic_service import AutomaticTopUps
from server.credits.top_ups.service import Purchase, TopUps
from server.credits.top_ups.state_machine import Resolution, TopUp
from server.postgres.pool import Pool, acquire

# ruff: noqa: N802 - a method is named as its rpc

_LAST_SEQUENCE: Final = 2**63 - 1
_SEQUENCE_BITS: Final = 64
_LAST_ID: Final = 2**128 - 1
_RESPONSE_SECONDS = 0.5
"""Reserved before the caller's deadline to return the state that a top-up has reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditDependencies:
    """The dependencies of CreditService."""

    pool: Pool
    pricing: Pricing
    balances: Balances
    balance_streams: BalanceStreams
    top_ups: TopUps
    automatic_top_ups: AutomaticTopUps
    stripe_inbox: StripeInbox
    stripe_wait_seconds: float
    """Maximum wait of CreateTopUp and CancelTopUp for Stripe; the work continues after it."""
    deliveries_kept: timedelta | None
    """How long deliveries are kept; None: without a limit."""
    memory: RequestMemory = field(default_factory=RequestMemory)
    """Which requests are not known any more."""
    audit_keys: AuditKeys | None = None
    """Make and check the ledger's MACs; None: there are none."""


class CreditService(AutomaticTopUpRpcs):
    """pulsa.credit.v1.CreditService; each rpc is documented there. AutomaticTopUpRpcs has those of its name."""

    def __init__(self, dependencies: CreditDependencies) -> None:
        super().__init__(dependencies.automatic_top_ups)
        self._dependencies = dependencies
        self._get_balance = dependencies.balances.get
        self._balance_message = BalanceConverter(dependencies.pricing).convert
        self._pricing = pb.GetPricingResponse(pricing=pricing_message(dependencies.pricing))

    async def GetBalance(self, request: pb.GetBalanceRequest, _: Call) -> pb.GetBalanceResponse:
        """Return the current balance."""
        if request.HasField("time"):
            then = await read_balance_at(self._dependencies.pool, request.organization_id, moment(request.time))
            return pb.GetBalanceResponse(balance=past_balance_message(request.organization_id, then))
        balance = await self._get_balance(request.organization_id)
        response = pb.GetBalanceResponse(balance=self._balance_message(balance))
        if request.with_runway:
            pool = self._dependencies.pool
            runway_days = await read_runway(pool, request.organization_id, now=pool.now())
            if runway_days is not None:
                response.balance.runway_days = runway_days
        return response

    async def WatchBalance(
        self, request: pb.WatchBalanceRequest, _: Call
    ) -> AsyncGenerator[pb.WatchBalanceResponse, None]:
        """Stream the current balance and each change, until the caller, the server or the token's end ends it."""
        async with aclosing(self._dependencies.balance_streams.follow(request.organization_id)) as balances:
            async for balance in balances:
                yield pb.WatchBalanceResponse(balance=self._balance_message(balance))

    async def GetPricing(self, _: pb.GetPricingRequest, __: Call) -> pb.GetPricingResponse:
        """Return the current prices."""
        return self._pricing

    async def QuoteTopUp(self, request: pb.QuoteTopUpRequest, _: Call) -> pb.QuoteTopUpResponse:
        """Return what CreateTopUp would charge."""
        quoted = self._dependencies.top_ups.quote(credits=request.credits, currency_code=request.currency_code)
        return pb.QuoteTopUpResponse(
            unit_price=money(quoted.quote.unit_price),
            subtotal=money(quoted.quote.total),
            tax=money(quoted.tax),
            total=money(quoted.total_with_tax),
            tax_estimated=quoted.is_estimated,
        )

    async def CreateTopUp(self, request: pb.CreateTopUpRequest, call: Call) -> pb.CreateTopUpResponse:
        """Create a top-up and return it, with its invoice when Stripe answers in time."""
        purchase = Purchase(
            organization_id=request.organization_id,
            request_id=UUID(request.request_id),
            credits=request.credits,
            currency_code=request.currency_code,
            billing_email=request.billing_email,
            billing_name=request.billing_name,
            billing_address={field.name: value for field, value in request.billing_address.ListFields()},
            tax_id={"type": request.tax_id_type, "value": request.tax_id} if request.tax_id else {},
        )
        top_up = await self._dependencies.top_ups.create(
            purchase, created_by=call.caller.subject, wait_seconds=self._wait_seconds(call)
        )
        return pb.CreateTopUpResponse(top_up=top_up_message(top_up))

    async def GetTopUp(self, request: pb.GetTopUpRequest, _: Call) -> pb.GetTopUpResponse:
        """Return one top-up with current links."""
        top_up = await self._dependencies.top_ups.get(request.organization_id, UUID(request.top_up_id))
        return pb.GetTopUpResponse(top_up=top_up_message(top_up))

    async def ListTopUps(self, request: pb.ListTopUpsRequest, _: Call) -> pb.ListTopUpsResponse:
        """Return one page of top-ups, newest first."""
        statuses = sorted({top_up_status(number) for number in request.statuses})
        tokens = PageTokens("ListTopUps", request.organization_id, *statuses, newest=_LAST_ID)
        size = request.page_size or DEFAULT_PAGE_SIZE
        top_ups = await self._dependencies.top_ups.list(
            request.organization_id,
            statuses=statuses,
            before=UUID(int=tokens.read(request.page_token)),
            limit=size + 1,
        )
        response = pb.ListTopUpsResponse()
        if last := write_page(response.top_ups, top_ups, _write_top_up, size=size):
            response.next_page_token = tokens.write(last.top_up_id.int)
        return response

    async def CancelTopUp(self, request: pb.CancelTopUpRequest, call: Call) -> pb.CancelTopUpResponse:
        """Cancel a top-up and return its final state, or CANCELING when Stripe takes longer."""
        top_up = await self._dependencies.top_ups.cancel(
            request.organization_id, UUID(request.top_up_id), wait_seconds=self._wait_seconds(call)
        )
        return pb.CancelTopUpResponse(top_up=top_up_message(top_up))

    async def ResolveTopUp(self, request: pb.ResolveTopUpRequest, call: Call) -> pb.ResolveTopUpResponse:
        """End a top-up that needs a person."""
        resolution = Resolution(
            UUID(request.request_id), request.resolve_credits, request.reason, resolved_by=call.caller.subject
        )
        top_up = await self._dependencies.top_ups.resolve(request.organization_id, UUID(request.top_up_id), resolution)
        return pb.ResolveTopUpResponse(top_up=top_up_message(top_up))

    async def ListLedgerEntries(self, request: pb.ListLedgerEntriesRequest, _: Call) -> pb.ListLedgerEntriesResponse:
        """Return one page of ledger entries, newest first."""
        tokens = PageTokens("ListLedgerEntries", request.organization_id, *filters_of(request), newest=_LAST_SEQUENCE)
        size = request.page_size or DEFAULT_PAGE_SIZE
        before = tokens.read(request.page_token)
        search = EntrySearch(
            kinds=tuple(KINDS_BY_NUMBER[number] for number in request.kinds),
            reference_id=UUID(request.reference_id) if request.reference_id else None,
            start_time=moment_or_none(request, "start_time"),
            end_time=moment_or_none(request, "end_time"),
        )
        bound: int | None = None
        async with acquire(self._dependencies.pool) as connection:
            if search == EntrySearch():
                entries = await list_entries(
                    connection, request.organization_id, before_sequence=before, limit=size + 1
                )
            else:
                entries, bound = await search_entries(
                    connection, request.organization_id, search, before_sequence=before, limit=size + 1
                )
        response = pb.ListLedgerEntriesResponse()
        if last := write_page(response.ledger_entries, entries, _write_entry, size=size):
            bound = last.sequence
        if bound:
            response.next_page_token = tokens.write(bound)
        return response

    async def ExportLedger(
        self, request: pb.ExportLedgerRequest, _: Call
    ) -> AsyncGenerator[pb.ExportLedgerResponse, None]:
        """Stream the ledger as CSV, from the position of the resume_token."""
        months = (request.start_month, request.end_month)
        tokens = PageTokens("ExportLedger", request.organization_id, *months, newest=_LAST_ID, field="resume_token")
        position = tokens.read(request.resume_token) if request.resume_token else None
        parts = export_ledger(
            self._dependencies.pool,
            request.organization_id,
            *months,
            resume=None if position is None else Position(*divmod(position, 1 << _SEQUENCE_BITS)),
        )
        async with aclosing(parts):
            async for part in parts:
                yield pb.ExportLedgerResponse(
                    csv=part.csv,
                    resume_token="" if part.position is None else tokens.write(_number_of(part.position)),
                    exported_entries=part.exported_entries,
                    total_entries=part.total_entries,
                )

    async def GetReceipt(self, request: pb.GetReceiptRequest, _: Call) -> pb.GetReceiptResponse:
        """Return the proof of one entry."""
        receipt = await make_receipt(self._dependencies.pool, request.organization_id, request.sequence)
        return pb.GetReceiptResponse(receipt=receipt_pb2.Receipt(**receipt._asdict()))

    async def GetAlerts(self, request: pb.GetAlertsRequest, _: Call) -> pb.GetAlertsResponse:
        """Return the alert settings."""
        alerts = await read_alerts(
            self._dependencies.pool,
            request.organization_id,
            default_threshold=self._dependencies.pricing.low_balance_threshold,
        )
        return pb.GetAlertsResponse(alerts=alerts_message(alerts))

    async def UpdateAlerts(self, request: pb.UpdateAlertsRequest, _: Call) -> pb.UpdateAlertsResponse:
        """Update the alert settings that are given, and return all of them."""
        alerts = await update_alerts(
            self._dependencies.pool,
            request.organization_id,
            low_balance_threshold=request.low_balance_threshold if request.HasField("low_balance_threshold") else None,
            alert_email=request.alert_email if request.HasField("alert_email") else None,
            locale=request.locale if request.HasField("locale") else None,
            time_zone=request.time_zone if request.HasField("time_zone") else None,
            default_threshold=self._dependencies.pricing.low_balance_threshold,
            now=self._dependencies.pool.now(),
        )
        return pb.UpdateAlertsResponse(alerts=alerts_message(alerts), balance=self._balance_message(alerts.balance))

    async def AdjustCredits(self, request: pb.AdjustCreditsRequest, call: Call) -> pb.AdjustCreditsResponse:
        """Add or remove credits; return the ledger entry and the current balance."""
        entry, balance = await adjust_credits(
            self._dependencies.pool,
            request.organization_id,
            request_id=UUID(request.request_id),
            credits=request.adjust_credits,
            reason=request.reason,
            created_by=call.caller.subject,
            low_balance_threshold=self._dependencies.pricing.low_balance_threshold,
            now=self._dependencies.pool.now(),
            memory=self._dependencies.memory,
            audit_keys=self._dependencies.audit_keys,
        )
        return pb.AdjustCreditsResponse(ledger_entry=entry_message(entry), balance=self._balance_message(balance))

    async def SuspendOrganization(
        self, request: pb.SuspendOrganizationRequest, call: Call
    ) -> pb.SuspendOrganizationResponse:
        """Suspend an organization."""
        suspension = await suspend(
            self._dependencies.pool,
            request.organization_id,
            reason=request.reason,
            created_by=call.caller.subject,
            low_balance_threshold=self._dependencies.pricing.low_balance_threshold,
            now=self._dependencies.pool.now(),
        )
        return pb.SuspendOrganizationResponse(suspension=suspension_message(suspension))

    async def ResumeOrganization(self, request: pb.ResumeOrganizationRequest, _: Call) -> pb.ResumeOrganizationResponse:
        """End an organization's suspension."""
        suspension = await resume(self._dependencies.pool, request.organization_id)
        return pb.ResumeOrganizationResponse(suspension=suspension_message(suspension) if suspension else None)

    async def VerifyLedger(self, request: pb.VerifyLedgerRequest, _: Call) -> pb.VerifyLedgerResponse:
        """Audit one organization's ledger and return the findings."""
        report = await audit_organization(
            self._dependencies.pool,
            request.organization_id,
            deliveries_kept=self._dependencies.deliveries_kept,
            audit_keys=self._dependencies.audit_keys,
        )
        return pb.VerifyLedgerResponse(
            holds=report.holds,
            entry_count=report.entry_count,
            findings=[f"{finding.rule}: {finding.description}" for finding in report.findings],
            verify_time=timestamp(report.verify_time),
        )

    async def RecordStripeEvent(self, request: pb.RecordStripeEventRequest, _: Call) -> pb.RecordStripeEventResponse:
        """Store an event; OK means that it is stored."""
        event = await self._dependencies.stripe_inbox.record(request.payload, request.signature)
        return pb.RecordStripeEventResponse(event_id=event.event_id, duplicate=event.duplicate)

    def _wait_seconds(self, call: Call) -> float:
        remaining = call.deadline - time.monotonic() - _RESPONSE_SECONDS
        return max(0.0, min(self._dependencies.stripe_wait_seconds, remaining))


def _number_of(position: Position) -> int:
    return position.last_sequence << _SEQUENCE_BITS | position.sequence


def _write_top_up(message: top_up_pb2.TopUp, top_up: TopUp) -> None:
    message.CopyFrom(top_up_message(top_up))


def _write_entry(message: ledger_entry_pb2.LedgerEntry, entry: LedgerEntry) -> None:
    message.CopyFrom(entry_message(entry))
