"""TLS certificates and token keys are rotated under load, and no call fails."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import aiohttp
import grpc
from pulsa.credit.v1.credit_service_pb2 import AdjustCreditsRequest, GetBalanceRequest, VerifyLedgerRequest
from pulsa.otp.v1.destination_pb2 import Destination
from pulsa.otp.v1.otp_service_pb2 import SendOtpRequest

from server.api.tls import TlsFiles
from server.webhook.sidecar import PATH
from tests.callers import Caller, reason_of
from tests.faults.issuer import Issuer
from tests.faults.process_deployment import ProcessDeployment, deployed_processes, start_sidecar
from tests.integration.api.certificate_authority import CertificateAuthority, write_tls
from tests.waiting import until

SERVERS, CLIENTS = CertificateAuthority(), CertificateAuthority()
CLIENT_KEY, CLIENT_CERTIFICATE = CLIENTS.issue("client")
# Without its own subchannel pool a channel would reuse the connection of another one, without a TLS handshake.
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
ROTATIONS = 3


@dataclass
class Callers:
    """Four callers that send one mail after another: two keep their connection, two open a new one for each call."""

    deployment: ProcessDeployment
    token: str
    answers: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    stopped: bool = False

    async def make_progress(self) -> None:
        """Return once each had three more answers, the last of them to a call that began after this one."""
        wanted = [count + 3 for count in self.answers]
        await until(lambda: all(count >= enough for count, enough in zip(self.answers, wanted, strict=True)))

    async def keep_calling(self, number: int) -> None:
        while not self.stopped:
            async with self.connection() as caller:
                await self._send(caller, number)
                while number < 2 and not self.stopped:
                    await self._send(caller, number)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Caller]:
        credentials = grpc.ssl_channel_credentials(SERVERS.certificate, CLIENT_KEY, CLIENT_CERTIFICATE)
        async with grpc.aio.secure_channel(
            self.deployment.settings["PULSA_LISTEN"], credentials, options=OWN_CONNECTION
        ) as channel:
            yield Caller(channel, self.deployment.key)

    async def _send(self, caller: Caller, number: int) -> None:
        destination = Destination(email=f"{uuid4()}@mail.example")
        request = SendOtpRequest(
            organization_id="acme", request_id=str(uuid4()), destination=destination, purpose="login"
        )
        await caller.ask("SendOtp", request, self.token)
        self.answers[number] += 1


def tls_settings(files: TlsFiles) -> dict[str, str]:
    return {
        "PULSA_TLS_CERTIFICATE": str(files.certificate_chain),
        "PULSA_TLS_KEY": str(files.private_key),
        "PULSA_TLS_CLIENT_CA": str(files.client_authorities),
    }


async def certificate_of(deployment: ProcessDeployment) -> str:
    host, _, port = deployment.settings["PULSA_LISTEN"].partition(":")
    return await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))


async def rotate_token_key(callers: Callers, operator: Caller, issuer: Issuer, number: int) -> None:
    """Publish the new key together with the old one, let callers use it, and remove the old one."""
    old, new = f"key-{number - 1}", f"key-{number}"
    await asyncio.to_thread(issuer.publish, old, new)
    await until_answered(operator, issuer.token(new), "")
    callers.token = issuer.token(new)
    await callers.make_progress()
    await asyncio.to_thread(issuer.publish, new)
    await until_answered(operator, issuer.token(old), "TOKEN_INVALID")


async def until_answered(operator: Caller, token: str, reason: str) -> None:
    async def has_reason() -> bool:
        return await reason_of(operator.ask("GetBalance", GetBalanceRequest(organization_id="acme"), token)) == reason

    await until(has_reason)


async def test_a_sidecar_with_a_certificate_relays_to_a_server_with_mutual_tls(
    database_url: str, tmp_path: Path
) -> None:
    files = write_tls(tmp_path, SERVERS, clients=CLIENTS)
    for name, content in {"ca": SERVERS.certificate, "own.crt": CLIENT_CERTIFICATE, "own.key": CLIENT_KEY}.items():
        (tmp_path / name).write_bytes(content)
    changes = tls_settings(files) | {
        "PULSA_WEBHOOK_CA": str(tmp_path / "ca"),
        "PULSA_WEBHOOK_CERTIFICATE": str(tmp_path / "own.crt"),
        "PULSA_WEBHOOK_KEY": str(tmp_path / "own.key"),
    }
    async with deployed_processes(database_url, tmp_path, **changes) as deployment:
        await start_sidecar(deployment)
        url = f"http://{deployment.settings['PULSA_WEBHOOK_LISTEN']}{PATH}"
        async with aiohttp.ClientSession() as stripe, stripe.post(url, data=b"{}") as unsigned:
            assert unsigned.status == 400  # says the server; 503: it was not reached


async def test_no_call_fails_while_certificates_and_token_keys_are_rotated(database_url: str, tmp_path: Path) -> None:
    files, issuer = write_tls(tmp_path, SERVERS, clients=CLIENTS), Issuer(tmp_path / "jwks.json")
    issuer.publish("key-0")
    changes = tls_settings(files) | {"PULSA_TOKEN_KEYS": str(issuer.file)}
    async with deployed_processes(database_url, tmp_path, **changes) as deployment:
        callers = Callers(deployment, issuer.token("key-0"))
        async with callers.connection() as operator:
            grant = AdjustCreditsRequest(
                organization_id="acme", request_id=str(uuid4()), adjust_credits=1_000_000, reason="for the test"
            )
            await operator.ask("AdjustCredits", grant, callers.token)
            certificates = {await certificate_of(deployment)}
            async with asyncio.TaskGroup() as group:  # ends at once if a call fails
                for number in range(len(callers.answers)):
                    group.create_task(callers.keep_calling(number))
                for number in range(1, ROTATIONS + 1):
                    await asyncio.to_thread(write_tls, tmp_path, SERVERS, clients=CLIENTS)
                    await callers.make_progress()
                    certificates.add(await certificate_of(deployment))
                    await rotate_token_key(callers, operator, issuer, number)
                    await callers.make_progress()
                callers.stopped = True
            audit = await operator.ask("VerifyLedger", VerifyLedgerRequest(organization_id="acme"), callers.token)
        await deployment.wait_for_empty_outbox()

    assert len(certificates) == 1 + ROTATIONS
    assert (audit.holds, audit.entry_count) == (True, 1 + sum(callers.answers))
    assert len(deployment.mails()) == sum(callers.answers)
