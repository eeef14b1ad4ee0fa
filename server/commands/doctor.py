"""`doctor`: looks at everything that a deployment needs; each line is ok, or says what to do."""

import asyncio
import os
from collections.abc import Callable, Sequence

import psycopg

from server.app.credit_room import open_payments
from server.app.foundations import needed
from server.app.otp_room import check_lease
from server.channels.templates import load_templates
from server.commands.serve import database
from server.credits.pricing import load_pricing
from server.database.migrate import current_version, load_migrations
from server.database.pool import APPLICATION_ROLE
from server.environment import SettingsError, load_settings, variables
from server.payments.failures import PaymentsError
from server.providers import open_channels
from server.rpc.tokens import TokenVerifier
from server.settings import Settings
from server.stops import go_on

_OLDEST_POSTGRES = 150000

Check = Callable[[Settings], str]


def doctor() -> int:
    """Print a line for each check, then every setting; 0 when all are ok, 1 otherwise."""
    settings = load_settings(os.environ)
    results = [_look(name, check, settings) for name, check in _CHECKS]
    print("\nSettings, with their type and default:\n")
    for variable in variables():
        given = "*" if variable.name in os.environ or f"{variable.name}_FILE" in os.environ else " "
        print(f"{given} {variable.name} ({variable.type}, {variable.default or 'unset'}): {variable.description}")
    print("\n* is set in the environment")
    return 0 if all(results) else 1


def _look(name: str, check: Check, settings: Settings) -> bool:
    try:
        print(f"ok    {name}: {check(settings)}")
    except PaymentsError as error:
        print(f"MEND  {name}: Stripe did not do it: {error}")
        return False
    except (SettingsError, ValueError, OSError, psycopg.Error) as error:
        print(f"MEND  {name}: {str(error).strip()}")
        return False
    return True


def _secrets(settings: Settings) -> str:
    ring = settings.secret.key_ring()
    settings.secret.digest()
    return f"{len(ring)} keys, {list(ring)[-1]} makes"


def _tokens(settings: Settings) -> str:
    file = needed(settings.token.keys, "PULSA_TOKEN_KEYS")
    TokenVerifier(file)
    return f"signed by a key in {file}, for {settings.token.audience}"


def _encryption(settings: Settings) -> str:
    if settings.tls.certificate is None:
        return "off: let nothing but this machine, or a mesh that encrypts, reach the port"
    return "mutual TLS" if settings.tls.client_ca else "TLS"


def _pricing(settings: Settings) -> str:
    pricing = load_pricing(settings.pricing)
    return f"from {pricing.minimum_credits} credits, in {', '.join(sorted(pricing.unit_prices))}"


def _channels(settings: Settings) -> str:
    channels = open_channels(settings, load_templates(settings.channel.templates), console=None)
    if not channels:
        raise ValueError("nothing is sold: set PULSA_CHANNEL_EMAIL, PULSA_CHANNEL_WHATSAPP or PULSA_CHANNEL_SMS")
    check_lease(settings)
    return ", ".join(f"{name} by {channel.provider}" for name, channel in channels.items())


def _database(settings: Settings) -> str:
    with database(settings) as url, psycopg.connect(url) as connection:
        if connection.info.server_version < _OLDEST_POSTGRES:
            raise ValueError(f"PostgreSQL 15 or newer is needed, it is {connection.info.server_version // 10000}")
        version, newest = current_version(connection), len(load_migrations())
        if version != newest:
            raise ValueError(f"the schema is at migration {version} of {newest}: python -m server migrate")
        connection.execute(f"SET ROLE {APPLICATION_ROLE}")
        return f"PostgreSQL {connection.info.server_version // 10000}, migration {version}, role {APPLICATION_ROLE}"


def _stripe(settings: Settings) -> str:
    return asyncio.run(_ask_stripe(settings))


async def _ask_stripe(settings: Settings) -> str:
    needed(settings.stripe.webhook_secrets, "PULSA_STRIPE_WEBHOOK_SECRETS")
    payments = open_payments(settings, go_on)
    try:
        account = await payments.account()
        endpoints = await payments.list_webhook_endpoints()
    finally:
        await payments.close()
    if settings.stripe.account_id not in {None, account.account_id}:
        raise ValueError(f"PULSA_STRIPE_ACCOUNT_ID: the key is of {account.account_id}")
    if not any(endpoint.is_right for endpoint in endpoints):
        raise ValueError("no webhook endpoint gets exactly the needed events: python -m server stripe-endpoint URL")
    mode = "live" if account.livemode else "test"
    return f"{mode} mode, account {account.account_id}, API {payments.api_version}, {len(endpoints)} endpoints"


_CHECKS: Sequence[tuple[str, Check]] = (
    ("secrets", _secrets),
    ("tokens", _tokens),
    ("encryption", _encryption),
    ("pricing", _pricing),
    ("channels", _channels),
    ("database", _database),
    ("stripe", _stripe),
)
