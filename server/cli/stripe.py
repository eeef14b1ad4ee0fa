"""The commands about Stripe: `reconcile`, `resolve-top-up` and `stripe-endpoint`."""

import argparse
import asyncio
import os
from contextlib import AsyncExitStack
from uuid import UUID

from server.cli.database import existing_database
from server.composition import open_credits, open_shared, open_stripe, timeouts_of
from server.credits.stripe.errors import StripeCallError
from server.credits.stripe.reconcile import find_drift
from server.credits.top_ups.state_machine import Resolution, TopUp
from server.environment import SettingsError, load_settings
from server.errors import BalanceAboveMaximum, RequestIdReused, TopUpNotFound, TopUpNotResolvable
from server.ids import new_id
from server.postgres.pool import open_pool
from server.settings import Settings


def add_reconcile_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `reconcile`."""
    parser.add_argument(
        "--event",
        metavar="ID",
        help="process this event of the last 30 days again, even one whose attempts are used up",
    )


def reconcile(arguments: argparse.Namespace) -> int:
    """`reconcile`: print how Stripe and the top-ups of the last 35 days differ; return 1 when they do, 0 otherwise."""
    settings = load_settings(os.environ)
    try:
        with existing_database(settings, writes=arguments.event is not None) as url:
            if arguments.event:
                return asyncio.run(_replay(settings, url, arguments.event))
            return asyncio.run(_report(settings, url))
    except StripeCallError as error:
        print(f"Stripe: {error}")
        return 1


async def _report(settings: Settings, url: str) -> int:
    async with AsyncExitStack() as stack:
        stripe_client = open_stripe(settings)
        stack.push_async_callback(stripe_client.close)
        pool = await open_pool(url, size=2, timeouts=timeouts_of(settings.database), read_only=True)
        stack.push_async_callback(pool.close)
        report = await find_drift(pool, stripe_client, environment=settings.environment, now=pool.now())
    print(report)
    return 0 if report.holds else 1


async def _replay(settings: Settings, url: str, event_id: str) -> int:
    async with AsyncExitStack() as stack:
        shared = await open_shared(stack, settings, url, None)
        credits = open_credits(stack, shared)
        done = await credits.inbox.replay(event_id)
    print("done" if done else "not done: the event was rejected, or Stripe is unavailable; see the log")
    return 0 if done else 1


def add_resolve_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `resolve-top-up`."""
    parser.add_argument("organization_id")
    parser.add_argument("top_up_id", type=UUID)
    parser.add_argument("--credits", type=int, required=True, help="credits to add; 0 closes it without any")
    parser.add_argument("--reason", required=True, help="stays in the ledger")
    parser.add_argument("--by", required=True, help="who decides; stays in the ledger")
    parser.add_argument("--request-id", type=UUID, help="to repeat a call: the same UUID is the same decision")


def resolve_top_up(arguments: argparse.Namespace) -> int:
    """`resolve-top-up`: end a top-up that needs a person; return 1 when it is refused, 0 otherwise."""
    resolution = Resolution(
        arguments.request_id or new_id(), arguments.credits, arguments.reason.strip(), resolved_by=arguments.by.strip()
    )
    if resolution.credits < 0 or not resolution.reason or not resolution.resolved_by:
        raise SettingsError("--credits must be 0 or more, --reason and --by must not be empty")
    settings = load_settings(os.environ)
    try:
        with existing_database(settings, writes=True) as url:
            top_up = asyncio.run(_resolve(settings, url, arguments.organization_id, arguments.top_up_id, resolution))
    except (TopUpNotFound, TopUpNotResolvable, BalanceAboveMaximum, RequestIdReused) as error:
        print(error, " ".join(f"{name}={value}" for name, value in error.metadata.items()))
        return 1
    print(f"{top_up.status}; {resolution.credits} credits added; request_id {resolution.request_id}")
    return 0


async def _resolve(
    settings: Settings, url: str, organization_id: str, top_up_id: UUID, resolution: Resolution
) -> TopUp:
    async with AsyncExitStack() as stack:
        shared = await open_shared(stack, settings, url, None)
        return await open_credits(stack, shared).top_ups.resolve(organization_id, top_up_id, resolution)


def add_endpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `stripe-endpoint`."""
    parser.add_argument("url", help="public URL of the sidecar: https://…/stripe/webhook")


def stripe_endpoint(arguments: argparse.Namespace) -> int:
    """`stripe-endpoint`: create the endpoint and print its signing secret, or correct the events of an existing one."""
    try:
        asyncio.run(_save(load_settings(os.environ), arguments.url))
    except StripeCallError as error:
        print(f"Stripe: {error}")
        return 1
    return 0


async def _save(settings: Settings, url: str) -> None:
    stripe_client = open_stripe(settings)
    try:
        endpoints = await stripe_client.list_webhook_endpoints()
        existing = next((endpoint for endpoint in endpoints if endpoint.url == url), None)
        if existing is None:
            print(f"created; PULSA_STRIPE_WEBHOOK_SECRETS={await stripe_client.create_webhook_endpoint(url)}")
        elif existing.is_configured:
            print(f"{existing.endpoint_id} already receives the needed events")
        else:
            await stripe_client.update_webhook_endpoint(existing.endpoint_id)
            print(f"{existing.endpoint_id} now receives the needed events")
    finally:
        await stripe_client.close()
