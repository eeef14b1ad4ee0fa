"""The whole credit service: gRPC behind the real interceptor, Stripe's stand-in, and the webhook sidecar."""

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import grpc
import pytest
from prometheus_client import CollectorRegistry
from pulsa.credit.v1 import credit_service_pb2 as pb
from pulsa.credit.v1.credit_service_pb2_grpc import CreditServiceStub
from pulsa.errors import PulsaError, explain

from server.api.auth import TokenVerifier, mint
from server.api.credit_service import CreditDependencies, CreditService
from server.api.interceptor import Interceptor
from server.api.permissions import ALL_PERMISSIONS
from server.api.server import ListenOptions, start_server
from server.cli.token import DevelopmentKey, development_key
from server.credits.balances import Balances, BalanceStreams
from server.credits.pricing import load_pricing
from server.credits.stripe.client import StripeClient
from server.credits.stripe.inbox import StripeInbox
from server.credits.top_ups.automatic_service import AutomaticTopUps
from server.credits.top_ups.service import TopUps
from server.credits.top_ups.state_machine import TopUpTerms
from server.credits.top_ups.store import TopUpStore
from server.postgres.batcher import Batching
from server.postgres.pool import Pool
from server.sandbox.stripe import StripeSandbox, start_stripe_sandbox
from server.webhook.relay import Relay
from server.webhook.sidecar import start_sidecar

SERVICE = pb.DESCRIPTOR.services_by_name["CreditService"]
SECRET = "whsec_sandbox"


@dataclass(frozen=True, slots=True)
class CreditServiceHarness:
    """A caller's gRPC stub and tokens, Stripe's stand-in, and the customer's browser."""

    stub: Any
    key: DevelopmentKey
    sandbox: StripeSandbox
    browser: aiohttp.ClientSession

    def token(self, organization_id: str) -> str:
        return mint(
            self.key.private_key(),
            subject="ann",
            organization_id=organization_id,
            permissions=sorted(ALL_PERMISSIONS),
            lifetime_seconds=600,
        )

    async def call(self, rpc: str, organization_id: str = "acme", **fields: Any) -> Any:
        """The response of one unary rpc. Raises PulsaError."""
        method = SERVICE.methods_by_name[rpc]
        request = getattr(pb, method.input_type.name)(organization_id=organization_id, **fields)
        metadata = (("authorization", f"Bearer {self.token(organization_id)}"),)
        try:
            return await getattr(self.stub, rpc)(request, metadata=metadata, timeout=20)
        except grpc.aio.AioRpcError as error:
            raise explain(error) from None

    def watch(self, organization_id: str = "acme") -> Any:
        """A stream of balances."""
        metadata = (("authorization", f"Bearer {self.token(organization_id)}"),)
        return self.stub.WatchBalance(pb.WatchBalanceRequest(organization_id=organization_id), metadata=metadata)

    async def adjust(self, credits: int, organization_id: str = "acme") -> Any:
        return await self.call(
            "AdjustCredits", organization_id, request_id=str(uuid4()), adjust_credits=credits, reason="test"
        )

    async def create_top_up(self, organization_id: str = "acme", **fields: Any) -> Any:
        """A new top-up of 1,000 credits, paid in rupiah, unless `fields` say otherwise."""
        good = {
            "request_id": str(uuid4()),
            "credits": 1000,
            "currency_code": "IDR",
            "billing_email": "billing@example.com",
        }
        return (await self.call("CreateTopUp", organization_id, **(good | fields))).top_up

    async def pay(self, top_up: Any) -> None:
        """Pay the top-up on Stripe's hosted invoice page."""
        async with self.browser.post(f"{top_up.hosted_invoice_url}/pay", allow_redirects=False) as response:
            assert response.status == 303


@asynccontextmanager
async def run_credit_service(pool: Pool, folder: Path) -> AsyncIterator[CreditServiceHarness]:
    """Start the service, the sidecar and the stand-in on free local ports; stop them at the end."""
    key, pricing = development_key(folder), load_pricing(None)
    sandbox = await start_stripe_sandbox(webhook_secret=SECRET)
    stripe_client = StripeClient(api_key="sk_test_sandbox", base_url=sandbox.url)
    terms = TopUpTerms(environment="test", livemode=False)
    store = TopUpStore(pool, terms, low_balance_threshold=100, clock=pool.clock)
    balances = Balances(pool, low_balance_threshold=100, batching=Batching(size=500, linger_seconds=0.005))
    top_ups = TopUps(store, stripe_client, pricing)
    dependencies = CreditDependencies(
        pool=pool,
        pricing=pricing,
        balances=balances,
        balance_streams=BalanceStreams(balances, poll_seconds=0.02, spending_seconds=0.05),
        top_ups=top_ups,
        automatic_top_ups=AutomaticTopUps(store, stripe_client, pricing, top_ups),
        stripe_inbox=StripeInbox(store, stripe_client, secrets=[SECRET]),
        stripe_wait_seconds=10,
        deliveries_kept=timedelta(days=90),
    )
    interceptor = Interceptor(TokenVerifier(key.public_key_file), registry=CollectorRegistry())
    server = await start_server(
        {SERVICE: CreditService(dependencies)}, interceptor=interceptor, listening=ListenOptions(address="127.0.0.1:0")
    )
    address = f"127.0.0.1:{server.port}"
    relay_token = mint(
        key.private_key(), subject="sidecar", organization_id="*", permissions=["stripe.relay"], lifetime_seconds=600
    )
    relay = Relay(address, token=lambda: relay_token, credentials=None, timeout_seconds=10)
    sidecar = await start_sidecar(relay, host="127.0.0.1", port=0)
    sandbox.set_webhook_url(f"http://127.0.0.1:{sidecar.port}/stripe/webhook")
    async with grpc.aio.insecure_channel(address) as channel, aiohttp.ClientSession() as browser:
        yield CreditServiceHarness(CreditServiceStub(channel), key, sandbox, browser)
    await sandbox.close()
    await sidecar.stop()
    await server.drain(lame_duck_seconds=0, grace_seconds=5)
    await dependencies.top_ups.close()
    await dependencies.stripe_inbox.close()
    await stripe_client.close()


async def reason_and_metadata(call: Awaitable[Any]) -> tuple[str, dict[str, str]]:
    """The reason and the metadata of the error that the call must fail with."""
    with pytest.raises(PulsaError) as refused:
        await call
    return refused.value.reason, dict(refused.value.metadata)
