"""`webhook`: runs the sidecar that receives Stripe's webhooks, until SIGTERM or SIGINT."""

import asyncio
import os
from pathlib import Path

import grpc
import structlog
import uvloop

from server.cli.serve import wait_for_stop_signal
from server.environment import SettingsError, load_settings
from server.logs import configure_logging, log_unhandled
from server.settings import Settings, Webhook
from server.webhook.relay import Relay
from server.webhook.sidecar import start_sidecar

_log = structlog.get_logger(__name__)


def webhook() -> None:
    """Relay webhooks with the settings of the environment."""
    settings = load_settings(os.environ)
    configure_logging(level=settings.log.level, style=settings.log.format)
    uvloop.run(_relay(settings))


async def _relay(settings: Settings) -> None:
    asyncio.get_running_loop().set_exception_handler(log_unhandled)
    token = settings.webhook.token
    if token is None:
        raise SettingsError("PULSA_WEBHOOK_TOKEN: is needed")
    relay = Relay(
        settings.webhook.server,
        token=lambda: token.read_text().strip(),
        credentials=_credentials(settings.webhook),
        timeout_seconds=settings.webhook.timeout_seconds,
    )
    host, _, port = settings.webhook.listen.rpartition(":")
    sidecar = await start_sidecar(relay, host=host, port=int(port))
    _log.info("listening", address=settings.webhook.listen, port=sidecar.port)
    await wait_for_stop_signal()
    await sidecar.stop()


def _credentials(settings: Webhook) -> grpc.ChannelCredentials | None:
    authorities, certificate, key = (
        _read(path, name)
        for path, name in ((settings.ca, "CA"), (settings.certificate, "CERTIFICATE"), (settings.key, "KEY"))
    )
    if (certificate is None) is not (key is None) or (certificate and not authorities):
        raise SettingsError("PULSA_WEBHOOK_CERTIFICATE: is for TLS, so it needs PULSA_WEBHOOK_KEY and PULSA_WEBHOOK_CA")
    return grpc.ssl_channel_credentials(authorities, key, certificate) if authorities else None


def _read(path: Path | None, name: str) -> bytes | None:
    try:
        return path.read_bytes() if path else None
    except OSError as error:
        raise SettingsError(f"PULSA_WEBHOOK_{name}: {error.strerror}") from error
