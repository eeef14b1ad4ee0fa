"""What is written of accepted sends, by column."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from server.otps.admission import Admitted, Send, SendOptions
from server.otps.otp import Recipient
from server.postgres.columns import BIGINT, BOOLEAN, BYTEA, JSONB, SMALLINT, TEXT, TIMESTAMPTZ, UUIDS, RowSource


def _values_of(admitted: Sequence[Admitted]) -> Mapping[str, Sequence[Any]]:
    """The values of each column. The tuples are transposed: to ask each send for each value took thrice the time."""
    sends, ledger_sequences, balances, _, _ = zip(*admitted, strict=True)
    send = dict(zip(Send._fields, zip(*sends, strict=True), strict=True))
    recipient = dict(zip(Recipient._fields, zip(*send["recipient"], strict=True), strict=True))
    options = dict(zip(SendOptions._fields, zip(*send["options"], strict=True), strict=True))
    resent = send["resent"]
    return {
        "organization_id": send["organization_id"],
        "delivery_id": send["delivery_id"],
        "otp_id": send["otp_id"],
        "request_id": send["request_id"],
        "rpc": [each.rpc for each in sends] if any(resent) else ["SendOtp"] * len(sends),
        "fingerprint": send["request_fingerprint"],
        "purpose": options["purpose"],
        "channel": recipient["channel"],
        "destination_digest": recipient["destination_digest"],
        "destination_sealed": recipient["destination_sealed"],
        "masked_destination": recipient["masked_destination"],
        "areas": recipient["areas"],
        "settings_version": [each.settings_version for each in send["identity"]],
        "credits": recipient["credits"],
        "ledger_sequence": ledger_sequences,
        "balance_after": balances,
        "fallbacks_sealed": send["fallbacks_sealed"],
        "destination_digests": [each.all_digests for each in send["recipient"]]
        if any(recipient["other_digest"])
        else recipient["destination_digest"],
        "is_new": ["true" if each is None else "false" for each in resent],
        "locale": options["locale"],
        "code_key_id": send["code_key_id"],
        "code_length": options["code_length"],
        "context_digest": send["context_digest"],
        "web_otp_domain": options["web_otp_domain"],
        "metadata": send["metadata"],
        "max_attempts": options["max_attempts"],
        "expire_time": [each.expire_time for each in admitted],
        "to_phone": ["true" if each else "false" for each in send["to_phone"]],
    }


SENDS: Final[RowSource[Admitted]] = RowSource(
    _values_of,
    organization_id=TEXT,
    delivery_id=UUIDS,
    otp_id=UUIDS,
    request_id=UUIDS,
    rpc=TEXT,
    fingerprint=BYTEA,
    purpose=TEXT,
    channel=TEXT,
    destination_digest=BYTEA,
    destination_sealed=BYTEA,
    masked_destination=TEXT,
    areas=TEXT,
    settings_version=BIGINT,
    credits=BIGINT,
    ledger_sequence=BIGINT,
    balance_after=BIGINT,
    fallbacks_sealed=BYTEA,
    # Of a new OTP:
    destination_digests=BYTEA,
    is_new=BOOLEAN,
    locale=TEXT,
    code_key_id=TEXT,
    code_length=SMALLINT,
    context_digest=BYTEA,
    web_otp_domain=TEXT,
    metadata=JSONB,
    max_attempts=SMALLINT,
    expire_time=TIMESTAMPTZ,
    to_phone=BOOLEAN,
)
OTP: Final = (
    *("organization_id", "otp_id", "purpose", "channel", "locale", "destination_digests", "code_key_id", "code_length"),
    *("context_digest", "web_otp_domain", "metadata", "max_attempts", "expire_time", "to_phone"),
)
DELIVERY: Final = (
    *("organization_id", "delivery_id", "otp_id", "purpose", "channel", "destination_digest", "destination_sealed"),
    *("masked_destination", "areas", "credits", "ledger_sequence", "balance_after", "settings_version"),
)
REQUEST: Final = ("organization_id", "request_id", "rpc", "fingerprint")
