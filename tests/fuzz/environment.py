"""The environment of a fuzz test: a server and a sidecar as processes, every provider over its real protocol."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from server.sandbox.providers import ProvidersSandbox
from tests.faults.process_deployment import ProcessDeployment, deployed_processes, start_sidecar
from tests.faults.processes import free_ports
from tests.fuzz.messages import MARKER, NUMBERS

FORBIDDEN = re.compile(
    "|".join([MARKER, *(number.removeprefix("+") for number in NUMBERS), r"\[hidden\]"]), re.IGNORECASE
)
"""Matches a text of a caller that may not be in logs or metrics, or a value that the log had to redact."""
EXPECTED = {
    "a signed event is not of this account and mode",
    "grpc_stopped",  # grpcio's accept loop has ended; the server listens again
}
"""Errors in the log that callers cause."""
_IDS = ("organization_id", "event_id", "type")
"""Fields that are logged unchanged: an organization's id, and the fields of an event that Stripe has signed."""
_NEVER = re.compile(r'requests_total\{code="(INTERNAL|UNKNOWN|DATA_LOSS)"\S* (?!0\.0)')
_MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class FuzzEnvironment:
    """The deployment that is fuzzed, and measurements of it."""

    deployment: ProcessDeployment
    browser: aiohttp.ClientSession

    @property
    def webhook_port(self) -> int:
        """The port of the sidecar."""
        return int(self.deployment.settings["PULSA_WEBHOOK_LISTEN"].rpartition(":")[2])

    def megabytes(self, command: str) -> float:
        """The resident memory of a process in MiB; 0 on a system without /proc."""
        file = Path(f"/proc/{self.deployment.running[command]._process.pid}/status")
        found = re.search(r"VmRSS:\s+(\d+) kB", file.read_text()) if file.exists() else None
        return int(found[1]) * 1024 / _MEGABYTE if found else 0.0

    async def findings(self) -> list[str]:
        """The lines of logs and metrics that no caller should be able to cause."""
        async with self.browser.get(f"http://{self.deployment.settings['PULSA_METRICS_LISTEN']}/metrics") as page:
            metrics = await page.text()
        assert "pulsa_rpc_requests_total" in metrics
        logs = [line for process in self.deployment.running.values() for line in process.output.splitlines()]
        wrong = [line for line in metrics.splitlines() if FORBIDDEN.search(line) or _NEVER.search(line)]
        return wrong + [line for line in logs if _is_wrong(line)]


def _is_wrong(line: str) -> bool:
    """Whether a line of the log is an error, or contains a text that may not be logged."""
    try:
        entry: dict[str, Any] = json.loads(line)
    except ValueError:
        return True  # not from the server's log: a library has printed it
    for name in _IDS:
        entry.pop(name, None)
    # asyncio also logs the task of the accept loop that has ended.
    expected = entry["event"] in EXPECTED or "_server_main_loop" in line
    wrong = entry["level"] in {"error", "critical"} and not expected
    return wrong or FORBIDDEN.search(json.dumps(entry, ensure_ascii=False)) is not None


@asynccontextmanager
async def open_environment(database_url: str, folder: Path) -> AsyncIterator[FuzzEnvironment]:
    """Run the deployment, without the limits that would refuse most generated messages early."""
    async with providers() as url, aiohttp.ClientSession() as browser:
        changes = {
            "PULSA_METRICS_LISTEN": f"127.0.0.1:{free_ports(1)[0]}",
            "PULSA_LIMIT_COOLDOWN_SECONDS": "0",
            "PULSA_LIMIT_SENDS_PER_DESTINATION_PER_HOUR": "0",
            "PULSA_LIMIT_SENDS_PER_DESTINATION_PER_DAY": "0",
            "PULSA_LIMIT_UNVERIFIED_CREDITS_PER_COUNTRY": "0",
            "PULSA_DELIVERY_LEASE_SECONDS": "60",
            "PULSA_CHANNEL_WHATSAPP": "whatsapp",
            "PULSA_WHATSAPP_PHONE_NUMBER_ID": "1234",
            "PULSA_WHATSAPP_ACCESS_TOKEN": "meta-token",
            "PULSA_WHATSAPP_TEMPLATE_NAME": "otp",
            "PULSA_WHATSAPP_BASE_URL": url,
            "PULSA_CHANNEL_SMS": "twilio",
            "PULSA_TWILIO_ACCOUNT_SID": "AC1234",
            "PULSA_TWILIO_AUTH_TOKEN": "twilio-token",
            "PULSA_TWILIO_SENDER": "+15550001111",
            "PULSA_TWILIO_BASE_URL": url,
        }
        async with deployed_processes(database_url, folder, **changes) as deployment:
            await start_sidecar(deployment)
            yield FuzzEnvironment(deployment, browser)


@asynccontextmanager
async def providers() -> AsyncIterator[str]:
    """The base URL of the stand-in for Twilio and WhatsApp."""
    sandbox = ProvidersSandbox()
    runner = web.AppRunner(sandbox.application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
