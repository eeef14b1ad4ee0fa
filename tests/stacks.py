"""`make test-callers`: gRPC stacks directly, and through proxies as docs/operations.md sets them. Not in `make test`.

Each makes a unary call, gets an error with details, sends a message of 1 MB, and watches a balance change. A cell whose
tools are missing is skipped, and says which.
"""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from tests.acceptance.deployment import Deployment, deployed
from tests.faults.dev_server import new_database
from tests.faults.processes import free_ports, listens
from tests.waiting import until

CHECKOUT: Final = Path(__file__).parents[1]
BUILT: Final = CHECKOUT / "clients" / "typescript" / "build"
SBIN: Final = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
SETTINGS: Final = (CHECKOUT / "docs" / "operations.md").read_text()
NGINX: Final = """
daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1; events {{ }}
http {{
    access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
{settings}
}}
"""
EXPECTED: Final = {"unary": "acme", "error": "INVALID_FIELDS", "large": "INVALID_FIELDS", "stream": 1}


@asynccontextmanager
async def proxy(kind: str, address: str, folder: Path) -> AsyncIterator[str]:
    """The address of a proxy before the server, with the settings of the documents; the server's own for "direct"."""
    if kind == "direct":
        yield address
        return
    program = shutil.which(kind, path=SBIN) or pytest.skip(f"{kind} is not installed")
    (port,) = free_ports(1)
    found = re.search(rf"```{kind}\n(.*?)```", SETTINGS, re.DOTALL)
    assert found
    settings = re.sub(r".*127\.0\.0\.1:50052.*\n", "", found[1])
    settings = settings.replace("127.0.0.1:50051", address).replace("127.0.0.1:8443", f"127.0.0.1:{port}")
    file = folder / kind
    file.write_text(NGINX.format(folder=folder, settings=settings) if kind == "nginx" else settings)
    arguments = ("-c", str(file)) if kind == "nginx" else ("-db", "-f", str(file))
    process = await asyncio.create_subprocess_exec(program, *arguments, stderr=asyncio.subprocess.DEVNULL)
    try:
        await until(lambda: listens(port))
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def output(*command: str | Path) -> str:
    """What a command prints, whatever its exit status."""
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=CHECKOUT)
    return (await process.communicate())[0].decode()


def node(script: str) -> Callable[[str, str, Path], Any]:
    async def calls(address: str, token: str, folder: Path) -> Any:  # noqa: ARG001 - as of the others
        program = shutil.which("node") or pytest.skip("Node is not installed")
        return json.loads(await output(program, BUILT / script, address, token))

    return calls


async def buf_curl(address: str, token: str, folder: Path) -> Any:
    """The calls with `buf curl`, whose errors have encoded details."""
    program = CHECKOUT / ".venv" / "bin" / "buf"

    def command(rpc: str, **request: object) -> list[str]:
        file = folder / "request.json"
        file.write_text(json.dumps(request))
        options = ("curl", "--protocol", "grpc", "--http2-prior-knowledge", "--schema", "protos", "-d", f"@{file}")
        return [str(program), *options, "-H", f"authorization: Bearer {token}", f"http://{address}/pulsa.{rpc}"]

    async def reason(rpc: str, **request: object) -> str:
        process = await asyncio.create_subprocess_exec(
            *command(rpc, **request), stderr=asyncio.subprocess.PIPE, cwd=CHECKOUT
        )
        error = (await process.communicate())[1].decode()
        return "INVALID_FIELDS" if '"google.rpc.BadRequest"' in error else error

    balance = json.loads(await output(*command("credit.v1.CreditService/GetBalance", organization_id="acme")))
    error = await reason("otp.v1.OtpService/SendOtp", organization_id="acme")
    large = await reason("otp.v1.OtpService/SendOtp", organization_id="acme", context="x" * 1_000_000)
    watch = await asyncio.create_subprocess_exec(
        *command("credit.v1.CreditService/WatchBalance", organization_id="acme"),
        stdout=asyncio.subprocess.PIPE,
        cwd=CHECKOUT,
    )
    shown: list[int] = []
    assert watch.stdout
    while len(shown) < 2:
        line = (await watch.stdout.readline()).decode()
        assert line, "the stream ended"
        if found := re.search(r'"availableCredits": *"(\d+)"', line):
            shown.append(int(found[1]))
            if len(shown) == 1:
                adjustment = {"request_id": str(uuid4()), "adjust_credits": 1, "reason": "one more"}
                await output(*command("credit.v1.CreditService/AdjustCredits", organization_id="acme", **adjustment))
    watch.terminate()
    await watch.wait()
    unary = balance["balance"]["organizationId"]
    return {"unary": unary, "error": error, "large": large, "stream": shown[1] - shown[0]}


STACKS: Final[dict[str, Callable[[str, str, Path], Any] | None]] = {
    "connect-node": node("calls_with_connect.js"),
    "grpc-js": node("calls_with_grpc_js.js"),
    "buf curl": buf_curl,
    "Ruby": None,
    "Java": None,
}


@pytest.fixture(scope="module")
async def pulsa(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    with new_database(postgres, "stacks") as database_url:
        async with deployed(database_url, tmp_path_factory.mktemp("stacks")) as deployment:
            await deployment.grant(7)
            yield deployment


@pytest.mark.parametrize("way", ["direct", "nginx", "haproxy"])
@pytest.mark.parametrize("stack", STACKS)
async def test_a_stack_calls_pulsa(pulsa: Deployment, stack: str, way: str, tmp_path: Path) -> None:
    calls = STACKS[stack] or pytest.skip(f"no calls are written in {stack} yet")
    async with proxy(way, pulsa.address, tmp_path) as address:
        assert await asyncio.wait_for(calls(address, pulsa.token(), tmp_path), 60) == EXPECTED
