"""TLS and mutual TLS, with certificates that are renewed while calls come in."""

import asyncio
import base64
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pulsa.otp.v1.otp_service_pb2 import SendOtpRequest, SendOtpResponse
from pulsa.otp.v1.otp_service_pb2_grpc import OtpServiceStub
from structlog.testing import capture_logs

from server.api.server import ListenOptions
from server.api.tls import Certificates, TlsFileError, TlsFiles
from tests.integration.api.certificate_authority import CertificateAuthority, write_tls
from tests.integration.api.stub_server import StubServer, end_accept_loop, run_stub_server
from tests.valid_requests import valid_request
from tests.waiting import until

AUTHORITY, CLIENTS, UNTRUSTED = CertificateAuthority(), CertificateAuthority(), CertificateAuthority()


def listening(files: TlsFiles) -> ListenOptions:
    return ListenOptions(address="127.0.0.1:0", tls=files)


async def send(stub_server: StubServer, credentials: grpc.ChannelCredentials) -> SendOtpResponse:
    """Make one call over a new connection."""
    request: Any = valid_request(SendOtpRequest.DESCRIPTOR)
    # Without its own pool a channel would reuse another's connection, and there would be no handshake.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(stub_server.address, credentials, options=options) as channel:
        return await OtpServiceStub(channel).SendOtp(request, metadata=stub_server.metadata("otp.send"), timeout=20)


async def served_certificate(stub_server: StubServer) -> str:
    return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", stub_server.grpc_server.port))


def client(signed_by: CertificateAuthority) -> grpc.ChannelCredentials:
    private_key, certificate = signed_by.issue("client")
    return grpc.ssl_channel_credentials(AUTHORITY.certificate, private_key, certificate)


async def test_a_call_over_tls_succeeds_and_a_plaintext_one_fails(tmp_path: Path) -> None:
    async with run_stub_server(tmp_path, listening=listening(write_tls(tmp_path, AUTHORITY))) as stub_server:
        assert await send(stub_server, grpc.ssl_channel_credentials(AUTHORITY.certificate)) == SendOtpResponse()

        async with grpc.aio.insecure_channel(stub_server.address) as channel:
            request: Any = valid_request(SendOtpRequest.DESCRIPTOR)
            with pytest.raises(grpc.aio.AioRpcError):
                await OtpServiceStub(channel).SendOtp(request, metadata=stub_server.metadata("otp.send"), timeout=5)


async def test_a_server_whose_accept_loop_ended_listens_again_over_tls(tmp_path: Path) -> None:
    async with run_stub_server(tmp_path, listening=listening(write_tls(tmp_path, AUTHORITY))) as stub_server:
        await end_accept_loop(stub_server)

        assert await send(stub_server, grpc.ssl_channel_credentials(AUTHORITY.certificate)) == SendOtpResponse()


async def test_mutual_tls_accepts_only_clients_of_the_trusted_authority(tmp_path: Path) -> None:
    files = write_tls(tmp_path, AUTHORITY, clients=CLIENTS)
    async with run_stub_server(tmp_path, listening=listening(files)) as stub_server:
        assert await send(stub_server, client(CLIENTS)) == SendOtpResponse()

        for credentials in (client(UNTRUSTED), grpc.ssl_channel_credentials(AUTHORITY.certificate)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await send(stub_server, credentials)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mutual tls"])
async def test_certificates_are_renewed_under_load_without_a_failed_call(tmp_path: Path, *, mutual: bool) -> None:
    clients = CLIENTS if mutual else None
    files = write_tls(tmp_path, AUTHORITY, clients=clients)
    served: set[str] = set()
    done = asyncio.Event()
    answers: list[SendOtpResponse] = []
    async with run_stub_server(tmp_path, listening=listening(files)) as stub_server:

        def are_answered(calls: int) -> bool:
            return len(answers) >= calls

        async def call_on(credentials: grpc.ChannelCredentials) -> None:
            while not done.is_set():
                answers.append(await send(stub_server, credentials))

        credentials = client(CLIENTS) if mutual else grpc.ssl_channel_credentials(AUTHORITY.certificate)
        callers = [asyncio.create_task(call_on(credentials)) for _ in range(4)]
        for _ in range(5):
            calls = len(answers) + 8
            await asyncio.to_thread(write_tls, tmp_path, AUTHORITY, clients=clients)
            await until(partial(are_answered, calls))
            served.add(await served_certificate(stub_server))
        done.set()
        await asyncio.gather(*callers)

    assert len(served) == 5
    assert stub_server.count("SendOtp", "OK") == len(answers)


async def test_a_half_written_renewal_keeps_the_old_certificate(tmp_path: Path) -> None:
    files = write_tls(tmp_path, AUTHORITY)
    credentials = grpc.ssl_channel_credentials(AUTHORITY.certificate)
    async with run_stub_server(tmp_path, listening=listening(files)) as stub_server:
        before = await served_certificate(stub_server)
        private_key, certificate = AUTHORITY.issue("server")

        with capture_logs() as lines:
            for half in (certificate, b"", b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"):
                await asyncio.to_thread(files.certificate_chain.write_bytes, half)
                assert await send(stub_server, credentials) == SendOtpResponse()
                assert await served_certificate(stub_server) == before
        alerts = [line["alert"] for line in lines if line["event"] == "certificate_not_reloaded"]

        await asyncio.to_thread(files.certificate_chain.write_bytes, certificate)
        await asyncio.to_thread(files.private_key.write_bytes, private_key)
        assert await served_certificate(stub_server) == certificate.decode()
        assert await send(stub_server, credentials) == SendOtpResponse()

    assert all(alerts)
    assert len(alerts) in (2, 3)


def test_a_certificate_of_an_unknown_version_is_unusable_and_no_other_error(tmp_path: Path) -> None:
    files = write_tls(tmp_path, AUTHORITY)
    certificate = x509.load_pem_x509_certificate(files.certificate_chain.read_bytes()).public_bytes(Encoding.DER)
    version_6 = certificate.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05", 1)
    body = base64.encodebytes(version_6)
    files.certificate_chain.write_bytes(b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n")

    with pytest.raises(TlsFileError, match="certificate_chain: not a PEM file"):
        Certificates(files)


def test_unusable_files_prevent_the_start(tmp_path: Path) -> None:
    files = write_tls(tmp_path, AUTHORITY)
    files.private_key.write_bytes(AUTHORITY.issue("another")[0])
    with pytest.raises(ValueError, match="not for this private key"):
        Certificates(files)

    files.private_key.unlink()
    with pytest.raises(TlsFileError, match="private_key: cannot be read"):
        Certificates(files)
