"""`reconcile`: compares Stripe with the top-ups, or processes one event again."""

import argparse
import asyncio
import os
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from server.app.credit_room import open_credit_room, open_payments
from server.app.foundations import lay_foundations
from server.commands.serve import database
from server.credits.drift import find_drift
from server.environment import load_settings
from server.payments.failures import PaymentsError
from server.settings import Settings
from server.stops import go_on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to reconcile."""
    parser.add_argument("--event", metavar="ID", help="process this event of the last 30 days again, a dead one too")


def reconcile(arguments: argparse.Namespace) -> int:
    """Print the drift of the last 35 days; 0 when there is none, 1 otherwise."""
    settings = load_settings(os.environ)
    try:
        with database(settings) as url:
            if arguments.event:
                return asyncio.run(_replay(settings, url, arguments.event))
            return asyncio.run(_report(settings, url))
    except PaymentsError as error:
        print(f"Stripe: {error}")
        return 1


async def _report(settings: Settings, url: str) -> int:
    async with AsyncExitStack() as stack:
        foundations = await lay_foundations(stack, settings, url, None)
        payments = open_payments(settings, go_on)
        stack.push_async_callback(payments.close)
        report = await find_drift(foundations.pool, payments, environment=settings.environment, now=datetime.now(UTC))
    print(report)
    return 0 if report.holds else 1


async def _replay(settings: Settings, url: str, event_id: str) -> int:
    async with AsyncExitStack() as stack:
        foundations = await lay_foundations(stack, settings, url, None)
        room, _ = open_credit_room(stack, foundations, reached=go_on)
        done = await room.stripe_inbox.replay(event_id)
    print("done" if done else "it is rejected, or waits for Stripe; the log says more")
    return 0 if done else 1
