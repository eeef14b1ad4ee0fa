"""`stripe-endpoint`: makes Stripe send exactly the needed events to the sidecar."""

import argparse
import asyncio
import os

from server.app.credit_room import open_payments
from server.environment import load_settings
from server.payments.failures import PaymentsError
from server.settings import Settings
from server.stops import go_on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where."""
    parser.add_argument("url", help="the sidecar as the internet sees it: https://…/stripe/webhook")


def stripe_endpoint(arguments: argparse.Namespace) -> int:
    """Create the endpoint, and print its signing secret; or mend the events of the one that is there."""
    try:
        asyncio.run(_save(load_settings(os.environ), arguments.url))
    except PaymentsError as error:
        print(f"Stripe: {error}")
        return 1
    return 0


async def _save(settings: Settings, url: str) -> None:
    payments = open_payments(settings, go_on)
    try:
        known = next((each for each in await payments.list_webhook_endpoints() if each.url == url), None)
        if known is None:
            print(f"created; PULSA_STRIPE_WEBHOOK_SECRETS={await payments.create_webhook_endpoint(url)}")
        elif known.is_right:
            print(f"{known.endpoint_id} is as it should be")
        else:
            await payments.update_webhook_endpoint(known.endpoint_id)
            print(f"{known.endpoint_id} gets the needed events now")
    finally:
        await payments.close()
