"""Writes accepted sends: the OTP, the delivery, and the outbox row that says it is still to be sent."""

import json
from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter

from server.database.arrays import bigints, byteas, texts, times, uuids
from server.database.pipeline import Statements
from server.database.queries import load_queries
from server.database.rows import Columns, write_rows
from server.otps.admission import Admitted
from server.otps.otp import Delivery, Otp

SQL = load_queries(__file__)

_OTPS: Columns[Otp] = {
    "organization_ids": (texts, attrgetter("organization_id")),
    "otp_ids": (uuids, attrgetter("otp_id")),
    "purposes": (texts, attrgetter("purpose")),
    "locales": (texts, attrgetter("locale")),
    "destination_digests": (byteas, attrgetter("destination_digest")),
    "code_key_ids": (texts, attrgetter("code_key_id")),
    "code_lengths": (bigints, attrgetter("code_length")),
    "context_digests": (byteas, attrgetter("context_digest")),
    "web_otp_domains": (texts, attrgetter("web_otp_domain")),
    "metadata": (texts, lambda otp: json.dumps(otp.metadata)),
    "max_attempts": (bigints, attrgetter("max_attempts")),
    "create_times": (times, attrgetter("create_time")),
    "expire_times": (times, attrgetter("expire_time")),
    "to_phones": (texts, lambda otp: "true" if otp.to_phone else "false"),
}
_DELIVERIES: Columns[Delivery] = {
    "organization_ids": (texts, attrgetter("organization_id")),
    "delivery_ids": (uuids, attrgetter("delivery_id")),
    "otp_ids": (uuids, attrgetter("otp_id")),
    "request_ids": (uuids, attrgetter("request_id")),
    "fingerprints": (byteas, attrgetter("request_fingerprint")),
    "purposes": (texts, attrgetter("purpose")),
    "channels": (texts, attrgetter("channel.value")),
    "destination_digests": (byteas, attrgetter("destination_digest")),
    "destinations_sealed": (byteas, attrgetter("destination_sealed")),
    "masked_destinations": (texts, attrgetter("masked_destination")),
    "credits": (bigints, attrgetter("credits")),
    "ledger_sequences": (bigints, attrgetter("ledger_sequence")),
    "balances_after": (bigints, attrgetter("balance_after")),
    "areas": (texts, attrgetter("areas")),
}
_OUTBOX: Columns[Admitted] = {
    "organization_ids": (texts, attrgetter("delivery.organization_id")),
    "delivery_ids": (uuids, attrgetter("delivery.delivery_id")),
    "otp_ids": (uuids, attrgetter("delivery.otp_id")),
    "fallbacks_sealed": (byteas, attrgetter("send.fallbacks_sealed")),
}


async def insert_otps(connection: Statements, otps: Sequence[Otp]) -> None:
    """Record new OTPs."""
    await write_rows(connection, SQL.insert_otps, _OTPS, otps)


async def insert_deliveries(
    connection: Statements, admitted: Sequence[Admitted], *, now: datetime, lease_expire_time: datetime
) -> None:
    """Record new deliveries, and that they are still to be sent; nobody else begins with it before the lease ends."""
    await write_rows(connection, SQL.insert_deliveries, _DELIVERIES, [one.delivery for one in admitted], now=now)
    await write_rows(connection, SQL.insert_outbox, _OUTBOX, admitted, lease_expire_time=lease_expire_time)
