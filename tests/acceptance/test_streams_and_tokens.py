"""A balance stream ends with its token: at the token's end, and when its key is removed."""

from pathlib import Path
from typing import Any

import grpc
from pulsa.credit.v1.credit_service_pb2 import WatchBalanceRequest
from pulsa.credit.v1.credit_service_pb2_grpc import CreditServiceStub
from pulsa.errors import PulsaError, explain

from server.cli.token import development_key
from tests.acceptance.deployment import Deployment, deployed
from tests.callers import reason_of


async def watch(pulsa: Deployment, token: str) -> "grpc.aio.UnaryStreamCall[Any, Any]":
    """An open stream that has sent its first balance."""
    watching = CreditServiceStub(pulsa.channel).WatchBalance(
        WatchBalanceRequest(organization_id="acme"), metadata=(("authorization", f"Bearer {token}"),), timeout=60
    )
    await watching.read()
    return watching


async def end_of(watching: "grpc.aio.UnaryStreamCall[Any, Any]") -> PulsaError:
    """The error that the stream ends with, after any further balances."""
    try:
        while await watching.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return explain(error)
    raise AssertionError("the stream ended with OK")


async def test_a_stream_ends_with_its_token_and_all_others_stay_open(database_url: str, tmp_path: Path) -> None:
    async with deployed(database_url, tmp_path) as pulsa:
        stays = await watch(pulsa, pulsa.token())
        ends = await watch(pulsa, pulsa.token(lifetime_seconds=3))

        end = await end_of(ends)
        await pulsa.grant(777)
        seen: Any = await stays.read()
        again = await watch(pulsa, pulsa.token())
        stays.cancel()
        again.cancel()

    assert (end.code, end.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
    assert seen.balance.available_credits == 777


async def test_a_stream_ends_when_the_key_of_its_token_is_removed(database_url: str, tmp_path: Path) -> None:
    async with deployed(database_url, tmp_path) as pulsa:
        token = pulsa.token()
        watching = await watch(pulsa, token)
        new = development_key(tmp_path / "new")
        pulsa.key.public_key_file.write_bytes(new.public_key_file.read_bytes())

        end = await end_of(watching)
        refused = await reason_of(pulsa.ask("WatchBalance", WatchBalanceRequest(organization_id="acme"), token))

    assert (end.code, end.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
    assert refused == "TOKEN_INVALID"


async def test_a_stream_stays_open_when_another_key_is_added(database_url: str, tmp_path: Path) -> None:
    async with deployed(database_url, tmp_path) as pulsa:
        watching = await watch(pulsa, pulsa.token())
        short = await watch(pulsa, pulsa.token(lifetime_seconds=3))
        keys, new = pulsa.key.public_key_file, development_key(tmp_path / "new")
        keys.write_bytes(new.public_key_file.read_bytes() + keys.read_bytes())

        await end_of(short)  # by now the keys were read and the streams checked
        await pulsa.grant(777)
        seen: Any = await watching.read()
        watching.cancel()

    assert seen.balance.available_credits == 777
