"""`make bench-clients`: what the asyncio client adds to bare stubs, and 10,000 calls at once through a channel of each.

The answering server has the options of Pulsa's, does nothing, and is a process of its own. Only the processor time of
the calling process counts.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
from pulsa import client
from pulsa.aio import connect
from pulsa.credit.v1.credit_service_pb2 import GetBalanceRequest, GetBalanceResponse
from pulsa.credit.v1.credit_service_pb2_grpc import CreditServiceStub
from pulsa.errors import PulsaError

from server.api.server import ListenOptions

REQUEST: Final = GetBalanceRequest(organization_id="acme")
TOKEN: Final = "t" * 400
ROUNDS: Final = 15
CALLS: Final = 2_000
CALLERS: Final = 16
AT_ONCE: Final = 10_000
HIGHEST_SHARE: Final = 1.10

Call = Callable[[], Awaitable[Any]]


async def microseconds_per_call(call: Call) -> float:
    """The processor time of a call, of CALLS by CALLERS at once."""

    async def caller() -> None:
        for _ in range(CALLS // CALLERS):
            await call()

    began = time.process_time()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return (time.process_time() - began) / CALLS * 1e6


async def measure(address: str) -> bool:
    """Print the figures; returns whether the client costs no more than it may."""
    authorization = (("authorization", f"Bearer {TOKEN}"),)
    async with grpc.aio.insecure_channel(address) as channel, connect(address, token=TOKEN) as pulsa:
        bare = CreditServiceStub(channel)
        calls: dict[str, Call] = {
            "bare stub": lambda: bare.GetBalance(REQUEST, timeout=10, metadata=authorization),
            "client": lambda: pulsa.credits.GetBalance(REQUEST),
        }
        measured: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(ROUNDS + 1):
            for name in sorted(calls, reverse=bool(number % 2)):
                seconds = await microseconds_per_call(calls[name])
                if number:  # the first round warms up
                    measured[name].append(seconds)
        for name, figures in measured.items():
            print(f"{name}: {statistics.median(figures):.0f} µs of processor time for a call")  # noqa: T201
        pairs = zip(measured["client"], measured["bare stub"], strict=True)
        share = statistics.median(ours / stub for ours, stub in pairs)
        print(f"client / bare stub: {share:.3f}, median of {ROUNDS} pairs; at most {HIGHEST_SHARE:.2f}")  # noqa: T201
        began = time.perf_counter()
        answers = await asyncio.gather(*(pulsa.credits.GetBalance(REQUEST, timeout=60) for _ in range(AT_ONCE)))
        assert answers == [GetBalanceResponse()] * AT_ONCE
        print(f"{AT_ONCE:,} calls at once through one channel: {time.perf_counter() - began:.1f} s")  # noqa: T201
    await asyncio.to_thread(call_at_once_with_threads, address)
    return share <= HIGHEST_SHARE


def call_at_once_with_threads(address: str) -> None:
    """Make the calls with the futures of pulsa.client, which do not repeat a call that the server has no room for."""
    with client.connect(address, token=TOKEN) as pulsa:
        began = time.perf_counter()
        calls = [pulsa.credits.GetBalance.future(REQUEST, timeout=60) for _ in range(AT_ONCE)]
        errors = [error for error in (call.exception() for call in calls) if error]
        seconds = time.perf_counter() - began
    assert all(isinstance(error, PulsaError) and error.code is grpc.StatusCode.UNAVAILABLE for error in errors)
    print(f"{AT_ONCE:,} futures at once through one channel: {seconds:.1f} s, {len(errors)} refused")  # noqa: T201


async def answer() -> None:
    """Answer GetBalance until the end of the standard input; prints the port."""

    async def get_balance(_request: bytes, _context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        return b""

    server = grpc.aio.server(options=ListenOptions(address="").options)
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(get_balance)
    methods = grpc.method_handlers_generic_handler("pulsa.credit.v1.CreditService", {"GetBalance": handler})
    server.add_generic_rpc_handlers([methods])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)  # noqa: T201
    await server.start()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


async def main() -> None:
    """Measure; the exit code is 1 when the client costs too much."""
    pipe = asyncio.subprocess.PIPE
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.clients", "answer", stdin=pipe, stdout=pipe
    )
    assert server.stdin
    assert server.stdout
    try:
        good = await measure(f"127.0.0.1:{int(await server.stdout.readline())}")
    finally:
        server.stdin.close()
        await server.wait()
    sys.exit(not good)


if __name__ == "__main__":
    asyncio.run(answer() if sys.argv[1:] == ["answer"] else main())
