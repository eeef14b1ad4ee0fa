"""Writes accepted sends: the OTP, the delivery, and the outbox row that says it is still to be sent."""

import json
from collections.abc import Sequence
from datetime import datetime

from server.database.pool import Connection
from server.database.queries import load_queries
from server.otps.admission import Admitted
from server.otps.otp import Delivery, Otp

SQL = load_queries(__file__)


async def insert_otps(connection: Connection, otps: Sequence[Otp]) -> None:
    """Record new OTPs."""
    await connection.execute(
        SQL.insert_otps,
        {
            "organization_ids": [otp.organization_id for otp in otps],
            "otp_ids": [otp.otp_id for otp in otps],
            "purposes": [otp.purpose for otp in otps],
            "locales": [otp.locale for otp in otps],
            "destination_digests": [otp.destination_digest for otp in otps],
            "code_key_ids": [otp.code_key_id for otp in otps],
            "code_lengths": [otp.code_length for otp in otps],
            "context_digests": [otp.context_digest for otp in otps],
            "web_otp_domains": [otp.web_otp_domain for otp in otps],
            "metadata": [json.dumps(otp.metadata) for otp in otps],
            "max_attempts": [otp.max_attempts for otp in otps],
            "create_times": [otp.create_time for otp in otps],
            "expire_times": [otp.expire_time for otp in otps],
        },
    )


async def insert_deliveries(connection: Connection, deliveries: Sequence[Delivery], *, now: datetime) -> None:
    """Record new deliveries."""
    await connection.execute(
        SQL.insert_deliveries,
        {
            "organization_ids": [delivery.organization_id for delivery in deliveries],
            "delivery_ids": [delivery.delivery_id for delivery in deliveries],
            "otp_ids": [delivery.otp_id for delivery in deliveries],
            "request_ids": [delivery.request_id for delivery in deliveries],
            "fingerprints": [delivery.request_fingerprint for delivery in deliveries],
            "purposes": [delivery.purpose for delivery in deliveries],
            "channels": [delivery.channel.value for delivery in deliveries],
            "destination_digests": [delivery.destination_digest for delivery in deliveries],
            "destinations_sealed": [delivery.destination_sealed for delivery in deliveries],
            "masked_destinations": [delivery.masked_destination for delivery in deliveries],
            "credits": [delivery.credits for delivery in deliveries],
            "ledger_sequences": [delivery.ledger_sequence for delivery in deliveries],
            "balances_after": [delivery.balance_after for delivery in deliveries],
            "now": now,
        },
    )


async def insert_outbox(connection: Connection, admitted: Sequence[Admitted], *, lease_expire_time: datetime) -> None:
    """Record what is still to be sent; nobody else begins with it before the lease ends."""
    await connection.execute(
        SQL.insert_outbox,
        {
            "organization_ids": [one.delivery.organization_id for one in admitted],
            "delivery_ids": [one.delivery.delivery_id for one in admitted],
            "otp_ids": [one.delivery.otp_id for one in admitted],
            "fallbacks_sealed": [one.send.fallbacks_sealed for one in admitted],
            "lease_expire_time": lease_expire_time,
        },
    )
