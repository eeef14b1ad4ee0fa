"""Converts domain objects to protobuf messages, and enum values back.

`*_message` and `timestamp` return a new message; `write_*` and `set_timestamp` fill in one that is part of a response.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp
from pulsa.credit.v1 import (
    alerts_pb2,
    automatic_top_up_pb2,
    balance_pb2,
    channel_pb2,
    ledger_entry_pb2,
    money_pb2,
    pricing_pb2,
    suspension_pb2,
    top_up_pb2,
)
from pulsa.error.v1 import error_reason_pb2
from pulsa.event.v1 import event_pb2
from pulsa.otp.v1 import delivery_pb2, otp_pb2, otp_service_pb2, suppression_pb2, usage_pb2

from server.credits.accounts import Suspension
from server.credits.alerts import Alerts
from server.credits.balances import Balance
from server.credits.ledger import LedgerEntry, LedgerEntryKind
from server.credits.pricing import Money, Pricing
from server.credits.statement import PastBalance
from server.credits.top_ups.automatic import AutomaticTopUpState
from server.credits.top_ups.state_machine import PAYABLE, UNFINISHED, TopUp, TopUpFlag, TopUpStatus
from server.errors import DomainError, RetryLater
from server.events.log import EventKind
from server.events.streams import StoredEvent
from server.otps.delivery.suppressions import Suppression, SuppressionReason
from server.otps.otp import Delivery, DeliveryStatus, Otp, OtpRecord, OtpStatus
from server.otps.previews import Preview
from server.otps.usage import Conversion, DailyUsage
from server.providers.provider import Channel

SUPPRESSION_REASONS: Final = {
    suppression_pb2.SuppressionReason.Value(f"SUPPRESSION_REASON_{reason}"): reason for reason in SuppressionReason
}
"""By the number in the protos."""
CHANNELS: Final[Mapping[Channel, channel_pb2.Channel.ValueType]] = {
    name: channel_pb2.Channel.Value(f"CHANNEL_{name}") for name in Channel
}
CHANNELS_BY_NUMBER: Final = {number: channel for channel, number in CHANNELS.items()}

AUTOMATIC_STATES: Final[Mapping[str, automatic_top_up_pb2.AutomaticTopUpState.ValueType]] = {
    "": automatic_top_up_pb2.AUTOMATIC_TOP_UP_STATE_UNSPECIFIED,
    **{
        state.value: automatic_top_up_pb2.AutomaticTopUpState.Value(f"AUTOMATIC_TOP_UP_STATE_{state}")
        for state in AutomaticTopUpState
    },
}
"""The number in the protos by name; that of a state that was not looked up by an empty one."""

_KINDS = {kind: ledger_entry_pb2.LedgerEntryKind.Value(f"LEDGER_ENTRY_KIND_{kind}") for kind in LedgerEntryKind}
KINDS_BY_NUMBER: Final = {number: kind for kind, number in _KINDS.items()}
_TOP_UP_STATUSES = {status: top_up_pb2.TopUpStatus.Value(f"TOP_UP_STATUS_{status}") for status in TopUpStatus}
_TOP_UP_FLAGS = {flag.value: top_up_pb2.TopUpFlag.Value(f"TOP_UP_FLAG_{flag}") for flag in TopUpFlag}
_TOP_UP_STATUSES_BY_NUMBER = {number: status for status, number in _TOP_UP_STATUSES.items()}
_OTP_STATUSES = {status: otp_pb2.OtpStatus.Value(f"OTP_STATUS_{status}") for status in OtpStatus}
OTP_STATUSES_BY_NUMBER: Final = {number: status for status, number in _OTP_STATUSES.items()}
_DELIVERY_STATUSES = {
    status: delivery_pb2.DeliveryStatus.Value(f"DELIVERY_STATUS_{status}") for status in DeliveryStatus
}
_DELIVERY_STATUSES_BY_NUMBER = {number: status for status, number in _DELIVERY_STATUSES.items()}

_NANOS_PER_UNIT = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_PER_DAY = 86_400


def timestamp(moment: datetime | None) -> Timestamp | None:
    """Convert a moment; None leaves the field unset."""
    if moment is None:
        return None
    message = Timestamp()
    set_timestamp(message, moment)
    return message


def set_timestamp(message: Timestamp, moment: datetime) -> None:
    """Set the message to a moment. Does what Timestamp.FromDatetime does, in a third of the time."""
    elapsed = moment - _EPOCH
    message.seconds = elapsed.days * _SECONDS_PER_DAY + elapsed.seconds
    message.nanos = elapsed.microseconds * 1000


def moment(message: Timestamp) -> datetime:
    """Convert a valid Timestamp, to microseconds."""
    return _EPOCH + timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)


def moment_or_none(request: Any, field: str) -> datetime | None:
    """Convert a request's field that is a valid Timestamp; None when it is not set."""
    return moment(getattr(request, field)) if request.HasField(field) else None


