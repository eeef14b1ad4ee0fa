"""The measured calls, with unique request_ids and destinations and with correct codes."""

from collections.abc import Callable
from itertools import count
from uuid import uuid4

import psycopg
from google.protobuf.duration_pb2 import Duration
from pulsa.credit.v1.credit_service_pb2 import GetBalanceRequest
from pulsa.otp.v1.destination_pb2 import Destination
from pulsa.otp.v1.otp_service_pb2 import BatchSendOtpsRequest, SendOtpRequest, VerifyOtpRequest

from server.otps.crypto import Crypto
from server.otps.otp import Otp, otp_from_row
from tests.bench.environment import KEY, KEY_ID, SPREAD

SEND_OTP = "/pulsa.otp.v1.OtpService/SendOtp"
VERIFY_OTP = "/pulsa.otp.v1.OtpService/VerifyOtp"
BATCH_SEND_OTPS = "/pulsa.otp.v1.OtpService/BatchSendOtps"
GET_BALANCE = "/pulsa.credit.v1.CreditService/GetBalance"
_TTL = Duration(seconds=600)
_numbers = count()

Bodies = Callable[[int], list[bytes]]
"""Returns the given number of request bodies, or fewer when there are no more."""


def sends(organization_id: str) -> Bodies:
    """SendOtp of one organization, by e-mail, WhatsApp and SMS in turn, each to a new destination."""
    return lambda count: [_send(organization_id, next(_numbers)) for _ in range(count)]


def spread_sends(count: int) -> list[bytes]:
    """SendOtp of SPREAD organizations in turn."""
    numbers = [next(_numbers) for _ in range(count)]
    return [_send(f"spread-{number * 7919 % SPREAD}", number) for number in numbers]


def batches(organization_id: str, size: int) -> Bodies:
    """BatchSendOtps of one organization, with compact results. More than 100 requests do not fit into a frame."""

    def body() -> bytes:
        requests = map(SendOtpRequest.FromString, sends(organization_id)(size))
        batch = BatchSendOtpsRequest(organization_id=organization_id, requests=requests, compact=True)
        for request in batch.requests:
            request.ClearField("organization_id")
        return batch.SerializeToString()

    return lambda count: [body() for _ in range(count)]


def balances(count: int) -> list[bytes]:
    """GetBalance of one organization."""
    return [GetBalanceRequest(organization_id="hot").SerializeToString()] * count


def store_otps(database_url: str, count: int) -> None:
    """Add OTPs of the spread organizations for VerifyOtp to verify."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO otps (organization_id, otp_id, purpose, channel, locale, destination_digest, code_key_id,"
            " code_length, context_digest, web_otp_domain, metadata, max_attempts, create_time, expire_time)"
            " SELECT 'spread-' || number %% %(organizations)s, uuidv7(), 'login', 'EMAIL', 'id-ID',"
            " uuid_send(gen_random_uuid()), %(key_id)s, 6, '', '', '{}', 5, now(), now() + interval '1 hour'"
            " FROM generate_series(1, %(count)s) AS number",
            {"organizations": SPREAD, "key_id": KEY_ID, "count": count},
        )
        connection.execute("VACUUM ANALYZE otps")


def verifies(database_url: str) -> Bodies:
    """VerifyOtp, each with the correct code of another stored OTP."""
    crypto = Crypto({KEY_ID: KEY}, digest_secrets={"d1": KEY})

    def bodies(count: int) -> list[bytes]:
        with psycopg.connect(database_url) as connection:
            rows = connection.execute(
                "SELECT organization_id, otp_id, purpose, locale, destination_digest, code_key_id, code_length,"
                " context_digest, web_otp_domain, metadata, status, attempts, max_attempts, create_time, expire_time,"
                " verify_time, verify_request_id FROM otps"
                " WHERE status = 'PENDING' AND organization_id LIKE 'spread-%%' LIMIT %s",
                [count],
            ).fetchall()
        return [_verify(otp_from_row(row), crypto) for row in rows]

    return bodies


def _verify(otp: Otp, crypto: Crypto) -> bytes:
    return VerifyOtpRequest(
        organization_id=otp.organization_id,
        request_id=str(uuid4()),
        otp_id=str(otp.otp_id),
        code=crypto.code_of(otp),
    ).SerializeToString()


def _send(organization_id: str, number: int) -> bytes:
    destination = (
        Destination(email=f"person{number}@example.com"),
        Destination(whatsapp=f"+62812{number:08d}"),
        Destination(sms=f"+62813{number:08d}"),
    )[number % 3]
    return SendOtpRequest(
        organization_id=organization_id,
        request_id=str(uuid4()),
        destination=destination,
        purpose="login",
        locale="id-ID",
        ttl=_TTL,
    ).SerializeToString()
