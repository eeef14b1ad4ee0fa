"""A caller of Pulsa: it calls any rpc by its name, and reads the error that a call ends with."""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from pulsa.credit.v1 import credit_service_pb2
from pulsa.errors import PulsaError, explain
from pulsa.event.v1 import event_service_pb2
from pulsa.otp.v1 import otp_service_pb2

from server.api.auth import mint
from server.api.permissions import ALL_PERMISSIONS
from server.cli.token import DevelopmentKey
from server.providers.provider import Channel

SERVICES = [
    credit_service_pb2.DESCRIPTOR.services_by_name["CreditService"],
    otp_service_pb2.DESCRIPTOR.services_by_name["OtpService"],
    event_service_pb2.DESCRIPTOR.services_by_name["EventService"],
]
RPCS: dict[str, MethodDescriptor] = {rpc.name: rpc for service in SERVICES for rpc in service.methods}
"""Every rpc of the protos, by its name."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller with the development key: it can call for any organization."""

    channel: grpc.aio.Channel
    key: DevelopmentKey

    def token(
        self,
        *,
        organization_id: str = "acme",
        permissions: Sequence[str] = tuple(ALL_PERMISSIONS),
        lifetime_seconds: float = 600,
    ) -> str:
        """A new token; with a negative lifetime it has already expired."""
        return mint(
            self.key.private_key(),
            subject="ann",
            organization_id=organization_id,
            permissions=permissions,
            lifetime_seconds=lifetime_seconds,
        )

    async def call(self, rpc: str, organization_id: str = "acme", **fields: Any) -> Any:
        """The response, of a stream the first one. Raises PulsaError.

        A request_id that is not among the fields is generated.
        """
        request = RPCS[rpc].input_type
        generated = {"organization_id": organization_id, "request_id": str(uuid4())}
        defaults = {name: value for name, value in generated.items() if name in request.fields_by_name}
        token = self.token(organization_id=organization_id)
        return await self.ask(rpc, GetMessageClass(request)(**(defaults | fields)), token)

    async def ask(self, rpc: str, request: Message, token: str | None) -> Any:
        """The response to this request with this token, of a stream the first one. Raises PulsaError."""
        method = RPCS[rpc]
        path = f"/{method.containing_service.full_name}/{rpc}"
        kind = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        start: Any = kind(
            path,
            request_serializer=type(request).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        call = start(request, metadata=() if token is None else (("authorization", f"Bearer {token}"),), timeout=30)
        try:
            if not method.server_streaming:
                return await call
            first = await call.read()
        except grpc.aio.AioRpcError as error:
            raise explain(error) from None
        call.cancel()
        return first

    async def send(self, organization_id: str = "acme", **fields: Any) -> Any:
        """SendOtp for a login to the destination that a channel's field gives: `email`, `whatsapp` or `sms`."""
        destination = {channel.field: fields.pop(channel.field) for channel in Channel if channel.field in fields}
        return await self.call("SendOtp", organization_id, destination=destination, purpose="login", **fields)

    async def grant(self, credits: int, organization_id: str = "acme") -> None:
        """Add credits without a top-up."""
        await self.call("AdjustCredits", organization_id, adjust_credits=credits, reason="for a test")

    async def order(self, organization_id: str = "acme", **fields: Any) -> Any:
        """A new top-up, of 1,000 credits unless the fields say otherwise."""
        good = {"credits": 1000, "currency_code": "IDR", "billing_email": "billing@example.com"}
        return (await self.call("CreateTopUp", organization_id, **(good | fields))).top_up

    async def balance(self, organization_id: str = "acme") -> int:
        """The available credits."""
        return int((await self.call("GetBalance", organization_id)).balance.available_credits)


async def refusal_of(call: Awaitable[Any]) -> PulsaError:
    """The error that the call must end with."""
    with pytest.raises(PulsaError) as refused:
        await call
    return refused.value


async def reason_of(call: Awaitable[Any]) -> str:
    """The error's reason; empty when the call succeeds."""
    try:
        await call
    except PulsaError as error:
        return error.reason
    return ""
