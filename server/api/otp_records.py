"""The rpcs of the OTP service that read and change what is stored of OTPs, one call at a time."""

# ruff: noqa: N802 - a method is named as its rpc

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final
from uuid import UUID

from pulsa.otp.v1 import destination_pb2, otp_pb2
from pulsa.otp.v1 import otp_service_pb2 as pb

from server.api.auth import ANY_ORGANIZATION
from server.api.converters import (
    CHANNELS_BY_NUMBER,
    OTP_STATUSES_BY_NUMBER,
    SUPPRESSION_REASONS,
    conversion_message,
    moment_or_none,
    reported_status,
    suppression_message,
    usage_message,
    write_delivery,
    write_record,
)
from server.api.interceptor import Call
from server.api.otp_settings import SettingsDependencies
from server.api.pagination import DEFAULT_PAGE_SIZE, PageTokens, filters_of, write_page
from server.clock import Clock
from server.errors import DeliveryNotFound
from server.events.log import EventSwitches
from server.otps.crypto import Crypto
from server.otps.delivery.reports import report_delivery
from server.otps.delivery.suppressions import SuppressionReason, Suppressions
from server.otps.otp import OtpRecord, cancel_otp, list_otps, read_otp
from server.otps.recipients import RawDestination, RecipientResolver
from server.otps.retention import erase_destination
from server.otps.search import OtpSearch, search_otps
from server.otps.send import Sender
from server.otps.usage import Conversion, DailyUsage, read_conversions, read_usage
from server.otps.verify import Verifier
from server.postgres.batcher import Batching
from server.postgres.pool import Connection, Pool, run_idempotent
from server.providers.provider import Channel

_LAST_ID: Final = 2**128 - 1
_USAGE_READS_AT_ONCE: Final = 2
"""The rest of the connections is for calls that do not count the sends of months."""
_CHANNELS: Final = {channel.field: channel for channel in Channel}


@dataclass(frozen=True, slots=True, kw_only=True)
class OtpDependencies:
    """The dependencies of OtpService."""

    pool: Pool
    crypto: Crypto
    recipients: RecipientResolver
    sender: Sender
    verifier: Verifier
    clock: Clock
    batching: Batching
    cooldown: timedelta
    suppressions: Suppressions
    free_places: Callable[[], int]
    """How many more deliveries can be sent soon; those beyond wait in the outbox."""
    settings: SettingsDependencies
    batch_items_at_once: int = 10_000
    batch_items_per_transaction: int = 500
    switches: EventSwitches | None = None
    """Which organizations have events; None: no one."""


