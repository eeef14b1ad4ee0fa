"""A database that takes bytes and never answers: calls hear of it, and the server can still be stopped."""

import signal
from pathlib import Path

from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped] # has no types

from tests.callers import reason_of
from tests.fault_proxy import Fault, proxy_to
from tests.faults.process_deployment import deployed_processes
from tests.waiting import until


async def test_calls_hear_of_it_readiness_stays_and_the_server_still_stops(database_url: str, tmp_path: Path) -> None:
    async with (
        proxy_to(database_url) as (proxy, url),
        deployed_processes(url, tmp_path, PULSA_DRAIN_SECONDS="3") as deployment,
    ):
        health = health_pb2_grpc.HealthStub(deployment.channel)

        async def serves(name: str) -> bool:
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        async def database_is_lost() -> bool:
            return not await serves("database")

        await deployment.grant(10)
        await deployment.send(email="ann@mail.example")
        proxy.set(Fault.NO_ANSWER)
        assert await reason_of(deployment.send(email="bob@mail.example")) == "DATABASE_UNAVAILABLE"
        await until(database_is_lost)
        assert [await serves(name) for name in ("liveness", "readiness", "")] == [True] * 3
        for rpc in ("GetBalance", "ListLedgerEntries", "WatchBalance", "ListOtps"):
            assert await reason_of(deployment.call(rpc)) == "DATABASE_UNAVAILABLE"

        deployment.running["serve"].signal(signal.SIGTERM)
        assert await deployment.running["serve"].wait_for_exit() == 0
        assert '"the database was lost"' in deployment.running["serve"].output
