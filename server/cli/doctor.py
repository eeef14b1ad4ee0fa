"""`doctor`: checks everything that a deployment needs; each line is ok or says what to change.

A line that begins with `warn` tells of something to change that does not keep the server from working.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import phonenumbers
import psycopg

from server.api.auth import TokenVerifier
from server.cli.cluster import check_cluster
from server.cli.database import existing_database
from server.clock import DatabaseClock, utc_now
from server.composition import check_lease, open_stripe
from server.credits.pricing import load_pricing
from server.credits.stripe.client import OLDEST_API_VERSION
from server.credits.stripe.errors import StripeCallError
from server.environment import SettingsError, load_settings, required, variables
from server.keyrings import signing_secrets
from server.otps.destinations import library_time
from server.otps.operator import area_policy
from server.postgres.migrate import look
from server.postgres.pool import APPLICATION_ROLE, BoundedConnection, read_time
from server.providers.console import Console
from server.providers.provider import Channel
from server.providers.routing import open_providers
from server.providers.templates import load_templates
from server.settings import Settings

_CLOCK_SECONDS: Final = 5.0
_OLD_NUMBER_DAYS: Final = 60
Check = Callable[[Settings], str]
"""Returns what is ok. Raises UserWarning for a warning, and another error for what must be changed."""


def doctor() -> int:
    """Print a line per check, then every setting; return 1 when a check fails, 0 otherwise."""
    settings = load_settings(os.environ)
    results = [_passes(name, check, settings) for name, check in _CHECKS]
    print("\nSettings, with their type and default:\n")
    for variable in variables():
        given = "*" if variable.name in os.environ or f"{variable.name}_FILE" in os.environ else " "
        print(f"{given} {variable.name} ({variable.type}, {variable.default or 'unset'}): {variable.description}")
    print("\n* is set in the environment")
    return 0 if all(results) else 1


def _passes(name: str, check: Check, settings: Settings) -> bool:
    try:
        print(f"ok    {name}: {check(settings)}")
    except UserWarning as warning:
        print(f"warn  {name}: {warning}")
    except StripeCallError as error:
        print(f"FAIL  {name}: Stripe refused the call: {error}")
        return False
    except (SettingsError, ValueError, OSError, psycopg.Error) as error:
        print(f"FAIL  {name}: {str(error).strip()}")
        return False
    return True


def _secrets(settings: Settings) -> str:
    ring = settings.secret.key_ring()
    digest_key_id = list(settings.secret.digest_key_ring())[-1]
    return f"{len(ring)} keys; {list(ring)[-1]} encrypts, {digest_key_id} makes digests"


def _tokens(settings: Settings) -> str:
    file = required(settings.token.keys, "PULSA_TOKEN_KEYS")
    found = f"verified with the keys in {file}, audience {settings.token.audience}"
    if unusable := TokenVerifier(file).unusable_keys:
        raise UserWarning(f"{found}; remove or mend those that cannot verify tokens: {', '.join(unusable)}")
    return found


def _encryption(settings: Settings) -> str:
    if settings.tls.certificate is None:
        return "off: the port must be reachable only from this machine or through a mesh that encrypts"
    return "mutual TLS" if settings.tls.client_ca else "TLS"


def _pricing(settings: Settings) -> str:
    pricing = load_pricing(settings.pricing)
    return f"at least {pricing.minimum_credits} credits per top-up, in {', '.join(sorted(pricing.unit_prices))}"


def _channels(settings: Settings) -> str:
    providers = open_providers(
        settings,
        load_templates(settings.channel.templates),
        console=Console(None) if settings.channel.console else None,
        clock=utc_now,
    )
    if not providers:
        names = " or ".join(f"PULSA_CHANNEL_{channel}" for channel in Channel)
        raise ValueError(f"no channel has a provider: set {names}")
    check_lease(settings)
    return ", ".join(f"{channel} through {provider.name}" for channel, provider in providers.items())


def _numbers(settings: Settings) -> str:
    area_policy(settings)
    days = (utc_now() - library_time()).days
    found = f"phonenumberslite {phonenumbers.__version__}, {days} days old"
    if days > _OLD_NUMBER_DAYS:
        raise UserWarning(f"{found}: numbers of ranges that opened since are refused; update it each month")
    return found


def _database(settings: Settings) -> str:
    with existing_database(settings, writes=True) as url:
        found = asyncio.run(look(url))
        skew = asyncio.run(_clock_skew(url))
    return (
        f"PostgreSQL {found.postgres // 10000}, migration {found.version}, role {APPLICATION_ROLE},"
        f" this machine's clock minus the database's {skew:+.3f} s"
    )


async def _clock_skew(url: str) -> float:
    """In seconds. Raises ValueError when it is more than a correct clock may have."""
    clock = DatabaseClock()
    async with asyncio.timeout(_CLOCK_SECONDS):
        connection = await BoundedConnection.connect(url, autocommit=True)
        try:
            await clock.measure(partial(read_time, connection))
        finally:
            await connection.close()
    if clock.is_skewed:
        raise ValueError(f"this machine's clock and the database's differ by {clock.skew.total_seconds():.1f} s")
    return clock.skew.total_seconds()


def _stripe(settings: Settings) -> str:
    return asyncio.run(_ask_stripe(settings))


async def _ask_stripe(settings: Settings) -> str:
    signing_secrets(settings)
    stripe_client = open_stripe(settings)
    try:
        account = await stripe_client.account()
        missing = await stripe_client.find_missing_rights()
        endpoints = [] if "read webhook endpoints" in missing else await stripe_client.list_webhook_endpoints()
        unknown = [
            rate.id
            for rate in settings.stripe.tax_rates.values()
            if not await stripe_client.has_tax_rate(rate.id, percent=rate.percent, inclusive=rate.inclusive)
        ]
    finally:
        await stripe_client.close()
    if settings.stripe.account_id not in {None, account.account_id}:
        raise ValueError(f"PULSA_STRIPE_ACCOUNT_ID: the API key belongs to {account.account_id}")
    if stripe_client.api_version < OLDEST_API_VERSION:
        raise ValueError(f"PULSA_STRIPE_API_VERSION: must be {OLDEST_API_VERSION} or newer")
    if missing:
        raise ValueError(f"PULSA_STRIPE_API_KEY: lacks the right to {', '.join(missing)}")
    if unknown:
        raise ValueError(f"PULSA_STRIPE_TAX_RATES: not at Stripe with this percentage: {', '.join(unknown)}")
    ready = [endpoint.url for endpoint in endpoints if endpoint.is_configured]
    if not ready:
        raise ValueError(
            "no webhook endpoint receives exactly the needed events: run python -m server stripe-endpoint URL"
        )
    if not any(url.endswith("/stripe/webhook") for url in ready):
        raise ValueError(f"no webhook endpoint is a sidecar's …/stripe/webhook: {', '.join(ready)}")
    mode = "live" if account.livemode else "test"
    return f"{mode} mode, account {account.account_id}, API {stripe_client.api_version}, webhooks to {', '.join(ready)}"


_CHECKS: Sequence[tuple[str, Check]] = (
    ("secrets", _secrets),
    ("tokens", _tokens),
    ("encryption", _encryption),
    ("pricing", _pricing),
    ("channels", _channels),
    ("phone numbers", _numbers),
    ("database", _database),
    ("citus", check_cluster),
    ("stripe", _stripe),
)