class OtpRecords:
    """The rpcs of pulsa.otp.v1.OtpService that send and verify nothing."""

    def __init__(self, dependencies: OtpDependencies) -> None:
        self._pool = dependencies.pool
        self._crypto = dependencies.crypto
        self._recipients = dependencies.recipients
        self._usage_reads = asyncio.Semaphore(_USAGE_READS_AT_ONCE)
        self._clock = dependencies.clock
        self._cooldown = dependencies.cooldown
        self._settings_cache = dependencies.settings.cache
        self._suppressions = dependencies.suppressions
        self._switches = dependencies.switches

    async def GetOtp(self, request: pb.GetOtpRequest, _: Call) -> pb.GetOtpResponse:
        """Return one OTP."""
        organization_id, otp_id = request.organization_id, UUID(request.otp_id)
        record = await run_idempotent(self._pool, lambda connection: read_otp(connection, organization_id, otp_id))
        response = pb.GetOtpResponse()
        self._write_record(response.otp, record)
        return response

    async def ListOtps(self, request: pb.ListOtpsRequest, _: Call) -> pb.ListOtpsResponse:
        """Return a page of OTPs, newest first."""
        tokens = PageTokens("ListOtps", request.organization_id, *filters_of(request), newest=_LAST_ID)
        size = request.page_size or DEFAULT_PAGE_SIZE
        before, limit = UUID(int=tokens.read(request.page_token)), size + 1
        search = self._search_of(request)

        async def find(connection: Connection) -> tuple[Sequence[OtpRecord], UUID | None]:
            own = request.organization_id
            if search == OtpSearch():
                return await list_otps(connection, own, before_otp_id=before, limit=limit), None
            return await search_otps(connection, own, search, before_otp_id=before, limit=limit, now=self._clock())

        records, bound = await run_idempotent(self._pool, find)
        response = pb.ListOtpsResponse()
        if last := write_page(response.otps, records, self._write_record, size=size):
            bound = last.otp.otp_id
        if bound:
            response.next_page_token = tokens.write(bound.int)
        return response

    async def CancelOtp(self, request: pb.CancelOtpRequest, _: Call) -> pb.CancelOtpResponse:
        """Cancel an OTP: its code no longer works."""
        organization_id, otp_id, now = request.organization_id, UUID(request.otp_id), self._clock()
        record = await run_idempotent(
            self._pool, lambda connection: cancel_otp(connection, organization_id, otp_id, now=now)
        )
        response = pb.CancelOtpResponse()
        self._write_record(response.otp, record)
        return response

    async def ReportDelivery(self, request: pb.ReportDeliveryRequest, _: Call) -> pb.ReportDeliveryResponse:
        """Apply a provider's report and return the delivery."""
        delivery = await report_delivery(
            self._pool,
            request.organization_id,
            UUID(request.delivery_id),
            status=reported_status(request.status),
            failure_reason=request.failure_reason,
            refund_accepted=False,
            settings=self._settings_cache,
            now=self._clock(),
            report_time=moment_or_none(request, "report_time"),
            switches=self._switches,
        )
        response = pb.ReportDeliveryResponse()
        write_delivery(response.delivery, delivery)
        return response

    async def ReportMail(self, request: pb.ReportMailRequest, call: Call) -> pb.ReportMailResponse:
        """Apply a report about a mail, suppress its address if it says so, and return the delivery."""
        organization_id, delivery_id = await self._suppressions.organization_of(request.mail_token)
        if call.caller.organization_id not in (organization_id, ANY_ORGANIZATION):
            raise DeliveryNotFound
        reason = SUPPRESSION_REASONS.get(request.suppression_reason)
        delivery = await report_delivery(
            self._pool,
            organization_id,
            delivery_id,
            status=reported_status(request.status),
            failure_reason=request.failure_reason,
            refund_accepted=reason is SuppressionReason.BOUNCE,
            settings=self._settings_cache,
            now=self._clock(),
            switches=self._switches,
        )
        if reason:
            await self._suppressions.add(delivery, reason)
        response = pb.ReportMailResponse()
        write_delivery(response.delivery, delivery)
        return response

    async def ListSuppressions(self, request: pb.ListSuppressionsRequest, _: Call) -> pb.ListSuppressionsResponse:
        """Return a page of suppressed addresses, newest first."""
        tokens = PageTokens("ListSuppressions", request.organization_id, newest=_LAST_ID)
        size = request.page_size or DEFAULT_PAGE_SIZE
        before_id = UUID(int=tokens.read(request.page_token))
        found = await self._suppressions.page(request.organization_id, before_id=before_id, limit=size + 1)
        response = pb.ListSuppressionsResponse(suppressions=map(suppression_message, found[:size]))
        if len(found) > size:
            response.next_page_token = tokens.write(found[size - 1].suppression_id.int)
        return response

    async def LiftSuppression(self, request: pb.LiftSuppressionRequest, _: Call) -> pb.LiftSuppressionResponse:
        """Let mail go to an address again."""
        address = self._recipients.parse(raw_destination(request.destination, "destination"))
        lifted = await self._suppressions.lift(request.organization_id, address.normalized)
        return pb.LiftSuppressionResponse(lifted=lifted)

    async def GetUsage(self, request: pb.GetUsageRequest, _: Call) -> pb.GetUsageResponse:
        """Return the sends per day and channel, and what became of them."""
        start, end = date.fromisoformat(request.start_date), date.fromisoformat(request.end_date)

        async def count(
            connection: Connection,
        ) -> tuple[Sequence[DailyUsage], tuple[date, Sequence[Conversion]] | None]:
            days = await read_usage(connection, request.organization_id, start=start, end=end)
            if not request.with_conversions:
                return days, None
            return days, await read_conversions(connection, request.organization_id, start=start, end=end)

        async with self._usage_reads:
            days, conversions = await run_idempotent(self._pool, count, seconds=self._pool.timeouts.job)
        response = pb.GetUsageResponse(daily_usages=map(usage_message, days))
        if conversions:
            response.conversions_start_date = conversions[0].isoformat()
            response.conversions.extend(map(conversion_message, conversions[1]))
        if verified := sum(day.verified_otps for day in days):
            response.credits_per_verified_otp = sum(day.credits for day in days) / verified
        return response

    async def EraseDestination(self, request: pb.EraseDestinationRequest, _: Call) -> pb.EraseDestinationResponse:
        """Erase what is stored of a destination."""
        erased = self._recipients.parse(raw_destination(request.destination, "destination")).normalized
        count = await erase_destination(self._pool, self._crypto, request.organization_id, erased)
        return pb.EraseDestinationResponse(delivery_count=count)

    def _search_of(self, request: pb.ListOtpsRequest) -> OtpSearch:
        digests: tuple[bytes, ...] = ()
        if request.HasField("destination"):
            normalized = self._recipients.parse(raw_destination(request.destination, "destination")).normalized
            digests = tuple(filter(None, (self._crypto.digest(normalized), self._crypto.other_digest(normalized))))
        return OtpSearch(
            digests=digests,
            statuses=tuple(OTP_STATUSES_BY_NUMBER[number] for number in request.otp_statuses),
            purposes=tuple(request.purposes),
            channels=tuple(CHANNELS_BY_NUMBER[number] for number in request.channels),
            start_time=moment_or_none(request, "start_time"),
            end_time=moment_or_none(request, "end_time"),
        )

    def _write_record(self, message: otp_pb2.Otp, record: OtpRecord) -> None:
        write_record(message, record, now=self._clock(), cooldown=self._cooldown)


def raw_destination(destination: destination_pb2.Destination, field: str) -> RawDestination:
    """The destination of a request, as its caller wrote it; `field` is its path."""
    channel = destination.WhichOneof("channel")
    if channel is None:
        raise ValueError(f"validation accepted {field} without a channel")
    return RawDestination(_CHANNELS[channel], getattr(destination, channel), f"{field}.{channel}")
