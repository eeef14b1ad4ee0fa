"""The OTP service's nouns in protobuf."""

from datetime import datetime, timedelta

from pulsa.error.v1 import error_reason_pb2
from pulsa.otp.v1 import delivery_pb2, otp_pb2, otp_service_pb2, usage_pb2

from server.otps.orders import Preview
from server.otps.otp import Delivery, DeliveryStatus, Otp, OtpStatus
from server.otps.reading import OtpRecord
from server.otps.usage import DailyUsage
from server.rpc.messages import CHANNELS, set_timestamp

_OTP_STATUSES = {status: otp_pb2.OtpStatus.Value(f"OTP_STATUS_{status}") for status in OtpStatus}
_DELIVERY_STATUSES = {
    status: delivery_pb2.DeliveryStatus.Value(f"DELIVERY_STATUS_{status}") for status in DeliveryStatus
}

_STATUSES_BY_NUMBER = {number: status for status, number in _DELIVERY_STATUSES.items()}


def write_otp(message: otp_pb2.Otp, otp: Otp, *, now: datetime) -> None:
    """Fill in the OTP without its deliveries. In place, as a message that is made apart is copied into the answer."""
    message.otp_id = str(otp.otp_id)
    message.organization_id = otp.organization_id
    message.purpose = otp.purpose
    message.status = _OTP_STATUSES[otp.status_at(now)]
    message.attempts_remaining = otp.max_attempts - otp.attempts
    set_timestamp(message.create_time, otp.create_time)
    set_timestamp(message.expire_time, otp.expire_time)
    if otp.verify_time is not None:
        set_timestamp(message.verify_time, otp.verify_time)
    if otp.metadata:  # rarely: touching a map, even an empty one, costs as much as all the rest
        message.metadata.update(otp.metadata)


def write_record(message: otp_pb2.Otp, record: OtpRecord, *, now: datetime, cooldown: timedelta) -> None:
    """Fill in the OTP with its deliveries, and when the next one is allowed."""
    write_otp(message, record.otp, now=now)
    deliveries = record.deliveries
    message.send_count = len(deliveries)
    for delivery in deliveries:
        write_delivery(message.deliveries.add(), delivery)
    if deliveries:
        set_timestamp(message.resend_available_time, deliveries[-1].create_time + cooldown)


def write_delivery(message: delivery_pb2.Delivery, delivery: Delivery) -> None:
    """Fill in one delivery; its destination is masked."""
    message.delivery_id = str(delivery.delivery_id)
    message.channel = CHANNELS[delivery.channel]
    message.masked_destination = delivery.masked_destination
    message.status = _DELIVERY_STATUSES[delivery.status]
    message.credits = delivery.credits
    message.refunded = delivery.refunded
    message.failure_reason = delivery.failure_reason
    set_timestamp(message.create_time, delivery.create_time)


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
