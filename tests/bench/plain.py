"""The baseline: each call runs its own transaction of plain statements, one after another.

It accepts the same requests, stores the same rows in the same schema under the same locks, and passes the same audit.
It has no interceptor (no token, no validation), so this baseline does less per call than the product.
"""

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from pulsa.credit.v1 import credit_service_pb2
from pulsa.otp.v1 import otp_service_pb2

from server.clock import utc_now
from server.ids import new_id
from server.otps.crypto import Crypto
from server.otps.destinations import parse_email, parse_phone
from server.otps.otp import otp_from_row
from server.postgres.conninfo import Timeouts
from server.postgres.pool import Connection, Pool, open_pool, transaction
from server.postgres.queries import load_queries
from server.providers.provider import Channel
from server.settings import Settings

SQL = load_queries(__file__)
_TTL = timedelta(minutes=10)
_PRICES = {"email": 1, "whatsapp": 2, "sms": 3}

Method = Callable[[bytes, Any], Awaitable[bytes]]


@asynccontextmanager
async def plain_methods(settings: Settings, database_url: str) -> AsyncIterator[Mapping[str, Method]]:
    """The methods by path, with a pool as large as the product's."""
    pool = await open_pool(
        database_url, size=settings.database.connections, timeouts=Timeouts(connection=30, transaction=30)
    )
    plain = Plain(pool, Crypto(settings.secret.key_ring(), digest_secrets=settings.secret.digest_key_ring()))
    yield {
        "/pulsa.otp.v1.OtpService/SendOtp": plain.send_otp,
        "/pulsa.otp.v1.OtpService/VerifyOtp": plain.verify_otp,
        "/pulsa.credit.v1.CreditService/GetBalance": plain.get_balance,
    }
    await pool.close()


@dataclass(frozen=True, slots=True)
class Plain:
    """The three rpcs."""

    pool: Pool
    crypto: Crypto
    outcomes: set[asyncio.Task[None]] = field(default_factory=set)

    async def send_otp(self, payload: bytes, _: Any) -> bytes:
        """Charge and record; the outcome is recorded after the answer."""
        request = otp_service_pb2.SendOtpRequest.FromString(payload)
        send = self._send(request, payload)
        async with transaction(self.pool) as connection:
            await _charge(connection, send)
        outcome = asyncio.create_task(self._record_outcome(send))
        self.outcomes.add(outcome)
        outcome.add_done_callback(self.outcomes.discard)
        return otp_service_pb2.SendOtpResponse(
            credits_charged=send["credits"], available_credits=send["balance_after"], ledger_sequence=send["sequence"]
        ).SerializeToString()

    async def verify_otp(self, payload: bytes, _: Any) -> bytes:
        """Compare the code under the OTP's lock; only correct codes are measured."""
        request = otp_service_pb2.VerifyOtpRequest.FromString(payload)
        keys: dict[str, Any] = {
            "organization_id": request.organization_id,
            "otp_id": UUID(request.otp_id),
            "request_id": UUID(request.request_id),
            "now": utc_now(),
        }
        async with transaction(self.pool) as connection:
            row = await _row(connection, SQL.lock_otp, keys)
            otp = otp_from_row(row)
            await _rows(connection, SQL.read_guesses, {**keys, "destination_digest": otp.destination_digest})
            if otp.status_at(keys["now"]) != "PENDING" or not hmac.compare_digest(
                self.crypto.code_of(otp), request.code
            ):
                raise ValueError("a wrong code, or a closed OTP")
            await connection.execute(SQL.mark_verified, keys)
        return otp_service_pb2.VerifyOtpResponse().SerializeToString()

    async def get_balance(self, payload: bytes, _: Any) -> bytes:
        """Read the account's row."""
        request = credit_service_pb2.GetBalanceRequest.FromString(payload)
        async with transaction(self.pool) as connection:
            row = await _row(connection, SQL.read_balance, {"organization_id": request.organization_id})
        response = credit_service_pb2.GetBalanceResponse()
        response.balance.available_credits = row[0]
        return response.SerializeToString()

    async def _record_outcome(self, send: Mapping[str, Any]) -> None:
        # The provider would be called first.
        async with transaction(self.pool) as connection:
            await connection.execute(SQL.remove_from_outbox, send)
            await connection.execute(SQL.record_outcome, send)

    def _send(self, request: otp_service_pb2.SendOtpRequest, payload: bytes) -> dict[str, Any]:
        channel = request.destination.WhichOneof("channel") or ""
        parse = parse_email if channel == "email" else parse_phone
        destination = parse(getattr(request.destination, channel))
        now = utc_now()
        return {
            "organization_id": request.organization_id,
            "request_id": UUID(request.request_id),
            "request_fingerprint": self.crypto.fingerprint(payload.hex()),
            "otp_id": new_id(),
            "delivery_id": new_id(),
            "purpose": request.purpose,
            "locale": request.locale,
            "code_key_id": self.crypto.current_key_id,
            "channel": Channel(channel.upper()).value,
            "credits": _PRICES[channel],
            "destination_digest": self.crypto.digest(destination.normalized),
            "destination_sealed": self.crypto.seal(destination.normalized, organization_id=request.organization_id),
            "masked_destination": destination.masked,
            "now": now,
            "since": now - timedelta(days=1),
            "expire_time": now + _TTL,
        }


async def _charge(connection: Connection, send: dict[str, Any]) -> None:
    """Decide under the account's lock and store; adds `sequence` and `balance_after` to the send."""
    credits, sequence, _ = await _row(connection, SQL.lock_account, send)
    if await _rows(connection, SQL.find_request, send):
        raise ValueError("a repeated request_id is not measured")
    recent, _ = await _row(connection, SQL.count_recent_sends, send)
    if recent or credits < send["credits"]:
        raise ValueError("a refused send is not measured")
    send |= {"sequence": sequence + 1, "balance_after": credits - send["credits"]}
    for statement in (
        SQL.charge_credits,
        SQL.insert_entry,
        SQL.insert_otp,
        SQL.insert_delivery,
        SQL.insert_request,
        SQL.insert_outbox,
    ):
        await connection.execute(statement, send)


async def _rows(connection: Connection, statement: str, parameters: Mapping[str, Any]) -> list[Any]:
    return await (await connection.execute(statement, parameters)).fetchall()


async def _row(connection: Connection, statement: str, parameters: Mapping[str, Any]) -> Any:
    (row,) = await _rows(connection, statement, parameters)
    return row
