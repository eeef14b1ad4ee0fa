"""Every rpc against every kind of caller: only the right token gets in."""

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

from server.rpc.permissions import ALL_PERMISSIONS, PERMISSIONS
from tests.integration.rpc.house import SERVICES, House, open_house
from tests.valid_requests import valid_request

RPCS: list[MethodDescriptor] = [method for service in SERVICES for method in service.methods]
RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_KEYS: dict[str, Any] = {
    "EdDSA": Ed25519PrivateKey.generate(),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "RS256": RSA_KEY,
    "PS256": RSA_KEY,
}


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with open_house(tmp_path_factory.mktemp("matrix")) as opened:
        yield opened


@pytest.fixture(scope="module")
async def line(shared: House) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(shared.address) as opened:
        yield opened


async def end_of(channel: grpc.aio.Channel, rpc: MethodDescriptor, request: Message, token: str | None) -> str:
    """The name of the code that the call ended with."""
    method = f"/{rpc.containing_service.full_name}/{rpc.name}"
    metadata = () if token is None else (("authorization", token),)
    payload = request.SerializeToString()
    if rpc.server_streaming:
        watch: Any = channel.unary_stream(method)
        stream = watch(payload, metadata=metadata, timeout=10)
        try:
            assert [message async for message in stream] == [b"", b""]
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"
    invoke: Any = channel.unary_unary(method)
    return str((await invoke(payload, metadata=metadata, timeout=10).code()).name)


def claims(house: House, permission: str, **changes: object) -> dict[str, object]:
    return jwt.decode(house.token(permission), options={"verify_signature": False}) | changes


def signed(house: House, permission: str, **changes: object) -> str:
    return "Bearer " + jwt.encode(claims(house, permission, **changes), house.key.private_key(), algorithm="EdDSA")


def without(house: House, permission: str, claim: str) -> str:
    rest = {name: value for name, value in claims(house, permission).items() if name != claim}
    return "Bearer " + jwt.encode(rest, house.key.private_key(), algorithm="EdDSA")


def by_another_key(house: House, permission: str, *, algorithm: str) -> str:
    return "Bearer " + jwt.encode(claims(house, permission), OTHER_KEYS[algorithm], algorithm=algorithm)


def base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def body_of(house: House, permission: str, *, algorithm: str) -> str:
    parts = [{"alg": algorithm, "typ": "JWT"}, claims(house, permission)]
    return ".".join(base64url(json.dumps(part).encode()) for part in parts)


def with_secret(house: House, permission: str) -> str:
    body = body_of(house, permission, algorithm="HS256")
    mac = hmac.digest(house.key.public_key_file.read_bytes(), body.encode(), "sha256")
    return f"Bearer {body}.{base64url(mac)}"


def with_anothers_signature(house: House, permission: str) -> str:
    """A good token of nobody's permission, whose claims were exchanged."""
    signature = house.token("none.of.them").rpartition(".")[2]
    return f"Bearer {body_of(house, permission, algorithm='EdDSA')}.{signature}"


STRANGERS: dict[str, Callable[[House, str], str | None]] = {
    "no token": lambda _house, _permission: None,
    "an empty token": lambda _house, _permission: "Bearer ",
    "another scheme": lambda house, permission: f"Basic {house.token(permission)}",
    "an expired token": lambda house, permission: signed(house, permission, exp=time.time() - 120),
    "another audience": lambda house, permission: signed(house, permission, aud="billing"),
    "a token of tomorrow": lambda house, permission: signed(house, permission, nbf=time.time() + 86_400),
    "no audience": partial(without, claim="aud"),
    "no expiry": partial(without, claim="exp"),
    "no subject": partial(without, claim="sub"),
    "no organization": partial(without, claim="organization_id"),
    "algorithm none": lambda house, permission: "Bearer " + jwt.encode(claims(house, permission), "", algorithm="none"),
    "algorithm NONE": lambda house, permission: f"Bearer {body_of(house, permission, algorithm='NONE')}.",
    "no signature": lambda house, permission: f"Bearer {body_of(house, permission, algorithm='EdDSA')}.",
    "another token's signature": with_anothers_signature,
    "HS256 with the public key": with_secret,
    "another key": partial(by_another_key, algorithm="EdDSA"),
    "another key for ES256": partial(by_another_key, algorithm="ES256"),
    "another key for RS256": partial(by_another_key, algorithm="RS256"),
    "another key for PS256": partial(by_another_key, algorithm="PS256"),
}


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
async def test_without_a_good_token_nobody_gets_in(
    shared: House, line: grpc.aio.Channel, rpc: MethodDescriptor, stranger: str
) -> None:
    permission = PERMISSIONS[rpc.containing_service.full_name][rpc.name]
    before = len(shared.room.calls)

    code = await end_of(line, rpc, valid_request(rpc.input_type), STRANGERS[stranger](shared, permission))

    assert code == "UNAUTHENTICATED"
    assert len(shared.room.calls) == before


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
async def test_every_other_permission_together_is_not_enough(
    shared: House, line: grpc.aio.Channel, rpc: MethodDescriptor
) -> None:
    others = ALL_PERMISSIONS - {PERMISSIONS[rpc.containing_service.full_name][rpc.name]}
    before = len(shared.room.calls)

    for token in (shared.token(*others), shared.token(*others, "*"), shared.token(*others, organization_id="*")):
        code = await end_of(line, rpc, valid_request(rpc.input_type), f"Bearer {token}")
        assert code == "PERMISSION_DENIED"

    assert len(shared.room.calls) == before


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
async def test_another_organizations_token_gets_in_nowhere(
    shared: House, line: grpc.aio.Channel, rpc: MethodDescriptor
) -> None:
    permission = PERMISSIONS[rpc.containing_service.full_name][rpc.name]
    before = len(shared.room.calls)

    for permissions in ((permission,), (*ALL_PERMISSIONS, "*")):
        token = shared.token(*permissions, organization_id="acme2")
        code = await end_of(line, rpc, valid_request(rpc.input_type), f"Bearer {token}")
        # RecordStripeEvent is the one rpc that acts for no organization.
        assert code == ("OK" if rpc.name == "RecordStripeEvent" else "PERMISSION_DENIED")

    if rpc.name != "RecordStripeEvent":
        assert len(shared.room.calls) == before


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
async def test_the_right_permission_or_a_trusted_services_token_gets_in(
    shared: House, line: grpc.aio.Channel, rpc: MethodDescriptor
) -> None:
    permission = PERMISSIONS[rpc.containing_service.full_name][rpc.name]
    tokens = (
        shared.token(permission),
        shared.token(permission, organization_id="*"),
        shared.token("*", organization_id="*"),
    )

    for token in tokens:
        assert await end_of(line, rpc, valid_request(rpc.input_type), f"bearer {token}") == "OK"

    assert [call.caller.subject for call in shared.room.calls[-3:]] == ["tester"] * 3


async def test_what_is_not_guarded_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PERMISSIONS["pulsa.otp.v1.OtpService"]
    for rows in ({**whole, "Unheard": "x"}, {name: row for name, row in whole.items() if name != "SendOtp"}):
        monkeypatch.setitem(PERMISSIONS, "pulsa.otp.v1.OtpService", rows)
        with pytest.raises(LookupError, match="differ"):
            async with open_house(tmp_path):
                pass
