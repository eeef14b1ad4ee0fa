"""Certificates and token keys are exchanged under load, and no call fails."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pulsa.credit.v1.credit_service_pb2 import AdjustCreditsRequest, GetBalanceRequest, VerifyLedgerRequest
from pulsa.otp.v1.destination_pb2 import Destination
from pulsa.otp.v1.otp_service_pb2 import SendOtpRequest

from server.rpc.permissions import ALL_PERMISSIONS
from tests.callers import Caller, reason_of
from tests.faults.site import Site, open_site
from tests.integration.rpc.authorities import Authority, write_tls
from tests.waiting import until

SERVERS, CLIENTS = Authority(), Authority()
CLIENT_KEY, CLIENT_CERTIFICATE = CLIENTS.issue("client")
# Without a pool of its own a channel would borrow another's connection instead of shaking hands.
ALONE = [("grpc.use_local_subchannel_pool", 1)]
SWAPS = 3


@dataclass
class Issuer:
    """Whoever signs tokens, and publishes the keys for them."""

    file: Path
    keys: dict[str, Ed25519PrivateKey] = field(default_factory=dict)

    def publish(self, *names: str) -> None:
        """The JWKS has these keys, and no others."""
        eddsa: Any = jwt.get_algorithm_by_name("EdDSA")
        self.keys |= {name: Ed25519PrivateKey.generate() for name in names if name not in self.keys}
        published = [eddsa.to_jwk(self.keys[name].public_key(), as_dict=True) | {"kid": name} for name in names]
        self.file.write_text(json.dumps({"keys": published}))

    def token(self, name: str) -> str:
        claims = {"sub": "ann", "aud": "pulsa", "exp": 4_000_000_000, "organization_id": "acme"}
        claims["permissions"] = sorted(ALL_PERMISSIONS)
        return jwt.encode(claims, self.keys[name], algorithm="EdDSA", headers={"kid": name})


@dataclass
class Callers:
    """They send one mail after the other: two over a connection that they keep, two each time over a new one."""

    site: Site
    token: str
    answers: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    over: bool = False

    async def go_on(self) -> None:
        """Return once each of them had several more answers, the last of them to a call that began after this one."""
        wanted = [count + 3 for count in self.answers]
        await until(lambda: all(count >= enough for count, enough in zip(self.answers, wanted, strict=True)))

    async def keep_calling(self, number: int) -> None:
        while not self.over:
            async with self.connection() as caller:
                await self._send(caller, number)
                while number < 2 and not self.over:
                    await self._send(caller, number)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Caller]:
        credentials = grpc.ssl_channel_credentials(SERVERS.certificate, CLIENT_KEY, CLIENT_CERTIFICATE)
        async with grpc.aio.secure_channel(self.site.settings["PULSA_LISTEN"], credentials, options=ALONE) as channel:
            yield Caller(channel, self.site.key)

    async def _send(self, caller: Caller, number: int) -> None:
        destination = Destination(email=f"{uuid4()}@mail.example")
        request = SendOtpRequest(
            organization_id="acme", request_id=str(uuid4()), destination=destination, purpose="login"
        )
        await caller.ask("SendOtp", request, self.token)
        self.answers[number] += 1


async def certificate_of(site: Site) -> str:
    host, _, port = site.settings["PULSA_LISTEN"].partition(":")
    return await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))


async def swap_keys(callers: Callers, operator: Caller, issuer: Issuer, number: int) -> None:
    """The new key beside the old one, callers take it up, the old one goes."""
    old, new = f"key-{number - 1}", f"key-{number}"
    await asyncio.to_thread(issuer.publish, old, new)
    await until_answered(operator, issuer.token(new), "")
    callers.token = issuer.token(new)
    await callers.go_on()
    await asyncio.to_thread(issuer.publish, new)
    await until_answered(operator, issuer.token(old), "TOKEN_INVALID")


async def until_answered(operator: Caller, token: str, reason: str) -> None:
    async def is_so() -> bool:
        return await reason_of(operator.ask("GetBalance", GetBalanceRequest(organization_id="acme"), token)) == reason

    await until(is_so)


async def test_no_call_fails_while_certificates_and_token_keys_are_exchanged(database_url: str, tmp_path: Path) -> None:
    files, issuer = write_tls(tmp_path, SERVERS, clients=CLIENTS), Issuer(tmp_path / "jwks.json")
    issuer.publish("key-0")
    changes = {
        "PULSA_TLS_CERTIFICATE": str(files.certificate_chain),
        "PULSA_TLS_KEY": str(files.private_key),
        "PULSA_TLS_CLIENT_CA": str(files.client_authorities),
        "PULSA_TOKEN_KEYS": str(issuer.file),
    }
    async with open_site(database_url, tmp_path, **changes) as site:
        callers = Callers(site, issuer.token("key-0"))
        async with callers.connection() as operator:
            grant = AdjustCreditsRequest(
                organization_id="acme", request_id=str(uuid4()), adjust_credits=1_000_000, reason="for the test"
            )
            await operator.ask("AdjustCredits", grant, callers.token)
            served = {await certificate_of(site)}
            async with asyncio.TaskGroup() as group:  # which ends at once when a call fails
                for number in range(len(callers.answers)):
                    group.create_task(callers.keep_calling(number))
                for number in range(1, SWAPS + 1):
                    await asyncio.to_thread(write_tls, tmp_path, SERVERS, clients=CLIENTS)
                    await callers.go_on()
                    served.add(await certificate_of(site))
                    await swap_keys(callers, operator, issuer, number)
                    await callers.go_on()
                callers.over = True
            audit = await operator.ask("VerifyLedger", VerifyLedgerRequest(organization_id="acme"), callers.token)
        await site.is_settled()

    assert len(served) == 1 + SWAPS
    assert (audit.holds, audit.entry_count) == (True, 1 + sum(callers.answers))
    assert len(site.mails()) == sum(callers.answers)
