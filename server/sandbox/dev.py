"""`dev`: the whole server with stand-ins for its providers, and no configuration. `make run` runs it."""

import os
import secrets
import signal
import sys
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import uvloop
from pulsa.client import connect

from server.api.auth import ANY_ORGANIZATION, mint
from server.api.permissions import ALL_PERMISSIONS, BALANCE_READ, SETTINGS_READ, SETTINGS_WRITE, STRIPE_RELAY, SUBSCRIBE
from server.cli.database import database
from server.cli.serve import wait_for_stop_signal
from server.cli.token import DevelopmentKey, development_key
from server.cli.workers import serve_metrics
from server.composition import running
from server.credits.stripe.client import Failpoint
from server.environment import load_settings
from server.logs import configure_logging
from server.providers.console import Console
from server.providers.provider import Channel
from server.providers.templates import load_templates
from server.sandbox.billing import Person, serve_billing
from server.sandbox.messages import message_page
from server.sandbox.stripe import start_stripe_sandbox
from server.setting_types import KEY_BYTES
from server.settings import Settings
from server.webhook.relay import Relay
from server.webhook.sidecar import PATH, start_sidecar

ORGANIZATION: Final = "demo"
_PEOPLE: Final = {
    "ayu": [BALANCE_READ, SUBSCRIBE, SETTINGS_READ, SETTINGS_WRITE],
    "budi": [BALANCE_READ],
}
"""Who looks at the billing pages, with their permissions."""
_STRIPE_KEY: Final = "sk_test_sandbox"
_WEBHOOK_SECRET: Final = "whsec_sandbox"  # noqa: S105 - of the stand-in
_DAY_SECONDS: Final = 24 * 60 * 60

_WELCOME: Final = """
Pulsa is running, with stand-ins for Stripe and the message providers.

  billing    http://127.0.0.1:{billing}/billing   (buy credits here; pay, and watch them arrive)
  gRPC       {grpc}
  webhook    http://{webhook}/stripe/webhook
  Stripe     http://127.0.0.1:{stripe}   (a stand-in: its invoices, webhooks, and faults to play with)
  messages   http://127.0.0.1:{messages}   (as they look on a phone and in a mailbox; as JSON at /messages)
  metrics    http://{metrics}/metrics

A token for the organization "{organization}", valid for a day:

  export TOKEN={token}

To try in another terminal, in this folder. The balance of the organization:

  {curl} -d '{{"organization_id": "{organization}"}}' \\
    http://{grpc}/pulsa.credit.v1.CreditService/GetBalance

A top-up: open its hostedInvoiceUrl in a browser and press Pay, and the balance is 1000:

  {curl} -d '{{"organization_id": "{organization}", "request_id": "'$({uuid})'", \
"credits": 1000, "currency_code": "IDR", "billing_email": "billing@example.com"}}' \\
    http://{grpc}/pulsa.credit.v1.CreditService/CreateTopUp

A send, once the top-up is paid; its message appears here:

  {curl} -d '{{"organization_id": "{organization}", "request_id": "'$({uuid})'", \
"destination": {{"email": "you@example.com"}}, "purpose": "login"}}' \\
    http://{grpc}/pulsa.otp.v1.OtpService/SendOtp

`make demo` in another terminal runs a whole scenario. Ctrl-C stops everything.
"""
_UUID: Final = "python3 -c 'import uuid; print(uuid.uuid4())'"
_CURL: Final = '.venv/bin/buf curl --protocol grpc --http2-prior-knowledge -H "authorization: Bearer $TOKEN"'


def dev() -> None:
    """Run everything until Ctrl-C or SIGTERM. State is kept in the data folder."""
    given = load_settings(os.environ)
    data = given.data
    key = development_key(data)
    settings = load_settings(
        os.environ,
        {
            "environment": "development",
            "reflection": True,
            "lame_duck_seconds": 0,
            "log": {"level": "warning", "format": "console"},
            "database": {"migrate": True},
            "token": {"keys": key.public_key_file},
            "secret": _secrets(data),
            "stripe": {
                "api_key": _STRIPE_KEY,
                "webhook_secrets": _WEBHOOK_SECRET,
                "base_url": f"http://127.0.0.1:{given.sandbox.stripe_port}",
            },
            "channel": {channel.field: "console" for channel in Channel},
            "organization": {"test": ["test"]},
        },
    )
    configure_logging(level=settings.log.level, style=settings.log.format)
    print("Starting PostgreSQL …", flush=True)
    with database(settings) as url:
        uvloop.run(_run(settings, url, key))


