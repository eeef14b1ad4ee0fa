"""What a shipped server needs around it, on this machine: PostgreSQL, Stripe, a relay, and the page of messages."""

import asyncio
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Final

from aiohttp import web

from server.api.auth import ANY_ORGANIZATION, mint
from server.api.permissions import STRIPE_RELAY
from server.cli.token import development_key
from server.sandbox.providers import ProvidersSandbox
from server.sandbox.relay import Mail, Relay
from server.sandbox.stripe import start_stripe_sandbox
from server.setting_types import KEY_BYTES
from server.webhook.sidecar import PATH
from tests.faults.process_deployment import CODE, recipient
from tests.faults.processes import CHECKOUT, free_ports

_KEY: Final = f"test:{b64encode(b'k' * KEY_BYTES).decode()}"


@dataclass(frozen=True, slots=True)
class StandIns:
    """The settings of a deployment beside them."""

    folder: Path
    """Every user may read it."""
    plain: Mapping[str, str]
    """Settings that are not secret."""
    secrets: Mapping[str, str]
    """By the names of the files of /etc/pulsa/secrets in the systemd units."""
    token: Path
    """The sidecar's."""

    @property
    def listens(self) -> str:
        """Where the server is to listen."""
        return self.plain["PULSA_LISTEN"]

    async def play_demo(self) -> str:
        """Run `python -m server demo` of this checkout against the server; returns what it printed."""
        settings = {
            "PATH": os.defpath,
            "PYTHONPATH": f"{CHECKOUT}{os.pathsep}{CHECKOUT / 'clients/python'}",
            "PULSA_LISTEN": self.listens,
            "PULSA_DATA": str(self.folder),
            "PULSA_SANDBOX_MESSAGES_PORT": self.plain["PULSA_SANDBOX_MESSAGES_PORT"],
        }
        demo = [sys.executable, "-m", "server", "demo"]
        playing = await asyncio.create_subprocess_exec(
            *demo, env=settings, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return (await playing.communicate())[0].decode()


@asynccontextmanager
async def stand_ins(database_url: str, folder: Path) -> AsyncIterator[StandIns]:
    """Run the stand-ins, and choose free ports for the deployment, which reaches all of them on 127.0.0.1."""
    grpc_port, metrics_port, webhook_port, messages_port = free_ports(4)
    key, providers = development_key(folder), ProvidersSandbox()
    key.public_key_file.chmod(0o644)  # the server is another user
    token = folder / "sidecar-token"
    token.write_text(
        mint(
            key.private_key(),
            subject="sidecar",
            organization_id=ANY_ORGANIZATION,
            permissions=[STRIPE_RELAY],
            lifetime_seconds=3600,
        )
    )
    async with AsyncExitStack() as stack:
        stripe = await start_stripe_sandbox(webhook_url=f"http://127.0.0.1:{webhook_port}{PATH}")
        stack.push_async_callback(stripe.close)
        relay = await stack.enter_async_context(Relay())
        providers_port = await stack.enter_async_context(_served(providers.application()))
        await stack.enter_async_context(_served(_messages(relay, providers), port=messages_port))
        plain = {
            "PULSA_ENVIRONMENT": "test",
            "PULSA_LISTEN": f"127.0.0.1:{grpc_port}",
            "PULSA_METRICS_LISTEN": f"127.0.0.1:{metrics_port}",
            "PULSA_TOKEN_KEYS": str(key.public_key_file),
            "PULSA_STRIPE_BASE_URL": stripe.url,
            "PULSA_CHANNEL_EMAIL": "smtp",
            "PULSA_SMTP_HOST": "127.0.0.1",
            "PULSA_SMTP_PORT": str(relay.port),
            "PULSA_SMTP_SECURITY": "none",
            "PULSA_SMTP_SENDER": "pulsa@example.com",
            "PULSA_CHANNEL_WHATSAPP": "whatsapp",
            "PULSA_WHATSAPP_BASE_URL": f"http://127.0.0.1:{providers_port}",
            "PULSA_WHATSAPP_PHONE_NUMBER_ID": "1",
            "PULSA_WHATSAPP_ACCESS_TOKEN": "whatsapp-token",
            "PULSA_WHATSAPP_TEMPLATE_NAME": "login",
            "PULSA_CHANNEL_SMS": "twilio",
            "PULSA_TWILIO_BASE_URL": f"http://127.0.0.1:{providers_port}",
            "PULSA_TWILIO_ACCOUNT_SID": "AC1",
            "PULSA_TWILIO_AUTH_TOKEN": "twilio-token",
            "PULSA_TWILIO_SENDER": "Pulsa",
            "PULSA_WEBHOOK_LISTEN": f"127.0.0.1:{webhook_port}",
            "PULSA_WEBHOOK_SERVER": f"127.0.0.1:{grpc_port}",
            "PULSA_SANDBOX_MESSAGES_PORT": str(messages_port),
        }
        secrets = {
            "database-url": database_url,
            "secret-keys": _KEY,
            "digest-keys": _KEY,
            "audit-keys": _KEY,
            "stripe-api-key": "sk_test_sandbox",
            "stripe-webhook-secrets": "whsec_sandbox",
        }
        yield StandIns(folder, plain, secrets, token)


def _messages(relay: Relay, providers: ProvidersSandbox) -> web.Application:
    """What the demo reads messages from: the mails of an address or the SMS of a number, newest first.

    Without an address there are none: the demo comes back to this page from Stripe's.
    """

    async def messages(request: web.Request) -> web.Response:
        wanted = {request.query.get("to")}
        texts = [_text(mail) for mail in relay.mails if recipient(mail) in wanted]
        texts += [received.text for received in providers.received if received.to in wanted]
        return web.json_response([{"code": CODE.findall(text)[0], "text": text} for text in reversed(texts)])

    application = web.Application()
    application.router.add_get("/messages", messages)
    return application


def _text(mail: Mail) -> str:
    """The plain text of a mail."""
    body = message_from_bytes(mail.content, policy=default).get_body(("plain",))
    return str(body.get_content()) if body else ""


@asynccontextmanager
async def _served(application: web.Application, *, port: int = 0) -> AsyncIterator[int]:
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    try:
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
