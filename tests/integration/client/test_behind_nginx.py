"""The Python client behind a real nginx, where one is installed: slow calls and large requests."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import grpc
import pytest
from pulsa.client import connect
from pulsa.credit.v1.credit_service_pb2 import GetBalanceRequest, GetBalanceResponse
from pulsa.errors import PulsaError

from tests.faults.processes import free_ports, listens
from tests.integration.client.scripted_server import ScriptedServer
from tests.waiting import SECONDS, until

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
CONFIGURATION = """
daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;
events {{ }}
http {{
    access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    server {{
        listen 127.0.0.1:{port} http2; {setting}
        error_page 502 504 = @unavailable;
        location / {{ grpc_pass grpc://{server}; }}
        location @unavailable {{
            internal; default_type application/grpc; add_header grpc-status 14 always; return 200;
        }}
    }}
}}
"""
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

Proxy = Callable[[str], AbstractContextManager[str]]


@pytest.fixture
def server() -> ScriptedServer:
    return ScriptedServer()


@pytest.fixture
def nginx(server: ScriptedServer, tmp_path: Path) -> Iterator[Proxy]:
    """Starts an nginx with a setting before the server, and yields its address."""
    grpc_server, address = server.start()

    @contextmanager
    def start(setting: str) -> Iterator[str]:
        (port,) = free_ports(1)
        file = tmp_path / "nginx.conf"
        file.write_text(CONFIGURATION.format(folder=tmp_path, port=port, setting=setting, server=address))
        with subprocess.Popen([str(NGINX), "-c", str(file)], stderr=subprocess.DEVNULL) as process:  # noqa: S603
            try:
                deadline = time.monotonic() + SECONDS
                while not listens(port):
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                yield f"127.0.0.1:{port}"
            finally:
                process.terminate()

    yield start
    server.answers.set()
    grpc_server.stop(None).wait()


async def test_a_call_that_is_too_slow_for_nginx_is_repeated_while_the_first_still_runs(
    server: ScriptedServer, nginx: Proxy
) -> None:
    request = GetBalanceRequest(organization_id="acme")
    server.answers.clear()
    with nginx("grpc_read_timeout 1s;") as address, connect(address, token="secret", timeout_seconds=60) as pulsa:
        slow = pulsa.credits.GetBalance.future(request)
        await until(lambda: len(server.requests) == 2)
        server.answers.set()
        assert slow.result() == GetBalanceResponse()
    assert server.requests == [request] * 2


def test_a_request_above_the_body_size_of_nginx_ends_unknown(server: ScriptedServer, nginx: Proxy) -> None:
    large = GetBalanceRequest(organization_id="x" * 1_100_000)
    with (
        nginx("") as address,
        connect(address, token="secret", timeout_seconds=60) as pulsa,
        pytest.raises(PulsaError, match="413") as refused,
    ):
        pulsa.credits.GetBalance(large)
    assert refused.value.code is grpc.StatusCode.UNKNOWN
    with nginx("client_max_body_size 0;") as address, connect(address, token="secret") as pulsa:
        assert pulsa.credits.GetBalance(large) == GetBalanceResponse()
    assert server.requests[-1] == large