async def _run(settings: Settings, url: str, key: DevelopmentKey) -> None:
    console = Console(sys.stdout)
    async with AsyncExitStack() as stack:
        stripe = await start_stripe_sandbox(
            port=settings.sandbox.stripe_port,
            api_key=_STRIPE_KEY,
            webhook_secret=_WEBHOOK_SECRET,
            webhook_url=f"http://{settings.webhook.listen}{PATH}",
            state_file=settings.data / "stripe.json",
            links={
                "Billing pages": f"http://127.0.0.1:{settings.sandbox.billing_port}/billing",
                "Messages, as on a phone and in a mailbox": f"http://127.0.0.1:{settings.sandbox.messages_port}/",
            },
        )
        stack.push_async_callback(stripe.close)
        templates = load_templates(settings.channel.templates)
        messages = message_page(console, port=settings.sandbox.messages_port, templates=templates)
        await stack.enter_async_context(messages)
        serve_metrics(settings.metrics.listen)
        failpoint = _failpoint(settings.sandbox.failpoint)
        await stack.enter_async_context(running(settings, database_url=url, console=console, failpoint=failpoint))
        relay = Relay(
            settings.listen,
            token=lambda: _token(key, "sidecar", ANY_ORGANIZATION, STRIPE_RELAY),
            credentials=None,
            timeout_seconds=settings.webhook.timeout_seconds,
        )
        host, _, port = settings.webhook.listen.rpartition(":")
        sidecar = await start_sidecar(relay, host=host, port=int(port))
        stack.push_async_callback(sidecar.stop)
        await stack.enter_async_context(_billing(settings, key))
        _welcome(settings, key)
        await wait_for_stop_signal()
        print("\nStopping …", flush=True)


@asynccontextmanager
async def _billing(settings: Settings, key: DevelopmentKey) -> AsyncIterator[None]:
    """Serve the billing pages, to a person who may buy and to one who may only look."""
    with ExitStack() as stack:
        people = {}
        for name, permissions in _PEOPLE.items():
            token = partial(_token, key, name, ORGANIZATION, *permissions)
            pulsa = stack.enter_context(connect(settings.listen, token=token))
            may_subscribe = SUBSCRIBE in permissions
            people[name] = Person(name.title(), ORGANIZATION, f"{name}@example.com", may_subscribe, pulsa)
        async with serve_billing(
            people,
            port=settings.sandbox.billing_port,
            secret=key.private_key(),
            other_origins=[f"http://127.0.0.1:{settings.sandbox.stripe_port}"],
        ):
            yield


def _welcome(settings: Settings, key: DevelopmentKey) -> None:
    token = _token(key, "developer", ORGANIZATION, *sorted(ALL_PERMISSIONS))
    print(
        _WELCOME.format(
            billing=settings.sandbox.billing_port,
            grpc=settings.listen,
            webhook=settings.webhook.listen,
            stripe=settings.sandbox.stripe_port,
            messages=settings.sandbox.messages_port,
            metrics=settings.metrics.listen,
            organization=ORGANIZATION,
            token=token,
            curl=_CURL,
            uuid=_UUID,
        ),
        flush=True,
    )


def _token(key: DevelopmentKey, subject: str, organization_id: str, *permissions: str) -> str:
    return mint(
        key.private_key(),
        subject=subject,
        organization_id=organization_id,
        permissions=permissions,
        lifetime_seconds=_DAY_SECONDS,
    )


def _failpoint(setting: str) -> Failpoint | None:
    """PULSA_SANDBOX_FAILPOINT names a failpoint and, after #, at which occurrence the process kills itself."""
    name, _, occurrence = setting.partition("#")
    left = int(occurrence or 1)

    async def kill_process(reached: str) -> None:
        nonlocal left
        left -= reached == name
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return kill_process if name else None


def _secrets(folder: Path) -> dict[str, str]:
    """The encryption and digest keys of the data folder, generated on first use."""
    file = folder / "development-secrets"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text("\n".join(b64encode(secrets.token_bytes(KEY_BYTES)).decode() for _ in range(2)))
    ring_key, digest_key = file.read_text().split()
    return {"keys": f"development:{ring_key}", "digest_keys": f"development:{digest_key}"}
