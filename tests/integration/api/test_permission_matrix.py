"""Every rpc with every kind of token: only a valid one with the right permission and organization is accepted."""

import base64
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from server.api.permissions import ALL_PERMISSIONS, PERMISSIONS
from tests.integration.api.stub_server import SERVICES, StubServer, run_stub_server
from tests.valid_requests import valid_request

RPCS: list[MethodDescriptor] = [method for service in SERVICES for method in service.methods]
FOR_NO_ORGANIZATION = {rpc.name for rpc in RPCS if "organization_id" not in rpc.input_type.fields_by_name}
RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_KEYS: dict[str, Any] = {
    "EdDSA": Ed25519PrivateKey.generate(),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "RS256": RSA_KEY,
    "PS256": RSA_KEY,
}


@pytest.fixture(scope="module")
async def module_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[StubServer]:
    async with run_stub_server(tmp_path_factory.mktemp("matrix")) as opened:
        yield opened


@pytest.fixture(scope="module")
async def module_channel(module_server: StubServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(module_server.address) as opened:
        yield opened


async def code_of(channel: grpc.aio.Channel, rpc: MethodDescriptor, request: Message, token: str | None) -> str:
    """The name of the code that the call ended with."""
    method = f"/{rpc.containing_service.full_name}/{rpc.name}"
    metadata = () if token is None else (("authorization", token),)
    payload = request.SerializeToString()
    if rpc.server_streaming:
        invoke_stream: Any = channel.unary_stream(method)
        stream = invoke_stream(payload, metadata=metadata, timeout=10)
        try:
            assert [message async for message in stream] == [b"", b""]
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"
    invoke: Any = channel.unary_unary(method)
    return str((await invoke(payload, metadata=metadata, timeout=10).code()).name)


def claims(server: StubServer, permission: str, **changes: object) -> dict[str, object]:
    return jwt.decode(server.token(permission), options={"verify_signature": False}) | changes


def signed(server: StubServer, permission: str, **changes: object) -> str:
    return "Bearer " + jwt.encode(claims(server, permission, **changes), server.key.private_key(), algorithm="EdDSA")


def without(server: StubServer, permission: str, claim: str) -> str:
    rest = {name: value for name, value in claims(server, permission).items() if name != claim}
    return "Bearer " + jwt.encode(rest, server.key.private_key(), algorithm="EdDSA")


def by_another_key(server: StubServer, permission: str, *, algorithm: str) -> str:
    return "Bearer " + jwt.encode(claims(server, permission), OTHER_KEYS[algorithm], algorithm=algorithm)


def base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def body_of(server: StubServer, permission: str, *, algorithm: str) -> str:
    parts = [{"alg": algorithm, "typ": "JWT"}, claims(server, permission)]
    return ".".join(base64url(json.dumps(part).encode()) for part in parts)


def by_public_key_as_secret(server: StubServer, permission: str) -> str:
    body = body_of(server, permission, algorithm="HS256")
    mac = hmac.digest(server.key.public_key_file.read_bytes(), body.encode(), "sha256")
    return f"Bearer {body}.{base64url(mac)}"


def with_another_signature(server: StubServer, permission: str) -> str:
    """A token whose claims were replaced after it was signed."""
    signature = server.token("none.of.them").rpartition(".")[2]
    return f"Bearer {body_of(server, permission, algorithm='EdDSA')}.{signature}"


INVALID_TOKENS: dict[str, Callable[[StubServer, str], str | None]] = {
    "no token": lambda _server, _permission: None,
    "an empty token": lambda _server, _permission: "Bearer ",
    "another scheme": lambda server, permission: f"Basic {server.token(permission)}",
    "an expired token": lambda server, permission: signed(server, permission, exp=time.time() - 120),
    "another audience": lambda server, permission: signed(server, permission, aud="billing"),
    "a token that is not valid yet": lambda server, permission: signed(server, permission, nbf=time.time() + 86_400),
    "no audience": partial(without, claim="aud"),
    "no expiry": partial(without, claim="exp"),
    "no subject": partial(without, claim="sub"),
    "no organization": partial(without, claim="organization_id"),
    "algorithm none": lambda server, permission: (
        "Bearer " + jwt.encode(claims(server, permission), "", algorithm="none")
    ),
    "algorithm NONE": lambda server, permission: f"Bearer {body_of(server, permission, algorithm='NONE')}.",
    "no signature": lambda server, permission: f"Bearer {body_of(server, permission, algorithm='EdDSA')}.",
    "another token's signature": with_another_signature,
    "HS256 with the public key": by_public_key_as_secret,
    "another key": partial(by_another_key, algorithm="EdDSA"),
    "another key for ES256": partial(by_another_key, algorithm="ES256"),
    "another key for RS256": partial(by_another_key, algorithm="RS256"),
    "another key for PS256": partial(by_another_key, algorithm="PS256"),
}


@pytest.mark.parametrize("kind", INVALID_TOKENS)
@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
async def test_a_call_without_a_valid_token_is_unauthenticated(
    module_server: StubServer, module_channel: grpc.aio.Channel, rpc: MethodDescriptor, kind: str
) -> None:
    permission = PERMISSIONS[rpc.containing_service.full_name][rpc.name]
    before = len(module_server.behavior.calls)

    code = await code_of(
        module_channel, rpc, valid_request(rpc.input_type), INVALID_TOKENS[kind](module_server, permission)
    )

    assert code == "UNAUTHENTICATED"
    assert len(module_server.behavior.calls) == before


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
async def test_all_other_permissions_together_are_not_enough(
    module_server: StubServer, module_channel: grpc.aio.Channel, rpc: MethodDescriptor
) -> None:
    others = ALL_PERMISSIONS - {PERMISSIONS[rpc.containing_service.full_name][rpc.name]}
    before = len(module_server.behavior.calls)

    for token in (
        module_server.token(*others),
        module_server.token(*others, "*"),
        module_server.token(*others, organization_id="*"),
    ):
        code = await code_of(module_channel, rpc, valid_request(rpc.input_type), f"Bearer {token}")
        assert code == "PERMISSION_DENIED"

    assert len(module_server.behavior.calls) == before


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
async def test_a_token_of_another_organization_is_denied(
    module_server: StubServer, module_channel: grpc.aio.Channel, rpc: MethodDescriptor
) -> None:
    permission = PERMISSIONS[rpc.containing_service.full_name][rpc.name]
    before = len(module_server.behavior.calls)

    for permissions in ((permission,), (*ALL_PERMISSIONS, "*")):
        token = module_server.token(*permissions, organization_id="acme2")
        code = await code_of(module_channel, rpc, valid_request(rpc.input_type), f"Bearer {token}")
        assert code == ("OK" if rpc.name in FOR_NO_ORGANIZATION else "PERMISSION_DENIED")

    if rpc.name not in FOR_NO_ORGANIZATION:
        assert len(module_server.behavior.calls) == before


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
async def test_the_right_permission_or_a_token_for_all_organizations_is_accepted(
    module_server: StubServer, module_channel: grpc.aio.Channel, rpc: MethodDescriptor
) -> None:
    permission = PERMISSIONS[rpc.containing_service.full_name][rpc.name]
    tokens = (
        module_server.token(permission),
        module_server.token(permission, organization_id="*"),
        module_server.token("*", organization_id="*"),
    )

    for token in tokens:
        assert await code_of(module_channel, rpc, valid_request(rpc.input_type), f"bearer {token}") == "OK"

    assert [call.caller.subject for call in module_server.behavior.calls[-3:]] == ["tester"] * 3


async def test_an_rpc_without_a_permission_and_a_permission_without_an_rpc_prevent_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = PERMISSIONS["pulsa.otp.v1.OtpService"]
    for rows in ({**whole, "Unknown": "x"}, {name: row for name, row in whole.items() if name != "SendOtp"}):
        monkeypatch.setitem(PERMISSIONS, "pulsa.otp.v1.OtpService", rows)
        with pytest.raises(LookupError, match="differ"):
            async with run_stub_server(tmp_path):
                pass