def money(amount: Money) -> money_pb2.Money:
    """Convert an amount to units and nanos (billionths)."""
    units, nanos = divmod(int(amount.amount * _NANOS_PER_UNIT), _NANOS_PER_UNIT)
    return money_pb2.Money(currency_code=amount.currency_code, units=units, nanos=nanos)


class BalanceConverter:
    """Converts balances. Building the message takes a large part of the time of GetBalance, so it is kept minimal."""

    def __init__(self, pricing: Pricing) -> None:
        self._prices = [(CHANNELS[channel], credits) for channel, credits in pricing.channel_credits.items()]

    def convert(self, balance: Balance) -> balance_pb2.Balance:
        """Convert a balance, and add the number of sends that it pays for on each channel."""
        available = balance.available_credits
        message = balance_pb2.Balance(
            organization_id=balance.organization_id,
            available_credits=available,
            low_balance=balance.low_balance,
            low_balance_threshold=balance.low_balance_threshold,
            last_sequence=balance.last_sequence,
            automatic_top_up_state=AUTOMATIC_STATES[balance.automatic_state],
        )
        for channel, credits in self._prices:
            message.sends_left.add(channel=channel, sends=available // credits)
        return message


def past_balance_message(organization_id: str, balance: PastBalance) -> balance_pb2.Balance:
    """Convert a balance of the past. Thresholds and prices of then are not known."""
    return balance_pb2.Balance(
        organization_id=organization_id,
        available_credits=balance.available_credits,
        last_sequence=balance.last_sequence,
    )


def pricing_message(pricing: Pricing) -> pricing_pb2.Pricing:
    """Convert the current prices."""
    return pricing_pb2.Pricing(
        channel_prices=[
            pricing_pb2.ChannelPrice(channel=CHANNELS[channel], credits=credits)
            for channel, credits in pricing.channel_credits.items()
        ],
        minimum_credits=pricing.minimum_credits,
        maximum_credits=pricing.maximum_credits,
        preset_credits=pricing.preset_credits,
        unit_prices=[money(Money(code, amount)) for code, amount in pricing.unit_prices.items()],
    )


def entry_message(entry: LedgerEntry) -> ledger_entry_pb2.LedgerEntry:
    """Convert a ledger entry."""
    return ledger_entry_pb2.LedgerEntry(
        sequence=entry.sequence,
        kind=_KINDS[entry.kind],
        credits=entry.credits,
        balance_after=entry.balance_after,
        reference_id=str(entry.reference_id),
        reason=entry.reason,
        created_by=entry.created_by,
        create_time=timestamp(entry.create_time),
    )


def suppression_message(suppression: Suppression) -> suppression_pb2.Suppression:
    """Convert a suppression."""
    return suppression_pb2.Suppression(
        masked_destination=suppression.masked_destination,
        reason=suppression_pb2.SuppressionReason.Value(f"SUPPRESSION_REASON_{suppression.reason}"),
        create_time=timestamp(suppression.create_time),
        expire_time=timestamp(suppression.expire_time),
    )


def top_up_message(top_up: TopUp) -> top_up_pb2.TopUp:
    """Convert the fields of a top-up that callers may see."""
    total = top_up.total if top_up.invoice_total is None else top_up.invoice_total
    is_payable = top_up.status in UNFINISHED | PAYABLE | {TopUpStatus.PAID}
    remaining = total if top_up.amount_remaining is None else top_up.amount_remaining

    def amount(value: Decimal | None) -> money_pb2.Money | None:
        return None if value is None else money(Money(top_up.currency_code, value))

    return top_up_pb2.TopUp(
        top_up_id=str(top_up.top_up_id),
        organization_id=top_up.organization_id,
        status=_TOP_UP_STATUSES[top_up.status],
        credits=top_up.credits,
        unit_price=amount(top_up.unit_price),
        subtotal=amount(top_up.total),
        tax=amount(top_up.tax),
        total=amount(total),
        amount_paid=amount(top_up.amount_paid or None),
        amount_remaining=amount(remaining) if is_payable else None,
        hosted_invoice_url=top_up.hosted_invoice_url,
        invoice_pdf_url=top_up.invoice_pdf_url,
        invoice_number=top_up.invoice_number,
        create_time=timestamp(top_up.create_time),
        due_time=timestamp(top_up.due_time),
        paid_time=timestamp(top_up.paid_time),
        cancel_time=timestamp(top_up.cancel_time),
        failure_reason=top_up.failure_reason,
        flags=[_TOP_UP_FLAGS[flag] for flag in top_up.flags],
        created_by=top_up.created_by,
        frozen_credits=top_up.frozen_credits,
        resolved_credits=top_up.resolved_credits,
        automatic=top_up.is_automatic,
        resolve_reason=top_up.resolve_reason,
        resolved_by=top_up.resolved_by,
        resolve_time=timestamp(top_up.resolve_time),
    )


def alerts_message(alerts: Alerts) -> alerts_pb2.Alerts:
    """Convert the alert settings."""
    return alerts_pb2.Alerts(
        low_balance_threshold=alerts.balance.low_balance_threshold,
        alert_email=alerts.alert_email,
        locale=alerts.locale,
        time_zone=alerts.time_zone,
    )


def suspension_message(suspension: Suspension) -> suspension_pb2.Suspension:
    """Convert a suspension."""
    return suspension_pb2.Suspension(
        suspend_time=timestamp(suspension.suspend_time), reason=suspension.reason, created_by=suspension.created_by
    )


def top_up_status(number: int) -> TopUpStatus:
    """Convert the number of a status from a request; validation accepts only known numbers."""
    return _TOP_UP_STATUSES_BY_NUMBER[top_up_pb2.TopUpStatus.ValueType(number)]


def write_otp(message: otp_pb2.Otp, otp: Otp, *, now: datetime) -> None:
    """Fill in an OTP without its deliveries. In place: protobuf copies a separate message when it is assigned."""
    message.otp_id = str(otp.otp_id)
    message.organization_id = otp.organization_id
    message.purpose = otp.purpose
    message.status = _OTP_STATUSES[otp.status_at(now)]
    message.attempts_remaining = otp.max_attempts - otp.attempts
    set_timestamp(message.create_time, otp.create_time)
    set_timestamp(message.expire_time, otp.expire_time)
    if otp.verify_time is not None:
        set_timestamp(message.verify_time, otp.verify_time)
    if otp.metadata:  # seldom: any access to a map field costs as much as the other fields together
        message.metadata.update(otp.metadata)


def write_record(message: otp_pb2.Otp, record: OtpRecord, *, now: datetime, cooldown: timedelta) -> None:
    """Fill in an OTP with its deliveries, and the time from which a resend is allowed."""
    write_otp(message, record.otp, now=now)
    deliveries = record.deliveries
    message.send_count = len(deliveries)
    for delivery in deliveries:
        write_delivery(message.deliveries.add(), delivery)
    if deliveries:
        set_timestamp(message.resend_available_time, deliveries[-1].create_time + cooldown)
    message.verified_destination = record.verified_destination


def write_delivery(message: delivery_pb2.Delivery, delivery: Delivery) -> None:
    """Fill in a delivery; its destination is masked."""
    message.delivery_id = str(delivery.delivery_id)
    message.channel = CHANNELS[delivery.channel]
    message.masked_destination = delivery.masked_destination
    message.status = _DELIVERY_STATUSES[delivery.status]
    message.credits = delivery.credits
    message.refunded = delivery.refunded
    message.failure_reason = delivery.failure_reason
    message.provider = delivery.provider
    message.settings_version = delivery.settings_version
    set_timestamp(message.create_time, delivery.create_time)
    for status, time in delivery.changes:
        change = message.changes.add(status=_DELIVERY_STATUSES[status])
        set_timestamp(change.change_time, time)


def preview_message(preview: Preview) -> otp_service_pb2.SendPreview:
    """Convert the preview of a send."""
    message = otp_service_pb2.SendPreview(
        channel=CHANNELS[preview.channel],
        credits=preview.credits,
        masked_destination=preview.masked_destination,
        segments=preview.segments,
        autofill=preview.autofill,
    )
    if preview.refusal is not None:
        write_refusal(message, preview.refusal)
    return message


def write_refusal(message: otp_service_pb2.SendPreview, error: DomainError) -> None:
    """Write why a send would be refused."""
    message.refusal = _reason(error)
    message.refusal_message = error.message


def _reason(error: DomainError) -> error_reason_pb2.ErrorReason.ValueType:
    return error_reason_pb2.ErrorReason.Value(f"ERROR_REASON_{error.reason}")


def write_compact(
    message: otp_service_pb2.CompactSend,
    *,
    otp_id: UUID,
    delivery_id: UUID,
    credits: int,
    ledger_sequence: int,
) -> None:
    """Write an accepted send in short."""
    message.otp_id, message.delivery_id = str(otp_id), str(delivery_id)
    message.credits_charged, message.ledger_sequence = credits, ledger_sequence


def write_send_error(message: otp_service_pb2.SendError, error: DomainError) -> None:
    """Write the error of one request of a batch."""
    message.reason = _reason(error)
    message.message = error.message
    message.metadata.update(error.metadata)
    if isinstance(error, RetryLater):
        message.retry_delay.FromMilliseconds(round(1000 * error.retry_after_seconds))


def reported_status(number: delivery_pb2.DeliveryStatus.ValueType) -> DeliveryStatus:
    """Convert the number of a status from a delivery report; validation accepts only known numbers."""
    return _DELIVERY_STATUSES_BY_NUMBER[number]


def conversion_message(conversion: Conversion) -> usage_pb2.Conversion:
    """Convert what became of the sends to one country through one channel and provider."""
    return usage_pb2.Conversion(
        country=conversion.country,
        channel=CHANNELS[conversion.channel],
        provider=conversion.provider,
        sends=conversion.sends,
        credits=conversion.credits,
        verified_sends=conversion.verified_sends,
    )


def usage_message(usage: DailyUsage) -> usage_pb2.DailyUsage:
    """Convert the usage of one day and channel."""
    return usage_pb2.DailyUsage(
        date=usage.date.isoformat(),
        channel=CHANNELS[usage.channel],
        sends=usage.sends,
        credits=usage.credits,
        otps=usage.otps,
        verified_otps=usage.verified_otps,
    )


_ENUMS_OF_EVENTS: Final[Mapping[str, Mapping[str, Any]]] = {
    EventKind.DELIVERY_CHANGED: {"channel": CHANNELS.__getitem__, "status": _DELIVERY_STATUSES.__getitem__},
    EventKind.OTP_ENDED: {"status": _OTP_STATUSES.__getitem__},
    EventKind.TOP_UP_CHANGED: {
        "status": _TOP_UP_STATUSES.__getitem__,
        "flags": lambda flags: [_TOP_UP_FLAGS[flag] for flag in flags],
    },
}
"""Conversions of the details of events that are enums in the protos; other details are fields as they are."""


def event_message(event: StoredEvent) -> event_pb2.Event:
    """Convert an event; one of a kind that only a newer version knows has no change."""
    message = event_pb2.Event(number=event.number)
    set_timestamp(message.create_time, event.create_time)
    if event.kind in EventKind.__members__:
        enums = _ENUMS_OF_EVENTS.get(event.kind, {})
        details = {name: enums[name](value) if name in enums else value for name, value in event.details.items()}
        change = getattr(message, event.kind.lower())
        change.MergeFrom(type(change)(**details))
        change.SetInParent()
    return message
