"""TLS and mutual TLS, with certificates that are renewed while calls come in."""

import asyncio
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from pulsa.otp.v1.otp_service_pb2 import SendOtpRequest, SendOtpResponse
from pulsa.otp.v1.otp_service_pb2_grpc import OtpServiceStub
from structlog.testing import capture_logs

from server.rpc.certificates import Certificates, TlsFiles
from server.rpc.serving import Listening
from tests.integration.rpc.authorities import Authority, write_tls
from tests.integration.rpc.house import House, open_house, stop_grpc, until
from tests.valid_requests import valid_request

AUTHORITY, CLIENTS, STRANGERS = Authority(), Authority(), Authority()


def listening(files: TlsFiles) -> Listening:
    return Listening(address="127.0.0.1:0", tls=files)


async def send(house: House, credentials: grpc.ChannelCredentials) -> SendOtpResponse:
    """One call over a connection of its own."""
    request: Any = valid_request(SendOtpRequest.DESCRIPTOR)
    # Without a pool of its own a channel would borrow another's connection instead of shaking hands.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(house.address, credentials, options=options) as channel:
        return await OtpServiceStub(channel).SendOtp(request, metadata=house.metadata("otp.send"), timeout=20)


async def served_certificate(house: House) -> str:
    return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", house.server.port))


def client(signed_by: Authority) -> grpc.ChannelCredentials:
    private_key, certificate = signed_by.issue("client")
    return grpc.ssl_channel_credentials(AUTHORITY.certificate, private_key, certificate)


async def test_a_call_over_tls_succeeds_and_one_in_the_clear_fails(tmp_path: Path) -> None:
    async with open_house(tmp_path, listening=listening(write_tls(tmp_path, AUTHORITY))) as house:
        assert await send(house, grpc.ssl_channel_credentials(AUTHORITY.certificate)) == SendOtpResponse()

        async with grpc.aio.insecure_channel(house.address) as channel:
            request: Any = valid_request(SendOtpRequest.DESCRIPTOR)
            with pytest.raises(grpc.aio.AioRpcError):
                await OtpServiceStub(channel).SendOtp(request, metadata=house.metadata("otp.send"), timeout=5)


async def test_a_server_that_grpc_stopped_listens_again_over_tls(tmp_path: Path) -> None:
    trusting = ssl.create_default_context(cadata=AUTHORITY.certificate.decode())
    trusting.set_alpn_protocols(["h2"])
    async with open_house(tmp_path, listening=listening(write_tls(tmp_path, AUTHORITY))) as house:
        await stop_grpc(house, tls=trusting)

        assert await send(house, grpc.ssl_channel_credentials(AUTHORITY.certificate)) == SendOtpResponse()


async def test_mutual_tls_lets_only_known_clients_in(tmp_path: Path) -> None:
    files = write_tls(tmp_path, AUTHORITY, clients=CLIENTS)
    async with open_house(tmp_path, listening=listening(files)) as house:
        assert await send(house, client(CLIENTS)) == SendOtpResponse()

        for stranger in (client(STRANGERS), grpc.ssl_channel_credentials(AUTHORITY.certificate)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await send(house, stranger)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mutual tls"])
async def test_certificates_are_renewed_under_load_without_a_failed_call(tmp_path: Path, *, mutual: bool) -> None:
    clients = CLIENTS if mutual else None
    files = write_tls(tmp_path, AUTHORITY, clients=clients)
    seen: set[str] = set()
    done = asyncio.Event()
    answers: list[SendOtpResponse] = []
    async with open_house(tmp_path, listening=listening(files)) as house:

        def answers_reach(enough: int) -> bool:
            return len(answers) >= enough

        async def call_on(credentials: grpc.ChannelCredentials) -> None:
            while not done.is_set():
                answers.append(await send(house, credentials))

        credentials = client(CLIENTS) if mutual else grpc.ssl_channel_credentials(AUTHORITY.certificate)
        callers = [asyncio.create_task(call_on(credentials)) for _ in range(4)]
        for _ in range(5):
            enough = len(answers) + 8
            await asyncio.to_thread(write_tls, tmp_path, AUTHORITY, clients=clients)
            await until(partial(answers_reach, enough))
            seen.add(await served_certificate(house))
        done.set()
        await asyncio.gather(*callers)

    assert len(seen) == 5
    assert house.count("SendOtp", "OK") == len(answers)


async def test_a_renewal_that_is_half_done_changes_nothing(tmp_path: Path) -> None:
    files = write_tls(tmp_path, AUTHORITY)
    credentials = grpc.ssl_channel_credentials(AUTHORITY.certificate)
    async with open_house(tmp_path, listening=listening(files)) as house:
        before = await served_certificate(house)
        private_key, certificate = AUTHORITY.issue("server")

        with capture_logs() as lines:
            for half in (certificate, b"", b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"):
                await asyncio.to_thread(files.certificate_chain.write_bytes, half)
                assert await send(house, credentials) == SendOtpResponse()
                assert await served_certificate(house) == before
        complaints = [line["alert"] for line in lines if line["event"] == "certificate_not_reloaded"]

        await asyncio.to_thread(files.certificate_chain.write_bytes, certificate)
        await asyncio.to_thread(files.private_key.write_bytes, private_key)
        assert await served_certificate(house) == certificate.decode()
        assert await send(house, credentials) == SendOtpResponse()

    assert all(complaints)
    assert len(complaints) in (2, 3)


def test_files_that_cannot_be_used_stop_the_start(tmp_path: Path) -> None:
    files = write_tls(tmp_path, AUTHORITY)
    files.private_key.write_bytes(AUTHORITY.issue("another")[0])
    with pytest.raises(ValueError, match="not for this private key"):
        Certificates(files)

    files.private_key.unlink()
    with pytest.raises(FileNotFoundError):
        Certificates(files)
