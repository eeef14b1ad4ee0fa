"""Writes accepted sends: the OTP, the delivery, and the outbox row that says it is still to be sent."""

import json
from collections.abc import Sequence
from datetime import datetime

from server.database.arrays import bigints, byteas, texts, times, uuids
from server.database.pipeline import Statements
from server.database.queries import load_queries
from server.otps.admission import Admitted
from server.otps.otp import Otp

SQL = load_queries(__file__)


async def insert_otps(connection: Statements, otps: Sequence[Otp]) -> None:
    """Record new OTPs."""
    await connection.execute(
        SQL.insert_otps,
        {
            "organization_ids": texts(otp.organization_id for otp in otps),
            "otp_ids": uuids(otp.otp_id for otp in otps),
            "purposes": texts(otp.purpose for otp in otps),
            "locales": texts(otp.locale for otp in otps),
            "destination_digests": byteas(otp.destination_digest for otp in otps),
            "code_key_ids": texts(otp.code_key_id for otp in otps),
            "code_lengths": bigints(otp.code_length for otp in otps),
            "context_digests": byteas(otp.context_digest for otp in otps),
            "web_otp_domains": texts(otp.web_otp_domain for otp in otps),
            "metadata": texts(json.dumps(otp.metadata) for otp in otps),
            "max_attempts": bigints(otp.max_attempts for otp in otps),
            "create_times": times(otp.create_time for otp in otps),
            "expire_times": times(otp.expire_time for otp in otps),
            "to_phones": texts("true" if otp.to_phone else "false" for otp in otps),
        },
    )


async def insert_deliveries(
    connection: Statements, admitted: Sequence[Admitted], *, now: datetime, lease_expire_time: datetime
) -> None:
    """Record new deliveries, and that they are still to be sent; nobody else begins with it before the lease ends."""
    deliveries = [one.delivery for one in admitted]
    keys = {
        "organization_ids": texts(delivery.organization_id for delivery in deliveries),
        "delivery_ids": uuids(delivery.delivery_id for delivery in deliveries),
        "otp_ids": uuids(delivery.otp_id for delivery in deliveries),
    }
    await connection.execute(
        SQL.insert_deliveries,
        {
            **keys,
            "request_ids": uuids(delivery.request_id for delivery in deliveries),
            "fingerprints": byteas(delivery.request_fingerprint for delivery in deliveries),
            "purposes": texts(delivery.purpose for delivery in deliveries),
            "channels": texts(delivery.channel for delivery in deliveries),
            "destination_digests": byteas(delivery.destination_digest for delivery in deliveries),
            "destinations_sealed": byteas(delivery.destination_sealed for delivery in deliveries),
            "masked_destinations": texts(delivery.masked_destination for delivery in deliveries),
            "credits": bigints(delivery.credits for delivery in deliveries),
            "ledger_sequences": bigints(delivery.ledger_sequence for delivery in deliveries),
            "balances_after": bigints(delivery.balance_after for delivery in deliveries),
            "areas": texts(delivery.areas for delivery in deliveries),
            "now": now,
        },
    )
    fallbacks_sealed = byteas(one.send.fallbacks_sealed for one in admitted)
    await connection.execute(
        SQL.insert_outbox, {**keys, "fallbacks_sealed": fallbacks_sealed, "lease_expire_time": lease_expire_time}
    )
