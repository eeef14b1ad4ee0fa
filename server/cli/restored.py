"""`restored`: what follows when a database was restored to an earlier time, before the replicas start again.

What happened since then is lost here, and stays so: messages were sent, invoices were paid. Paid top-ups come back from
Stripe, sends are counted by the logs of the providers, and repeats of lost requests are refused.
"""

import argparse
import asyncio
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import unquote
from uuid import UUID

from psycopg.conninfo import make_conninfo

from server.cli.database import existing_database
from server.composition import open_credits, open_shared
from server.credits.accounts import RESTORED_SESSIONS, LostTime, begin_lost_time
from server.credits.stripe.errors import StripeCallError
from server.credits.stripe.reconcile import restore_top_ups
from server.environment import SettingsError, load_settings
from server.ids import ORGANIZATION_ID
from server.otps.delivery.reports import find_missing
from server.postgres.pool import Pool
from server.providers.provider import Channel
from server.settings import Settings

_REFERENCE: Final = re.compile(
    rf"(?P<organization>{ORGANIZATION_ID})/(?P<delivery>[0-9a-f]{{32}})\b"  # a message's reference at its provider
    r"|(?<![\w.-])(?P<mail>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})@"  # a mail's Message-ID
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `restored`."""
    parser.add_argument(
        "--to", type=_time, required=True, metavar="TIME", help="as in recovery_target_time: 2026-11-28T12:00:00+00:00"
    )
    for channel in Channel:
        explanation = f"a log with the references of the {channel} messages that a provider accepted"
        parser.add_argument(f"--{channel.field}", type=Path, metavar="FILE", help=explanation)


def restored(arguments: argparse.Namespace) -> int:
    """`restored`: do what follows a restore, and print it; return 1 when a person must decide something, 0 otherwise.

    A repeat changes nothing more, and may run beside the replicas: for example with more logs.
    """
    settings = load_settings(os.environ)
    logs = {channel: path for channel in Channel if (path := getattr(arguments, channel.field))}
    with existing_database(settings, writes=True) as url:
        try:
            own = make_conninfo(url, application_name=RESTORED_SESSIONS)
            return asyncio.run(_follow(settings, own, arguments.to, logs))
        except StripeCallError as error:
            print(f"Stripe: {error}; run this again")
            return 1
        except (ValueError, OSError) as error:
            raise SettingsError(str(error)) from None


async def _follow(settings: Settings, url: str, restore_time: datetime, logs: Mapping[Channel, Path]) -> int:
    async with AsyncExitStack() as stack:
        shared = await open_shared(stack, settings, url, None)
        credits = open_credits(stack, shared)
        lost = await begin_lost_time(shared.pool, restore_time)
        print(
            f"repeats of requests from {lost.start_time} to {lost.end_time} are refused, unless their answer is known"
        )
        # Before the events, which are about them; and after those, which may have ended another top-up.
        found = await restore_top_ups(credits.store, credits.stripe_client, shared.pricing, since=lost.start_time)
        events = await credits.inbox.process_again(since=lost.start_time)
        later = await restore_top_ups(credits.store, credits.stripe_client, shared.pricing, since=lost.start_time)
        for top_up in (*found.restored, *later.restored):
            print(f"{top_up.organization_id}: top-up {top_up.top_up_id} of {top_up.credits} credits is {top_up.status}")
        print(
            f"{len(found.restored) + len(later.restored)} top-ups restored, {events} events of Stripe processed again"
        )
        for problem in later.problems:
            print(problem)
        for channel, path in logs.items():
            price = shared.pricing.channel_credits[channel]
            for organization_id, count in sorted((await _count_lost(shared.pool, lost, path)).items()):
                print(f"{organization_id or 'unknown organization'}: {count} lost {channel}, {count * price} credits")
    return 1 if later.problems else 0


async def _count_lost(pool: Pool, lost: LostTime, path: Path) -> Counter[str]:
    """The number of messages in a log that were sent in the lost time, by organization."""
    references = {delivery_id: own for own, delivery_id in _references(path) if lost.includes(delivery_id)}
    return Counter(references[delivery_id] for delivery_id in await find_missing(pool, references))


def _references(path: Path) -> Iterator[tuple[str, UUID]]:
    """Each message that a line of the log names: its organization, empty for a mail, and its delivery_id."""
    with path.open(encoding="utf-8", errors="replace") as log:
        for line in log:
            for match in _REFERENCE.finditer(unquote(line)):
                yield match["organization"] or "", UUID(match["delivery"] or match["mail"])


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise argparse.ArgumentTypeError("give the time with its offset from UTC, such as Z or +07:00")
    return time.astimezone(UTC)
