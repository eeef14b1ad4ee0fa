"""The OTP service's nouns in protobuf."""

from datetime import datetime, timedelta

from pulsa.error.v1 import error_reason_pb2
from pulsa.otp.v1 import delivery_pb2, otp_pb2, otp_service_pb2, usage_pb2

from server.otps.orders import Preview
from server.otps.otp import Delivery, DeliveryStatus, Otp, OtpStatus
from server.otps.reading import OtpRecord
from server.otps.usage import DailyUsage
from server.rpc.messages import CHANNELS, set_timestamp, timestamp

_OTP_STATUSES = {status: otp_pb2.OtpStatus.Value(f"OTP_STATUS_{status}") for status in OtpStatus}
_DELIVERY_STATUSES = {
    status: delivery_pb2.DeliveryStatus.Value(f"DELIVERY_STATUS_{status}") for status in DeliveryStatus
}

_STATUSES_BY_NUMBER = {number: status for status, number in _DELIVERY_STATUSES.items()}


def otp_message(otp: Otp, *, now: datetime) -> otp_pb2.Otp:
    """The OTP without its deliveries."""
    message = otp_pb2.Otp(
        otp_id=str(otp.otp_id),
        organization_id=otp.organization_id,
        purpose=otp.purpose,
        status=_OTP_STATUSES[otp.status_at(now)],
        attempts_remaining=otp.max_attempts - otp.attempts,
        create_time=timestamp(otp.create_time),
        expire_time=timestamp(otp.expire_time),
        verify_time=timestamp(otp.verify_time),
    )
    if otp.metadata:  # rarely: setting a map, even an empty one, costs as much as all the rest
        message.metadata.update(otp.metadata)
    return message


def record_message(record: OtpRecord, *, now: datetime, cooldown: timedelta) -> otp_pb2.Otp:
    """The OTP with its deliveries, and when the next one is allowed."""
    message = otp_message(record.otp, now=now)
    message.send_count = len(record.deliveries)
    message.deliveries.extend([delivery_message(delivery) for delivery in record.deliveries])
    if record.deliveries:
        set_timestamp(message.resend_available_time, record.deliveries[-1].create_time + cooldown)
    return message


def delivery_message(delivery: Delivery) -> delivery_pb2.Delivery:
    """One delivery; its destination is masked."""
    return delivery_pb2.Delivery(
        delivery_id=str(delivery.delivery_id),
        channel=CHANNELS[delivery.channel],
        masked_destination=delivery.masked_destination,
        status=_DELIVERY_STATUSES[delivery.status],
        credits=delivery.credits,
        refunded=delivery.refunded,
        failure_reason=delivery.failure_reason,
        create_time=timestamp(delivery.create_time),
    )


def preview_message(preview: Preview) -> otp_service_pb2.SendPreview:
    """What a send would do."""
    message = otp_service_pb2.SendPreview(
        channel=CHANNELS[preview.channel],
        credits=preview.credits,
        masked_destination=preview.masked_destination,
        segments=preview.segments,
    )
    if preview.refusal is not None:
        message.refusal = error_reason_pb2.ErrorReason.Value(f"ERROR_REASON_{preview.refusal.reason}")
        message.refusal_message = preview.refusal.message
    return message


def reported_status(number: delivery_pb2.DeliveryStatus.ValueType) -> DeliveryStatus:
    """The status that a report names."""
    return _STATUSES_BY_NUMBER[number]


def usage_message(usage: DailyUsage) -> usage_pb2.DailyUsage:
    """One day and channel."""
    return usage_pb2.DailyUsage(
        date=usage.date.isoformat(),
        channel=CHANNELS[usage.channel],
        sends=usage.sends,
        credits=usage.credits,
        otps=usage.otps,
        verified_otps=usage.verified_otps,
    )
